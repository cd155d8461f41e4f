"""Decoding: one file's bytes as an upright RGB image."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

FORMATS = (  # no other parser sees a user's file; what begins with no sign of its own comes last
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "PSD", "ICO", "SGI",
    "SUN", "PCX", "TGA",
)  # fmt: skip
MOST_PIXELS = 50_000_000  # an image with more is refused before it is decoded
MOST_BYTES = 200_000_000  # likewise a file with more
# Pillow refuses a PNG with a megabyte of text, for fear of memory: let text take what pixels may take.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MOST_BYTES
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits, of numbers in files of 16 and 32
EMPTY, NO_IMAGE = "empty file", "not in an image format that is read here"
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels


class Unreadable(Exception):
    """Why one file is no image that can be used."""


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
        raise Unreadable(EMPTY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of corrupt EXIF and of sizes that are refused below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
            info = {"format": image.format, "mode": image.mode}
            if reason := _misread(image, data):
                raise Unreadable(f"{reason}: save it as PNG")
            if [(tile.codec_name, tile.args) for tile in image.tile] == [("ppm", ("RGB", 65535))]:
                # A PPM of 16 bits: Pillow would keep only the upper bytes, and not tell.
                image.tile = [image.tile[0]._replace(codec_name="raw", args=("RGB;16B", 0, 1))]
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
    except MemoryError:
        raise Unreadable("the memory does not hold it: save it with fewer pixels") from None
    except Exception as error:  # a decoder fails in many ways, and no broken file may end a run
        raise Unreadable(str(error) or type(error).__name__) from None


def _misread(image: Image.Image, data: bytes) -> str:
    """Why Pillow would not read an opened file rightly, if so."""
    if image.format == "TIFF":
        tags = image.tag_v2
        if tags.get(254, 0) & 1:  # NewSubfileType: reduced
            return "its first picture is a small preview, as in raw photographs"
        planes = tags.get(284) == 2 and tags.get(277, 1) > 1  # PlanarConfiguration, SamplesPerPixel
        if planes and (max(tags.get(258, (8,))) > 8 or image.mode not in ("RGB", "RGBA", "CMYK")):
            return "its colours lie in planes of a kind that is not read here"
    if image.format == "SGI" and data[3] > 1:
        return "its numbers have 16 bits, and only half of each can be read here"
    if image.format == "JPEG2000" and image.mode not in ("L", "I;16"):
        size = data.find(b"\xff\x4f\xff\x51")  # the first two markers, and behind them the colours' bits
        if data[size + 42] & 0x7F > 7:
            return "JPEG 2000 in colour with more than 8 bits, whose white would come out black"
    return ""


def _other(data: bytes) -> str:
    """Why a file that no decoder knows is not read, and what to do with it."""
    begins = data[:4096].lstrip()
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"8BPS")):
        kind = "Photoshop's" if data.startswith(b"8BPS") else "a TIFF"
        return f"{kind} file, but of a kind that is not read here: save it as PNG"
    if begins.startswith(b"PK\x03\x04"):
        return _of_zip(data)
    if begins.startswith((b"%PDF", b"%!PS")):
        return "a page, which could run code: save its picture as PNG"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"):
        return "HEIC, which is not read here: save it as JPEG"
    if begins.startswith(b"<") and b"<svg" in begins:
        return "SVG, which is not read here: save it as PNG"
    return NO_IMAGE


def _of_zip(data: bytes) -> str:
    """Why a zip among images is not read: saved networks and office documents are zips as well."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except Exception:  # a directory can be damaged in many ways
        return "a damaged zip"
    images = any(Path(name).suffix.lower() in Image.registered_extensions() for name in names)
    return "a zip: unpack it, or give it by itself" if images else NO_IMAGE


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
    clear = image.info.get("transparency")  # in the file's numbers, as PNG has it
    if image.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if bits == 32 and not signed:
            values &= 0xFFFFFFFF
    elif image.mode == "L" and signed:
        values = np.asarray(image).view(np.int8).astype(np.int64)
    elif ";16" in raw and not raw.startswith("RGBa"):  # Pillow keeps the upper bytes
        upper = _colours(image)
        if upper.max() >= 64 and clear is None:
            return image, ""
        values = (upper.astype(np.int64) << 8) | _lower_bytes(data, tiles, raw)
    else:
        if clear is not None and raw in ("L;2", "L;4"):
            image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw]
        return image, ""
    scaled = bits < 16 or coder.startswith("ppm")  # the whole range is known
    pixels, used = _scaled(values, bits, signed, scaled)
    if tags.get(262) == 0 and image.mode != "L":  # PhotometricInterpretation: white is zero
        pixels = 255 - pixels
    whole = Image.fromarray(pixels) if image.mode != "CMYK" else Image.frombytes("CMYK", image.size, pixels)
    if image.mode == "RGBA":
        whole.putalpha(image.getchannel("A"))
    elif clear is not None:
        seen = (values != clear).reshape(*values.shape[:2], -1).any(-1)
        whole.putalpha(Image.fromarray((255 * seen).astype(np.uint8)))
    whole.info = {key: image.info[key] for key in ("icc_profile", "exif") if key in image.info}
    if used >= bits - signed or not values.any():
        return whole, ""
    return (
        whole,
        f"its {bits}-bit numbers are read as {used}-bit ones, as none is beyond {abs(values).max():,}",
    )


def _colours(image: Image.Image) -> np.ndarray:
    """An image's numbers, (H, W) or (H, W, C), without its transparency."""
    pixels = np.asarray(image)
    return pixels if image.mode in ("L", "CMYK") else pixels[..., :3]


def _scaled(values: np.ndarray, bits: int, signed: bool, known: bool) -> tuple[np.ndarray, int]:
    """Integers as uint8, and of how many bits they were taken to be."""
    least, most = int(values.min()), int(values.max())
    below = int(least < 0)
    depths = [bits] if known else sorted({*DEPTHS, bits - (signed and not below)})
    used = next(depth for depth in depths if max(most, -least - 1) < 1 << (depth - below))
    bottom, top = -below << (used - 1), (1 << (used - below)) - 1
    return ((values - bottom) * (255 / (top - bottom))).round().astype(np.uint8), used


def _lower_bytes(data: bytes, tiles: list, raw: str) -> np.ndarray:
    """The lower bytes of numbers of 16 bits: decoded again, the bytes taken in the other order.

    Raises Unreadable where Pillow has no such way to decode them.
    """
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    grey = raw == "LA;16B"  # its four bytes are decoded as if they were four colours: the second it is
    other = "RGBA" if grey else "L;16" if raw == "L;16B" else raw[:-1] + order.get(raw[-1], "")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
            for tile in tiles
        ]
        image.load()
    except (ValueError, OSError):
        raise Unreadable(
            "its numbers have 16 bits and are small, and only half of each can be read here: save it as PNG"
        ) from None
    return (np.asarray(image)[..., 1:2] if grey else _colours(image)).astype(np.int64)


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
    """The centre square of the image (or of its box), resized to size x size with antialiasing (Lanczos).

    MNIST's 28 x 28 pixels keep theirs at 32 x 32, in a black border (LeCun et al. 1998).
    """
    if (image.size, size, box) == ((28, 28), 32, None):
        return ImageOps.expand(image, 2)
    left, upper, right, lower = box or (0, 0, *image.size)
    side = min(right - left, lower - upper)
    left, upper = left + (right - left - side) // 2, upper + (lower - upper - side) // 2
    image = image.crop((left, upper, left + side, upper + side))
    return image if side == size else image.resize((size, size), Image.Resampling.LANCZOS)
