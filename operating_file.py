"""Everything that is done to image folders: select, fetch, inspect, clear what the project wrote.

    python operating_file.py select SOURCE TARGET --count 96   draw images, as 64x64 PNG, to a new folder
    python operating_file.py inspect PATH                      sizes, modes, formats, unreadable, duplicates
    python operating_file.py preview PATH --augment slight     a picture of what the critic is shown
    python operating_file.py clear target_domain               show what would go; with --yes it goes

Where faces come from, one line each:

    your folder or zip    python operating_file.py select my_faces.zip train_images/source_domain/mine
    your folder, in place python wgan_64.py --images my_faces
    CelebA                python operating_file.py fetch celeba --count 20000
    mnist, fashion, kmnist: grey images of 28x28, as python operating_file.py fetch mnist
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import stat
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transfer import UserError, datasets
from transfer.decoding import Box, Unreadable, decode, doubts, square
from transfer.reading import find
from transfer.settings import Augmentation, registry, user_errors

SIDE = 64  # pixels, of what the scripts train on
SHOWN = 10  # lines of a list before "and N more"

# ----------------------------------------------------------------------------------------------------------
# Selecting.


def select(
    source: Path,
    target: Path,
    /,
    count: int | None = None,
    seed: int = 0,
    size: int = SIDE,
    box: Box | None = None,
) -> None:
    """Draw images without replacement, and write the middle square of each as PNG to a new folder.

    Files that cannot be read are named and others drawn instead; selected.csv says which file became which.

    Args:
        source: where from: a folder (flat or nested) or a zip, of any common format, size and mode.
        target: where to: a folder that is new or empty.
        count: how many; without it all, in the order of their names.
        seed: the same seed draws the same images.
        size: side of the PNG files in pixels; resized with antialiasing.
        box: cut each image to this first: left, upper, right and lower edge in pixels.
    """
    _check(("count", count, 1), ("size", size, 1), ("seed", seed, 0))
    if box and not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise UserError(f"--box {' '.join(map(str, box))} is empty: give left, upper, right and lower edge")
    target = _new(target)
    found = find(source)
    for file in filter(lambda file: file.refused, found):
        print(f"skipped {file.name!r}: {file.refused}")
    files = [file for file in found if not file.refused]
    if (count or 0) > len(files):
        raise UserError(
            f"{source} holds {len(files)} files: give a --count of at most that, or another source"
        )
    drawn = files if count is None else random.Random(seed).sample(files, len(files))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".select-", dir=target.parent) as unfinished:
            folder = Path(unfinished, target.name)
            folder.mkdir()
            written = _write(drawn, folder, count or len(files), size, box)
            if written < (count or 1):
                usable = f"{written} of the {len(files)} files in {source} can be used"
                raise UserError(f"{usable}, not {count or 1}: give a smaller --count or another source")
            with suppress(FileNotFoundError):
                target.rmdir()  # fails if something has been put there meanwhile
            folder.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): give another folder") from None
    print(f"{written} images of {size} x {size} pixels are in {target}")


def _check(*numbers: tuple[str, int | None, int]) -> None:
    """Raise UserError unless each named number is at least what it must be, and a seed what torch takes."""
    for name, value, least in numbers:
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: give at least {least}")
        if name == "seed" and value >= 2**64:
            raise UserError(f"--{name} is {value}: give at most {2**64 - 1}")


def _new(target: Path) -> Path:
    """The folder, links followed. Raises UserError unless it is new or empty."""
    target = target.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists, and nothing is overwritten: give a new or an empty folder")
    return target


def _write(drawn: list, folder: Path, count: int, size: int, box: Box | None) -> int:
    """Write the first `count` usable files as PNG, and selected.csv. Returns how many there were."""
    from tqdm import tqdm

    written, digits = 0, len(str(count - 1))
    with (
        open(folder / "selected.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as table,
        tqdm(total=count, desc="select", unit="image", disable=None) as bar,
    ):
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("file", "original", "sha256"))
        for file in drawn:
            try:
                data = file.read()
                image = decode(data)
                if box and (image.width < box[2] or image.height < box[3]):
                    raise Unreadable(f"{image.width} x {image.height} pixels do not hold the box")
            except Unreadable as reason:
                bar.write(f"skipped {file.name!r}: {reason}")
                continue
            if doubt := doubts(image, size, box):
                bar.write(f"look at {file.name!r}: {doubt}")
            image = square(image, size, box)
            image.info.clear()
            name = f"{written:0{digits}}.png"
            image.save(folder / name)
            rows.writerow((name, file.name, hashlib.sha256(data).hexdigest()))
            bar.update()
            written += 1
            if written == count:
                break
    return written


# ----------------------------------------------------------------------------------------------------------
# Fetching.


def fetch(
    name: datasets.DataSet,
    target: Path | None = None,
    /,
    count: int | None = None,
    seed: int = 0,
    downloads: Path = Path("train_images/downloads"),
) -> None:
    """Fetch a public data set with torchvision, once, and write what the scripts read to a new folder.

    mnist, fashion and kmnist: 60,000 grey images of 28 x 28 pixels each, as idx files in a sub-folder for
    each label; their 10,000 test images go to TARGET_held_out. celeba: 202,599 faces (1.4 GB, from Google
    Drive, which often refuses; for non-commercial research), as 64x64 PNG.

    Args:
        name: which.
        target: where to, new or empty; train_images/NAME or train_images/source_domain/celeba, unless given.
        count: how many; without it all.
        seed: the same seed draws the same images.
        downloads: where torchvision's own files are, or are to be put.
    """
    _check(("count", count, 1), ("seed", seed, 0))
    usual = Path("train_images/source_domain" if name == "celeba" else "train_images", name)
    target = _new(target or usual)  # before anything is fetched
    if name == "celeba":
        return select(datasets.celeba(downloads), target, count, seed, box=datasets.FACE)
    held_out = _new(target.with_name(f"{target.name}_held_out"))
    datasets.small(name, downloads, target, held_out, count, seed)


# ----------------------------------------------------------------------------------------------------------
# Inspecting.


def inspect(path: Path, /) -> None:
    """Print what is in a folder or a zip: sizes, modes, formats, unreadable and doubtful files, duplicates.

    Args:
        path: a folder (flat or nested) or a zip of images.
    """
    from tqdm import tqdm

    files = find(path)
    kinds: dict[str, Counter[str]] = {"sizes": Counter(), "modes": Counter(), "formats": Counter()}
    unreadable, doubtful, same = [], [], defaultdict(list)
    for file in tqdm(files, desc="inspect", unit="image", disable=None):
        try:
            image = file.image()
        except Unreadable as reason:
            unreadable.append(f"{file.name!r}: {reason}")
            continue
        if doubt := doubts(image, SIDE):
            doubtful.append(f"{file.name!r}: {doubt}")
        kinds["sizes"][f"{image.width} x {image.height}"] += 1
        kinds["modes"][image.info["mode"]] += 1
        kinds["formats"][image.info["format"]] += 1
        same[image.size, hashlib.sha256(image.tobytes()).digest()].append(repr(file.name))
    groups = [names for names in same.values() if len(names) > 1]
    print(f"{path}: {len(files)} files, {len(files) - len(unreadable)} of them readable images")
    for title, counter in kinds.items():
        _list(f"{title}: {len(counter)}", (f"{kind}: {n}" for kind, n in counter.most_common()))
    _list(f"unreadable: {len(unreadable)}", unreadable, shown=len(unreadable))
    _list(f"to look at, at {SIDE} x {SIDE}: {len(doubtful)}", doubtful, shown=len(doubtful))
    _list(f"exact duplicates: {sum(map(len, groups)) - len(groups)}", map(" = ".join, groups))


def _list(title: str, lines: Iterable[str], shown: int = SHOWN) -> None:
    lines = list(lines)
    more = [f"and {len(lines) - shown:,} more"] * (len(lines) > shown)
    print("\n  ".join([title, *lines[:shown], *more]))


# ----------------------------------------------------------------------------------------------------------
# Previewing.


def preview(
    source: Path,
    /,
    augment: Augmentation = "diffaugment",
    images: int = 6,
    draws: int = 8,
    seed: int = 0,
    to: Path | None = None,
) -> None:
    """Write one picture of what an augmentation makes of some images: a row each, of the image and its draws.

    Args:
        source: a folder or a zip of images.
        augment: as the scripts take it.
        images: how many rows; they are drawn from all.
        draws: how many columns beside the image itself.
        seed: the same seed makes the same picture.
        to: the PNG to write; preview-AUGMENT.png, unless given. Nothing is overwritten.
    """
    _check(("images", images, 1), ("draws", draws, 1), ("seed", seed, 0))
    to = Path(f"preview-{augment}.png") if to is None else to
    if os.path.lexists(to):
        raise UserError(f"{to} exists, and nothing is overwritten: give another name with --to")
    import torch

    from transfer.augment import Augment
    from transfer.images import Images, grid, to_float

    found = Images.load(source)
    torch.manual_seed(seed)
    x = to_float(found.pixels[torch.randperm(len(found))[:images].sort().values])
    columns = [x, *(Augment(augment).real(x) for _ in range(draws))]
    try:
        with open(to, "xb") as handle:
            grid(torch.stack(columns, 1).flatten(0, 1), columns=len(columns)).save(handle, "PNG")
    except OSError as error:
        raise UserError(f"{to} cannot be written ({error.strerror}): give another name with --to") from None
    print(f"{len(x)} images, each with {draws} draws of {augment} beside it, are in {to}")


# ----------------------------------------------------------------------------------------------------------
# Clearing: whatever is not known to be the project's stays.

ROOT = Path(__file__).resolve().parent
RUNS = ("source_domain", "target_domain")  # below ROOT, and with the next all that is ever cleared
GENERATED = "generated_image"
SETTINGS, MARKER = "settings.json", ".generated"  # the proof that a run, or the images beside it, are ours
RUN = (
    r"settings\.json|(log|scores)\.jsonl|reals\.png|samples\.webp|\.lock|\.owner"
    r"|samples(/\d+\.png)?|checkpoints(/(\d+\.pt|manifest\.json))?"
)


class Foreign(Exception):
    """Why something may not be the project's."""


