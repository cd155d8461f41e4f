"""The benchmarks compare what is equal, and see what is not."""

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import wgan_64
import wgan_64_finetune
from benchmarks import device, gpu, page, start, step, time_to
from benchmarks.timing import gradients, iteration_of, ratios, synthetic, turns
from transfer import UserError, engine, winograd
from transfer.engine import PAYS_FROM
from transfer.shared import share
from transfer.weights import Clip


@pytest.fixture(autouse=True)
def few_products_uncompiled(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(engine, "_compiles", lambda: True)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.parametrize("name", step.SCRIPTS)
def test_the_scripts_iteration_is_the_textbooks(name):
    found = step.gate(name, synthetic(8), width=4, batch=4)
    assert found["apart_float64"] < 1e-9


@pytest.mark.parametrize("name", step.SCRIPTS)
def test_another_iteration_is_not_timed(monkeypatch, name):
    right = step.textbook.critic

    def wrong(*args, **kwargs):
        network = right(*args, **kwargs)
        network[1].negative_slope = 0.1
        return network

    monkeypatch.setattr(step.textbook, "critic", wrong)
    with pytest.raises(SystemExit, match="was not timed"):
        step.gate(name, synthetic(8), width=4, batch=4)


def test_the_second_reference_is_the_same_loop_in_bf16_and_compiled(monkeypatch):
    compiled, both = [], []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network) or network)
    for quick in (False, True):
        torch.manual_seed(0)
        G, D = step.textbook.generator(4, 8), step.textbook.critic(8)
        step.textbook.loop(synthetic(8), G, D, 1e-30, None, 4, quick)()
        both.append(torch.cat([gradients(G), gradients(D)]))
    assert compiled == [G, D]
    assert 1e-4 < (both[1] - both[0]).norm() / both[0].norm() < 0.2


class Same(step.Doubles):
    """Images whose batches are always the same, so that the order of random numbers does not matter."""

    def draw(self, n):
        return torch.arange(n)


@pytest.mark.parametrize("penalty", [None, 10.0], ids=["wgan", "wgan_gp"])
def test_a_transfer_that_fine_tunes_every_layer_is_the_textbooks_iteration_too(penalty, tmp_path):
    """The other transfers have the same loop, and the regularised one the same results."""
    noise = synthetic(8)
    images, path = Same(noise.pixels, noise.names, {}, ""), tmp_path / "source.safetensors"
    torch.manual_seed(0)
    G, D = wgan_64.Generator(4, 4), wgan_64.Discriminator(4, norm=penalty is None)
    Clip(D, 0.01)()
    if penalty is None:
        torch.nn.init.ones_(D.norm2.weight)  # for the clip to bring in
    share(path, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {})
    torch.set_default_dtype(torch.float64)
    try:
        settings = wgan_64_finetune.Settings(
            source=path, batch_size=4, augment="none", learning_rate=1e-30, iterations=PAYS_FROM, device="cpu"
        )
        ours, parts = iteration_of(wgan_64_finetune, settings, images)
        theirs = {"G": step.textbook.generator(4, 4), "D": step.textbook.critic(4, norm=penalty is None)}
        for network, own in ((theirs["G"], G), (theirs["D"], D)):
            network.load_state_dict(dict(zip(network.state_dict(), own.state_dict().values(), strict=True)))
        for iteration in (ours, step.textbook.loop(images, *theirs.values(), 1e-30, penalty, 4)):
            torch.manual_seed(1)
            iteration()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, network in theirs.items():
        mine, its = gradients(parts[name]), gradients(network)
        assert (mine - its).norm() < 1e-9 * its.norm()


def test_the_sides_take_turns_and_the_first_turn_does_not_count():
    order, clock = [], iter(range(100))
    times = turns([lambda: order.append("a"), lambda: order.append("b")], 2, lambda: next(clock))
    assert order == list("ababab") and times == [[1000, 1000], [1000, 1000]]
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"ratio": 2.0, "min": 1.0, "max": 3.0}


def test_the_performance_page_is_what_the_results_say():
    assert page.PAGE.read_text() == page.page()
    assert "| `wgan_64.py` |" in page.measured() and "| 200,000 |" in page.measured()


# ----------------------------------------------------------------------------------------------------------
# A GPU's first minutes, rehearsed.

