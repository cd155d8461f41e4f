"""The generator of a run: images drawn from its moving average, in memory or into a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from transfer import UserError
from transfer.images import to_uint8
from transfer.weights import Source

MARKER = ".generated"  # a JSON list of the files that were written here, which alone may be cleared away


@torch.no_grad()
def draw(source: Source, count: int, seed: int, device: torch.device, batch: int = 64) -> Tensor:
    """count images (count, 3, 64, 64), uint8, of the averaged generator; the same ones for the same seed."""
    z = torch.randn(count, source.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    tensors = {name: tensor.to(device) for name, tensor in source.generator.items()}
    images = torch.cat([generate(tensors, latents) for latents in z.split(batch)])
    if not torch.isfinite(images).all():
        raise UserError("the generator gives NaN: its run has diverged, give an earlier checkpoint")
    return to_uint8(images)


def generate(tensors: dict[str, Tensor], z: Tensor) -> Tensor:
    """z (N, latent) -> images (N, 3, 64, 64) in [-1, 1], as the scripts' generator in eval mode."""
    x = z[:, :, None, None]
    for index in range(1, 6):
        kernel, shift = _effective(
            *(tensors.get(f"conv{index}.{key}") for key in ("weight", "gamma", "beta"))
        )
        x = F.conv_transpose2d(x, kernel, shift, *((1, 0) if index == 1 else (2, 1)))
        if index < 5:
            norm = (
                tensors[f"norm{index}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
            )
            x = F.relu(F.batch_norm(x, *norm))
    return torch.tanh(x)


def _effective(weight: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The kernel that a layer computes with, and what it adds to its output (transfer.plan's policies)."""
    if gamma is None:
        return weight, None
    if gamma.shape[0] == 1:  # one an output filter: filter selection
        return gamma * weight, beta.flatten()
    return gamma * weight + beta, None  # one a slice: AdaFM


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
        with open(folder / MARKER, "x") as handle:
            json.dump(names, handle)
        for name, image in zip(names, images, strict=True):
            with open(folder / name, "xb") as handle:
                Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(handle, "PNG")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): leave out --keep") from None
