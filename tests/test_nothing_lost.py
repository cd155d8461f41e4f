"""Nothing lost: signals, resuming, two processes on one run, networks that are no longer finite."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.resume import equal
from tests.runs import NAMES, ROOT, tiny
from tests.stand_ins import tiny as projection
from transfer import Diverged, NoSpace, UserError, record, weights
from transfer.checkpoints import Checkpoints
from transfer.folder import Folder
from transfer.images import Images
from transfer.plan import Split
from transfer.record import Run
from transfer.signals import Signals, Stop

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Signals have their usual handlers, whatever started the tests."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ask(name: str = "SIGTERM") -> None:
    os.kill(os.getpid(), getattr(signal, name))


def told(run) -> tuple[dict, list]:
    """A run's samples and its log, without the times."""
    samples = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return samples, [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def when(monkeypatch, owner, name: str, call: int, what) -> None:
    """Have `what` happen in the middle of the call-th call of owner.name."""
    real, calls = getattr(owner, name), []

    def meddle(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            what()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, meddle)


PHASES = {  # where the signal falls: the function, its call, and the iteration that is then saved
    "training": (weights, "learning", 5, 2),
    "averaging": (weights.Average, "update", 2, 2),
    "logging": (Run, "_log", 2, 2),
    "sampling": (Run, "_draw", 3, 2),
    "saving": (torch, "save", 2, 2),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_stop_loses_nothing_wherever_it_falls_and_the_rest_is_the_same(
    phase, name, faces, source, tmp_path, monkeypatch
):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=4, save_every=1, augment="flip")
    through = script.main(settings)
    owner, function, call, step = PHASES[phase]
    owner = script if phase == "training" else owner
    with monkeypatch.context() as patch:
        when(patch, owner, function, call, lambda: ask(name))
        with pytest.raises(Stop) as stop:
            script.main(settings)
    assert stop.value.code == 128 + getattr(signal, name)
    run = tmp_path / "0002-wgan_64"
    assert Checkpoints(run).newest()[1]["step"] == step
    assert f"after iteration {step}: go on with " in stop.value.sentence
    assert stop.value.sentence.endswith(f"wgan_64.py --resume {run}")
    script.main(replace(settings, resume=run))
    assert equal(Checkpoints(through).newest()[1], Checkpoints(run).newest()[1])
    samples, logs = zip(*(told(each) for each in (through, run)), strict=True)
    assert samples[0] == samples[1] and logs[0] == logs[1]


def test_a_stop_while_scoring_is_at_once_and_the_score_is_made_up_for(faces, source, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "SCORED", 64)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=3, save_every=50)
    settings = replace(settings, score_every=1, extractor="efficientnet_lite0")
    from fid import scores

    monkeypatch.setattr(scores, "load", lambda *_, **__: projection(name="efficientnet_lite0-12"))
    with monkeypatch.context() as patch:
        when(patch, scores, "score", 3, ask)  # the first is before the first iteration
        with pytest.raises(Stop):
            script.main(settings)
    run = tmp_path / "0001-wgan_64"
    assert Checkpoints(run).newest()[1]["step"] == 2
    script.main(replace(settings, resume=run))
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    best = min(lines, key=lambda line: line["kid"])["step"]
    marked = [entry["step"] for entry in Checkpoints(run).listed().values() if entry.get("best")]
    assert marked == [best]


def test_a_stop_in_the_first_iteration_does_not_wait_for_it(faces, source, tmp_path, monkeypatch):
    script, settings = tiny("wgan_64", faces, source, tmp_path)
    when(monkeypatch, script, "learning", 3, ask)  # compiling happens there, and takes minutes
    with pytest.raises(Stop) as stop:
        script.main(settings)
    assert "nothing is lost" in stop.value.sentence
    assert not list(tmp_path.iterdir()), "no empty run stays"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("phase", ["the first sample", "the frozen layers' features"])
def test_a_stop_before_the_first_iteration_leaves_no_folder(
    phase, name, faces, source, tmp_path, monkeypatch
):
    more = {"D": Split(3, 0, 2), "augment": "none"}
    script, settings = tiny("wgan_64_freeze_layers", faces, source, tmp_path, **more)
    owner, function = {"the first sample": (Run, "_draw")}.get(phase, (Images, "at"))
    when(monkeypatch, owner, function, 1, lambda: ask(name))
    with pytest.raises(Stop) as stop:
        script.main(settings)
    assert "nothing is lost" in stop.value.sentence and not list(tmp_path.iterdir())


