"""Checkpoints: whole or not there, whatever happens meanwhile, and known when they are damaged."""

import json
import os
import pickle
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from transfer import NoSpace, UserError, checkpoints
from transfer.checkpoints import Checkpoints

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def state(step: int, size: int = 1000) -> dict:
    return {"version": 1, "step": step, "G": {"weight": torch.full((size,), float(step))}}


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def names(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def test_the_newest_two_the_best_and_every_5000th_are_kept(run):
    kept = Checkpoints(run)
    for step in (1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000):
        kept.save(step, state(step), best=step in (2000, 3000))
    assert names(run) == ["003000.pt", "005000.pt", "007000.pt", "008000.pt", "manifest.json"]
    listed = kept.listed()
    assert [name for name, entry in listed.items() if entry.get("best")] == ["003000.pt"]
    assert all(checkpoints.sha256(run / "checkpoints" / name) == listed[name]["sha256"] for name in listed)


def test_the_newest_the_best_or_the_given_checkpoint_is_found(run):
    kept = Checkpoints(run)
    with pytest.raises(UserError, match=r"no score was made .* leave --best out"):
        kept.save(1, state(1)), checkpoints.find(run, best=True)
    kept.save(2, state(2), best=True), kept.save(3, state(3))
    assert checkpoints.find(run)[1]["step"] == 3
    path, found = checkpoints.find(run, best=True)
    assert found["step"] == 2 and path == run / "checkpoints" / "000002.pt"
    assert checkpoints.find(path)[1]["step"] == 2
    with pytest.raises(UserError, match="is a file: --best wants a run's folder"):
        checkpoints.find(path, best=True)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="the best checkpoint, is missing or damaged"):
        checkpoints.find(run, best=True)
    with pytest.raises(UserError, match=r"000003.pt is not a run's checkpoint"):
        checkpoints.of_run(run)
    with pytest.raises(UserError, match="is a model's file, and no run"):
        checkpoints.of_run(Path("a.safetensors"))


def test_a_file_that_the_manifest_does_not_list_is_never_rotated_away(run):
    torch.save(state(7), run / "checkpoints" / "000007.pt")
    kept = Checkpoints(run)
    for step in (10, 20, 30, 40):
        kept.save(step, state(step))
    assert names(run) == ["000007.pt", "000030.pt", "000040.pt", "manifest.json"]


def test_the_order_is_write_sync_replace_sync_verify_list_and_only_then_rotate(run, monkeypatch):
    kept, done = Checkpoints(run), []
    for step in (1, 2):
        kept.save(step, state(step))

    def spy(module, name):
        real = getattr(module, name)

        def call(*arguments, **options):
            what = arguments[0]
            what = Path(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else Path(what)
            done.append((name, what.name.rpartition(".")[0] if what.name.startswith(".") else what.name))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    spy(os, "fsync"), spy(os, "replace"), spy(checkpoints, "sha256")
    unlink = Path.unlink
    monkeypatch.setattr(
        Path,
        "unlink",
        lambda path, **options: (done.append(("unlink", path.name)), unlink(path, **options)),
    )
    kept.save(3, state(3))
    done = [entry for entry in done if not (entry[0] == "unlink" and entry[1].startswith("."))]
    assert done == [
        ("fsync", ".000003.pt"),
        ("replace", ".000003.pt"),
        ("fsync", "checkpoints"),
        ("sha256", "000003.pt"),
        ("fsync", ".manifest.json"),
        ("replace", ".manifest.json"),
        ("fsync", "checkpoints"),
        ("unlink", "000001.pt"),
        ("fsync", ".manifest.json"),
        ("replace", ".manifest.json"),
        ("fsync", "checkpoints"),
    ]


@needs_fork
def test_200_kills_at_random_moments_of_saving_leave_200_readable_checkpoints(run):
    """Each child saves for ever and is killed after 0 to 12 ms; what it leaves is whole."""
    kept, draw, unfinished, step = Checkpoints(run), random.Random(0), 0, 1
    kept.save(step, state(step, 50_000))
    for _ in range(200):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, b"!")
            while True:
                step += 1
                kept.save(step, state(step, 50_000))
        os.read(read, 1)  # it has begun
        os.close(read), os.close(write)
        time.sleep(draw.uniform(0, 0.012))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unfinished += any(name.startswith(".") for name in names(run))
        path, content = kept.newest()
        assert content["step"] >= step and torch.equal(
            content["G"]["weight"], torch.full((50_000,), float(path.stem))
        )
        step = content["step"]
        kept.remove_unfinished()
        assert not any(name.startswith(".") for name in names(run))
    assert unfinished > 5, "the kills did not fall into saving"


