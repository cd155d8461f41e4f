"""Reading: what is in a folder or a zip, and one file's bytes as an upright RGB image."""

from __future__ import annotations

import io
import os
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from transfer import UserError

FORMATS = (  # no other parser sees a user's file; what begins with no sign of its own comes last
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "PSD", "ICO", "SGI",
    "SUN", "PCX", "TGA",
)  # fmt: skip
MOST_PIXELS = 50_000_000  # an image with more is refused before it is decoded
MOST_BYTES = 200_000_000  # likewise a file with more
# Pillow refuses a PNG with a megabyte of text, for fear of memory: let text take what pixels may take.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_BYTES
RUN = ("settings.json", "reals.png", "log.jsonl", "checkpoints/manifest.json")  # two of them: it is a run's
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits, of numbers in files of 16 and 32
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels
GRIDS = "a run's folder, whose pictures are grids of many images"

# ----------------------------------------------------------------------------------------------------------
# Finding: every script, operating_file.py and fid/ read images here, so the same files count everywhere.


class Unreadable(Exception):
    """Why one file is no image that can be used."""


@dataclass(frozen=True)
class File:
    """One file of a folder or a zip: its name in there, and how to get its bytes.

    Attributes:
        refused: why it is not read at all; it then stands for everything whose name begins with its own.
    """

    name: str
    read: Callable[[], bytes]
    refused: str = ""

    @classmethod
    def not_read(cls, name: str, reason: str) -> File:
        """A file whose read raises Unreadable."""

        def read() -> NoReturn:
            raise Unreadable(reason)

        return cls(name, read, reason)

    def image(self) -> Image.Image:
        """The upright RGB image, as decode gives it. Raises Unreadable with the reason."""
        return decode(self.read())


