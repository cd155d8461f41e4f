"""Images drawn from a run: the scripts' generator under every policy, and the folder they are kept in."""

import copy
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import wgan_64
from tests.conftest import LATENT, WIDTH, as_source, pretrained
from transfer import UserError, drawing, shared
from transfer.images import to_uint8
from transfer.plan import Split, layers_of
from transfer.policies import Rescale
from transfer.shared import Source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lively() -> wgan_64.Generator:
    """A generator whose images are not all grey."""
    G, _ = pretrained()
    for name, tensor in G.state_dict().items():
        tensor.mul_(15 if name.startswith("conv") else 1)
    return G


@pytest.fixture(scope="module")
def run(lively, tmp_path_factory) -> Path:
    """A file whose moving average is the lively generator, and whose G is another."""
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    G, D = pretrained()
    tensors = {"G": G.state_dict(), "ema": lively.state_dict(), "D": D.state_dict()}
    shared.share(path, tensors, {})
    return path


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """gamma and beta moved off the identity."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("gamma", "beta", ".u", ".v")):
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network.eval()


@pytest.mark.parametrize("rescale", get_args(Rescale))
@pytest.mark.parametrize("split", [(0, 0, 5), (0, 5, 0), (1, 2, 2), (5, 0, 0)])
def test_the_images_are_the_scripts_generators(lively, split, rescale):
    policies = Split(*split).generator(rescale)
    G = wgan_64.Generator(LATENT, WIDTH, policies)
    shared.carry(G, as_source(lively), "G")
    G = randomised(G)
    z = torch.randn(3, LATENT, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = G(z)
        assert expected.std() > 0.1
        settings = {"source": "tiny", "G": split, "rescale": rescale}
        drawn = drawing.generator(as_source(G, settings=settings))(z)
        assert torch.equal(drawn, expected)


def test_drawing_is_seeded_and_leaves_the_random_state_alone(run):
    read, before = Source.read(run), torch.get_rng_state()
    images = drawing.draw(read, 5, 0, CPU)
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8
    assert torch.equal(images, drawing.draw(read, 5, 0, CPU, batch=2))
    assert not torch.equal(images, drawing.draw(read, 5, 1, CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_moving_average_is_drawn_from(lively, run):
    z = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = to_uint8(copy.deepcopy(lively).eval()(z))
    assert (drawing.draw(Source.read(run), 2, 0, CPU).int() - expected.int()).abs().max() <= 1


def test_a_diverged_generator_is_refused(run):
    read = Source.read(run)
    read.generator["conv3.weight"].fill_(torch.nan)
    with pytest.raises(UserError, match="diverged"):
        drawing.draw(read, 2, 0, CPU)


def test_kept_images_are_the_drawn_ones_and_listed(run, tmp_path):
    images = drawing.draw(Source.read(run), 3, 0, CPU)
    folder = tmp_path / "generated_image"
    drawing.keep(images, folder)
    names = json.loads((folder / ".generated").read_text())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / name)), image.permute(1, 2, 0).numpy())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="holds files already"):
        drawing.keep(images, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_modulated_generator_that_does_not_say_its_policies_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    G, D = (network.state_dict() for network in pretrained())
    modulated = wgan_64.Generator(LATENT, WIDTH, Split(0, 5, 0).generator()).state_dict()
    shared.share(path, {"G": G, "ema": modulated, "D": D}, {})
    with pytest.raises(UserError, match="does not fit the Generator of wgan_64"):
        drawing.generator(Source.read(path))
    card = {"settings": {"source": "tiny", "G": [0, 5, 0], "rescale": "adafm"}}
    shared.share(path, {"G": G, "ema": modulated, "D": D}, card)
    assert [layer.kernel.policy.name for layer in layers_of(drawing.generator(Source.read(path)))] == [
        "adafm"
    ] * 5
