"""What is kept of a set of images: features, cached on disk, or pytorch-fid's .npz of mean and covariance."""

from __future__ import annotations

import hashlib
import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from tqdm import tqdm

from fid.extractors import Extractor
from fid.metrics import Gaussian
from fid.sets import Set
from transfer import UserError
from transfer.decoding import Unreadable

VERSION = 2  # of what is cached: 2 since colour profiles and all bits are read
MOST_BYTES = 2_000_000_000  # statistics that would unpack to more are refused


@dataclass(frozen=True)
class Features:
    """The features of a set's readable images.

    Attributes:
        values: (n, d), float32.
        rows: the n images' indices in the set.
        shapes: the images' different (H, W), sorted.
        left_out: the other images' names, each with why it cannot be read.
    """

    images: Set
    values: Tensor
    rows: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    left_out: dict[str, str]


def extract(images: Set, extractor: Extractor) -> Features:
    """The features of a set.

    Raises:
        UserError: when fewer than two images can be read, or the features are not finite.
    """
    values, rows, shapes, batch, left_out = [], [], set(), [], {}
    for index in tqdm(range(len(images.names)), images.title, unit="image", disable=None, leave=False):
        try:
            pixels = images.pixels(index)
        except Unreadable as reason:
            left_out[images.names[index]] = str(reason)
            continue
        if batch and (len(batch) == extractor.batch or batch[0].shape != pixels.shape):
            values.append(extractor(torch.stack(batch)))
            batch = []
        shapes.add(tuple(pixels.shape[1:]))
        rows.append(index)
        batch.append(pixels)
    if len(rows) < 2:
        why = "".join(f" ({name!r}: {reason})" for name, reason in list(left_out.items())[:1])
        raise UserError(f"{images.title}: {len(rows)} readable{why}, and a score needs at least 2 images")
    features = torch.cat([*values, extractor(torch.stack(batch))]).to(extractor.home)
    if not torch.isfinite(features).all():
        raise UserError(f"{extractor.name} gives NaN or infinity for {images.title}: fetch its weights again")
    return Features(images, features, tuple(rows), tuple(sorted(shapes)), left_out)


# ------------------------------------------------------------------------------------------------------------
# The cache: one file for each set, size and extractor.


def default_cache() -> Path:
    """$FID_CACHE, or fid in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FID_CACHE") or Path(home) / "fid")


def cached(images: Set, extractor: Extractor, folder: Path | None = None) -> Features:
    """The features of a set, from the cache where it has them.

    The key covers the content of every file, the size it is brought to, the extractor with its weights and
    preprocessing, and the library that decodes. What is damaged or does not fit is computed anew.
    """
    key = f"{VERSION} {images.digest()} {extractor.name} {extractor.dimension} {PIL.__version__}"
    path = Path(folder or default_cache()) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    try:
        return _recall(path, images, extractor)
    except Exception:  # absent, or damaged in one of the many ways a file can be
        found = extract(images, extractor)
        _remember(path, found)
        return found


def _recall(path: Path, images: Set, extractor: Extractor) -> Features:
    with np.load(path, allow_pickle=False) as file:  # a zip, whose checksums are verified on reading
        values, rows = file["values"], file["rows"].tolist()
        shapes = tuple((height, width) for height, width in file["shapes"].tolist())
        left_out = dict(zip(file["names"].tolist(), file["reasons"].tolist(), strict=True))
    if values.shape != (len(rows), extractor.dimension) or len(rows) + len(left_out) != len(images.names):
        raise ValueError("of another set")
    if values.dtype != np.float32 or not np.isfinite(values).all():
        raise ValueError("no features")
    return Features(images, torch.from_numpy(values).to(extractor.home), tuple(rows), shapes, left_out)


def _remember(path: Path, found: Features) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    content = {"values": found.values.cpu().numpy(), "rows": found.rows, "shapes": found.shapes}
    names, reasons = (np.array(list(texts), str) for texts in (found.left_out, found.left_out.values()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            np.savez(handle, **content, names=names, reasons=reasons)
        os.replace(temporary, path)
    except OSError:  # a full disk, or a folder that is not ours: scores do not need the cache
        if temporary.exists():
            temporary.unlink()


# ------------------------------------------------------------------------------------------------------------
# Statistics, as python -m pytorch_fid reads and writes them.


def is_statistics(source: object) -> bool:
    """Whether source is the path of a .npz file, or of a file of another name with the same in it."""
    if not isinstance(source, Path | str) or os.path.isdir(source):
        return False
    if str(source).lower().endswith(".npz"):
        return True
    try:
        with zipfile.ZipFile(source) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except Exception:  # what it is instead, who reads it will say
        return False


def save(path: Path, gaussian: Gaussian, extractor: Extractor, size: int | None = None) -> None:
    """Write mean and covariance as mu and sigma.

    The number of images, the extractor's name and the size that the images were brought to (0 for none)
    stand beside them.

    Raises:
        UserError: when the file exists already or cannot be written.
    """
    content = {"mu": gaussian.mean.cpu().numpy(), "sigma": gaussian.sigma().cpu().numpy(), "n": gaussian.n}
    content["size"] = size or 0
    try:
        with open(path, "xb") as handle:
            np.savez_compressed(handle, **content, extractor=extractor.name)
    except FileExistsError:
        raise UserError(f"{path} exists already: give another name, or delete it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another place") from None


def brought_to(path: Path) -> int | None:
    """The size that the images of statistics were brought to: 0 for none; None if the file does not say."""
    with suppress(Exception), np.load(path, allow_pickle=False) as file:  # read says what is wrong with it
        return int(file["size"])
    return None


def read(path: Path, extractor: Extractor) -> Gaussian:
    """Read mean and covariance.

    Raises:
        UserError: when the file is missing or damaged, or holds no finite statistics of this extractor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError("too large")
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
            n = int(file["n"]) if "n" in file else None
            name = str(file["extractor"]) if "extractor" in file else extractor.name
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give a folder, a zip, or statistics in a .npz file"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): look after its permissions") from None
    except Exception:
        raise UserError(f"{path} holds no mu and sigma: give a file of --save or of pytorch-fid") from None
    if name != extractor.name or mu.shape != (extractor.dimension,) or sigma.shape != mu.shape * 2:
        other = f"{mu.size} features" if name == extractor.name else name
        raise UserError(f"{path} holds statistics of {other}, not of {extractor.name}: give that --extractor")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds NaN or infinity: write it again with --save")
    mean, covariance = (torch.from_numpy(array).to(extractor.home) for array in (mu, sigma))
    return Gaussian(mean, None, covariance, n)
