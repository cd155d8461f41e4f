"""What went wrong in other transfer-learning repositories, each with a test that would have caught it."""

import importlib
import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import fid.scores
import wgan_64
import wgan_64_scale_shift
import wgan_64_transferlearning
from fid import extractors
from fid.sets import Set
from tests.conftest import LATENT, WIDTH, as_source
from tests.runs import ROOT, TRANSFERS, tiny
from transfer import UserError, record
from transfer.checkpoints import Checkpoints
from transfer.images import Images
from transfer.plan import Split
from transfer.shared import Source, carry
from transfer.weights import Average, learning


def end(run):
    return Checkpoints(run).newest()[1]


def moved(start, state):
    """The names of the tensors that a run has changed, but for running statistics."""
    values = {
        key: tensor for key, tensor in state.items() if "running" not in key and "num_batches" not in key
    }
    return {key for key, tensor in values.items() if key not in start or not torch.equal(tensor, start[key])}


def test_best_is_the_best_and_not_the_last_that_beats_the_first(faces, source, tmp_path, monkeypatch):
    merits = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0}

    def score(run):
        run.files.write_line("scores", run.step, {"kid": merits[run.step]})

    monkeypatch.setattr(record.Run, "score", score)
    script, settings = tiny("wgan_64_finetune", faces, source, tmp_path, iterations=4, score_every=1)
    listed = Checkpoints(script.main(replace(settings, extractor="efficientnet_lite0"))).listed()
    assert [entry["step"] for entry in listed.values() if entry.get("best")] == [2]


def test_scale_and_shift_alone_learns_scale_and_shift_alone(faces, source, tmp_path):
    script, settings = tiny("wgan_64_scale_shift", faces, source, tmp_path)
    state, start = end(script.main(settings)), Source.read(source)
    for name, before in (("G", start.generator), ("D", start.discriminator)):
        learnt = moved(before, state[name])
        assert learnt and all(
            re.fullmatch(r"conv\d\.(gamma|beta)|norm\d\.(weight|bias)", key) for key in learnt
        )


@pytest.mark.parametrize("rescale", ["adafm", "filter_selection", "singular_values"])
def test_a_baseline_learns_as_many_numbers_as_its_method_has(rescale, source):
    """Scale and shift that silently learns singular values as well would have more."""
    policies = Split(0, 5, 0).generator(rescale)
    G = wgan_64.Generator(LATENT, WIDTH, policies)
    channels = [LATENT, 8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH, 3]
    norms = 2 * sum(channels[1:5])
    pairs = list(pairwise(channels))
    wanted = {
        "adafm": sum(2 * a * b for a, b in pairs),
        "filter_selection": sum(2 * b for _, b in pairs),
        "singular_values": sum(min(16 * a, b) for a, b in pairs),
    }
    assert sum(tensor.numel() for tensor in learning(G)) == wanted[rescale] + norms


def test_extractors_are_in_eval_mode(faces):
    """In training mode an image's features would depend on what else is in its batch."""
    network, pixels = extractors.load("efficientnet_lite0", device="cpu"), Images.load(faces).pixels
    alone = torch.cat([network(each[None]) for each in pixels])
    assert torch.allclose(network(pixels), alone, rtol=1e-4, atol=1e-5)


def test_the_real_images_of_a_score_are_the_images_each_once_and_not_augmented(
    faces, source, tmp_path, monkeypatch
):
    seen = []

    def score(generated, real, reference, **options):
        seen.append(Set.of(real, "", 64))
        raise UserError("seen")

    monkeypatch.setattr(fid.scores, "score", score)
    script, settings = tiny(
        "wgan_64_finetune",
        faces,
        source,
        tmp_path,
        score_every=1,
        extractor="efficientnet_lite0",
        augment="strong",
    )
    with pytest.raises(UserError, match="seen"):
        script.main(settings)
    images = Images.load(faces)
    assert seen[0].names == images.names
    assert all(torch.equal(seen[0].pixels(index), images.pixels[index]) for index in range(len(images)))


