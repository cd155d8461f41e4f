"""Drawing: a run or a model's file becomes its script's own generator, and images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor, nn

from transfer import UserError
from transfer.images import to_uint8
from transfer.plan import layers_of
from transfer.shared import Source

MARKER = ".generated"  # a JSON list of the files that were written here, which alone may be cleared away
ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """The script of this name, at the top level or one of the methods.

    Raises:
        UserError: when there is none.
    """
    try:
        return importlib.import_module(name if (ROOT / f"{name}.py").exists() else f"methods.{name}")
    except ModuleNotFoundError:
        raise UserError(
            f"the model was trained by {name}.py, which is not here: put it into methods/"
        ) from None


def untrained(source: Source, name: str) -> nn.Module:
    """The "G" or "D" of a model's script, with random numbers under the model's plan."""
    policies = source.policies(name)
    more = {} if policies is None else {"policies": policies}
    with torch.random.fork_rng(devices=[]):  # layers draw the weights that are replaced at once
        if name == "G":
            return script(source.script).Generator(**source.arguments, **more)
        norm = {} if source.norm else {"norm": False}
        return script(source.script).Discriminator(width=source.width, **more, **norm)


def generator(source: Source) -> nn.Module:
    """The averaged generator, z (N, latent) -> images (N, C, H, W) in [-1, 1], in eval mode.

    Raises:
        UserError: when the tensors are not those of its script's generator.
    """
    try:
        network = untrained(source, "G")
        network.load_state_dict(source.generator)
        for layer in layers_of(network):
            layer.kernel.start()  # from this weight, ...
        network.load_state_dict(source.generator)  # ... from which the policies' tensors have moved
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"{source.path} does not fit the Generator of {source.script}.py ({reason}): give the run's"
            " folder, or share it anew with python -m transfer"
        ) from None
    return network.eval().requires_grad_(False)


@torch.no_grad()
def draw(source: Source, count: int, seed: int, device: torch.device, batch: int = 64) -> Tensor:
    """count images (count, C, H, W), uint8, of the averaged generator; the same ones for the same seed."""
    z = torch.randn(count, source.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    network = generator(source).to(device)
    drawn = []
    for latents in z.split(batch):
        images = network(latents)
        if not torch.isfinite(images).all():
            raise UserError("the generator gives NaN: its run has diverged, give an earlier checkpoint")
        drawn.append(to_uint8(images))
    return torch.cat(drawn)


def keep(images: Tensor, folder: Path) -> None:
    """Write images (N, 3, H, W), uint8, as numbered PNG files, and before them the marker with their names.

    Raises:
        UserError: when the folder holds anything already, or cannot be written to.
    """
    names = [f"{index:06d}.png" for index in range(len(images))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} holds files already: clear it with operating_file.py first")
        with open(folder / MARKER, "x", encoding="utf-8") as handle:
            json.dump(names, handle)
        for name, image in zip(names, images, strict=True):
            with open(folder / name, "xb") as handle:
                Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(handle, "PNG")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): leave out --keep") from None
