"""python -m fid: what it prints and writes, and one sentence for each mistake."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fid.__main__ as cli
from fid import extractors
from tests.conftest import pretrained
from tests.runs import tiny as tiny_run
from tests.stand_ins import images, tiny, write
from transfer import UserError, shared
from transfer.__main__ import share
from transfer.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extractors, "load", lambda *_: tiny())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "GENERATED", tmp_path / "generated_image")


def run(*paths: Path, **options) -> None:
    cli.main(cli.Settings(paths, **options))


def test_a_table_or_a_line_of_json_is_printed(folders, capsys):
    run(*folders, folders[1])
    table = capsys.readouterr().out
    assert "held-out" in table and "precision" in table and "KID is the number to compare" in table
    run(*folders, json=True, bootstrap=3)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["n_generated"] == 9


def test_what_is_left_out_is_said(folders, capsys):
    (folders[0] / "x.png").write_bytes(b"no image")
    run(*folders, json=True)
    out, err = capsys.readouterr()
    assert "x.png" in err and "not in an image format" in err and json.loads(out)["left_out"]


def test_statistics_are_saved_and_scored(folders, tmp_path, capsys):
    run(folders[1], save=tmp_path / "real.npz")
    assert "7 images" in capsys.readouterr().out
    run(folders[0], tmp_path / "real.npz", json=True)
    assert json.loads(capsys.readouterr().out)["n_real"] == 7
    run(folders[1], save=tmp_path / "stats", size=32)
    capsys.readouterr()
    run(folders[0], tmp_path / "stats", json=True)
    assert json.loads(capsys.readouterr().out)["resize"].startswith("centre square 32")


def test_a_runs_grids_are_not_scored_as_images(folders, tmp_path):
    grids = write(tmp_path / "0001-run" / "samples", images(3, 1, side=128)).parent
    for name in ("settings.json", "reals.png"):
        (grids / name).write_text("{}")
    for given in (grids, grids / "samples"):
        with pytest.raises(UserError, match=f"--model {grids}"):
            run(given, folders[1])


def test_keep_says_at_once_where_there_is_no_room_and_what_helps(folders, source, tmp_path):
    (tmp_path / "generated_image").mkdir()
    (tmp_path / "generated_image" / "mine.png").write_text("mine")
    with pytest.raises(UserError, match=r"generated_image is not empty.*move what is in it"):
        run(folders[1], model=source, count=6, keep=True)
    (tmp_path / "generated_image" / "mine.png").rename(tmp_path / "mine.png")
    run(folders[1], model=source, count=6, keep=True, nearest=None)


def test_a_model_is_scored_from_memory_or_kept(folders, source, tmp_path, capsys):
    run(folders[1], model=source, count=6, json=True, nearest=None)
    found = json.loads(capsys.readouterr().out)
    assert found["n_generated"] == 6 and not (tmp_path / "generated_image").exists()
    run(folders[1], model=source, count=6, json=True, keep=True, nearest=None)
    assert json.loads(capsys.readouterr().out) == found
    assert len(json.loads((tmp_path / "generated_image" / ".generated").read_text())) == 6
    assert not (tmp_path / "nearest_pairs.png").exists()
    run(tmp_path / "generated_image", folders[1], size=64, json=True)
    again = json.loads(capsys.readouterr().out)
    assert again["fid"] == pytest.approx(found["fid"], rel=1e-6)
    assert (tmp_path / "nearest_pairs.png").exists() and "nearest_pairs.png" in again["notes"][-1]


def test_the_best_checkpoint_of_a_run_is_scored(folders, tmp_path, capsys):
    G, D = (network.state_dict() for network in pretrained())
    kept = Checkpoints(tmp_path / "run")
    kept.folder.mkdir(parents=True)
    for step in (1, 2):
        kept.save(step, {"version": 1, "ema": {k: step * t for k, t in G.items()}, "D": D}, best=step == 1)
    found = []
    for model, best in (
        (tmp_path / "run", False),
        (tmp_path / "run", True),
        (kept.folder / "000001.pt", False),
    ):
        run(folders[1], model=model, best=best, count=4, json=True, nearest=None)
        found.append(json.loads(capsys.readouterr().out)["fid"])
    assert found[0] != found[1] == found[2]


def test_what_a_run_set_aside_is_told_from_what_it_trained_on(folders, source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extractors, "load", lambda *_: tiny(name="tiny-12-bilinear-8"))
    own, (other, another) = write(tmp_path / "own", images(12)), folders
    (own / "notes.txt").write_text("no image")
    script, settings = tiny_run("wgan_64_finetune", own, source, tmp_path / "out", iterations=1)
    held = script.main(replace(settings, hold_out=0.25))
    share(held, tmp_path / "held.safetensors")

    def scored(*paths, model=held):
        capsys.readouterr()
        run(*paths, model=model, count=4, json=True, nearest=None)
        out, err = capsys.readouterr()
        found = json.loads(out)
        return found["n_real"], (found["heldout"] or {}).get("n_real"), "other images than the run had" in err

    assert scored(own) == scored(own, model=tmp_path / "held.safetensors") == (9, 3, False)
    assert scored(own, other) == (9, 9, False), "the reference that is given counts"
    assert scored(another) == (7, None, True)
    assert scored(own, model=script.main(settings)) == (12, None, False)
    with pytest.raises(UserError, match="known at 64 x 64 pixels only: leave --size out"):
        run(own, model=held, count=4, size=32)


def test_the_card_of_a_model_says_what_its_critic_saw_through(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extractors, "load", lambda *_: tiny(name="tiny-12-bilinear-8"))
    G, D = pretrained()
    networks = {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}
    for features, noted in (("tiny", True), ("other", False)):
        shared.share(tmp_path / f"{features}.safetensors", networks, {"settings": {"features": features}})
        run(folders[1], model=tmp_path / f"{features}.safetensors", count=4, json=True)
        notes = json.loads(capsys.readouterr().out)["notes"]
        assert any("critic saw through tiny" in note for note in notes) == noted


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, {}, "0 paths given.*GENERATED REAL"),
        (1, {}, "1 path given.*GENERATED REAL"),
        (4, {}, "4 paths given"),
        (3, {"model": Path("run")}, "--model RUN REAL"),
        (2, {"save": Path("a.npz")}, "IMAGES --save"),
        (2, {"keep": True}, "give --model RUN"),
        (2, {"count": 5}, "give --model RUN"),
        (2, {"best": True}, "give --model RUN"),
        (1, {"best": True, "model": Path(__file__)}, "is a file: --best wants a run's folder"),
        (1, {"model": Path("run"), "count": 1}, "count is 1: give at least 2"),
        (2, {"size": 0}, "size is 0"),
        (2, {"bootstrap": -1}, "bootstrap is -1"),
        (2, {"seed": -1}, "seed is -1"),
        (2, {}, "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(count, options, message):
    with pytest.raises(UserError, match=message) as error:
        run(*[Path("nowhere")] * count, **options)
    assert "\n" not in str(error.value)


def test_mistakes_end_the_program_with_exit_code_2_before_torch_is_loaded(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "fid", "only-one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("python -m fid: 1 path given")
    assert not any(line.endswith(" torch") for line in done.stderr.splitlines())