def test_usr1_saves_and_goes_on(faces, source, tmp_path, monkeypatch):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=3, save_every=50)
    when(monkeypatch, weights.Average, "update", 2, lambda: ask("SIGUSR1"))
    run = script.main(settings)
    assert Checkpoints(run).listed().keys() == {"000002.pt", "000003.pt"}


def test_the_second_signal_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stop), Signals() as signals:
        ask()
        assert signals.stop is signal.SIGTERM
        ask()
        raise AssertionError("the second was not heard")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Signals() as signals:
            ask("SIGHUP")
            assert signals.stop is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_exact_to_the_bit_in_all_that_is_saved(name, faces, source, tmp_path):
    script, settings = tiny(name, faces, source, tmp_path, iterations=3, augment="diffaugment")
    through = script.main(settings)
    stopped = script.main(replace(settings, iterations=1))
    script.main(replace(settings, resume=stopped))
    assert equal(Checkpoints(through).newest()[1], Checkpoints(stopped).newest()[1])
    assert told(through) == told(stopped)


def test_latest_is_the_newest_run_of_the_script(faces, source, tmp_path):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=1)
    with pytest.raises(UserError, match="holds no run"):
        script.main(replace(settings, resume=Path("latest")))
    script.main(settings)
    second = script.main(settings)
    (tmp_path / "0003-mine").mkdir()
    other, others = tiny("wgan_gp_64", faces, source, tmp_path, iterations=1)
    other.main(others)
    assert script.main(replace(settings, resume=Path("latest"), iterations=2)) == second
    description = json.loads((second / "settings.json").read_text())
    assert description["settings"]["iterations"] == 2 and description["resumed"][0]["step"] == 1


def test_what_a_killed_run_logged_beyond_its_checkpoint_comes_again_once(faces, source, tmp_path):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=2)
    run = script.main(settings)
    with open(run / "log.jsonl", "a") as log:
        log.write('{"step": 3, "wasserstein": 1.0}\n{"step": 4, "wasser')
    (run / "checkpoints" / ".000004.pt.4711").write_bytes(b"unfinished")
    script.main(replace(settings, resume=run, iterations=3))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and "images_per_second" in lines[-1]
    assert not (run / "checkpoints" / ".000004.pt.4711").exists()


def test_other_images_are_refused(faces, source, tmp_path):
    script, settings = tiny("wgan_64", faces, source, tmp_path / "out", iterations=1)
    run = script.main(settings)
    more = shutil.copytree(faces, tmp_path / "more")
    shutil.copyfile(faces / "0.png", more / "9.png")
    with pytest.raises(UserError, match="other images"):
        script.main(replace(settings, images=more, resume=run, iterations=2))


def test_a_run_in_use_is_refused_by_whom_and_free_again_after_a_kill(faces, source, tmp_path):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=1)
    run = script.main(settings)
    hold = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
    hold += "; print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(run / ".lock")], stdout=subprocess.PIPE)
    try:
        other.stdout.read(1)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=r"is in use by process \d+ on .* since \d+"):
            script.main(replace(settings, resume=run, iterations=2))
        assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    finally:
        other.kill()
        other.wait()
    assert script.main(replace(settings, resume=run, iterations=2)) == run


def test_20_simultaneous_starts_get_20_folders(tmp_path):
    at = time.time() + 0.3
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                time.sleep(max(0, at - time.time()))
                Folder.new(tmp_path / "out", "run", Path("run.py"))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert all(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 for child in children)
    assert sorted(os.listdir(tmp_path / "out")) == [f"{number:04d}-run" for number in range(1, 21)]


@pytest.mark.parametrize("network", ["G", "D"])
def test_weights_that_are_no_numbers_are_found_named_and_never_saved(
    network, faces, source, tmp_path, monkeypatch
):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=9, save_every=1)
    runs = []
    monkeypatch.setattr(script, "Run", lambda *a, **k: runs.append(Run(*a, **k)) or runs[0])

    def spoil():
        with torch.no_grad():
            next(runs[0].parts[network].parameters())[0, 0, 0, 0] = float("nan")

    when(monkeypatch, weights.Average, "update", 3, spoil)
    with pytest.raises(
        Diverged, match=rf"{network} holds weights .* at iteration 3 .*iteration 2\): .*diverged"
    ):
        script.main(settings)
    assert Diverged.code == 4
    assert Checkpoints(runs[0].folder).newest()[1]["step"] == 2


