"""The sets of images that are scored: a folder, a zip, or a tensor, one picture at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transfer import UserError
from transfer.decoding import Unreadable, square
from transfer.images import Images, to_uint8
from transfer.reading import find

Given = Path | str | Images | Tensor  # what a set of images can be given as


@dataclass(frozen=True)
class Set:
    """Images to be scored.

    Attributes:
        title: what messages call the set.
        names: the names of its files, or numbers.
        pixels: index -> (3, H, W), uint8; raises transfer.decoding.Unreadable.
        digest: () -> a hash of everything that pixels can return.
    """

    title: str
    names: tuple[str, ...]
    pixels: Callable[[int], Tensor]
    digest: Callable[[], str]

    @classmethod
    def of(cls, given: Given, title: str, size: int | None = None) -> Set:
        """A folder, a zip, loaded Images, or a tensor (N, 1 or 3, H, W), uint8 or floats in [-1, 1].

        Grey images are repeated to three channels, which is what the extractors see.

        size: each image's centre square is brought to size x size, as for training; None leaves it as it is.

        Raises:
            UserError: when there is no image, or the tensor is none of images.
        """
        if isinstance(given, Path | str):
            return _of_files(Path(given), size)
        if isinstance(given, Images):
            return _of_pixels(given.pixels, given.names, title, size)
        return _of_pixels(given, tuple(map(str, range(len(given)))), title, size)


def _of_files(path: Path, size: int | None) -> Set:
    files = find(path)

    def pixels(index: int) -> Tensor:
        return to_tensor(files[index].image(), size)

    def digest() -> str:
        total = hashlib.sha256(f"files {size}".encode())
        for file in files:
            try:
                total.update(hashlib.sha256(file.read()).digest())
            except Unreadable as reason:
                total.update(str(reason).encode())
        return total.hexdigest()

    return Set(str(path), tuple(file.name for file in files), pixels, digest)


def _of_pixels(images: Tensor, names: tuple[str, ...], title: str, size: int | None) -> Set:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"{title} are a tensor {tuple(images.shape)}: give images as (N, 3, H, W) or (N, 1, H, W)"
        )
    if images.dtype != torch.uint8:
        if not torch.isfinite(images).all():
            raise UserError(f"{title} hold NaN or infinity: the run has diverged, give an earlier checkpoint")
        images = to_uint8(images)
    images = images.expand(-1, 3, -1, -1)

    def pixels(index: int) -> Tensor:
        if size is None or images.shape[2:] == (size, size):
            return images[index]
        return to_tensor(Image.fromarray(images[index].permute(1, 2, 0).cpu().numpy()), size)

    def digest() -> str:
        total = hashlib.sha256(f"pixels {size} {tuple(images.shape)}".encode())
        total.update(images.contiguous().cpu().numpy())
        return total.hexdigest()

    return Set(title, names, pixels, digest)


def to_tensor(image: Image.Image, size: int | None) -> Tensor:
    """The image as (3, H, W), uint8; its centre square at size x size where a size is given."""
    return torch.from_numpy(np.array(image if size is None else square(image, size))).permute(2, 0, 1)
