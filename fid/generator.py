"""The generator of a run: images drawn from its moving average, in memory or into a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from transfer import UserError
from transfer.images import to_uint8
from transfer.layers import ConvUp, Norm
from transfer.plan import LAYERS
from transfer.weights import Source

MARKER = ".generated"  # a JSON list of the files that were written here, which alone may be cleared away


@torch.no_grad()
def draw(source: Source, count: int, seed: int, device: torch.device, batch: int = 64) -> Tensor:
    """count images (count, 3, 64, 64), uint8, of the averaged generator; the same ones for the same seed."""
    z = torch.randn(count, source.latent, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.random.fork_rng(devices=[]):  # layers draw the weights that are replaced at once
        G = network(source).to(device)
    images = torch.cat([G(latents) for latents in z.split(batch)])
    if not torch.isfinite(images).all():
        raise UserError("the generator gives NaN: its run has diverged, give an earlier checkpoint")
    return to_uint8(images)


def network(source: Source) -> nn.Sequential:
    """The averaged generator, z (N, latent) -> images (N, 3, 64, 64) in [-1, 1], in eval mode."""

    def own(name: str, layer: nn.Module) -> dict[str, Tensor]:
        return {key: source.generator[f"{name}.{key}"] for key in layer.state_dict()}

    parts = [*mapping(source), nn.Unflatten(1, (source.latent, 1, 1))]
    for index, policy in enumerate(source.policies, start=1):
        shape = source.generator[f"conv{index}.weight"].shape
        conv = ConvUp(*shape[:3], *((1, 0) if index == 1 else (2, 1)), policy)
        conv.load_state_dict(own(f"conv{index}", conv))
        conv.start()  # from this weight, ...
        conv.load_state_dict(own(f"conv{index}", conv))  # ... from which gamma and beta have moved
        parts.append(conv)
        if index < LAYERS:
            norm = Norm(shape[1], policy)
            norm.load_state_dict(own(f"norm{index}", norm))
            parts += [norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.Tanh()).eval()


def mapping(source: Source) -> list[nn.Module]:
    """What a miner or a generator of codes puts before the first layer: linear layers, ReLUs between them."""
    weights = {key: tensor for key, tensor in source.generator.items() if key.startswith("mapping.")}
    parts: list[nn.Module] = []
    for key in (key for key in weights if key.endswith(".weight")):
        layer = nn.Linear(*weights[key].shape[::-1])
        layer.load_state_dict({"weight": weights[key], "bias": weights[key.replace("weight", "bias")]})
        parts += [nn.ReLU(), layer] if parts else [layer]
    return parts


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
