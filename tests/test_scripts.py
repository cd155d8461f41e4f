"""Each script runs; a run's folder holds what it promises; pre-training leads through transfer to samples."""

import importlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import wgan_64
import wgan_64_transferlearning
import wgan_gp_64
from benchmarks.timing import iteration_of
from tests.conftest import LATENT, WIDTH
from tests.runs import NAMES, REGULARISED, ROOT, TRANSFERS, tiny
from transfer import UserError, checkpoints, record, shared
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.folder import animate
from transfer.images import Images
from transfer.plan import Split, plan
from transfer.shared import Source


@pytest.mark.parametrize("name", NAMES)
def test_two_iterations_of_each_script(name, faces, source, tmp_path):
    script, settings = tiny(name, faces, source, tmp_path)
    run = script.main(settings)
    assert {path.name for path in run.iterdir()} == {
        "settings.json", Path(script.__file__).name, "reals.png", "log.jsonl", "samples", "samples.webp",
        "checkpoints",
        ".lock", ".owner",
    }  # fmt: skip
    assert [path.name for path in sorted((run / "samples").iterdir())] == [
        f"00000{step}.png" for step in range(3)
    ]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all({"wasserstein", "generator", "images_per_second"} < line.keys() for line in lines)
    description = json.loads((run / "settings.json").read_text())
    assert description["images"]["count"] == 8 and description["settings"]["iterations"] == 2
    assert "torch" in description["versions"]
    with Image.open(run / "samples" / "000002.png") as image:
        assert image.size == (512, 128)


@pytest.mark.parametrize("script", [*TRANSFERS, REGULARISED, "methods.minegan"])
def test_every_transfer_sets_its_critics_clip(faces, source, script):
    """Without it nothing would hold a modulated kernel in the clip."""
    module = importlib.import_module(script.removesuffix(".py"))
    with pytest.raises(UserError, match="give at least that"):
        module.main(module.Settings(source=source, images=faces, clip=1e-6, dry_run=True))


def test_the_animation_shows_the_grids_in_order(tmp_path):
    (tmp_path / "samples").mkdir()
    for step, colour in enumerate(["red", "lime", "blue"]):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "samples" / f"{step:06d}.png")
    animate(tmp_path)
    with Image.open(tmp_path / "samples.webp") as animation:
        assert animation.n_frames == 3
        for frame in range(3):
            animation.seek(frame)
            assert np.argmax(animation.convert("RGB").getpixel((8, 8))) == frame


PUBLISHED = {  # algorithm 1 of Arjovsky et al. 2017 and of Gulrajani et al. 2017
    "wgan_64": {"learning_rate": 5e-5, "clip": 0.01, "critic_steps": 5, "optimizer": "rmsprop"},
    "wgan_gp_64": {"learning_rate": 1e-4, "penalty": 10, "critic_steps": 5, "critic_norm": False},
}
MOMENTS = {"wgan_64": {"alpha": 0.99, "eps": 1e-8}, "wgan_gp_64": {"betas": (0.0, 0.9), "eps": 1e-8}}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_defaults_are_the_papers(name):
    settings = vars(importlib.import_module(name).Settings())
    same = {"batch_size": 64, "latent": 100, "width": 64, "augment": "flip", "ema_decay": 0.999}
    assert (PUBLISHED[name] | same).items() <= settings.items()


@pytest.mark.parametrize("name", MOMENTS)
def test_pre_training_has_the_optimizers_of_its_paper(name, faces):
    script = importlib.import_module(name)
    settings = script.Settings(latent=LATENT, width=WIDTH, device="cpu")
    _, parts = iteration_of(script, settings, Images.load(faces))
    for network in ("G", "D"):
        found = parts[f"optimizer_{network}"]
        assert isinstance(found, torch.optim.RMSprop if name == "wgan_64" else torch.optim.Adam)
        (group,) = found.param_groups
        expected = {**MOMENTS[name], "lr": PUBLISHED[name]["learning_rate"], "weight_decay": 0}
        assert expected.items() <= group.items()
        assert {id(each) for each in group["params"]} == {id(each) for each in parts[network].parameters()}


