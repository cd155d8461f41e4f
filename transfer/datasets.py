"""The data sets: public images by torchvision's own downloads, or what to put where by hand."""

from __future__ import annotations

import gzip
import importlib
import random
import struct
import tempfile
from pathlib import Path
from typing import Any, Literal

from transfer import UserError

DataSet = Literal["mnist", "fashion", "kmnist", "celeba"]
SMALL = {  # torchvision's class, and a page that the files can be had from by hand
    "mnist": ("MNIST", "yann.lecun.com/exdb/mnist"),
    "fashion": ("FashionMNIST", "github.com/zalandoresearch/fashion-mnist"),
    "kmnist": ("KMNIST", "codh.rois.ac.jp/kmnist"),
}
FILES = "the four files train- and t10k-images-idx3-ubyte.gz, train- and t10k-labels-idx1-ubyte.gz"
FACE = (15, 40, 163, 188)  # in CelebA's aligned images of 178 x 218 pixels


def celeba(root: Path) -> Path:
    """Have torchvision fetch CelebA's aligned faces (1.4 GB) to root, unless they are there; their folder.

    Raises:
        UserError: when it cannot.
    """
    _fetched(
        "CelebA",
        root,
        "its files are on Google Drive, which needs gdown and often refuses; fetch img_align_celeba.zip from"
        " mmlab.ie.cuhk.edu.hk/projects/CelebA.html with a browser, and select from it with"
        f" --box {' '.join(map(str, FACE))}",
        split="all",
    )
    return root / "celeba" / "img_align_celeba"


def small(
    name: str, root: Path, target: Path, held_out: Path, count: int | None = None, seed: int = 0
) -> None:
    """Have torchvision fetch one of SMALL to root, unless it is there, and write it to two folders.

    target gets count of the training images, drawn by the seed, or all; held_out the test images.

    Raises:
        UserError: when it cannot be fetched or written.
    """
    kind, page = SMALL[name]
    by_hand = f"put {FILES} of {page} into {root / kind / 'raw'}, and give the command again"
    sets = [_fetched(kind, root, by_hand, train=train) for train in (True, False)]
    for found, folder, wanted in zip(sets, (target, held_out), (count, None), strict=True):
        write(list(zip(found.targets.tolist(), found.data.numpy(), strict=True)), folder, wanted, seed)
    print(f"the images are in {target}, and those to hold out in {held_out}")


def _fetched(kind: str, root: Path, by_hand: str, **more: Any) -> Any:
    try:
        return getattr(importlib.import_module("torchvision.datasets"), kind)(
            str(root), download=True, **more
        )
    except Exception as error:  # torchvision, gdown and the network fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"torchvision cannot fetch {kind} to {root} ({reason}): {by_hand}") from None


def write(images: list[tuple[int, Any]], target: Path, count: int | None = None, seed: int = 0) -> None:
    """Write labelled images to a new or empty folder: an idx file in a sub-folder for each label.

    count: how many, drawn by the seed; None for all.

    Raises:
        UserError: when there are fewer, or the folder cannot be written.
    """
    if (count or 0) > len(images):
        raise UserError(f"there are {len(images)} images: give a --count of at most that")
    drawn = range(len(images)) if count is None else random.Random(seed).sample(range(len(images)), count)
    labelled: dict[int, list[Any]] = {}
    for place in sorted(drawn):
        label, pixels = images[place]
        labelled.setdefault(label, []).append(pixels)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as unfinished:
            folder = Path(unfinished, target.name)
            for label, own in labelled.items():
                (folder / str(label)).mkdir(parents=True)
                content = struct.pack(">2x2B3I", 8, 3, len(own), *own[0].shape)  # see reading.images_of
                content += b"".join(pixels.tobytes() for pixels in own)
                data = gzip.compress(content, mtime=0)
                (folder / str(label) / "images-idx3-ubyte.gz").write_bytes(data)
            if target.is_dir():
                target.rmdir()  # fails unless it is empty
            folder.rename(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}): give another folder") from None