def find(path: Path) -> list[File]:
    """Every file of a folder (flat or nested, links followed) or a zip, sorted by name.

    Which of them are images only their content tells. What is hidden, what cannot be listed, a folder that
    links lead to twice and a run of this project are one File each, which is refused.

    Raises:
        UserError: when there is no such folder or zip, or it cannot be read, holds nothing, or is a run's.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UserError(f"{path} is neither a folder nor a zip: give one that holds images")
        files = _in_folder(path) if stat.S_ISDIR(mode) else _in_zip(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a folder or a zip of images") from None
    except OSError as error:
        mend = "look after its permissions" if isinstance(error, PermissionError) else "give another one"
        raise UserError(f"{path} cannot be read ({error.strerror}): {mend}") from None
    if not files:
        raise UserError(f"{path} holds no image: it is empty")
    runs = _runs({file.name for file in files})
    above = Path(os.path.abspath(path)).parent
    if "" in runs or (
        path.name == "samples" and "" in _runs({name for name in RUN if (above / name).exists()})
    ):
        run = path if "" in runs else above
        raise UserError(
            f"{path} holds a run's grids of many images: give single images, or --model {run} where they are"
            " to be drawn from the run and scored"
        )
    return sorted(_gathered(files, runs), key=lambda file: file.name)


def _runs(names: set[str]) -> set[str]:
    """The folders, "" or with / at their ends, that hold a run."""
    folders = {name[: -len(mark)] for name in names for mark in RUN if f"/{name}".endswith(f"/{mark}")}
    return {folder for folder in folders if sum(folder + mark in names for mark in RUN) > 1}


def _gathered(files: Iterable[File], runs: set[str]) -> Iterable[File]:
    """The files, with one in the place of all that are hidden together or belong to one run."""
    gathered: dict[str, File] = {}
    for file in files:
        *folders, name = file.name.split("/")
        at = ""
        for part in (*(f"{folder}/" for folder in folders), name):
            at += part
            if _is_hidden(part):
                gathered[at] = File.not_read(at, "hidden")
                break
            if at in runs:
                gathered[at] = File.not_read(at, GRIDS)
                break
        else:
            yield file
    yield from gathered.values()


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part.strip("/") != "..") or part.strip("/") == "__MACOSX"


def _in_folder(folder: Path) -> list[File]:
    """Every file below a folder; each folder once, under the name that it has without links."""
    files, waiting, links = [], [""], []
    root = Path(os.path.realpath(folder))
    met = {str(path): "a link to a folder that holds it" for path in (root, *root.parents)}
    while waiting or links:
        at = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(folder / at)
        if at and real in met:
            files.append(File.not_read(at, met[real]))
            continue
        met.setdefault(real, f"the same folder as {at!r}")
        try:
            entries = sorted(os.scandir(folder / at), key=lambda entry: entry.name)
        except OSError as error:
            if not at:
                raise
            files.append(File.not_read(at, f"a folder that cannot be listed: {error.strerror or error}"))
            continue
        for entry in entries:
            if not os.path.isdir(entry.path):
                files.append(File(at + entry.name, _reader(Path(entry.path))))
            elif _is_hidden(entry.name):
                files.append(File.not_read(f"{at}{entry.name}/", "hidden"))
            else:
                (links if entry.is_symlink() else waiting).append(f"{at}{entry.name}/")
    return files


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


def _in_zip(path: Path) -> list[File]:
    with open(path, "rb") as handle:
        begins = handle.read(2)
    if begins != b"PK" and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a zip: give one that holds images")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a directory can be damaged in many ways
        what = error if zipfile.is_zipfile(path) else "its end is missing"
        raise UserError(f"{path} is a damaged zip ({what}): make it again") from None
    files = []
    for member in archive.infolist():
        parts = member.filename.replace("\\", "/").split("/")  # as some programs write it
        name = "/".join(part for part in parts if part not in ("", "."))
        if member.flag_bits & 1:
            files.append(File.not_read(name, "encrypted: unpack it with its password"))
        elif not member.is_dir():
            files.append(File(name, _member_reader(archive, member)))
    return files


def _member_reader(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        if member.file_size > MOST_BYTES:
            raise Unreadable(f"larger than {MOST_BYTES // 1_000_000} MB")
        try:
            return archive.read(member)
        except Exception as error:  # unpacking fails in as many ways as there are compressions
            raise Unreadable(f"the zip cannot give it back ({error})") from None

    return read


# ----------------------------------------------------------------------------------------------------------
# Decoding.


def decode(data: bytes) -> Image.Image:
    """The bytes of a file as an upright RGB image, in sRGB.

    Turned as its EXIF says; the first frame of an animation; colours converted from the file's profile;
    transparency over white; palettes, grey and CMYK converted; integers of more than 8 bits scaled to 8, see
    _to_eight_bits. Raises Unreadable with the reason.

    Returns:
        The image, whose info holds the file's "format", its "mode" there, and a "doubt": what had to be
        guessed, if anything.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt EXIF and of sizes that are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            info = {"format": image.format, "mode": image.mode}
            if image.format == "TIFF" and image.tag_v2.get(254, 0) & 1:  # NewSubfileType: reduced
                raise Unreadable(
                    "its first picture is a small preview, as in raw photographs: save it as PNG"
                )
            tiles = list(image.tile)
            image.load()
            image, guessed = _to_eight_bits(image, tiles, data)
            image, ignored = _to_rgb(ImageOps.exif_transpose(image))
            image.info = {**info, "doubt": ", ".join(filter(None, (guessed, ignored)))}
            return image
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {MOST_PIXELS:,} pixels") from None
    except Image.UnidentifiedImageError:
        raise Unreadable(_other(data)) from None
    except Exception as error:  # a decoder fails in many ways, and no broken file may end a run
        raise Unreadable(str(error) or type(error).__name__) from None


def _other(data: bytes) -> str:
    """Why a file that no decoder knows is not read, and what to do with it."""
    begins = data[:4096].lstrip()
    if begins.startswith(b"PK\x03\x04"):
        return "a zip: unpack it, or give it by itself"
    if begins.startswith((b"%PDF", b"%!PS")):
        return "a page, which could run code: save its picture as PNG"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which is not read here: save it as JPEG"
    if begins.startswith(b"<") and b"<svg" in begins:
        return "SVG, which is not read here: save it as PNG"
    return "not in an image format that is read here"


def _to_eight_bits(image: Image.Image, tiles: list, data: bytes) -> tuple[Image.Image, str]:
    """An image of 8-bit numbers, and what was guessed to make it one.

    Files seldom tell how many of their 16 or 32 bits are used, and cameras and scanners fill 10 to 14: it is
    taken to be the fewest of DEPTHS that hold an image's largest number. Numbers below 0 are as far from
    mid-grey as those above it.
    """
    tags = image.tag_v2 if image.format == "TIFF" else {}
    bits, signed = min(tags.get(258, (16,))), 2 in tags.get(339, ())  # BitsPerSample, SampleFormat
    coder, *_, raw = tiles[0] if tiles else ("", "")
    raw = raw if isinstance(raw, str) else str(raw[0]) if raw else ""  # how the file holds its pixels
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if bits == 32 and not signed:
            values &= 0xFFFFFFFF
    elif image.mode == "L" and signed:
        values = np.asarray(image).view(np.int8).astype(np.int64)
    elif image.mode in ("RGB", "RGBA") and ";16" in raw and (upper := np.asarray(image)[..., :3]).max() < 64:
        values = (upper.astype(np.int64) << 8) | _lower_bytes(data, raw)  # Pillow keeps the upper bytes
    else:
        return image, ""
    scaled = bits < 16 or coder.startswith("ppm")  # the whole range is known
    pixels, used = _scaled(values, bits, signed, scaled)
    if tags.get(262) == 0 and image.mode != "L":  # PhotometricInterpretation: white is zero
        pixels = 255 - pixels
    whole = Image.fromarray(pixels)
    if image.mode == "RGBA":
        whole.putalpha(image.getchannel("A"))
    whole.info = {key: image.info[key] for key in ("icc_profile", "exif") if key in image.info}
    if used >= bits - signed or not values.any():
        return whole, ""
    return (
        whole,
        f"its {bits}-bit numbers are read as {used}-bit ones, as none is beyond {abs(values).max():,}",
    )