class Marked:
    """An augmentation that shows: real images become 7 throughout, generated ones 9."""

    name = "strong"

    def __init__(self, name):
        pass

    def real(self, x):
        return 0 * x + 7

    def fake(self, x):
        return 0 * x + 9


@pytest.mark.parametrize("name", [*NAMES, "methods.minegan"])
def test_the_critic_sees_no_image_that_is_not_augmented(name, faces, source, tmp_path, monkeypatch):
    script, settings = tiny(name, faces, source, tmp_path)
    monkeypatch.setattr(script, "Augment", Marked)
    iteration, parts = iteration_of(script, settings, Images.load(faces))
    seen = []
    parts["D"].conv1.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].flatten(1).mean(1)))
    iteration()
    steps, n = settings.critic_steps, settings.batch_size
    assert seen.count(7) == steps * n and seen.count(9) == (steps + 1) * n
    between = [float(value) for value in seen if value not in (7, 9)]
    assert len(between) == (steps * n if name == "wgan_gp_64" else 0)
    assert all(7 < value < 9 for value in between) and len(set(between)) == len(between), "each its own line"


PLANS = {
    "wgan_64_transferlearning": (Split(1, 2, 2), Split(1, 2, 2)),
    "wgan_64_finetune": (Split(0, 0, 5), Split(0, 0, 5)),
    "wgan_64_freeze_layers": (Split(3, 0, 2), Split(3, 0, 2)),
    "wgan_64_scale_shift": (Split(0, 5, 0), Split(0, 5, 0)),
    REGULARISED: (Split(1, 2, 2), Split(1, 2, 2)),
    "methods.minegan": (Split(5, 0, 0), Split(0, 0, 5)),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_transfer_has_its_plan_and_else_the_same_defaults(name):
    """Which the runs behind docs/results.md have; another default would silently be another experiment."""
    settings = vars(importlib.import_module(name).Settings())
    same = {"learning_rate": 2e-4, "clip": 0.01, "batch_size": 16, "critic_steps": 5, "ema_decay": 0.999}
    same |= {"rescale": "adafm", "frozen_norm": "source", "optimizer": "rmsprop", "augment": "diffaugment"}
    assert same.items() <= settings.items() and (settings["G"], settings["D"]) == PLANS[name]
    assert settings.get("penalty", 10) == 10 and settings.get("loss", "source") == "source"


@pytest.mark.parametrize("name", [*NAMES, "methods.minegan"])
def test_the_average_follows_the_generator_step_by_step(name, faces, source, tmp_path):
    script, settings = tiny(name, faces, source, tmp_path, save_every=1, learning_rate=0.01)
    run = script.main(settings)
    first, second = (checkpoints.load(run / "checkpoints" / f"00000{step}.pt") for step in (1, 2))
    for key, tensor in second["G"].items():
        if tensor.is_floating_point():
            expected = torch.lerp(first["ema"][key], tensor, 1 - 3 / 12)
            torch.testing.assert_close(second["ema"][key], expected, msg=key)
    assert any(not torch.equal(second["ema"][key], tensor) for key, tensor in second["G"].items())


def test_the_settings_of_every_script_have_the_same_names():
    common = {"images", "iterations", "batch_size", "critic_steps", "learning_rate", "augment", "ema_decay"}
    common |= {"seed", "device", "out", "log_every", "sample_every", "save_every", "resume", "dry_run"}
    common |= {"score_every", "reference", "hold_out", "extractor", "fast"}
    for name in NAMES:
        fields = importlib.import_module(name).Settings.__dataclass_fields__.keys()
        transfer = {"source", "G", "D", "rescale", "frozen_norm", "clip", "optimizer", "loss", "penalty"}
        terms = {"l2_sp", "distillation", "ewc", "consistency", "lecam", "adapt"}
        terms = transfer - {"loss", "penalty"} | terms
        own = {
            REGULARISED: terms,
            "wgan_64": {"latent", "width", "size", "channels", "clip", "optimizer"},
            "wgan_gp_64": {"latent", "width", "size", "channels", "penalty", "critic_norm"},
        }
        assert fields == common | own.get(name, transfer)


def test_from_pretraining_through_transfer_to_samples(faces, tmp_path):
    script, settings = tiny("wgan_64", faces, None, tmp_path / "source_domain")
    source = script.main(settings)
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path / "target_domain")
    target = script.main(replace(settings, G=Split(2, 1, 2), D=Split(2, 1, 2)))
    assert target.name == "0001-wgan_64_transferlearning-G212-D212"
    before = (source / "samples" / "000002.png").read_bytes()
    assert (target / "samples" / "000000.png").read_bytes() == before, "step 0 shows the source's own samples"
    assert (target / "samples" / "000002.png").read_bytes() != before