def test_a_checkpoint_is_not_saved_between_log_lines_either(faces, source, tmp_path, monkeypatch):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=9, save_every=1, log_every=5)

    class Spoils(weights.Clip):
        def __call__(self):
            with torch.no_grad():
                self._clamped[-1].fill_(float("nan"))

    monkeypatch.setattr(script, "Clip", Spoils)
    with pytest.raises(Diverged, match=r"D holds weights .* at iteration 1"):
        script.main(settings)
    assert not list((tmp_path / "0001-wgan_64" / "checkpoints").iterdir())


def test_collapse_is_a_warning_in_the_log(faces, source, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "COLLAPSE_FROM", 1)
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=2)
    run = script.main(settings)
    assert "warning" not in (run / "log.jsonl").read_text()
    monkeypatch.setattr(Run, "_draw", lambda self, n: torch.full((n, 3, 64, 64), 7, dtype=torch.uint8))
    run = script.main(settings)
    warnings = [line for line in told(run)[1] if "warning" in line]
    assert [line["step"] for line in warnings] == [1, 2] and "collapsed" in warnings[0]["warning"]


def test_a_disk_that_is_too_full_is_said_before_anything_is_written(
    faces, source, tmp_path, monkeypatch, capsys
):
    script, settings = tiny("wgan_64", faces, source, tmp_path / "out")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NoSpace, match="give another out"):
        script.main(settings)
    assert not (tmp_path / "out").exists() and NoSpace.code == 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3_000_000))
    script.main(settings)
    assert "little to spare" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["a file", "below a file", "a loop"])
def test_an_out_that_can_hold_no_run_is_refused(place, faces, source, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    out = tmp_path / {"a file": "file", "below a file": "file/out", "a loop": "loop"}[place]
    script, settings = tiny("wgan_64", faces, source, out)
    with pytest.raises(UserError, match="give another out") as refusal:
        script.main(settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root becomes nobody here")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "out").mkdir(mode=0o555)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            Folder.new(tmp_path / "out", "run", Path("run.py"))
        except UserError as error:
            code = 7 if "Permission denied" in str(error) else 8
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_memory_is_flat_over_300_iterations(faces, source, tmp_path):
    """The resident set after 300 iterations is that after 100, but for 4 MB."""
    status = "/proc/self/statm"
    if not os.path.exists(status):
        pytest.skip("needs /proc")
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=300, critic_steps=1, batch_size=2)
    seen = {}

    class Watched(Run):
        def losses(self, **losses):
            super().losses(**losses)
            with open(status) as file:
                seen[len(seen) + 1] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    script.Run, before = Watched, script.Run
    try:
        script.main(replace(settings, log_every=50, sample_every=1000, save_every=1000))
    finally:
        script.Run = before
    assert seen[300] - seen[100] < 4


def test_a_script_ends_with_one_sentence_and_the_signals_status(faces, tmp_path):
    """The whole program: SIGTERM in training, in a locale without Unicode and without a terminal."""
    words = f"--images {faces} --out {tmp_path} --iterations 100000 --batch-size 4 --width 4 --latent 4"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "wgan_64.py"), *words.split(), "--log-every", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--device", "cpu"], env=environment, **pipes)
    log = tmp_path / "0001-wgan_64" / "log.jsonl"
    while process.poll() is None and not log.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors
    step = Checkpoints(tmp_path / "0001-wgan_64").newest()[1]["step"]
    assert f"stopped by SIGTERM after iteration {step}: go on with " in out
    assert out.strip().endswith(f"wgan_64.py --resume {tmp_path / '0001-wgan_64'}")


def test_duplicates_are_counted(faces, tmp_path):
    shutil.copytree(faces, tmp_path / "faces")
    shutil.copyfile(faces / "0.png", tmp_path / "faces" / "copy.png")
    assert "9 images, 1 of them an exact copy" in str(Images.load(tmp_path / "faces"))
