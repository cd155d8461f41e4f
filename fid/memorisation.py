"""The memorisation report: how near each generated image is to a training image, and the pairs to look at."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fid.metrics import centre, nearest, radii
from fid.sets import to_tensor
from fid.statistics import Features
from transfer import UserError
from transfer.images import grid

COPY = 0.05  # nearer to a training image than this share of real images are: a near copy
PAIRS = 16  # on the contact sheet


@dataclass(frozen=True)
class Memorisation:
    """Distances in feature space to the nearest training image.

    Attributes:
        generated, training, heldout: their medians; of training images to the nearest other one.
        near_copies: the share of generated images nearer than the nearest 5 % of held-out images or, without
            any, of training images to each other. New images of the same kind would have 0.05.
        nearer_than_heldout: how often a generated image is nearer than a held-out one. New images of the same
            kind would have 0.5, more is copying (Meehan et al. 2020). None without held-out images.
        nearest, distance: for each generated image its nearest training image, and how far that is.
    """

    generated: float
    training: float
    heldout: float | None
    near_copies: float
    nearer_than_heldout: float | None
    nearest: tuple[int, ...] = field(repr=False)
    distance: tuple[float, ...] = field(repr=False)


def memorisation(generated: Tensor, training: Tensor, heldout: Tensor | None = None) -> Memorisation:
    """The report on features (n, d), (m, d) and, of held-out images, (h, d)."""
    x, y = centre(generated, training)
    distance, index = nearest(x, y)
    (between,) = radii(y, 1)
    fresh = between
    nearer = middle = None
    if heldout is not None:
        fresh = nearest(centre(heldout, training)[0], y)[0].sort().values
        ranks = sum(torch.searchsorted(fresh, distance, right=side).double() for side in (False, True)) / 2
        nearer, middle = 1 - ranks.mean().item() / len(fresh), fresh.median().item()
    copies = (distance < fresh.quantile(COPY)).double().mean().item()
    medians = distance.median().item(), between.median().item(), middle
    return Memorisation(*medians, copies, nearer, tuple(index.tolist()), tuple(distance.tolist()))


def write(path: Path, report: Memorisation, generated: Features, training: Features, size: int = 64) -> None:
    """Write the closest pairs, each generated image left of its training image, and beside it a .csv of all.

    Raises:
        UserError: when one of the files exists already or cannot be written.
    """
    order = sorted(range(len(report.distance)), key=report.distance.__getitem__)
    pairs = [(generated.rows[index], training.rows[report.nearest[index]]) for index in order]
    pictures = [
        Image.fromarray(features.images.pixels(index).permute(1, 2, 0).cpu().numpy())
        for pair in pairs[:PAIRS]
        for features, index in zip((generated, training), pair, strict=True)
    ]
    names, real_names = generated.images.names, training.images.names
    try:
        with open(path, "xb") as sheet, open(path.with_suffix(".csv"), "x", newline="") as table:
            grid(torch.stack([to_tensor(picture, size) for picture in pictures])).save(sheet, "PNG")
            writer = csv.writer(table)
            writer.writerow(("generated", "training", "distance"))
            for (made, real), index in zip(pairs, order, strict=True):
                writer.writerow((names[made], real_names[real], report.distance[index]))
    except FileExistsError as error:
        raise UserError(f"{error.filename} exists already: give another name, or delete it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another place") from None