def clear(folder: Path, /, yes: bool = False, permanent: bool = False, most: int = 20_000) -> None:
    """Empty source_domain, target_domain or generated_image, or remove one run in the first two.

    Without --yes it only shows what would go: whole runs, and generated images. Anything else stays.

    Args:
        folder: one of the three folders, or a run's folder.
        yes: remove.
        permanent: delete for good, instead of moving to the trash.
        most: refuse to remove more files than this.
    """
    folder = _own(folder)
    units, foreign = _generated(folder) if folder == ROOT / GENERATED else _runs(folder)
    sizes = {path: size for unit in units for path in unit if (size := _size(path)) is not None}
    if len(sizes) > most:
        raise UserError(
            f"{folder} holds {len(sizes)} files to remove: if that is right, add --most {len(sizes)}"
        )
    what = f"{len(sizes):,} files, {sum(sizes.values()) / 1e6:,.1f} MB, of {folder}"
    failed: dict[Path, str] = {}
    if not units:
        print(f"{folder} holds nothing that is known to be the project's")
    elif yes:
        discard = os.unlink if permanent else _trash()
        for unit in units:
            failed |= _remove(unit, discard)
        print(f"{'deleted' if permanent else 'moved to the trash'}: {what}")
    else:
        names = (repr(str(path.relative_to(folder))) for path in sorted(sizes))
        _list(f"would {'delete' if permanent else 'move to the trash'} {what}:", names)
        print("nothing is removed yet: add --yes to do it")
    if foreign:
        _list(f"stay, not known to be ours: {len(foreign):,}", (f"{k!r}: {v}" for k, v in foreign.items()))
    if failed:
        title = f"could not be removed{' (--permanent needs no trash)' * (not permanent)}: {len(failed):,}"
        _list(title, (f"{str(path)!r}: {reason}" for path, reason in failed.items()))
        raise SystemExit(1)


