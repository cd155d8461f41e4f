"""The images: a folder or a zip, decoded once into uint8 on the device; grids."""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from transfer import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no other parser sees a user's file
MOST_PIXELS = 50_000_000  # an image with more is refused before it is decoded
MOST_BYTES = 200_000_000  # likewise a file with more

# ----------------------------------------------------------------------------------------------------------
# Reading: every script, operating_file.py and fid/ read images here, so the same files count everywhere.


class Unreadable(Exception):
    """Why one file is no image that can be used."""


@dataclass(frozen=True)
class File:
    """One image file of a folder or a zip: its name in there, and how to get its bytes."""

    name: str
    read: Callable[[], bytes]

    def image(self) -> Image.Image:
        """The upright RGB image. Raises Unreadable with the reason."""
        return decode(self.read())


def find(path: Path) -> list[File]:
    """The image files of a folder (flat or nested) or a zip, sorted by name; hidden files are left out.

    Raises:
        UserError: when there is no such folder or zip, or no file in it has one of SUFFIXES.
    """
    path = Path(path)
    if path.is_dir():
        files, others = _in_folder(path)
    elif zipfile.is_zipfile(path):
        files, others = _in_zip(path)
    elif path.exists():
        raise UserError(f"{path} is neither a folder nor a zip: give one that holds images")
    else:
        raise UserError(f"{path} does not exist: give a folder or a zip of images")
    if not files:
        raise UserError(
            f"{path} holds no image: it has {others} other file{'s' * (others != 1)}, and none ends in"
            f" {', '.join(SUFFIXES)}"
        )
    return sorted(files, key=lambda file: file.name)


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and parts[-1].lower().endswith(SUFFIXES)


def _in_folder(folder: Path) -> tuple[list[File], int]:
    names = [
        os.path.relpath(os.path.join(root, name), folder).replace(os.sep, "/")
        for root, _, names in os.walk(folder)
        for name in names
    ]
    files = [File(name, _reader(folder / name)) for name in names if _is_image(name)]
    return files, len(names) - len(files)


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise Unreadable("no regular file")  # reading a pipe would never end
            if status.st_size > MOST_BYTES:
                raise Unreadable(f"larger than {MOST_BYTES // 1_000_000} MB")
            return path.read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None

    return read


def _in_zip(path: Path) -> tuple[list[File], int]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a directory can be damaged in many ways
        raise UserError(f"{path} is a damaged zip ({error}): make it again") from None
    members = [member for member in archive.infolist() if not member.is_dir()]
    files = [
        File(member.filename, _member_reader(archive, member))
        for member in members
        if _is_image(member.filename)
    ]
    return files, len(members) - len(files)


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if member.file_size > MOST_BYTES:
            raise Unreadable(f"larger than {MOST_BYTES // 1_000_000} MB")
        try:
            return archive.read(member)
        except Exception as error:  # unpacking fails in as many ways as there are compressions
            raise Unreadable(f"the zip cannot give it back ({error})") from None

    return read


def decode(data: bytes) -> Image.Image:
    """The bytes of a file as an upright RGB image.

    Turned as its EXIF says; the first frame of an animation; 16-bit grey scaled (not cut) to 8; transparency
    over white; palettes, grey and CMYK converted. Raises Unreadable with the reason.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt EXIF and of sizes that are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            image.load()
            image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MOST_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable("not an image") from None
    except Exception as error:  # a decoder fails in many ways, and no broken file may end a run
        raise Unreadable(str(error) or type(error).__name__) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would cut off at 255
        return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)).convert(
            "RGB"
        )
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels


def square(image: Image.Image, size: int, box: Box | None = None) -> Image.Image:
    """The centre square of the image (or of its box), resized to size x size with antialiasing (Lanczos)."""
    left, upper, right, lower = box or (0, 0, *image.size)
    side = min(right - left, lower - upper)
    left, upper = left + (right - left - side) // 2, upper + (lower - upper - side) // 2
    image = image.crop((left, upper, left + side, upper + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)


# ----------------------------------------------------------------------------------------------------------
# Training: the images stay decoded on the device, and a batch is an index.


@dataclass(frozen=True)
class Images:
    """Images on the device.

    Attributes:
        pixels: (N, 3, size, size), uint8.
        names: the N files' names, in the same order.
        unreadable: the names that were left out, each with its reason.
        copies: how many are exact copies of another.
        kinds: the names of the sub-folders, sorted, where each image is in one; else none.
        labels: (N,), int64, each image's place among the kinds; None without.
        fingerprint: SHA-256 over names and pixels.
    """

    pixels: Tensor
    names: tuple[str, ...]
    unreadable: dict[str, str]
    fingerprint: str
    copies: int = 0
    kinds: tuple[str, ...] = ()
    labels: Tensor | None = None

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu", size: int = 64) -> Images:
        """Decode a folder or a zip. Raises UserError when it holds no readable image."""
        names, arrays, unreadable, digest, different = [], [], {}, hashlib.sha256(), set()
        files = find(path)
        for file in files:
            try:
                array = np.asarray(square(file.image(), size))
            except Unreadable as reason:
                unreadable[file.name] = str(reason)
                continue
            names.append(file.name)
            arrays.append(array)
            different.add(hashlib.sha256(array.tobytes()).digest())
            digest.update(file.name.encode(errors="surrogateescape") + b"\0" + array.tobytes())
        if not arrays:
            name, reason = next(iter(unreadable.items()))
            raise UserError(
                f"none of the {len(files)} images in {path} can be read: {name!r}, the first, is {reason}"
            )
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        copies = len(names) - len(different)
        kinds, labels = _kinds(names)
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
        """n images drawn with replacement: (n, 3, size, size), float32 in [-1, 1], on the device."""
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
            return self, self._some(torch.arange(0))
        order = torch.randperm(len(self))
        return self._some(order[n:].sort().values), self._some(order[:n].sort().values)

    def _some(self, places: Tensor) -> Images:
        names = tuple(self.names[place] for place in places)
        labels = None if self.labels is None else self.labels[places]
        return replace(self, pixels=self.pixels[places], names=names, labels=labels)

    def __str__(self) -> str:
        left_out = "".join(f"\n  left out: {name!r} ({reason})" for name, reason in self.unreadable.items())
        copies = f", {self.copies} of them an exact copy of another" if self.copies else ""
        return f"{len(self)} images{copies}" + left_out


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
    """Images (N, 3, H, W), uint8 or in [-1, 1], side by side, row by row."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    n, channels, height, width = pixels.shape
    rows = math.ceil(n / columns)
    pixels = F.pad(pixels.cpu(), (0, 0, 0, 0, 0, 0, 0, rows * columns - n))
    pixels = pixels.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return Image.fromarray(pixels.reshape(rows * height, columns * width, channels).numpy())


def frames(paths: list[Path]) -> Iterator[Image.Image]:
    """The grids in paths, opened one at a time."""
    for path in paths:
        with Image.open(path) as image:
            yield image.convert("RGB")
