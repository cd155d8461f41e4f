"""A share of the images that is held out: never trained on, scored against, the same when a run goes on."""

import importlib
import json
import shutil
from dataclasses import replace

import pytest
import torch

import fid
from experiments.resume import equal
from tests.conftest import LATENT, WIDTH
from tests.runs import TINY, tiny
from tests.stand_ins import images as drawn
from tests.stand_ins import tiny as projection
from tests.stand_ins import write
from tests.test_settings import SCRIPTS
from transfer import UserError, record
from transfer.checkpoints import Checkpoints
from transfer.images import Images
from transfer.settings import check

OWN = {
    "methods.mind2mind": {"autoencoder": 1, "hidden": 8},
    "methods.projected_critic": {"stretch": 64, "channels": 8},
    "methods.several_targets": {"stretch": 64, "channels": 8},
}


@pytest.fixture
def folder(tmp_path):
    """Twelve images; the last is an exact copy of the first."""
    pixels = drawn(11)
    return write(tmp_path / "images", torch.cat([pixels, pixels[:1]]))


@pytest.fixture
def scored(monkeypatch, tmp_path):
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "SCORED", 8)
    monkeypatch.setattr("fid.scores.load", lambda *_, **__: projection(name="tiny-12-bilinear-8"))


def contents(pixels):
    return {each.numpy().tobytes() for each in pixels}


def described(run):
    return json.loads((run / "settings.json").read_text(encoding="utf-8"))


