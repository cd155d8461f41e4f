"""The images: a folder or a zip, decoded once into uint8 on the device; grids."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from transfer import UserError
from transfer.decoding import Unreadable, doubts, square
from transfer.reading import find

NAMED = 20  # files of a kind that a run names before "and N more"; inspect names all

# ----------------------------------------------------------------------------------------------------------
# Training: the images stay decoded on the device, and a batch is an index.


@dataclass(frozen=True)
class Images:
    """Images on the device.

    Attributes:
        pixels: (N, channels, size, size), uint8.
        names: the N files' names, in the same order.
        unreadable: the names that were left out, each with its reason.
        copies: how many are exact copies of another.
        kinds: the names of the sub-folders, sorted, where each image is in one; else none.
        labels: (N,), int64, each image's place among the kinds; None without.
        fingerprint: SHA-256 over names and pixels, those of held_out as well.
        held_out: images of the same place that were set aside, see hold_out; None without.
    """

    pixels: Tensor
    names: tuple[str, ...]
    unreadable: dict[str, str]
    fingerprint: str
    copies: int = 0
    kinds: tuple[str, ...] = ()
    labels: Tensor | None = None
    held_out: Images | None = None

    @classmethod
    def load(
        cls, path: Path, device: torch.device | str = "cpu", size: int = 64, channels: int = 3
    ) -> Images:
        """Decode a folder, a zip or an idx file, and print what is left out and what is in doubt.

        channels: 3, or 1 for grey ones.

        Raises:
            UserError: when it holds no readable image.
        """
        names, arrays, unreadable, doubtful = [], [], {}, {}
        digest, different = hashlib.sha256(), set()
        files = find(path)
        for file in files:
            try:
                image = file.image()
            except Unreadable as reason:
                unreadable[file.name] = str(reason)
                continue
            if doubt := doubts(image, size):
                doubtful[file.name] = doubt
            brought = square(image, size)
            array = np.asarray(brought if channels == 3 else brought.convert("L"))
            names.append(file.name)
            arrays.append(array)
            different.add(hashlib.sha256(array.tobytes()).digest())
            digest.update(file.name.encode(errors="surrogateescape") + b"\0" + array.tobytes())
        if not arrays:
            name, reason = next(iter(unreadable.items()))
            raise UserError(
                f"none of the {len(files)} files in {path} is an image that can be read: {name!r}, the first,"
                f" is not ({reason})"
            )
        pixels = torch.from_numpy(np.stack(arrays)).view(-1, size, size, channels)
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
        copies = len(names) - len(different)
        kinds, labels = _kinds(names)
        _print("left out", unreadable)
        _print("look at", doubtful)
        return cls(
            pixels.to(device),
            tuple(names),
            unreadable,
            digest.hexdigest(),
            copies,
            kinds,
            None if labels is None else labels.to(device),
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, n: int) -> Tensor:
        """n images drawn with replacement: (n, channels, size, size), float32 in [-1, 1], on the device."""
        return self.at(self.draw(n))

    def draw(self, n: int) -> Tensor:
        """The places of n images drawn with replacement, (n,)."""
        return torch.randint(len(self.pixels), (n,), device=self.pixels.device)

    def at(self, places: Tensor | slice) -> Tensor:
        """The images at these places, as batch gives them."""
        return to_float(self.pixels[places])

    def apart(self, n: int) -> tuple[Images, Images]:
        """These images in two: all but n that are set aside, chosen at random, and those n.

        Raises:
            UserError: when none would be left.
        """
        if n >= len(self):
            raise UserError(f"{n} of {len(self)} images cannot be set aside: leave some to train on")
        if not n:
            return self, self.some(torch.arange(0))
        order = torch.randperm(len(self))
        return self.some(order[n:].sort().values), self.some(order[:n].sort().values)

    def hold_out(self, share: float, seed: int) -> Images:
        """These images without a share of them, from 0 to 0.5, which is the held_out of what is returned.

        Exact copies of an image stay on its side. Which images are set aside depends on their pixels and the
        seed alone, not on a library's random numbers, so that a run that goes on years later has the same.

        Raises:
            UserError: when that sets aside fewer than two.
        """
        if not share:
            return self
        copies = defaultdict(list)
        for place, pixels in enumerate(self.pixels.cpu().numpy()):
            copies[hashlib.sha256(f"{seed} ".encode() + pixels.tobytes()).digest()].append(place)
        most = min(round(share * len(self)), len(self) - 2)  # two are left to train on
        aside, different = [], len(copies)
        for _, places in sorted(copies.items()):
            if len(aside) + len(places) <= most:
                aside += places
                different -= 1
        if len(aside) < 2:
            raise UserError(
                f"hold_out {share} of {len(self)} images sets aside {len(aside)}, and scores need two: give"
                " a larger share, up to 0.5, or more images that differ"
            )
        kept = torch.ones(len(self), dtype=torch.bool)
        kept[aside] = False
        rest, held_out = (self.some(side.nonzero().flatten()) for side in (kept, ~kept))
        return replace(rest, copies=len(rest) - different, held_out=held_out)

    def kind(self, place: int) -> Images:
        """The images of one of the kinds, with those of them that were set aside."""
        mine = self.some((self.labels == place).nonzero().flatten())
        return mine if self.held_out is None else replace(mine, held_out=self.held_out.kind(place))

    def some(self, places: Tensor) -> Images:
        """The images at these places (n,), in this order."""
        names = tuple(self.names[place] for place in places)
        labels = None if self.labels is None else self.labels[places]
        return replace(self, pixels=self.pixels[places], names=names, labels=labels)

    def __str__(self) -> str:
        copies = f", {self.copies} of them an exact copy of another" if self.copies else ""
        aside = f", {len(self.held_out)} set aside" if self.held_out else ""
        others = len(self.unreadable)
        left_out = f", {others} other file{'s' * (others != 1)} left out" if others else ""
        return f"{len(self)} images{copies}{aside}{left_out}"


def _print(what: str, files: dict[str, str]) -> None:
    """Name files, each with its reason; of many the first."""
    for name, reason in list(files.items())[:NAMED]:
        print(f"{what}: {name!r} ({reason})")
    if len(files) > NAMED:
        print(f"{what}: {len(files) - NAMED:,} more, which operating_file.py inspect names")


def _kinds(names: list[str]) -> tuple[tuple[str, ...], Tensor | None]:
    """The sub-folders that images are in, and which one each is in; nothing where one is in none."""
    folders = [name.partition("/")[0] for name in names]
    if not all("/" in name for name in names):
        return (), None
    kinds = tuple(sorted(set(folders)))
    return kinds, torch.tensor([kinds.index(folder) for folder in folders])


def to_float(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 pixels, rounded to the nearest."""
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


# ----------------------------------------------------------------------------------------------------------
# Looking: grids.


def grid(images: Tensor, columns: int = 8) -> Image.Image:
    """Images (N, 1 or 3, H, W), uint8 or in [-1, 1], side by side, row by row."""
    pixels = (images if images.dtype == torch.uint8 else to_uint8(images)).expand(-1, 3, -1, -1)
    n, channels, height, width = pixels.shape
    rows = math.ceil(n / columns)
    pixels = F.pad(pixels.cpu(), (0, 0, 0, 0, 0, 0, 0, rows * columns - n))
    pixels = pixels.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(pixels.reshape(rows * height, columns * width, channels).numpy())