AT = gpu.Bench(torch.device("cpu"), width=4, batch=4, seconds=0.0)
OF = {gpu.ALL: gpu.checks_of(gpu.ALL), "wgan_64": gpu.checks_of("wgan_64")}
OF[gpu.TRANSFER] = (gpu.resumed, gpu.shared)
QUICK = [(of, check) for of, checks in OF.items() for check in checks if check is not gpu.together]


@pytest.mark.parametrize("of, check", QUICK, ids=lambda each: getattr(each, "__name__", each))
def test_each_check_of_a_gpu_can_be_rehearsed(of, check):
    lines, whole = gpu.lines_of(AT, of, check)
    assert whole and lines and all(line["ok"] for line in lines)
    json.dumps(lines)
    assert all(gpu.sentence(of, check.__name__, line).count(": right") == 1 for line in lines)


def test_every_script_is_checked():
    assert {"wgan_64_scale_shift", "methods.minegan", "methods.projected_critic"} < set(gpu.SCRIPTS)
    for of in gpu.SCRIPTS:
        assert {gpu.as_on_the_cpu, gpu.in_bf16, gpu.as_one_graph} <= set(gpu.checks_of(of)) <= set(gpu.CHECKS)


def test_another_iteration_on_the_gpu_is_found(monkeypatch):
    """Here the device is the CPU as well, with a mistake in its second turn."""
    turns, critic = [], wgan_64.Discriminator.forward

    def wrong(self, x):
        return critic(self, x) * (1 if len(turns) < 2 else 1.1)

    train = gpu.Bench.train
    monkeypatch.setattr(gpu.Bench, "train", lambda *args, **more: (turns.append(0), train(*args, **more))[1])
    monkeypatch.setattr(wgan_64.Discriminator, "forward", wrong)
    (line,) = gpu.as_on_the_cpu(AT, "wgan_64")
    assert line["ok"] is False and line["apart"] > 0.05
    assert "; --device cpu leaves it out" in gpu.sentence("wgan_64", "x", line | {"avoid": "--device cpu"})


def test_random_numbers_are_the_cpus_on_every_device():
    torch.manual_seed(0)
    expected = torch.randn(3), torch.rand(2), torch.randint(9, (4,)), torch.empty(5).normal_(1, 2)
    torch.manual_seed(0)
    with device.SameNumbers():
        there = torch.rand(2, device="meta")
        assert there.device.type == "meta", "where it was asked for"
        torch.manual_seed(0)
        found = torch.randn(3, device="cpu"), torch.rand(2), torch.randint(9, (4,), device="cpu")
        found += (torch.empty(5).normal_(1, 2),)
    assert all(map(torch.equal, expected, found))


def test_a_check_that_fails_or_brings_its_process_down_leaves_the_others(monkeypatch):
    """A stand-in for the process: it ends as its first check's name says."""
    program = """
import json, os, sys, time
names = sys.argv[sys.argv.index("--checks") + 1 :]
for name in names:
    if name == "crash":
        print("driver fault", file=sys.stderr, flush=True)
        os.abort()
    if name == "hang":
        time.sleep(60)
    print(json.dumps({"check": name, "lines": [{"ok": name != "wrong"}]}), flush=True)
    if name == "wrong":
        break
"""
    command, names = [sys.executable, "-c", program], ["one", "crash", "wrong", "two", "hang", "three"]
    began = time.monotonic()
    told = dict(gpu.found(command, names, began + 6))
    assert list(told) == names and time.monotonic() - began < 30
    ends = [told[name][0]["ok"] for name in names]
    assert ends[:4] == [True, False, False, True] and ends[4] is None
    assert (
        told["crash"][0]["why"].endswith("driver fault") and told["hang"][0]["why"] == "the minutes are over"
    )


def test_without_a_gpu_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA GPU was found: give --device cpu"):
        gpu.main(gpu.Settings())