def _scaled(values: np.ndarray, bits: int, signed: bool, known: bool) -> tuple[np.ndarray, int]:
    """Integers as uint8, and of how many bits they were taken to be."""
    least, most = int(values.min()), int(values.max())
    below = int(least < 0)
    depths = [bits] if known else sorted({*DEPTHS, bits - (signed and not below)})
    used = next(depth for depth in depths if max(most, -least - 1) < 1 << (depth - below))
    bottom, top = -below << (used - 1), (1 << (used - below)) - 1
    return ((values - bottom) * (255 / (top - bottom))).round().astype(np.uint8), used


def _lower_bytes(data: bytes, raw: str) -> np.ndarray:
    """The lower bytes (H, W, 3) of colours of 16 bits: decoded again, the bytes taken in the other order.

    Zeros where Pillow has no such way to decode them.
    """
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    other = raw[:-1] + order.get(raw[-1], "")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
            for tile in image.tile
        ]
        image.load()
    except (ValueError, OSError):
        return np.zeros((image.height, image.width, 3), np.int64)
    return np.asarray(image)[..., :3].astype(np.int64)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The 8-bit image as RGB, in sRGB and over white, and what was ignored in it."""
    profile, mode, doubt = image.info.get("icc_profile"), image.mode, ""
    clear = "A" in mode or "a" in mode or "transparency" in image.info
    whole = image.convert("RGBA") if clear else image
    rgb = whole.convert("RGB")
    if profile:
        try:
            of, transform = _transform(profile)
        except (ImageCms.PyCMSError, OSError, ValueError):
            of, transform, doubt = "", None, "its colour profile is damaged and not used"
        fits = {
            "RGB": mode not in ("CMYK", "LAB"),
            "L": mode in ("1", "L", "LA", "La"),
            "CMYK": mode == of,
            "LAB": mode == of,
        }
        if of and not fits.get(of, False):
            doubt = "its colour profile is of another kind of colours and not used"
        elif transform is not None:
            rgb = ImageCms.applyTransform(whole.convert(of), transform)
    if clear:
        white = Image.new("RGB", rgb.size, "white")
        rgb = Image.composite(rgb, white, whole.getchannel("A"))
    return rgb, doubt


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode of the colours that a profile is of, and what brings them to sRGB.

    None for a profile that differs from sRGB by rounding alone, as most do.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    mode = {"GRAY": "L"}.get(space, space.upper())
    if mode not in ("RGB", "L", "CMYK"):
        return mode, None
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        steps = np.linspace(0, 255, 18).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(18, -1, 3)
        probe = Image.fromarray(colours if mode == "RGB" else colours[..., 0])
        moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if abs(moved - np.asarray(probe.convert("RGB"))).max() <= 1:
            transform = None
    return mode, transform


def doubts(image: Image.Image, size: int, box: Box | None = None) -> str:
    """What a person should know of an image of decode that is brought to this size, if anything."""
    left, upper, right, lower = box or (0, 0, *image.size)
    side = min(right - left, lower - upper)
    small = f"enlarged from {side} x {side} pixels" if 2 * side < size else ""
    return ", ".join(filter(None, (image.info.get("doubt", ""), small)))


def square(image: Image.Image, size: int, box: Box | None = None) -> Image.Image:
    """The centre square of the image (or of its box), resized to size x size with antialiasing (Lanczos)."""
    left, upper, right, lower = box or (0, 0, *image.size)
    side = min(right - left, lower - upper)
    left, upper = left + (right - left - side) // 2, upper + (lower - upper - side) // 2
    image = image.crop((left, upper, left + side, upper + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
