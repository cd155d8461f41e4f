"""The methods that are no policy: what learns and what stays, their formulas, and the way to samples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import wgan_64
import wgan_64_finetune
from experiments.resume import equal
from methods import generative_latent_optimization, mind2mind, minegan
from tests.conftest import LATENT
from tests.runs import TINY
from transfer import UserError, checkpoints
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.images import grid
from transfer.plan import Split
from transfer.shared import Source

METHODS = [generative_latent_optimization, mind2mind, minegan]
OWN = {generative_latent_optimization: {}, mind2mind: {"autoencoder": 2, "hidden": 8}, minegan: {}}


@pytest.fixture
def tiny(faces, source, tmp_path):
    """A script's settings with which it takes a blink."""

    def settings(script, **more):
        fields = script.Settings.__dataclass_fields__
        small = {name: value for name, value in TINY.items() if name in fields}
        return script.Settings(
            **{"source": source, "images": faces, "out": tmp_path} | small | OWN.get(script, {}) | more
        )

    return settings


def newest(run):
    return Checkpoints(run).newest()[1]


def changed(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


@pytest.mark.parametrize("script", METHODS)
def test_resuming_is_exact_to_the_bit(script, tiny):
    settings = tiny(script, iterations=4)
    through = script.main(settings)
    stopped = script.main(replace(settings, iterations=1))
    script.main(replace(settings, resume=stopped, iterations=3))
    script.main(replace(settings, resume=stopped))
    assert equal(newest(through), newest(stopped))
    lines = [json.loads(line) for line in (through / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


@pytest.mark.parametrize("script", METHODS)
def test_a_run_is_drawn_from_as_any_other(script, tiny):
    settings = tiny(script, iterations=3)
    run = script.main(settings)
    drawn = draw(Source.read(run), 64, settings.seed, torch.device("cpu"))
    with Image.open(run / "samples" / "000003.png") as sampled:
        difference = np.asarray(sampled).astype(int) - np.asarray(grid(drawn)).astype(int)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("script", METHODS)
def test_a_dry_run_prints_the_plan_and_writes_nothing(script, tiny, tmp_path, capsys):
    assert script.main(tiny(script, dry_run=True)) is None
    out = capsys.readouterr().out
    assert "8 images" in out and "learning" in out and not list(tmp_path.iterdir())


def test_the_miner_learns_and_the_generator_stays(tiny, source):
    run = minegan.main(tiny(minegan, iterations=3, save_every=1))
    start, end = Source.read(source), newest(run)
    weights = {key for key in start.generator if "running" not in key and "num_batches" not in key}
    assert all(torch.equal(start.generator[key], end["G"][key]) for key in weights)
    first = checkpoints.load(run / "checkpoints" / "000002.pt")
    moved = changed(first["G"], end["G"])
    assert {key for key in moved if "running" not in key and "num_batches" not in key} == {
        f"mapping.{index}.{name}" for index in (0, 2) for name in ("weight", "bias")
    }
    assert any(key.startswith("conv") for key in changed(start.discriminator, end["D"]))


def test_without_its_miner_minegan_is_the_transfer(tiny, monkeypatch):
    monkeypatch.setattr(minegan, "Generator", wgan_64.Generator)
    plans = {"G": Split(1, 2, 2), "D": Split(1, 2, 2), "learning_rate": 0.01}
    ends = [newest(script.main(tiny(script, **plans))) for script in (minegan, wgan_64_finetune)]
    assert all(equal(ends[0][key], ends[1][key]) for key in ("G", "D", "ema", "optimizers", "random"))


def test_latents_and_scales_are_learnt_without_a_critic(tiny, source):
    script = generative_latent_optimization
    settings = tiny(script, iterations=12, noise=0.0)
    run = script.main(settings)
    start, end = Source.read(source), newest(run)
    assert "D" not in end
    assert all(
        torch.equal(start.generator[f"conv{i}.weight"], end["G"][f"conv{i}.weight"]) for i in range(1, 6)
    )
    assert all((end["G"][f"conv{i}.gamma"] != 1).any() for i in range(1, 6))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.mean([line["pixels"] for line in lines[-3:]]) < 0.9 * np.mean(
        [line["pixels"] for line in lines[:3]]
    )
    first = newest(script.main(replace(settings, iterations=1)))["latents"]["weight"]
    assert first.shape == (8, LATENT) and (first != end["latents"]["weight"]).all()


def test_at_step_0_latent_optimization_shows_the_sources_samples(tiny, source):
    settings = tiny(generative_latent_optimization, iterations=1, rescale="adafm")
    run = generative_latent_optimization.main(settings)
    drawn = draw(Source.read(source), 16, 0, torch.device("cpu"))
    with Image.open(run / "samples" / "000000.png") as sampled:
        assert abs(np.asarray(sampled).astype(int) - np.asarray(grid(drawn)).astype(int)).max() <= 1


def test_each_term_of_latent_optimization_changes_what_is_learnt(tiny):
    # In float32: bf16 could round the smaller terms away.
    settings = tiny(generative_latent_optimization, iterations=3, fast=False)
    whole = newest(generative_latent_optimization.main(settings))
    for term in ("perceptual", "spread", "stay", "noise"):
        without = newest(generative_latent_optimization.main(replace(settings, **{term: 0.0})))
        assert not equal(whole["G"], without["G"]), term


def test_latent_optimization_brings_the_features_of_images_together(tiny, monkeypatch):
    """Where nothing else counts, what a network sees in them comes to agree."""
    seen = []

    class Brightness:
        def maps(self, x):
            seen.append(x.mean((1, 2, 3)))
            return seen[-1:]

    script = generative_latent_optimization
    monkeypatch.setattr(script, "load", lambda *_, **__: Brightness())
    monkeypatch.setattr(script.F, "l1_loss", lambda x, y: (0 * x).sum())
    script.main(tiny(script, iterations=30, spread=0.0, stay=0.0, noise=0.0, batch_size=8))
    wanted, drawn = torch.stack(seen[::2]), torch.stack(seen[1::2])
    apart = (wanted - drawn).square().mean(1).detach()
    assert apart[-5:].mean() < 0.2 * apart[:5].mean()


def test_the_distance_of_latents_is_to_the_nearest_both_ways():
    random = np.random.default_rng(0)
    z, t = random.normal(size=(4, 3)), random.normal(size=(7, 3))
    squares = ((z[:, None] - t[None]) ** 2).mean(2)
    expected = squares.min(0).mean() + squares.min(1).mean()
    found = generative_latent_optimization.distance(torch.tensor(z), torch.tensor(t))
    assert found.item() == pytest.approx(expected)


def test_a_relative_loss_is_1_and_its_slope_the_logarithms():
    x = torch.tensor(4.0, requires_grad=True)
    loss = generative_latent_optimization.relative(x.square())
    loss.backward()
    assert loss.item() == pytest.approx(1) and x.grad.item() == pytest.approx(2 / 4)


def test_first_the_autoencoder_learns_and_then_the_codes_are(tiny):
    run = mind2mind.main(tiny(mind2mind, iterations=4, save_every=1))
    middle = checkpoints.load(run / "checkpoints" / "000003.pt")
    start = mind2mind.main(tiny(mind2mind, iterations=1))
    first, end = newest(start), newest(run)

    def parts(before, after):
        moved = changed(before["G"], after["G"])
        return {
            "mapping": any(key.startswith("mapping") for key in moved),
            "decoder": any(key.startswith("conv") for key in moved),
            "encoder": bool(changed(before["encoder"], after["encoder"])),
            "critic": bool(changed(before["D"], after["D"])),
        }

    both = mind2mind.main(tiny(mind2mind, iterations=2))
    assert parts(first, newest(both)) == {"mapping": False, "decoder": True, "encoder": True, "critic": False}
    assert parts(middle, end) == {"mapping": True, "decoder": False, "encoder": False, "critic": True}
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert ["reconstruction" in line for line in lines] == [True, True, False, False]


def test_the_autoencoder_comes_to_draw_what_it_is_shown(tiny, faces):
    run = mind2mind.main(
        tiny(mind2mind, iterations=30, autoencoder=30, source_images=faces, learning_rate=2e-3)
    )
    lines = [json.loads(line)["reconstruction"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.mean(lines[-5:]) < 0.7 * np.mean(lines[:5])


@pytest.mark.parametrize("length", [1.0, 3.0])
def test_the_penalty_on_codes_is_zero_where_the_slope_is_one(length):
    slope = torch.randn(6)
    slope = slope / slope.norm() * length
    found = mind2mind.gradient_penalty(lambda c: c @ slope, torch.randn(4, 6), torch.randn(4, 6))
    assert found.item() == pytest.approx((length - 1) ** 2, abs=1e-5)


def test_a_run_without_a_critic_is_drawn_and_is_no_source_of_a_transfer(tiny):
    settings = tiny(generative_latent_optimization, iterations=1, rescale="adafm")
    run = generative_latent_optimization.main(settings)
    assert draw(Source.read(run), 2, 0, torch.device("cpu")).shape == (2, 3, 64, 64)
    with pytest.raises(UserError, match="lacks D"):
        wgan_64_finetune.main(tiny(wgan_64_finetune, source=run))


@pytest.mark.parametrize("script", [minegan, mind2mind])
def test_what_is_mapped_first_is_no_source_of_a_transfer(script, tiny):
    run = script.main(tiny(script, iterations=1))
    with pytest.raises(UserError, match="does not fit"):
        wgan_64_finetune.main(tiny(wgan_64_finetune, source=run))
