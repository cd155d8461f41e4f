"""Work lost: what a run will need is opened before it begins, and what fails in it costs no training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fid.scores
from experiments.resume import equal
from fid import statistics
from fid.metrics import Gaussian
from tests import stand_ins
from tests.runs import tiny
from tests.test_nothing_lost import told, when
from transfer import UserError, record, weights
from transfer.checkpoints import Checkpoints
from transfer.record import Run, measure, merit

EXTRACTOR = stand_ins.tiny(name="tiny-12-bilinear-8")


@pytest.fixture
def scored(faces, source, tmp_path, monkeypatch):
    """A script and settings whose scores take a blink."""
    monkeypatch.setattr(record, "SCORED", 64)
    monkeypatch.setattr(fid.scores, "load", lambda name, device: EXTRACTOR)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    return tiny("wgan_64_finetune", faces, source, out, iterations=3, score_every=1, save_every=50)


def steps(run, name="scores"):
    return [json.loads(line)["step"] for line in (run / f"{name}.jsonl").read_text().splitlines()]


def best(run):
    return [entry["step"] for entry in Checkpoints(run).listed().values() if entry.get("best")]


def statistics_of(path, extractor=EXTRACTOR, size=64):
    values = torch.randn(50, extractor.dimension, dtype=torch.double)
    statistics.save(path, Gaussian.of(values), extractor, size)
    return path


@pytest.mark.parametrize(
    "what", ["missing", "one image", "no image", "another extractor", "another size", "cut off"]
)
def test_a_reference_that_is_none_is_found_before_anything_is_written(what, scored, tmp_path):
    script, settings = scored
    reference = tmp_path / "reference"
    if what in ("one image", "no image"):
        reference.mkdir()
        Image.new("RGB", (64, 64)).save(reference / ("0.png" if what == "one image" else ".hidden.png"))
    elif what != "missing":
        other = replace(EXTRACTOR, name="another") if what == "another extractor" else EXTRACTOR
        size = None if what == "another size" else 64
        reference = statistics_of(tmp_path / "reference.npz", other, size)
        if what == "cut off":
            reference.write_bytes(reference.read_bytes()[:200])
    with pytest.raises(UserError, match=str(reference)) as refusal:
        script.main(replace(settings, reference=reference))
    assert "\n" not in str(refusal.value)
    assert not settings.out.exists()


def test_statistics_can_be_the_reference(scored, tmp_path):
    script, settings = scored
    run = script.main(replace(settings, reference=statistics_of(tmp_path / "reference.npz")))
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["heldout"]["kid"] is None
    fids = {line["step"]: line["heldout"]["fid"] for line in lines}
    assert best(run) == [min(fids, key=fids.get)]


@pytest.mark.parametrize(
    "error", [RuntimeError("the disk is gone\nand more"), UserError("no"), MemoryError()]
)
def test_a_score_that_fails_is_one_warning_and_the_training_goes_on(
    error, scored, monkeypatch, capsys, faces, source, tmp_path
):
    script, settings = scored
    unscored = script.main(replace(settings, score_every=0))
    found = fid.scores.score

    def fails(*given, **options):
        if failing:
            raise error
        return found(*given, **options)

    failing = False
    monkeypatch.setattr(fid.scores, "score", fails)
    draw = Run._draw

    def then(run, n):
        nonlocal failing
        failing = run.step in (1, 2)
        return draw(run, n)

    monkeypatch.setattr(Run, "_draw", then)
    run = script.main(settings)
    reason = str(error).partition("\n")[0] or "the memory is used up: "
    assert capsys.readouterr().out.count(f"not scored, and the training goes on: {reason}") == 1
    assert steps(run) == [3] == best(run)
    assert equal(Checkpoints(unscored).newest()[1], Checkpoints(run).newest()[1])


def test_a_checkpoint_is_there_before_a_score_is_made(scored, monkeypatch):
    script, settings = scored
    seen, score = [], Run.score
    monkeypatch.setattr(
        Run, "score", lambda run: (seen.append(run.checkpoints.newest()[1]["step"] == run.step), score(run))
    )
    script.main(settings)
    assert seen == [True] * 3


def test_at_most_a_minute_is_lost_whatever_save_every_is(faces, source, tmp_path, monkeypatch):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=5, save_every=50)
    through = script.main(settings)
    assert list(Checkpoints(through).listed()) == ["000005.pt"], "a minute has not passed"

    def fail():
        raise KeyError("in the training itself")

    with monkeypatch.context() as patch:
        now = [0.0]
        patch.setattr(record.time, "monotonic", lambda: now[0])
        log = Run._log
        patch.setattr(Run, "_log", lambda run: (now.__setitem__(0, now[0] + 31), log(run))[1])
        when(patch, weights.Average, "update", 5, fail)
        with pytest.raises(KeyError):
            script.main(settings)
    run = tmp_path / "0002-wgan_64"
    assert list(Checkpoints(run).listed()) == ["000002.pt", "000004.pt"], "every 62 seconds"
    script.main(replace(settings, resume=run))
    assert equal(Checkpoints(through).newest()[1], Checkpoints(run).newest()[1])
    assert told(through) == told(run)


@pytest.mark.parametrize("error", [RuntimeError("no picture"), OSError(28, "No space left on device")])
def test_what_fails_between_two_iterations_loses_neither(error, faces, source, tmp_path, monkeypatch):
    script, settings = tiny("wgan_64", faces, source, tmp_path, iterations=3, save_every=50)

    def fail():
        raise error

    when(monkeypatch, Image.Image, "save", 4, fail)  # after the reals and the samples of 0 and 1
    with pytest.raises((RuntimeError, UserError)):
        script.main(settings)
    assert Checkpoints(tmp_path / "0001-wgan_64").newest()[1]["step"] == 2


def test_an_animation_that_fails_ends_nothing(faces, source, tmp_path, monkeypatch, capsys):
    script, settings = tiny("wgan_64", faces, source, tmp_path)
    monkeypatch.setattr(record, "animate", lambda folder: 1 / 0)
    run = script.main(settings)
    out = capsys.readouterr().out
    assert "samples.webp cannot be made (division by zero)" in out and out.strip().endswith(str(run))


def test_scores_are_compared_with_those_that_were_measured_likewise(faces, source, tmp_path, monkeypatch):
    """Against a reference a score is another number than against the images that are trained on."""
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, iterations=4, score_every=1)
    kids = {
        1: {"kid": 0.1},
        2: {"kid": 0.3, "heldout": {"kid": 0.5}},
        3: {"kid": 0.4, "heldout": {"kid": 0.2}},
    }
    kids[4] = {"kid": 0.01, "heldout": {"kid": 0.3}}

    def score(run):
        run.files.write_line("scores", run.step, kids[run.step])

    monkeypatch.setattr(Run, "score", score)
    run = script.main(replace(settings, extractor="efficientnet_lite0"))
    assert best(run) == [3]
    assert measure({"kid": 1, "extractor": "a"}) != measure({"kid": 1, "extractor": "b"})
    assert merit({"kid": float("nan")}) == merit({"kid": None}) == np.inf
    assert merit({"kid": 1, "heldout": {"fid": 3, "kid": None}}) == 3
