"""The broken-image corpus: files that lie in the folders of users, and what a reader must make of each."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

UNREADABLE = "unreadable"
TOLERANCE = 3  # of a pixel's value, as JPEG is lossy
Colour = tuple[int, int, int]

TURNS = {  # orientation in EXIF: how an upright image is stored under it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
KINDS = {  # names that pictures have, and what is in the files
    "a.jfif": "JPEG",
    "a.jpe": "JPEG",
    "a.jpg_large": "JPEG",
    "a.avif": "AVIF",
    "a.ppm": "PPM",
    "a.jp2": "JPEG2000",
    "a.dib": "DIB",
    "a.ico": "ICO",
    "a.tga": "TGA",
    "a.pcx": "PCX",
    "a.sgi": "SGI",
}
NAMES = (  # of readable files
    "with space.png",
    "ünïcödé 面 😀.png",
    "new\nline.png",
    "-dash.png",
    "quote'\".png",
    "$(touch x);%s{0}*?.png",
    os.fsdecode(b"not-utf8-\xff.png"),
    "long" * 50 + ".png",
    "UPPER.PNG",
    "two.dots.png",
    "nested/deep/er/leaf.png",
    "nested/-x/leaf.png",
)


def broken_corpus(folder: Path) -> dict[str, Colour | str]:
    """Fill a folder with image files, whole and broken.

    Returns:
        For each file, by its name in the folder (with / between folders), either "unreadable" or the RGB
        value, within TOLERANCE, of pixel (8, 8) once it is square(image, 64). What is hidden in one folder
        counts as one file, named like the folder. Notes, and what the file system cannot hold, are left out.
    """
    expected: dict[str, Colour | str] = {}
    for name, data, value in [*_modes(), *_turned(), *_animated(), *_named(), *_broken()]:
        path = folder / name
        with suppress(OSError, UnicodeError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            expected[name] = value
    for name in ("README.md", "nested/LICENSE", "selected.csv", "a.txt"):  # these count nowhere
        (folder / name).write_bytes(b"Faces of people.\n")
    for name, target, value in (
        ("link.png", folder / "rgb.png", expected["rgb.png"]),
        ("dangling.png", folder / "nowhere.png", UNREADABLE),
        ("loop.png", folder / "loop.png", UNREADABLE),
    ):
        with suppress(OSError):
            (folder / name).symlink_to(target)
            expected[name] = value
    for name, value in (
        ("picture.txt", (0, 0, 0)),  # its content counts
        ("no-ending", (0, 0, 0)),
        ("folder.png/picture.db", (0, 0, 0)),
        (".hidden.png", UNREADABLE),
        ("__MACOSX/._rgb.png", UNREADABLE),
        (".cache/a/rgb.png", UNREADABLE),
    ):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(_encoded(Image.new("RGB", (64, 64))))
        hidden = name.partition("/")[0] + "/"
        expected[hidden if hidden in ("__MACOSX/", ".cache/") else name] = value
    return expected


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _modes() -> Iterator[tuple[str, bytes, Colour]]:
    """Every mode and format, in several sizes."""

    def plain(mode: str, colour: object, size: tuple[int, int] = (64, 64)) -> Image.Image:
        return Image.new(mode, size, colour)

    yield "rgb.png", _encoded(plain("RGB", (10, 20, 30))), (10, 20, 30)
    yield "wide.bmp", _encoded(plain("RGB", (40, 50, 60), (200, 90)), "BMP"), (40, 50, 60)
    yield "tall.tif", _encoded(plain("RGB", (70, 80, 90), (70, 300)), "TIFF"), (70, 80, 90)
    yield "one-pixel.png", _encoded(plain("RGB", (1, 2, 3), (1, 1))), (1, 2, 3)
    yield "small.gif", _encoded(plain("RGB", (9, 99, 199), (5, 3)), "GIF"), (9, 99, 199)
    yield "lossy.webp", _encoded(plain("RGB", (120, 120, 120)), "WEBP", quality=95), (120, 120, 120)
    yield "Mixed.JpEg", _encoded(plain("RGB", (200, 100, 50)), "JPEG", quality=95), (200, 100, 50)
    yield "misnamed.jpg", _encoded(plain("RGB", (5, 105, 205))), (5, 105, 205)  # a PNG
    for name, kind in KINDS.items():
        yield name, _encoded(plain("RGB", (30, 60, 90)), kind), (30, 60, 90)
    yield "grey.pgm", _encoded(plain("L", 77), "PPM"), (77, 77, 77)
    yield "bit.png", _encoded(plain("1", 1)), (255, 255, 255)
    yield "grey.jpg", _encoded(plain("L", 77), "JPEG", quality=95), (77, 77, 77)
    deep = Image.fromarray(np.full((64, 64), 0x8080, np.uint16))
    yield "grey16.png", _encoded(deep), (128, 128, 128)
    yield "grey16.tiff", _encoded(deep, "TIFF"), (128, 128, 128)
    yield "grey-alpha.png", _encoded(plain("LA", (0, 128))), (127, 127, 127)
    yield "rgba.png", _encoded(plain("RGBA", (255, 0, 0, 128))), (255, 127, 127)
    yield "clear.webp", _encoded(plain("RGBA", (255, 0, 0, 0)), "WEBP", lossless=True), (255, 255, 255)
    yield "colour-key.png", _encoded(plain("RGB", (9, 9, 9)), transparency=(9, 9, 9)), (255, 255, 255)
    palette = plain("RGB", (250, 130, 10)).quantize(2)
    index = palette.getpixel((0, 0))
    yield "palette.png", _encoded(palette), (250, 130, 10)
    yield "palette-clear.png", _encoded(palette, transparency=index), (255, 255, 255)
    yield "palette-clear.gif", _encoded(palette, "GIF", transparency=index), (255, 255, 255)
    yield "cmyk.jpg", _encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), (255, 0, 0)
    yield "cmyk.tif", _encoded(plain("CMYK", (255, 0, 255, 0)), "TIFF"), (0, 255, 0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "profile.png", _encoded(plain("RGB", (33, 66, 99)), icc_profile=profile), (33, 66, 99)


def _turned() -> Iterator[tuple[str, bytes, Colour]]:
    """Photographs held in each way, whose upper left quarter is red once they are upright."""
    upright = Image.new("RGB", (64, 96), "blue")
    upright.paste((255, 0, 0), (0, 0, 32, 48))
    for orientation, turn in TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(turn)
        options = {"quality": 95, "subsampling": 0, "exif": exif}
        yield f"exif-{orientation}.jpg", _encoded(stored, "JPEG", **options), (255, 0, 0)
        if orientation == 6:
            yield "exif-6.png", _encoded(stored, exif=exif), (255, 0, 0)
            yield "exif-6.webp", _encoded(stored, "WEBP", lossless=True, exif=exif), (255, 0, 0)
    damaged = _encoded(upright, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0garbage")
    yield "exif-damaged.jpg", damaged, (255, 0, 0)


def _animated() -> Iterator[tuple[str, bytes, Colour]]:
    """The first frame counts."""
    first, *rest = (Image.new("RGB", (64, 64), colour) for colour in ((180, 30, 60), "white", "black"))
    yield "animated.gif", _encoded(first, "GIF", save_all=True, append_images=rest), (180, 30, 60)
    options = {"save_all": True, "append_images": rest, "lossless": True}
    yield "animated.webp", _encoded(first, "WEBP", **options), (180, 30, 60)
    yield "animated.png", _encoded(first, save_all=True, append_images=rest), (180, 30, 60)


def _named() -> Iterator[tuple[str, bytes, Colour]]:
    for index, name in enumerate(NAMES):
        colour = (11 * index, 255 - 11 * index, 100)
        yield name, _encoded(Image.new("RGB", (64, 64), colour)), colour


def _broken() -> Iterator[tuple[str, bytes, str]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for ending, kind in (
        (".jpg", "JPEG"),
        (".png", "PNG"),
        (".webp", "WEBP"),
        (".gif", "GIF"),
        (".bmp", "BMP"),
    ):
        whole = _encoded(noise, kind)
        yield f"cut-half{ending}", whole[: len(whole) // 2], UNREADABLE
        yield f"cut-head{ending}", whole[:10], UNREADABLE
    whole = bytearray(_encoded(noise))
    whole[len(whole) // 2] ^= 0xFF
    yield "flipped-bit.png", bytes(whole), UNREADABLE
    yield "empty.png", b"", UNREADABLE
    yield "nested/empty.jpg", b"", UNREADABLE
    yield "text.jpg", b"this is no image\n", UNREADABLE
    yield "page.png", b"<!doctype html><title>404</title>", UNREADABLE
    yield "zeros.webp", bytes(4096), UNREADABLE
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", UNREADABLE
    yield "photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UNREADABLE
    yield "drawing.svg", b"<?xml version='1.0'?><svg/>", UNREADABLE
    yield "page.pdf", b"%PDF-1.7\n", UNREADABLE
    yield "inner.zip", b"PK\x03\x04" + bytes(100), UNREADABLE
    preview = _encoded(Image.new("RGB", (64, 64)), "TIFF", tiffinfo={254: 1})
    yield "raw.nef", preview, UNREADABLE  # a small picture of the large one, which is elsewhere in the file
    yield "bomb.png", _header(60_000, 60_000), UNREADABLE
    yield "large.png", _header(8_000, 8_000), UNREADABLE  # fewer pixels than PIL itself refuses
    yield "float.tif", _encoded(Image.new("F", (64, 64), 0.5), "TIFF"), UNREADABLE


def _header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