def _own(folder: Path) -> Path:
    """The folder as it is below ROOT. Raises UserError unless it is one that may be cleared."""
    path = Path(os.path.abspath(folder))
    tops = [parent for parent in path.parents if os.path.realpath(parent) == str(ROOT)]
    parts = path.relative_to(tops[-1]).parts if tops else ()
    allowed = (len(parts) == 1 and parts[0] in (*RUNS, GENERATED)) or (len(parts) == 2 and parts[0] in RUNS)
    if not allowed or not folder.name or ".." in folder.parts:  # '', '.' and '/' have no name
        folders = ", ".join((*RUNS, GENERATED))
        raise UserError(f"{str(folder)!r} is never cleared: give {folders} or a run in the first two")
    path = ROOT.joinpath(*parts)
    if not _plain(path):
        raise UserError(f"{path} is missing, no folder, a link or a mount point: give a plain folder")
    for place in (os.path.expanduser("~"), os.getcwd()):
        if Path(os.path.realpath(place)).is_relative_to(path):
            raise UserError(f"{path} is or holds your home or current folder: go to {ROOT} first")
    return path


def _plain(path: Path) -> bool:
    """Whether path is a folder that is reached without a link and is no mount point."""
    return path.is_dir() and os.path.realpath(path) == str(path) and not os.path.ismount(path)