def test_what_a_gpu_gave_is_a_part_of_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.jsonl")
    assert "none has been measured" in page.gpu()
    same = {"benchmark": "gpu", "hardware": "Card 9000", "torch": "2", "python": "3"}
    found = [
        {"of": gpu.ALL, "check": "card", "ok": True, "card": "Card 9000", "memory_gb": 80.0, "driver": "5",
         "cuda": "13", "cudnn": 9, "float32_tflops": 60.0, "bf16_tflops": 790.0},
        {"of": "wgan_64", "check": "in_bf16", "ok": False, "apart": 0.5, "bound": 0.3, "avoid": "--no-fast"},
        {"of": "wgan_64", "check": "resumed", "ok": None, "why": "the minutes are over"},
        {"of": "wgan_64", "check": "speed", "ok": True, "part": "batch 64", "batch": 64, "textbook_ms": 6.0,
         "plain_ms": 4.0, "ms": 2.0, "share": 0.33, "peak_mb": 900.0, "seconds_20000": 40.0},
        {"of": "wgan_64", "check": "together", "ok": True, "part": "2 at once", "runs": 2, "a_second": 800.0},
    ]  # fmt: skip
    Path(page.RESULTS).write_text("".join(json.dumps(same | line) + "\n" for line in found))
    text = page.gpu()
    assert (
        "| Card 9000 | 80 |" in text and "too far apart (`--no-fast` leaves it out) | 5e-01 | 0.3 |" in text
    )
    assert "| 64 | 6.00 | 4.00 | 2.00 | 3.0 | 0.33 | 900 | 40 |" in text and "| 2 | Card 9000 | 800 |" in text
    assert "not looked at" in text


# ----------------------------------------------------------------------------------------------------------
# Minutes to a KID.


def test_the_clock_stands_still_while_a_run_is_judged(monkeypatch, faces, source, tmp_path):
    """And the run ends at the target."""
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(time_to, "time", SimpleNamespace(perf_counter=clock, process_time=clock))
    monkeypatch.setattr(time_to, "SCORED", 8)
    kids = iter((300.0, 150.0, 90.0, 80.0))
    settings = wgan_64_finetune.Settings(
        source=source, images=faces, out=tmp_path, batch_size=4, critic_steps=1, iterations=20, device="cpu"
    )

    def judged(pixels):
        assert pixels.shape == (time_to.SCORED, 3, 64, 64) and pixels.dtype == torch.uint8
        now[0] += 1000
        kid = next(kids)
        return {"one": kid, "other": kid + 20}

    found = time_to.readings(wgan_64_finetune, settings, 2, judged, 100.0)
    assert [line["step"] for line in found] == [2, 4, 6, 8]
    assert found[-1]["seconds"] < 1000 and found[-1]["processor"] < 1000
    assert all(a["seconds"] < b["seconds"] for a, b in pairwise(found))
    assert time_to.minutes(found, "one", 200) == found[1]["seconds"] / 60
    assert time_to.minutes(found, "other", 110, "processor") == found[2]["processor"] / 60
    assert time_to.minutes(found, "other", 50) is None


def test_both_references_are_a_part_of_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.jsonl")
    assert "Not measured yet" in page.references()
    line = {"benchmark": "step", "part": "references", "script": "s", "hardware": "h", "torch": "2"}
    line |= {"python": "3", "reference_ms": 2e3, "ours_ms": 1e3, "ratio": 2.0, "min": 1.9, "max": 2.1}
    lines = [line | {"reference": of, "batch": n} for n in (16, 64, 64) for of in ("plain", "quick")]
    page.RESULTS.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert page.references().count("| 2.00 | 1.00 | 2.00 (1.90 to 2.10) |") == 4, "the newest of each"


def test_minutes_to_a_kid_are_a_part_of_the_page(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results.jsonl")
    assert "Not measured yet" in page.time_to()
    readings = [{"step": 50, "one": 150.0}, {"step": 100, "one": 120.0}]
    line = {"benchmark": "time_to", "script": "s", "images": "a", "reference": "b", "seed": 0}
    line |= {"hardware": "h", "torch": "2", "python": "3", "readings": readings}
    line["minutes"] = {"one": {"200": [1.25, 0.5], "100": [None, None]}}
    Path(page.RESULTS).write_text(json.dumps(line) + "\n")
    assert "| one | 200 | 1.2 | 0.5 | 50 |" in page.time_to()
    assert "| one | 100 |  |  | beyond 100 |" in page.time_to()


def test_the_first_picture_is_waited_for_and_a_run_that_fails_is_not_timed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "time.sleep(0.3)\n"
        "grid = pathlib.Path(sys.argv[2]) / '0001' / 'samples' / '000000.png'\n"
        "grid.parent.mkdir(parents=True)\n"
        "grid.touch()\n"
        "time.sleep(0.6)\n"
        "sys.exit(sys.argv[2].endswith('fails'))\n"
    )
    began = time.perf_counter()
    found = start.first_picture([str(script)], tmp_path / "run")
    assert 0.3 < found["seconds"] < time.perf_counter() - began - 0.4 and found["peak_mb"] > 1
    with pytest.raises(SystemExit, match="status 1"):
        start.first_picture([str(script)], tmp_path / "fails")