@pytest.mark.parametrize("listed", [True, False])
def test_200_flipped_bits_are_200_damages_found(listed, run):
    kept = Checkpoints(run)
    kept.save(1, state(1)), kept.save(2, state(2))
    if not listed:
        (run / "checkpoints" / "manifest.json").unlink()
    path, draw, found = run / "checkpoints" / "000002.pt", random.Random(0), 0
    whole = path.read_bytes()
    start, end = whole.index(torch.full((4,), 2.0).numpy().tobytes()), len(whole)
    for _ in range(200):
        damaged = bytearray(whole)
        # Without the manifest only what the zip's checksums cover is known: the tensors.
        at = draw.randrange(len(whole)) if listed else draw.randrange(start, min(start + 4000, end))
        damaged[at] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        found += kept.newest()[0].name == "000001.pt"
    assert found == 200
    path.write_bytes(whole)
    assert kept.newest()[0] == path


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99, 0.9999])
@pytest.mark.parametrize("manifest", ["whole", "missing", "garbled", "a list"])
def test_a_cut_off_checkpoint_is_passed_over_by_name(share, manifest, run, capsys):
    kept = Checkpoints(run)
    kept.save(1, state(1)), kept.save(2, state(2))
    listing = run / "checkpoints" / "manifest.json"
    if manifest == "missing":
        listing.unlink()
    elif manifest != "whole":
        listing.write_text({"garbled": '{"00', "a list": "[1, 2]"}[manifest])
    path = run / "checkpoints" / "000002.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert kept.newest()[1]["step"] == 1
    assert f"{path} is" in capsys.readouterr().out
    (run / "checkpoints" / "000001.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(000002.pt, 000001.pt\)"):
        kept.newest()


class Touch:
    """What a hostile file would have unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "module"])
def test_nothing_in_a_file_is_ever_run(kind, tmp_path):
    path, proof = tmp_path / "1.pt", tmp_path / "proof"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Touch(proof)))
    else:
        torch.save({"G": Touch(proof)} if kind == "torch" else torch.nn.Linear(2, 2), path)
    with pytest.raises(UserError) as refusal:
        checkpoints.load(path)
    assert not proof.exists() and "\n" not in str(refusal.value)
    assert "weights_only" not in str(refusal.value), "torch's own advice is to switch the protection off"
    if kind != "pickle":
        assert "state_dict()" in str(refusal.value)


def test_a_later_version_is_refused_and_an_old_torch_too(tmp_path, monkeypatch):
    torch.save({"version": checkpoints.VERSION + 1}, tmp_path / "1.pt")
    with pytest.raises(UserError, match="later version"):
        checkpoints.load(tmp_path / "1.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(UserError, match=r"install torch>=2\.10"):
        checkpoints.load(tmp_path / "1.pt")


def test_the_prefix_of_data_parallel_is_taken_away(tmp_path):
    torch.save({"G": {"module.conv1.weight": torch.ones(1)}}, tmp_path / "1.pt")
    assert checkpoints.load(tmp_path / "1.pt")["G"].keys() == {"conv1.weight"}


@needs_fork
def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(run):
    """A child may write files of 20 kB at most; its second checkpoint is larger."""
    child = os.fork()
    if child == 0:
        import resource

        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            kept = Checkpoints(run)
            kept.save(1, state(1))
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            kept.save(2, state(2, 100_000))
        except NoSpace as error:
            (run / "said").write_text(str(error))
            code = error.code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (
        "000002.pt cannot be written" in (run / "said").read_text()
        and "MB are free" in (run / "said").read_text()
    )
    assert names(run) == ["000001.pt", "manifest.json"]
    assert Checkpoints(run).newest()[1]["step"] == 1


def test_a_disk_that_keeps_something_else_is_noticed_before_anything_is_removed(run, monkeypatch):
    kept = Checkpoints(run)
    kept.save(1, state(1)), kept.save(2, state(2))
    monkeypatch.setattr(checkpoints, "sha256", lambda path: "0" * 64)
    with pytest.raises(NoSpace, match="does not hold what was written"):
        kept.save(3, state(3))
    assert {"000001.pt", "000002.pt"} <= set(names(run))
    assert "000003.pt" not in json.loads((run / "checkpoints" / "manifest.json").read_text())


def test_room_is_asked_for_where_there_is_none_and_a_removed_folder_where_it_is_gone(tmp_path, monkeypatch):
    with pytest.raises(NoSpace, match="put back its folder, which was removed") as refusal:
        checkpoints.write(tmp_path / "gone" / "000001.pt", lambda handle: handle.write(b""))
    assert "make room" not in str(refusal.value)

    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(NoSpace, match=r"No space left on device, .*make room"):
        checkpoints.write(tmp_path / "000001.pt", full)

    def closed(_):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(NoSpace, match="look after its permissions"):
        checkpoints.write(tmp_path / "000001.pt", closed)
