"""Run folders as people leave them: pictures put in or taken out, lines cut off, output among the images."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from experiments import lines as results
from experiments import strip
from experiments.resume import equal
from tests.runs import ROOT, tiny
from transfer import NoSpace, UserError, checkpoints
from transfer.card import card_of
from transfer.checkpoints import Checkpoints
from transfer.folder import Folder, grids, lines


@pytest.fixture
def run(faces, source, tmp_path):
    """A script, settings and a run of two iterations."""
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path / "out")
    return script, settings, script.main(settings)


def frames(run):
    with Image.open(run / "samples.webp") as animation:
        return animation.n_frames


def spoil(run):
    """What people and programs put among the samples, and what a full disk does to a log."""
    samples = run / "samples"
    (samples / "000001.png").write_bytes(b"")
    (samples / "holiday.png").write_bytes((samples / "000002.png").read_bytes())
    (samples / "0_b.png").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(samples / "000000.png")
    (samples / "000007.png").mkdir()
    for name in ("log", "scores"):
        with open(run / f"{name}.jsonl", "ab") as file:
            file.write(b'7\n{}\n\0\0\0\n{"step": 2, "images_per_second": 0.0}\n{"step": 2, "warn\xff')


def test_what_others_put_into_a_run_ends_nothing(run, tmp_path):
    script, settings, folder = run
    spoil(folder)
    assert [*grids(folder)] == [2]
    assert card_of(*Checkpoints(folder).newest())["seconds"] >= 0
    script.main(replace(settings, resume=folder, iterations=3))
    assert [line["step"] for line in lines(folder, "log")] == [1, 2, 2, 3]
    assert [*grids(folder)] == [2, 3] and frames(folder) == 2
    assert (folder / "samples" / "holiday.png").exists(), "what is not the run's own stays"
    strip.main(strip.Settings(folder, tmp_path / "strip.png"))
    assert Image.open(tmp_path / "strip.png").size == (16 * 64, 2 * 64)
    with pytest.raises(UserError, match=r"no grid of iteration 1: it has \[2, 3\]"):
        strip.main(strip.Settings(folder, tmp_path / "strip.png", steps=(1,)))


def test_samples_that_were_tidied_away_end_nothing(run, tmp_path):
    script, settings, folder = run
    shutil.rmtree(folder / "samples")
    (folder / "samples.webp").unlink()
    assert not grids(folder)
    with pytest.raises(UserError, match="has no grid in samples: give another run"):
        strip.main(strip.Settings(folder, tmp_path / "strip.png"))
    script.main(replace(settings, resume=folder, iterations=3))
    assert [*grids(folder)] == [2, 3] and frames(folder) == 2, "that of 2 is made up for"


def test_a_run_that_ends_without_a_sample_has_no_animation_and_says_nothing(run, monkeypatch, capsys):
    script, settings, _ = run
    monkeypatch.setattr(f"{script.Run.__module__}.Run.sample", lambda run: None)
    capsys.readouterr()
    folder = script.main(settings)
    assert not (folder / "samples.webp").exists() and "cannot be made" not in capsys.readouterr().out


def test_samples_that_cannot_be_written_cost_no_iteration_and_leave_nothing_half_done(run):
    script, settings, folder = run
    through = script.main(replace(settings, iterations=4))
    shutil.rmtree(folder / "samples")
    (folder / "samples").write_text("mine")
    refused = r"000003.png cannot be written .*move away what is in its place; go on with .* --resume "
    with pytest.raises(NoSpace, match=refused + str(folder)):
        script.main(replace(settings, resume=folder, iterations=4, sample_every=3))
    assert Checkpoints(folder).newest()[1]["step"] == 3
    (folder / "samples").unlink()
    script.main(replace(settings, resume=folder, iterations=4))
    assert equal(Checkpoints(folder).newest()[1], Checkpoints(through).newest()[1])


@pytest.mark.parametrize("save_every", [1, 50])
def test_a_disk_that_is_full_ends_a_run_with_how_it_goes_on(save_every, run, monkeypatch):
    """Also where the checkpoint that the sentence promises is only written as the run ends."""
    script, settings, _ = run
    write = checkpoints.write

    def full(path, fill):
        if path.name == "000003.png":
            raise NoSpace(f"{path} cannot be written")
        return write(path, fill)

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(NoSpace, match=r"000003.png cannot be written; go on with .* --resume ") as ended:
        script.main(replace(settings, iterations=4, save_every=save_every))
    folder = Path(str(ended.value).split()[-1])
    assert Checkpoints(folder).newest()[1]["step"] == 3


def test_a_disk_that_is_full_at_once_leaves_no_folder(run, monkeypatch):
    script, settings, _ = run

    def full(path, fill):
        raise NoSpace(f"{path} cannot be written")

    monkeypatch.setattr(checkpoints, "write", full)
    with pytest.raises(NoSpace, match=r"settings.json cannot be written"):
        script.main(replace(settings, out=settings.out.parent / "new"))
    assert not [*(settings.out.parent / "new").iterdir()]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_what_is_printed_to_a_full_disk_ends_in_a_sentence():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "operating_file.py", "inspect", "train_images/source_domain"]
        done = subprocess.run(words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    sentence = "what this prints cannot be written (No space left on device): make room"
    assert done.stderr == f"operating_file.py: {sentence}\n" and done.returncode == 2


def test_a_grid_is_whole_or_not_there(run, monkeypatch):
    script, _, folder = run

    def full(*_):
        raise OSError(28, "No space left on device")

    before = (folder / "samples" / "000002.png").read_bytes()
    files = Folder(folder, Path(script.__file__))
    monkeypatch.setattr("transfer.checkpoints.os.replace", full)
    for name in ("samples/000002.png", "samples/000003.png"):
        with pytest.raises(NoSpace, match=r"cannot be written \(No space left .*make room"):
            files.write_picture(Image.new("RGB", (64, 64)), name)
    files.release()
    assert (folder / "samples" / "000002.png").read_bytes() == before
    assert sorted(path.name for path in (folder / "samples").iterdir())[-1] == "000002.png"


def test_a_run_never_trains_on_its_own_grids_and_says_so(faces, source, tmp_path, capsys):
    images = shutil.copytree(faces, tmp_path / "images")
    script, settings = tiny("wgan_64_finetune", images, source, images / "out")
    first = script.main(settings)
    capsys.readouterr()
    second = script.main(settings)
    name = first.relative_to(images).as_posix()
    said = f"left out: {name + '/'!r} (a run's folder, whose pictures are grids of many images)"
    assert said in capsys.readouterr().out
    script.main(replace(settings, resume=first, iterations=3))
    told = [json.loads((folder / "settings.json").read_text()) for folder in (first, second)]
    assert told[0]["images"] == told[1]["images"] and told[0]["images"]["count"] == 8


def test_a_line_of_results_that_was_cut_off_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results.jsonl")
    results.append({"table": "run"})
    assert results.read("run") == [{"table": "run"}]
    with open(results.RESULTS, "a") as file:
        file.write('{"table": "ru')
    with pytest.raises(UserError, match=r"line 2 of .* is cut off or damaged: take it out"):
        results.read("run")
