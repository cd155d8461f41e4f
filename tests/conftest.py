"""Small stand-ins: a folder of images, and a pre-trained source of a tiny width."""

import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

import wgan_64
from tests.stand_ins import images, write
from transfer import record, shared, weights

LATENT, WIDTH = 4, 4

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")  # the same examples everywhere, however slow the machine

record.SAMPLES = 16  # of 64: to write its grids is most of a tiny run
torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    """Eight images of 64 x 64 pixels, each a coloured gradient with a block of noise."""
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 64)
    for index in range(8):
        pixels = 255 * (ramp[:, None, None] * random.random(3) + ramp[None, :, None] * random.random(3)) / 2
        pixels[16:48, 16:48] += 60 * random.random((32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def pretrained() -> tuple[wgan_64.Generator, wgan_64.Discriminator]:
    """A generator and a critic with running statistics of their own, as if they had been trained."""
    torch.manual_seed(1)
    G, D = wgan_64.Generator(LATENT, WIDTH), wgan_64.Discriminator(WIDTH)
    weights.Clip(D, 0.01)()
    with torch.no_grad():
        for _ in range(50):
            D(G(torch.randn(16, LATENT)))
    return G, D


def as_source(
    G: nn.Module | None = None, D: nn.Module | None = None, settings: dict[str, Any] | None = None
) -> shared.Source:
    """Networks as the source that a file of theirs would be; with settings, a run's."""
    tensors = ({} if network is None else network.state_dict() for network in (G, D))
    arguments = {"latent": LATENT, "width": WIDTH}
    return shared.Source(Path("tiny"), *tensors, settings=settings or {}, arguments=arguments)


@pytest.fixture
def networks() -> tuple[wgan_64.Generator, wgan_64.Discriminator]:
    """A fresh copy of the pre-trained two, since a forward pass moves running statistics."""
    return pretrained()


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> Path:
    """The same two as a file that a transfer starts from."""
    G, D = pretrained()
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    shared.share(path, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {"iterations": 0})
    return path


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    return write(tmp_path / "made", images(9, 1)), write(tmp_path / "real", images(7, 2))


@pytest.fixture
def program(monkeypatch, capsys):
    """Runs a whole command, as printed, in this process: its exit status, and what it wrote."""

    def run(line, *more):
        python, *words = [*shlex.split(line), *map(str, more)]
        assert shutil.which(python), f"{python} cannot be run"
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", words if words[0] != "-m" else words[1:])
        status = 0
        try:
            if words[0] == "-m":
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    return run
