"""Drawing: a run or a model's file becomes its script's own generator, and images."""

from __future__ import annotations

import importlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from transfer import UserError
from transfer.images import to_uint8
from transfer.plan import layers_of
from transfer.reading import MARKER
from transfer.shared import Source

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
        return script(source.script).Discriminator(width=source.width, **source.shape, **more, **norm)


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


# ----------------------------------------------------------------------------------------------------------
# Between models.


def mixed(models: Sequence[Source], shares: Sequence[float]) -> Source:
    """A model between those of one plan, such as a run's labels: each one's generator, times its share."""
    first, *others = models
    tensors = dict(first.generator)
    for key in (key for key, tensor in tensors.items() if others and tensor.is_floating_point()):
        tensors[key] = sum(share * each.generator[key] for share, each in zip(shares, models, strict=True))
    return replace(first, generator=tensors)


def crossing(models: Sequence[Source], steps: int) -> Iterator[Source]:
    """Models (n * steps) on the way from each of n to the next, and from the last back to the first."""
    for one, other in zip(models, (*models[1:], models[0]), strict=True):
        for step in range(steps):
            yield mixed((one, other), (1 - step / steps, step / steps))


# ----------------------------------------------------------------------------------------------------------
# Latents.


def latents(source: Source, count: int, seed: int) -> Tensor:
    """count latents (count, latent) from N(0, 1) on the CPU, the same ones for the same seed."""
    return torch.randn(count, source.latent, generator=torch.Generator().manual_seed(seed))


def read_latents(path: Path) -> Tensor:
    """The latents (N, latent) of a .npy file, or of a .safetensors file with one tensor.

    Raises:
        UserError: when the file is neither, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            (found,) = load_file(path).values()
        else:
            found = torch.from_numpy(np.load(path, allow_pickle=False))
        z = found.float().flatten(1)  # some keep them as (N, latent, 1, 1)
    except (OSError, SafetensorError, EOFError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} holds no latents ({error}): give one array (N, latent) in a .npy or .safetensors file"
        ) from None
    if not len(z) or not torch.isfinite(z).all():
        raise UserError(f"{path} holds {tuple(found.shape)} latents, or NaN: give finite ones, at least one")
    return z


def latents_as_bytes(z: Tensor, ending: str) -> bytes:
    """Latents as the content of a file with this ending, which read_latents reads."""
    if ending == ".safetensors":
        return save({"latents": z.contiguous()})
    data = io.BytesIO()
    np.save(data, z.numpy())
    return data.getvalue()


def walk(z: Tensor, steps: int) -> Tensor:
    """Latents (n * steps, latent) on the way from each of z (n, latent) to the next, and back to the first.

    The way is an arc, not a straight line (White 2016, "Sampling Generative Networks"): latents from N(0, 1)
    have nearly the same length, and the middle of a straight line is shorter than any that was trained on.
    """
    ahead, t = z.roll(-1, 0), torch.arange(steps)[None, :, None] / steps
    angle = F.cosine_similarity(z, ahead).clamp(-1, 1).acos()[:, None, None]
    arc = angle.sin()
    near, far = ((1 - t) * angle).sin() / arc, (t * angle).sin() / arc
    straight = arc < 1e-3  # the same or opposite directions have no one arc between them
    near, far = torch.where(straight, 1 - t, near), torch.where(straight, t, far)
    return (near * z[:, None] + far * ahead[:, None]).flatten(0, 1)


# ----------------------------------------------------------------------------------------------------------
# Images.


@torch.no_grad()
def stream(
    source: Source, z: Tensor, device: torch.device | str = "cpu", batch: int = 64
) -> Iterator[Tensor]:
    """The averaged generator's images of latents z (N, latent), (n, 3, H, W), uint8, a batch at a time.

    Grey ones have three equal channels, so that whatever shows or scores images takes them.

    Raises:
        UserError: when the latents are not the generator's, or an image is not finite.
    """
    if z.shape[1] != source.latent:
        raise UserError(
            f"the latents have {z.shape[1]} numbers each, and {source.path} draws from {source.latent}: give"
            " others, or another model"
        )
    network = generator(source).to(device)
    for part in z.split(batch):
        images = network(part.to(device))
        if not torch.isfinite(images).all():
            raise UserError("the generator gives NaN: its run has diverged, give an earlier checkpoint")
        yield to_uint8(images).cpu().expand(-1, 3, -1, -1)


def draw(
    source: Source, count: int, seed: int, device: torch.device | str = "cpu", batch: int = 64
) -> Tensor:
    """count images (count, 3, H, W), uint8, of the averaged generator; the same ones for the same seed."""
    return torch.cat([*stream(source, latents(source, count, seed), device, batch)])


def keep(images: Iterable[Tensor], folder: Path, count: int | None = None) -> None:
    """Write images (3, H, W), uint8, as numbered PNG files, and before them the marker with their names.

    By the marker they are known: they alone may be cleared away, and no one trains on them unawares.

    count: how many there are, where images cannot tell.

    Raises:
        UserError: when the folder holds anything already, or cannot be written to.
    """
    names = [f"{index:06d}.png" for index in range(len(images) if count is None else count)]
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} holds files already: move them away, or give another folder")
        images = iter(images)
        first = [*itertools.islice(images, 1)]  # what cannot be drawn leaves no folder behind
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / MARKER, "x", encoding="utf-8") as handle:
            json.dump(names, handle)
        for name, image in zip(names, itertools.chain(first, images), strict=True):
            with open(folder / name, "xb") as handle:
                Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(handle, "PNG")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): give another folder") from None
