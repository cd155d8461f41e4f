"""From elsewhere: networks as PyTorch's DCGAN example saves them, and code like it, as this project's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from transfer import UserError, checkpoints
from transfer.drawing import script
from transfer.plan import layers_of

Tensors = dict[str, Tensor]


def read(files: tuple[Path, ...]) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The generator and the discriminator in files of state dicts, as wgan_64.py's, and their card.

    They are told apart and fitted by their tensors' shapes and order: 64 x 64 pixels, any width and latent,
    batch normalisation with or without scale and shift, the discriminator also without any. The generator
    ends in tanh and the discriminator in scores: a sigmoid after them has no tensors and is dropped.

    Returns:
        The networks "G", "ema" (the same, unless a file has an average) and "D"; and the card.

    Raises:
        UserError: naming what does not fit.
    """
    found: dict[str, dict[str, Tensors]] = {"G": {}, "D": {}}
    for file in files:
        for name, tensors in _networks(_flat(_content(file))).items():
            last = [tensor for tensor in tensors.values() if tensor.ndim == 4][-1]
            found["D" if len(last) == 1 else "G"][f"{file} {name}".strip()] = tensors  # a score, or an image
    averages = {name for name in found["G"] if "ema" in name.split(" ")[-1].lower() and len(found["G"]) == 2}
    named = " and ".join(map(str, files))
    for role, what in (("G", "generator"), ("D", "discriminator")):
        count = len(found[role].keys() - averages)
        if count != 1:
            there = f"are {count} {what}s" if count else f"is no {what}"
            raise UserError(
                f"there {there} of convolutions in {named}: give a file with a generator and a discriminator,"
                " or a file of each"
            )
    own = {("ema" if name in averages else "G"): each for name, each in found["G"].items()}
    own = {"G": own["G"], "ema": own.get("ema", own["G"]), "D": next(iter(found["D"].values()))}
    kernels = {name: [t for t in tensors.values() if t.ndim == 4] for name, tensors in own.items()}
    arguments = {"latent": kernels["G"][0].shape[0], "width": kernels["G"][-1].shape[0]}
    width = kernels["D"][0].shape[0]
    if width != arguments["width"]:
        raise UserError(
            f"in {named} the generator has {arguments['width']} channels beside the image, and the"
            f" discriminator {width}: this project has one width for both"
        )
    norm = any(key.endswith("running_mean") for key in own["D"])
    with torch.random.fork_rng(devices=[]):  # layers draw the weights that are replaced at once
        G, D = script("wgan_64").Generator(**arguments), script("wgan_64").Discriminator(width, norm=norm)
    networks = {name: _fitted(D if name == "D" else G, tensors, named) for name, tensors in own.items()}
    return networks, {
        "script": "wgan_64.py",
        "arguments": {"G": G.arguments, "D": D.arguments},
        # Its kernels were never clipped, so a transfer goes on with the penalty that needs no clip.
        "settings": {"loss": "wgan_gp"},
        "imported": [file.name for file in files],
    }


def _content(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".safetensors":
        return checkpoints.load(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a whole file") from None
    return {key: tensors[key] for key in sorted(tensors, key=_natural)}  # it does not keep their order


def _natural(key: str) -> list[Any]:
    """main.10 after main.2."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _flat(content: Mapping[Any, Any], before: str = "") -> Tensors:
    """All tensors by their dotted names; not those of an optimizer, whose state has numbers for keys."""
    found: Tensors = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            found[before + key] = value
        elif isinstance(key, str) and isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
    return found


def _networks(tensors: Tensors, name: str = "") -> dict[str, Tensors]:
    """The networks among tensors, without what their names have in common, such as module. and main."""
    parts: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        first, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(first, {})[rest] = tensor
    kernels = {first: sum(t.ndim == 4 for t in part.values()) for first, part in parts.items()}
    if len(parts) == 1 and any(kernels.values()):
        ((first, part),) = parts.items()
        return _networks(part, name or first)
    several = [first for first, count in kernels.items() if count > 1]
    if len(several) > 1:  # two networks; the layers of one have a kernel each
        return {key: each for first in several for key, each in _networks(parts[first], first).items()}
    return {name: tensors} if any(tensor.ndim == 4 for tensor in tensors.values()) else {}


# ----------------------------------------------------------------------------------------------------------
# Into the scripts' networks.


@torch.no_grad()
def _fitted(network: nn.Module, tensors: Tensors, where: str) -> Tensors:
    """The tensors under the names that the network has for them."""
    what, layers = type(network).__name__.lower(), layers_of(network)
    kernels = [key for key, tensor in tensors.items() if tensor.ndim == 4]
    norms = [key.removesuffix("running_mean") for key in tensors if key.endswith("running_mean")]
    own, left = {key: tensor.clone() for key, tensor in network.state_dict().items()}, dict(tensors)
    named = {module: f"{key}." for key, module in network.named_modules()}
    normed = [layer for layer in layers if layer.norm is not None]
    for count, wanted, kind in (
        (len(kernels), len(layers), "convolutions"),
        (len(norms), len(normed), "batch normalisations with running statistics"),
    ):
        if count != wanted:
            raise UserError(
                f"the {what} in {where} has {count} {kind}, and wgan_64.py's has {wanted} (64 x 64 pixels):"
                " only networks like it can be imported"
            )

    def take(key: str, own_key: str) -> None:
        shape, wanted = (" x ".join(map(str, each.shape)) for each in (tensors[key], own[own_key]))
        if shape != wanted:
            raise UserError(
                f"the {what} in {where} does not fit wgan_64.py's: {key} is {shape or 'a number'}, where"
                f" {own_key} is {wanted or 'a number'}"
            )
        own[own_key] = left.pop(key).to(own[own_key].dtype)

    for layer, norm in zip(normed, norms, strict=True):
        mine = named[layer.norm]
        own |= {f"{mine}weight": torch.ones_like(own[f"{mine}weight"])}  # where it has no scale
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if norm + part in tensors:
                take(norm + part, mine + part)
    for layer, key in zip(layers, kernels, strict=True):
        take(key, f"{layer.name}.weight")
        bias = key.removesuffix("weight") + "bias"
        if bias not in left:
            continue
        if layer.kernel.bias is not None:
            take(bias, f"{layer.name}.bias")
        elif layer.norm is not None:  # which subtracts it again with the mean
            mean = f"{named[layer.norm]}running_mean"
            own[mean] = own[mean] - left.pop(bias)
        elif layer is layers[-1] and what == "discriminator":
            left.pop(bias)  # the same for every score, and only their differences are looked at
        elif not left[bias].any():
            left.pop(bias)
    if left:
        first = next(iter(left))
        raise UserError(
            f"the {what} in {where} does not fit wgan_64.py's: {first}"
            f" ({' x '.join(map(str, left[first].shape))}) has no place in it"
        )
    return own