def test_what_is_frozen_is_in_no_optimizer_and_its_normalisation_stays_too(faces, source, tmp_path):
    script, settings = tiny("wgan_64_freeze_layers", faces, source, tmp_path, frozen_norm="source")
    state, start = end(script.main(settings)), Source.read(source)
    for name, before, frozen in (("G", start.generator, (3, 4, 5)), ("D", start.discriminator, (1, 2, 3))):
        own = [key for key in before if key[4] in map(str, frozen)]
        assert own and all(torch.equal(before[key], state[name][key]) for key in own), (
            "running statistics as well"
        )
        learnt = state["optimizers"][f"optimizer_{name}"]["param_groups"][0]["params"]
        assert len(learnt) == len(moved(before, state[name]))


@pytest.mark.parametrize("script", TRANSFERS)
@pytest.mark.parametrize("network", ["G", "D"])
def test_no_script_ignores_a_plan(script, network, faces, source, tmp_path):
    script, settings = tiny(script.removesuffix(".py"), faces, source, tmp_path, **{network: Split(5, 0, 0)})
    state, start = end(script.main(settings)), Source.read(source)
    before = {"G": start.generator, "D": start.discriminator}
    other = "D" if network == "G" else "G"
    assert not moved(before[network], state[network]) and moved(before[other], state[other])


def commands(page):
    """Each command line of a page's code blocks that runs one of the scripts: its name and its flags."""
    for block in re.findall(r"```\n(.*?)```", page.read_text(), re.S):
        for name, rest in re.findall(r"python (\w+)\.py([^\n#]*)", block):
            yield name, re.findall(r"--([\w-]+)", rest)


def test_every_flag_that_a_page_names_exists():
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "pretrained_model" / "README.md",
    ]
    found = [command for page in pages for command in commands(page)]
    assert len(found) > 5
    for name, flags in found:
        script = importlib.import_module(name)
        known = script.Settings.__dataclass_fields__ if hasattr(script, "Settings") else None
        for flag in flags:
            assert known is None or flag.replace("-", "_") in known, f"{name}.py has no --{flag}"


def test_a_checkpoint_holds_both_networks_the_average_and_both_optimizers(faces, source, tmp_path):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path)
    state = end(script.main(settings))
    assert all(state[name] for name in ("G", "D", "ema", "settings", "random", "step"))
    for optimizer in state["optimizers"].values():
        assert all(entry["square_avg"].any() for entry in optimizer["state"].values())


def test_another_network_is_never_loaded_in_part(networks):
    G, D = networks
    for other, tensors, name in (
        (wgan_64.Generator(LATENT, 2 * WIDTH), as_source(G, D), "G"),
        (wgan_64.Generator(LATENT + 1, WIDTH), as_source(G, D), "G"),
        (wgan_64.Discriminator(2 * WIDTH), as_source(G, D), "D"),
    ):
        before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
        with pytest.raises(UserError, match="does not fit"):
            carry(other, tensors, name)
        assert all(torch.equal(before[key], tensor) for key, tensor in other.state_dict().items())


def test_the_average_moves_from_the_first_update_on_and_is_not_the_generator(networks):
    G, _ = networks
    average = Average(G, 0.999)
    start = G.conv1.weight.detach().clone()
    with torch.no_grad():
        G.conv1.weight += 1
    average.update(G, 1)
    difference = (average.network.conv1.weight - start).mean().item()
    assert 0.5 < difference < 1, "early it follows closely"
    average.update(G, 20_000)
    left = (G.conv1.weight - average.network.conv1.weight).mean().item()
    assert left == pytest.approx((1 - difference) * 0.999, rel=1e-3), "late it averages over a thousand"


def test_a_run_says_what_it_was_and_with_what(faces, source, tmp_path):
    run = wgan_64_transferlearning.main(tiny("wgan_64_transferlearning", faces, source, tmp_path)[1])
    description = json.loads((run / "settings.json").read_text())
    assert {"settings", "versions", "hardware", "images", "learning"} < description.keys()
    own = sum(tensor.numel() for tensor in learning(_built(source)))
    assert description["learning"]["optimizer_G"] == own


def _built(source):
    read = Source.read(source)
    return wgan_64_scale_shift.Generator(read.latent, read.width, Split(1, 2, 2).generator())