def test_runs_are_numbered_and_nothing_is_overwritten(faces, source, tmp_path):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=1)
    first = script.main(settings)
    content = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    second = script.main(settings)
    assert (first.name, second.name) == ("0001-wgan_64", "0002-wgan_64")
    assert content == {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}


def test_scores_are_written_as_the_run_goes_on_and_change_nothing(faces, source, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SCORED", 16)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=2)
    plain = script.main(settings)
    run = script.main(replace(settings, score_every=1, extractor="efficientnet_lite0", reference=faces))
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert (line["n_generated"], line["n_real"], line["heldout"]["n_real"]) == (16, 8, 8)
        assert line["heldout"]["fid"] == pytest.approx(line["fid"]), "the reference is the training set here"
        assert "efficientnet_lite0" in line["extractor"]
    a, b = (Checkpoints(each).newest()[1] for each in (plain, run))
    assert all(torch.equal(a["ema"][key], b["ema"][key]) for key in a["ema"])


def test_going_on_with_other_settings_is_refused(faces, source, tmp_path):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=1)
    run = script.main(settings)
    with pytest.raises(UserError, match=r"was started with --G 1 2 2, and that cannot change"):
        script.main(replace(settings, resume=run, iterations=2, G=Split(2, 1, 2)))


def test_a_policy_for_each_layer_from_training_to_drawing(faces, source, tmp_path):
    names = "finetune,singular_values,normalised_adafm,rank_one,reinitialise"
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, G=plan(names))
    run = script.main(replace(settings, D=plan("freeze,rank_one,singular_values,filter_selection,finetune")))
    assert run.name == "0001-wgan_64_transferlearning-Gtvmon-Dfovst"
    assert (
        script.main(
            replace(
                settings,
                D=plan(*json.loads((run / "settings.json").read_text())["settings"]["D"]),
                resume=run,
                iterations=3,
            )
        )
        == run
    )
    with Image.open(run / "samples" / "000003.png") as grid:
        expected = (
            torch.from_numpy(np.asarray(grid))
            .view(2, 64, 8, 64, 3)
            .permute(0, 2, 4, 1, 3)
            .reshape(16, 3, 64, 64)
        )
    drawn = draw(Source.read(run), 16, settings.seed, torch.device("cpu"))
    assert (drawn.int() - expected.int()).abs().max() <= 1, "the file alone says which policies these are"


def test_a_dry_run_prints_the_plan_and_writes_nothing(faces, source, tmp_path, capsys):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, dry_run=True)
    assert script.main(settings) is None
    out = capsys.readouterr().out
    assert "8 images" in out and "adafm" in out and "freeze" in out
    assert not list(tmp_path.iterdir())


def test_a_diverged_run_stops_with_a_sentence(faces, source, tmp_path):
    script, settings = tiny("wgan_gp_64", faces, source, tmp_path, iterations=50, learning_rate=1e30)
    with pytest.raises(UserError, match="has diverged"):
        script.main(settings)