def _size(path: Path) -> int | None:
    """The bytes of a regular file; None of a folder, a link and anything else."""
    with suppress(OSError):
        status = path.lstat()
        return status.st_size if stat.S_ISREG(status.st_mode) else None


def _json(path: Path) -> Any:
    """What a regular file of JSON holds; else None."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8")) if _size(path) is not None else None


def _runs(folder: Path) -> tuple[list[list[Path]], dict[str, str]]:
    """What is in each run of a folder, or in the run that it is; and why the other entries stay."""
    units, foreign = [], {}
    for entry in sorted(folder.iterdir()) if folder.parent == ROOT else [folder]:
        try:
            units.append(_run(entry))
        except Foreign as reason:
            foreign[entry.name] = str(reason)
    return units, foreign


def _run(run: Path) -> list[Path]:
    """All that is in a run's folder, then the folder. Raises Foreign if anything may not be a run's."""
    proof = run / SETTINGS
    settings = _json(proof) if _plain(run) else None
    if not (isinstance(settings, dict) and {"script", "settings"} <= settings.keys()):
        raise Foreign("no run's folder")
    if _in_use(run):
        raise Foreign("a process is working on it")
    names = re.compile(rf"{RUN}|{re.escape(str(settings['script']))}")
    paths = sorted(run.rglob("*"), reverse=True)  # a folder comes after what it holds
    for path in paths:
        name = path.relative_to(run).as_posix()
        finished = re.sub(r"(^|/)\.([^/]+)\.\d+\Z", r"\1\2", name)  # .NAME.PID was NAME in the making
        if not names.fullmatch(finished) or (_size(path) is None and not _plain(path)):
            raise Foreign(f"holds {name!r}, which no run writes")
    paths.remove(proof)
    return [*paths, proof, run]


def _in_use(run: Path) -> bool:
    """Whether a script holds the run's lock."""
    from filelock import FileLock, Timeout

    if _size(run / ".lock") is None:
        return False
    try:
        with FileLock(run / ".lock", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # it cannot be tried, nor removed
        return False


def _generated(folder: Path) -> tuple[list[list[Path]], dict[str, str]]:
    """The images that transfer/drawing.py's marker lists, then the marker; and why the other entries stay."""
    marker = folder / MARKER
    content = _json(marker)
    known = isinstance(content, list)
    listed = {name for name in content if isinstance(name, str)} if known else set()
    images, foreign = [], {}
    for path in sorted(folder.iterdir()):
        if path.name in listed and path.suffix in (".png", ".webp") and _size(path) is not None:
            images.append(path)
        elif path != marker or not known:
            foreign[path.name] = f"no image that {MARKER} lists"
    return [[*images, marker]] if known else [], foreign


def _trash() -> Callable[[Path], None]:
    try:
        from send2trash import send2trash
    except Exception:  # it looks for a desktop, which may fail in other ways than ImportError
        raise UserError("send2trash cannot be loaded: pip install send2trash, or add --permanent") from None
    return send2trash


def _remove(unit: list[Path], discard: Callable[[Path], None]) -> dict[Path, str]:
    """Remove files, and folders that are empty, in this order. Returns what failed, and why."""
    failed = {}
    for path in unit:
        if failed and path.name in (SETTINGS, MARKER):
            break  # the proof stays, so that the rest can be cleared later
        try:
            if os.path.realpath(path) != str(path):
                raise OSError("is reached through a link")
            path.rmdir() if path.is_dir() else discard(path)
        except Exception as error:  # the trash fails in many ways
            if os.path.lexists(path):
                failed[path] = getattr(error, "strerror", None) or str(error)
    return failed


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 2 after a mistake, 1 when something could not be removed."""
    import tyro

    with user_errors():
        tyro.extras.subcommand_cli_from_dict(
            {"select": select, "fetch": fetch, "inspect": inspect, "preview": preview, "clear": clear},
            description=__doc__,
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
            registry=registry(),
        )


if __name__ == "__main__":
    main()