def scores(run):
    return [json.loads(line) for line in (run / "scores.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_trains_on_what_is_held_out(name, folder, source, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(name)
    fields = script.Settings.__dataclass_fields__
    given = TINY | {
        "iterations": 4,
        "source": source,
        "latent": LATENT,
        "width": WIDTH,
        "images": folder,
        "out": tmp_path,
    }
    given = {key: value for key, value in given.items() if key in fields} | OWN.get(name, {})
    at, seen = Images.at, set()

    def noted(self, places):
        seen.update(contents(self.pixels[places]))
        return at(self, places)

    monkeypatch.setattr(Images, "at", noted)
    run = script.main(script.Settings(**given, hold_out=0.25))
    aside = Images.load(folder).hold_out(0.25, 0).held_out
    assert seen and not seen & contents(aside.pixels)
    assert described(run)["held_out"] == list(aside.names) and described(run)["images"]["count"] == 9
    assert capsys.readouterr().out.startswith("9 images, 1 of them an exact copy of another, 3 set aside in ")


@pytest.mark.parametrize("name", ["wgan_64_finetune", "methods.wgan_64_regularised"])
def test_scores_are_against_what_is_held_out_and_name_the_best_by_it(name, folder, source, tmp_path, scored):
    script, settings = tiny(name, folder, source, tmp_path, hold_out=0.25, score_every=1)
    run = script.main(settings)
    assert [(line["n_real"], line["heldout"]["n_real"]) for line in scores(run)] == [(9, 3), (9, 3)]
    images = Images.load(folder).hold_out(0.25, 0)
    pixels = drawn(6, seed=1)
    found = fid.scorer(settings, images)(pixels)
    options = {"extractor": projection(name="tiny-12-bilinear-8"), "size": 64}
    expected = fid.score(pixels, images, images.held_out, **options)
    assert found.heldout.kid == pytest.approx(expected.heldout.kid, rel=1e-4)
    assert found.training.kid != pytest.approx(found.heldout.kid, rel=1e-2)
    best = min(scores(run), key=lambda line: line["heldout"]["kid"])["step"]
    listed = Checkpoints(run).listed()
    assert [entry["step"] for entry in listed.values() if entry.get("best")] == [best]


def test_the_same_seed_sets_the_same_images_aside_and_another_others(folder):
    images = Images.load(folder)
    state = torch.get_rng_state()
    held = [images.hold_out(0.25, seed).held_out.names for seed in (0, 0, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state), "what a run draws stays as it was"
    assert held[0] == held[1] and len(set(held)) == 3
    moved = shutil.copytree(folder, folder.with_name("moved"))
    assert Images.load(moved).hold_out(0.25, 0).held_out.names == held[0]
    assert images.hold_out(0.25, 0).fingerprint == images.fingerprint
    assert images.hold_out(0.0, 0) is images


def test_all_images_are_on_one_side_and_copies_on_the_same(folder):
    images = Images.load(folder)
    for seed in range(20):
        training = images.hold_out(0.4, seed)
        aside = training.held_out
        assert (len(training), len(aside)) == (7, 5)
        assert sorted(training.names + aside.names) == sorted(images.names)
        assert not contents(training.pixels) & contents(aside.pixels)
        assert training.copies == len(training) - len(contents(training.pixels))
        for pixels, name in zip(aside.pixels, aside.names, strict=True):
            assert torch.equal(pixels, images.pixels[images.names.index(name)])


@pytest.mark.parametrize(("n", "share"), [(9, 0.1), (3, 0.5), (1, 0.5), (100, 0.01)])
def test_fewer_than_two_are_refused(n, share):
    images = Images(drawn(n), tuple(map(str, range(n))), {}, "")
    with pytest.raises(
        UserError, match=f"hold_out {share} of {n} images sets aside [01], and scores need two"
    ):
        images.hold_out(share, 0)
    copies = Images(drawn(1).expand(8, -1, -1, -1), tuple("abcdefgh"), {}, "")
    with pytest.raises(UserError, match=r"sets aside 0, .* more images that differ"):
        copies.hold_out(0.5, 0)
    assert len(Images(drawn(4), tuple("abcd"), {}, "").hold_out(0.5, 0).held_out) == 2


@pytest.mark.parametrize("name", ["wgan_64", "wgan_64_finetune"])
def test_a_run_goes_on_with_the_same_images_held_out(name, folder, source, tmp_path, scored):
    script, settings = tiny(
        name, folder, source, tmp_path / "out", hold_out=0.25, iterations=4, score_every=2
    )
    through = script.main(settings)
    stopped = script.main(replace(settings, iterations=2))
    moved = folder.rename(folder.with_name("moved"))
    script.main(replace(settings, images=moved, resume=stopped))
    assert equal(*(Checkpoints(run).newest()[1] for run in (through, stopped)))
    assert scores(through) == scores(stopped)
    assert described(through)["held_out"] == described(stopped)["held_out"]
    for other in (0.0, 0.5):
        with pytest.raises(UserError, match=r"was started with --hold-out 0.25, and that cannot change"):
            script.main(replace(settings, images=moved, resume=stopped, hold_out=other))


def test_a_run_from_before_goes_on_without(folder, source, tmp_path):
    script, settings = tiny("wgan_64_finetune", folder, source, tmp_path, iterations=1)
    run = script.main(settings)
    _, state = Checkpoints(run).newest()
    del state["settings"]["hold_out"]
    Checkpoints(run).save(1, state)
    with pytest.raises(UserError, match=r"was started with --hold-out 0\.0,"):
        script.main(replace(settings, resume=run, iterations=2, hold_out=0.25))
    script.main(replace(settings, resume=run, iterations=2))
    assert Checkpoints(run).newest()[1]["step"] == 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_reference_as_well_is_refused(name, folder):
    script = importlib.import_module(name)
    settings = script.Settings(images=folder, hold_out=0.2, reference=folder)
    with pytest.raises(UserError, match=r"hold_out 0.2 and reference .* leave one of them out"):
        script.main(settings)
    check(replace(settings, hold_out=0.0))
    check(replace(settings, hold_out=0.5, reference=None))
    for wrong in (-0.1, 0.51, 1.0, float("nan")):
        with pytest.raises(UserError, match=r"hold_out is .*: give a number from 0 to 0.5"):
            check(replace(settings, hold_out=wrong, reference=None))
