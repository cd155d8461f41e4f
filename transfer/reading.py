"""Reading: what is in a folder, a zip or an idx file. All read here, so the same files count everywhere."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from PIL import Image

from transfer import UserError
from transfer.decoding import EMPTY, MOST_BYTES, NO_IMAGE, Unreadable, decode

RUN = ("settings.json", "reals.png", "log.jsonl", "checkpoints/manifest.json")  # two of them: it is a run's
GRIDS = "a run's folder, whose pictures are grids of many images"
MARKER = ".generated"  # a JSON list of the files beside it that a model drew, see drawing.keep
DRAWN = f"images that a model drew, as the {MARKER} in there says: remove that file to use them"
NOTES = re.compile(  # names of what goes with images and is none
    r"(readme|licen[cs]e|copying|credits|notice)[^.]*|.*\.(md|txt|rst|csv|tsv|jsonl?|xml|ya?ml)",
    re.IGNORECASE,
)


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
    """Every file of a folder (flat or nested, links followed) or a zip, sorted by name; each image of an idx.

    Which of them are images only their content tells. What is hidden, what cannot be listed, a folder that
    links lead to twice, a run of this project and a folder that a model drew to are one File each, which is
    refused. Notes, such as a README or a list, are left out.

    Raises:
        UserError: when there is no such folder or zip, it cannot be read, holds notes alone, or is a run's.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UserError(f"{path} is neither a folder nor a zip: give one that holds images")
        files = _in_folder(path) if stat.S_ISDIR(mode) else _in_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a folder or a zip of images") from None
    except OSError as error:
        mend = "look after its permissions" if isinstance(error, PermissionError) else "give another one"
        raise UserError(f"{path} cannot be read ({error.strerror}): {mend}") from None
    files = [file for file in files if file.name != MARKER]  # the images of the folder itself are wanted
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
    drawn = {file.name.removesuffix(MARKER) for file in files if file.name.endswith(f"/{MARKER}")}
    refused = dict.fromkeys(drawn, DRAWN) | dict.fromkeys(runs, GRIDS)
    found = sorted(_gathered(files, refused), key=lambda file: file.name)
    images = [file for file in found if not _is_note(file)]
    if not images:
        raise UserError(
            f"{path} holds no image, only notes such as {found[0].name!r}: put images there, or give another"
            " folder"
        )
    return [one for file in images for one in (images_of(file) if may_be_idx(file) else [file])]


def _is_note(file: File) -> bool:
    """Whether a file goes with images and is none, by its name and its content."""
    if file.refused or not NOTES.fullmatch(file.name.rpartition("/")[2]):
        return False
    try:
        file.image()
    except Unreadable as reason:
        return str(reason) in (EMPTY, NO_IMAGE)
    return False


def _runs(names: set[str]) -> set[str]:
    """The folders, "" or with / at their ends, that hold a run."""
    folders = {name[: -len(mark)] for name in names for mark in RUN if f"/{name}".endswith(f"/{mark}")}
    return {folder for folder in folders if sum(folder + mark in names for mark in RUN) > 1}


def _gathered(files: Iterable[File], refused: dict[str, str]) -> Iterable[File]:
    """The files, with one in the place of all that are hidden together or in a folder that is refused."""
    gathered: dict[str, File] = {}
    for file in files:
        *folders, name = file.name.split("/")
        at = ""
        for part in (*(f"{folder}/" for folder in folders), name):
            at += part
            if _is_hidden(part):
                gathered[at] = File.not_read(at, "hidden")
                break
            if at in refused:
                gathered[at] = File.not_read(at, refused[at])
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


def _in_file(path: Path) -> list[File]:
    with open(path, "rb") as handle:
        begins = handle.read(2)
    if begins in (GZIP, IDX):
        file = File(path.name, _reader(path))
        images = images_of(file)
        if images[0].refused:
            raise UserError(f"{path} cannot be read as an idx file ({images[0].refused}): fetch it again")
        if images != [file]:
            return images
    if begins != b"PK" and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is neither a folder nor a zip: give one that holds images")
    return _in_zip(path)


def _in_zip(path: Path) -> list[File]:
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a directory can be damaged in many ways
        what = error if zipfile.is_zipfile(path) else "its end is missing"
        raise UserError(f"{path} is a damaged zip ({what}): make it again") from None
    if any(name.endswith("/data.pkl") for name in archive.namelist()):  # as torch.save writes it
        raise UserError(f"{path} holds networks, and no images: give a folder or a zip of images")
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
# idx, MNIST's format: two zeros, the kind of the numbers, how many dimensions, their sizes, the numbers.

IDX, GZIP = b"\0\0", b"\x1f\x8b"
BYTES, IMAGES, LABELS = 8, 3, 1  # the kind of the numbers; dimensions


def may_be_idx(file: File) -> bool:
    """Whether a file's name lets it hold idx; its content decides."""
    return not file.refused and ("idx" in file.name.lower() or file.name.endswith(".gz"))


def images_of(file: File) -> list[File]:
    """The images of an idx file, gzipped or not, each as the PGM file that it would be.

    One file that is refused, with the reason, where it is broken or holds something else; the file itself
    where it is no idx.
    """
    try:
        data = _unpacked(file.read())
        if data[:2] != IDX or len(data) < 4:
            return [file]
        kind, dimensions = data[2:4]
        if (kind, dimensions) == (BYTES, LABELS):
            raise Unreadable("labels, not images")
        if (kind, dimensions) != (BYTES, IMAGES):
            raise Unreadable("not of images: MNIST's are bytes in three dimensions")
        if len(data) < 16:
            raise Unreadable("cut off in its first 16 bytes")
        count, height, width = struct.unpack(">3I", data[4:16])
        one = height * width
        if len(data) != 16 + count * one or not count * one:
            raise Unreadable(
                f"{len(data) - 16:,} bytes, where {count:,} images of {height} x {width} pixels are announced"
            )
    except Unreadable as reason:
        return [File.not_read(file.name, str(reason))]

    def reader(index: int) -> Callable[[], bytes]:
        start = 16 + index * one
        return lambda: b"P5 %d %d 255\n" % (width, height) + data[start : start + one]

    digits = len(str(count - 1))
    return [File(f"{file.name}/{index:0{digits}}", reader(index)) for index in range(count)]


def _unpacked(data: bytes) -> bytes:
    """What a gzipped file holds, where it is idx; other bytes as they are."""
    if not data.startswith(GZIP):
        return data
    try:
        with gzip.open(io.BytesIO(data)) as handle:
            if handle.read(2) != IDX:
                return data
            unpacked = IDX + handle.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"its gzip is cut off or damaged ({error})") from None
    if len(unpacked) > MOST_BYTES:
        raise Unreadable(f"larger than {MOST_BYTES // 1_000_000} MB")
    return unpacked
