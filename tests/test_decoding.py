"""Decoding: what the numbers of a file are as pixels, whatever their depth, sign and profile."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

import operating_file
from transfer.decoding import Unreadable, decode, doubts
from transfer.images import Images

RAMP = np.linspace(0, 1, 4096).reshape(64, 64)
EXPECTED = (RAMP * 255).round()


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(values: np.ndarray, sample_format: int = 1, photometric: int = 1) -> bytes:
    """Integers as a TIFF file that tells of them what is given: 1 for unsigned, 2 for signed."""
    data, (height, width) = values.tobytes(), values.shape
    bits = 8 * values.dtype.itemsize
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def png(values: np.ndarray, kind: int, clear: bytes = b"", bits: int = 16) -> bytes:
    """Numbers (H, W, C) as a PNG file of so many bits each, where Pillow writes few; clear: its tRNS."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, kind, 0, 0, 0)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in values]
    else:
        eighths = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        packed = [np.packbits(row).tobytes() for row in eighths]
    rows = b"".join(b"\0" + row for row in packed)
    chunks = (
        chunk(b"IHDR", header)
        + (chunk(b"tRNS", clear) if clear else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def deep(bits: int, kind: type = np.uint16) -> np.ndarray:
    return (RAMP * ((1 << bits) - 1)).round().astype(kind)


def both(bits: int, kind: type) -> np.ndarray:
    return ((RAMP * 2 - 1) * ((1 << (bits - 1)) - 1)).round().astype(kind)


GREY = {
    **{f"{bits} of 16 bits, PNG": (encoded(deep(bits)), bits) for bits in (8, 10, 12, 14, 16)},
    "12 of 16 bits, TIFF": (encoded(deep(12), "TIFF", compression="tiff_lzw"), 12),
    "12 of 16 bits, JPEG 2000": (encoded(deep(12), "JPEG2000"), 12),
    "12 of 16 bits, PGM": (encoded(deep(12), "PPM"), 12),
    "12 bits, PGM": (b"P5 64 64 4095\n" + deep(12, ">u2").tobytes(), 16),
    "16 of 32 bits": (tiff(deep(16, "<i4"), 2), 16),
    "31 bits": (tiff(deep(31, "<i4"), 2), 16),
    "32 bits": (tiff(deep(32, "<u4")), 16),
    "16 bits, half of them below 0": (tiff(both(16, "<i2"), 2), 16),
    "32 bits, half of them below 0": (tiff(both(32, "<i4"), 2), 16),
    "12 of 16 bits, half of them below 0": (tiff(both(12, "<i2"), 2), 12),
    "16 bits with a sign, none below 0": (tiff(deep(15, "<i2"), 2), 16),
    "8 bits, half of them below 0": (tiff(both(8, "i1"), 2), 16),
    "16 bits, white is zero": (tiff(deep(16, "<u2")[::-1, ::-1].copy(), photometric=0), 16),
    "12 of 16 bits, white is zero": (tiff(deep(12, "<u2")[::-1, ::-1].copy(), photometric=0), 12),
}


@pytest.mark.parametrize("case", GREY)
def test_black_is_black_and_white_is_white_whatever_numbers_stand_for_them(case):
    data, bits = GREY[case]
    image = decode(data)
    found = np.asarray(image).astype(int)
    assert abs(found - EXPECTED[..., None]).max() <= 1
    assert (f"read as {bits}-bit" in image.info["doubt"]) == (bits < 16 or case.startswith("16 of 32"))


def test_a_dark_image_of_a_known_range_stays_dark():
    dark = b"P5 64 64 4095\n" + (RAMP * 200).astype(">u2").tobytes()
    assert np.asarray(decode(dark)).max() == 12 and not decode(dark).info["doubt"]
    black = decode(encoded(np.zeros((8, 8), np.uint16)))
    assert np.asarray(black).max() == 0 and not black.info["doubt"]


@pytest.mark.parametrize("kind, channels", [(2, 3), (6, 4)])
def test_twelve_bits_of_sixteen_in_colour(kind, channels):
    values = np.stack([deep(12), deep(12)[::-1], deep(12) // 2, np.full((64, 64), 65535)], -1)
    image = decode(png(values[..., :channels], kind))
    expected = np.stack([EXPECTED, EXPECTED[::-1], EXPECTED / 2], -1)
    assert abs(np.asarray(image) - expected).max() <= 1 and "12-bit" in image.info["doubt"]
    values[..., :3] *= 16  # all sixteen
    image = decode(png(values[..., :channels], kind))
    assert abs(np.asarray(image) - expected).max() <= 1 and not image.info["doubt"]


def coloured(values: np.ndarray, photometric: int, planes: int = 1, extra: int | None = None) -> bytes:
    """Numbers (H, W, C) of 8 or 16 bits as a TIFF file; planes: 2 for one colour after another."""
    height, width, count = values.shape
    if planes == 2:
        values = np.ascontiguousarray(values.transpose(2, 0, 1))
    data = values.tobytes()
    at = 8 + len(data)
    bits = struct.pack(f"<{count}H", *[8 * values.dtype.itemsize] * count)
    each = [8 + index * len(data) // count for index in range(count)]
    places = struct.pack(f"<{count}I", *each) + struct.pack(f"<{count}I", *[len(data) // count] * count)
    tags = {256: (4, 1, width), 257: (4, 1, height), 259: (4, 1, 1), 262: (4, 1, photometric)}
    tags |= {258: (3, count, at) if count > 2 else (3, count, int.from_bytes(bits, "little"))}
    tags |= {277: (4, 1, count), 278: (4, 1, height), 284: (4, 1, planes)}
    tags |= {273: (4, 1, 8), 279: (4, 1, len(data))}
    if planes == 2:
        tags |= {273: (4, count, at + len(bits)), 279: (4, count, at + len(bits) + 4 * count)}
    if extra is not None:
        tags |= {338: (4, 1, extra)}
    entries = b"".join(struct.pack("<HHII", tag, *value) for tag, value in sorted(tags.items()))
    body = data + bits + places
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(body))
        + body
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


COLOURS = np.stack([EXPECTED, EXPECTED[::-1], EXPECTED // 2], -1)


def colours(bits: int) -> np.ndarray:
    """The colours in numbers of so many bits, (64, 64, 3), uint16."""
    return (COLOURS / 255 * ((1 << bits) - 1)).round().astype(np.uint16)


def inks(bits: int) -> np.ndarray:
    """The same as CMYK, without black."""
    return np.dstack([(1 << bits) - 1 - colours(bits), np.zeros((64, 64), np.uint16)])


def covered(values: np.ndarray, alpha: int) -> np.ndarray:
    return np.dstack([values, np.full((64, 64), alpha, np.uint16)])


COLOURED = {
    **{f"CMYK, {bits} of 16 bits": (coloured(inks(bits), 5), COLOURS) for bits in (12, 16)},
    "RGB and something, 12 of 16 bits": (coloured(covered(colours(12), 7), 2, extra=0), COLOURS),
    "CMYK in planes of 8 bits": (coloured(inks(8).astype(np.uint8), 5, planes=2), COLOURS),
    "grey and alpha, 12 of 16 bits": (png(covered(deep(12), 65535), 4), EXPECTED[..., None]),
    "half of it, 12 of 16 bits": (png(covered(deep(12), 32768), 4), (255 + EXPECTED[..., None]) / 2),
    "PPM, 12 of 16 bits": (b"P6 64 64 65535\n" + colours(12).astype(">u2").tobytes(), COLOURS),
    "PPM of 16 bits": (b"P6 64 64 65535\n" + colours(16).astype(">u2").tobytes(), COLOURS),
    "PPM of 10 bits": (b"P6 64 64 1023\n" + colours(10).astype(">u2").tobytes(), COLOURS),
    "PPM to 200": (b"P6 64 64 200\n" + (COLOURS / 255 * 200).round().astype(np.uint8).tobytes(), COLOURS),
    "PPM in words": (b"P3 64 64 65535\n" + " ".join(map(str, colours(16).flatten())).encode(), COLOURS),
    "JPEG 2000": (encoded(COLOURS.astype(np.uint8), "JPEG2000"), COLOURS),
    "JPEG 2000, half of it": (
        encoded(Image.fromarray(covered(COLOURS, 128).astype(np.uint8), "RGBA"), "JPEG2000"),
        (255 + COLOURS) / 2,
    ),
}


@pytest.mark.parametrize("case", COLOURED)
def test_colours_are_those_of_the_file_whatever_numbers_stand_for_them(case):
    data, expected = COLOURED[case]
    image = decode(data)
    assert abs(np.asarray(image) - expected).max() <= 2
    assert ("read as 12-bit" in image.info["doubt"]) == ("12 of" in case)


@pytest.mark.parametrize("bits, kind", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_the_colour_that_a_png_calls_clear_is_white_and_no_other(bits, kind):
    """Two colours that differ by one in the file's numbers; the first is clear."""
    most = (1 << bits) - 1
    clear = np.array([most // 3] * (3 if kind else 1))
    values = np.where(np.arange(64).reshape(8, 8, 1) % 2, clear, clear + 1)
    values[0, 0] = most
    found = np.asarray(
        decode(png(values if kind else values[..., 0], kind, clear.astype(">u2").tobytes(), bits))
    )
    expected = np.where((values == clear).all(-1, keepdims=True), 255, values / most * 255)
    assert abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    "data, reason",
    [
        (coloured(colours(16), 2, planes=2), "lie in planes"),
        (coloured(covered(deep(8), 255).astype(np.uint8), 1, planes=2, extra=2), "lie in planes"),
        (coloured(covered(deep(16), 65535), 1, extra=2), "a TIFF file, but of a kind"),
        (b"8BPS" + bytes(40), "Photoshop's file, but of a kind"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_with_a_reason(data, reason):
    with pytest.raises(Unreadable, match=f"{reason}.*: save it as PNG"):
        decode(data)


def test_jpeg_2000_whose_white_would_come_out_black_is_refused():
    data = bytearray(encoded(np.full((8, 8, 3), 255, np.uint8), "JPEG2000"))
    sizes = data.index(b"\xff\x4f\xff\x51") + 42
    data[sizes : sizes + 9 : 3] = [15] * 3  # as if of 16 bits
    with pytest.raises(Unreadable, match="with more than 8 bits, whose white would come out black"):
        decode(bytes(data))


def test_half_a_number_is_never_taken_for_the_whole(monkeypatch):
    data = png(colours(12), 2)
    opened = [Image.open(io.BytesIO(data))]

    def once(*_, **__):
        if not opened:
            raise ValueError("unknown raw mode")
        return opened.pop()

    monkeypatch.setattr(Image, "open", once)
    with pytest.raises(Unreadable, match="only half of each can be read here: save it as PNG"):
        decode(data)


def exchanged() -> bytes:
    """sRGB's profile with red and green exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = (data.index(name) for name in (b"rXYZ", b"gXYZ"))  # in the table of tags
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def linear_grey() -> bytes:
    """A profile of grey that is proportional to light."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    curve = b"curv" + bytes(8)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 12)
    body = table + white + curve
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 0xF6D6, 0x10000, 0xD32D)
    return header.ljust(128, b"\0") + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_colours_are_converted_from_the_files_profile(kind):
    red = Image.new("RGB", (64, 64), (255, 0, 0))
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind in ("JPEG", "AVIF") else {}
    image = decode(encoded(red, kind, icc_profile=exchanged(), **options))
    assert np.subtract(image.getpixel((8, 8)), (0, 255, 0)).max() <= 4
    assert decode(encoded(red, kind, **options)).getpixel((8, 8))[0] >= 251


def test_grey_palettes_and_transparency_are_converted_too():
    grey = Image.new("L", (8, 8), 55)
    expected = 128  # sRGB's number for a fifth of the light
    profile = linear_grey()
    assert abs(decode(encoded(grey, icc_profile=profile)).getpixel((0, 0))[1] - expected) <= 1
    grey.putalpha(255)
    assert abs(decode(encoded(grey, icc_profile=profile)).getpixel((0, 0))[1] - expected) <= 1
    sixteen = np.full((8, 8), 55 * 257, np.uint16)
    sixteen[0, 0] = 65535
    assert abs(decode(encoded(sixteen, icc_profile=profile)).getpixel((4, 4))[1] - expected) <= 1
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    assert decode(encoded(red.quantize(2), icc_profile=exchanged())).getpixel((0, 0)) == (0, 255, 0)
    red.putalpha(0)
    assert decode(encoded(red, icc_profile=exchanged())).getpixel((0, 0)) == (255, 255, 255)
    red.putalpha(128)
    half = decode(encoded(red, icc_profile=exchanged())).getpixel((0, 0))
    assert abs(np.subtract(half, (127, 255, 127))).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile", exchanged()[:300], linear_grey()])
def test_a_profile_that_cannot_be_used_is_said(profile):
    image = decode(encoded(Image.new("RGB", (8, 8), (250, 100, 50)), icc_profile=profile))
    assert image.getpixel((0, 0)) == (250, 100, 50) and "profile" in image.info["doubt"]


def test_an_ordinary_profile_changes_no_pixel():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert decode(encoded(noise, icc_profile=profile)).tobytes() == noise.tobytes()


def test_selected_pictures_are_converted_and_carry_no_profile(tmp_path):
    (tmp_path / "source").mkdir()
    red = encoded(Image.new("RGB", (80, 80), (255, 0, 0)), icc_profile=exchanged())
    (tmp_path / "source" / "red.png").write_bytes(red)
    operating_file.main(["select", str(tmp_path / "source"), str(tmp_path / "target")])
    with Image.open(tmp_path / "target" / "0.png") as image:
        assert image.getpixel((8, 8)) == (0, 255, 0) and "icc_profile" not in image.info


def test_much_metadata_is_no_reason_to_refuse_a_picture():
    told = PngImagePlugin.PngInfo()
    told.add_itxt("workflow", "x" * 3_000_000, zip=True)  # Pillow's own limit is a megabyte
    told.add_text("more", "x" * 70_000_000)  # and 64 in all
    image = decode(encoded(Image.new("RGB", (8, 8), "red"), pnginfo=told))
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_pictures_that_are_enlarged_from_few_pixels_are_named(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    for name, size in {"hair": (1, 2000), "icon": (31, 40), "half": (32, 90), "whole": (64, 64)}.items():
        Image.new("RGB", size, "red").save(source / f"{name}.png")
    Images.load(source)
    loaded = capsys.readouterr().out
    operating_file.main(["inspect", str(source)])
    inspected = capsys.readouterr().out
    operating_file.main(["select", str(source), str(tmp_path / "target")])
    for said in (loaded, inspected, capsys.readouterr().out):
        assert "'hair.png'" in said and "from 1 x 1 pixels" in said and "from 31 x 31 pixels" in said
        assert "half.png" not in said and "whole.png" not in said
    assert doubts(Image.new("RGB", (90, 90)), 64, (0, 0, 20, 30)) == "enlarged from 20 x 20 pixels"


def test_a_zip_among_images_is_called_what_it_is():
    def zipped(*names):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        return buffer.getvalue()

    network = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, network)
    more = zipped("faces/", "faces/0.JPG")
    for data, reason in (
        (network.getvalue(), "not in an image format that is read here"),
        (zipped("[Content_Types].xml", "word/document.xml"), "not in an image format that is read here"),
        (more, "a zip: unpack it, or give it by itself"),
        (more[: len(more) // 2], "a damaged zip"),
    ):
        with pytest.raises(Unreadable) as refusal:
            decode(data)
        assert str(refusal.value) == reason