def test_the_gradient_penalty_is_zero_where_the_slope_is_one():
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    slope = torch.randn(3 * 8 * 8)

    for length in (1.0, 3.0):
        gradient = slope / slope.norm() * length
        penalty = wgan_gp_64.gradient_penalty(lambda x, g=gradient: g.expand(len(x), -1), x, y)
        assert penalty.item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_the_gradient_penalty_critic_can_be_given_normalisation():
    plain, normed = (wgan_gp_64.Discriminator(WIDTH, norm=norm) for norm in (False, True))
    assert not any("running" in key for key in plain.state_dict())
    assert normed.state_dict().keys() == wgan_64.Discriminator(WIDTH).state_dict().keys()


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "norm"])
def penalised(request, faces, tmp_path_factory):
    """A run with a gradient penalty, its critic without and with batch normalisation."""
    out = tmp_path_factory.mktemp("penalised")
    script, settings = tiny("wgan_gp_64", faces, None, out, critic_norm=request.param, learning_rate=0.01)
    return script.main(settings)


@pytest.mark.parametrize("script", TRANSFERS)
def test_a_source_with_gradient_penalty_goes_on_with_it(script, penalised, faces, tmp_path, capsys):
    name = script.removesuffix(".py")
    script, settings = tiny(name, faces, penalised, tmp_path, learning_rate=0.01, iterations=3)
    run = script.main(settings)
    assert "WGAN-GP, on cpu" in capsys.readouterr().out.splitlines()[0]
    before = (penalised / "samples" / "000002.png").read_bytes()
    assert (run / "samples" / "000000.png").read_bytes() == before, "step 0 shows the source's own samples"
    state, start = Checkpoints(run).newest()[1], Source.read(penalised)
    kernels = max(tensor.abs().max() for key, tensor in state["D"].items() if key.endswith("weight"))
    assert kernels > settings.clip, "nothing is clipped"
    assert "exp_avg_sq" in next(iter(state["optimizers"]["optimizer_D"]["state"].values())), "Adam"
    for layer in range(1, settings.D.freeze + 1):
        assert torch.equal(state["D"][f"conv{layer}.weight"], start.discriminator[f"conv{layer}.weight"])
    stopped = script.main(replace(settings, iterations=1))
    script.main(replace(settings, resume=stopped))
    again = Checkpoints(stopped).newest()[1]
    assert all(torch.equal(tensor, again["D"][key]) for key, tensor in state["D"].items())


def test_a_loss_can_be_chosen_whatever_the_source_had(penalised, source, faces, tmp_path, capsys):
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, loss="wgan_gp", dry_run=True)
    script.main(settings)
    assert "WGAN-GP" in capsys.readouterr().out
    with pytest.raises(UserError, match="clip is 1e-06"):
        script.main(replace(settings, source=penalised, loss="wgan", clip=1e-6))


@pytest.mark.parametrize("what", ["missing", "text", "generator_only", "other"])
def test_a_source_that_is_none_is_refused_in_one_sentence(what, faces, networks, tmp_path):
    path = tmp_path / "source.safetensors"
    G, D = (network.state_dict() for network in networks)
    if what == "text":
        path.write_text("no weights")
    elif what == "generator_only":
        shared.share(path, {"G": G, "ema": G, "D": {}}, {})
    elif what == "other":
        shared.share(path, {"G": G, "ema": {"a": torch.zeros(1)}, "D": D}, {})
    settings = wgan_64_transferlearning.Settings(source=path, images=faces, out=tmp_path / "out")
    with pytest.raises(UserError) as refusal:
        wgan_64_transferlearning.main(settings)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_the_command_line_of_a_script(program, faces, source, tmp_path):
    words = f"--source {source} --images {faces} --out {tmp_path} --G 2 1 2 --iterations 1 --batch-size 4"
    command = [sys.executable, str(ROOT / "wgan_64_transferlearning.py"), *words.split(), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "0001-wgan_64_transferlearning-G212-D122"
    assert done.stdout.strip().endswith(str(run))
    with Image.open(run / "samples" / "000001.png") as image:
        assert image.size == (512, 512), "64 samples, where no test makes do with fewer"
    status, out = program(shlex.join(command), "--images", tmp_path / "no")
    assert status == 2 and out.count("\n") == 1 and "does not exist" in out
