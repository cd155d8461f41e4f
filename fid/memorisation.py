"""The memorisation report: is a generated image a training image over again, and the pairs to look at."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fid.extractors import Extractor, float32
from fid.metrics import BLOCK, centre, nearest, radii, vendi
from fid.sets import to_tensor
from fid.statistics import Features
from transfer import UserError
from transfer.images import grid

COPY = 0.05  # nearer to a training image than this share of new images are: a copy
NEIGHBOURS = 10  # the training images that a distance is set against
SIDE = 16  # of a thumbnail, in its own pixels
LUMA = (0.299, 0.587, 0.114)  # parts of red, green and blue in a grey image
PAIRS = 16  # on the contact sheet

Sets = tuple[
    Tensor, Tensor, Tensor | None
]  # of generated, training and, where there are any, held-out images


@dataclass(frozen=True)
class Memorisation:
    """How near generated images are to training images, in the extractor's features and in thumbnails.

    Attributes:
        generated, training, heldout: the median distance to the nearest training image, in features; that of
            training images is to the nearest other one.
        near_copies: the share of generated images nearer, in features, than the nearest 5 % of held-out ones.
            From 0 to 1; new images of the same kind would have 0.05. Misses blurred and many noisy copies.
        nearer_than_heldout: how often a generated image is nearer, in features, than a held-out one. From 0
            to 1; new images would have 0.5, more is copying (Meehan et al. 2020). None without held-out ones.
        copies: the share of generated images with a smaller `ratio` than the 5 % of held-out ones that have
            the smallest. From 0 to 1; new images would have 0.05, also when they are blurred or noisy.
        nearest: for each generated image the nearest training image, in features.
        original: likewise in thumbnails, see `likeness`.
        ratio: for each generated image how far its original is, over the mean distance to the ten nearest
            training images (Carlini et al. 2023): 0 for a copy, 1 where none is nearer than others.

    Without held-out images, training images take their place, each against the other ones.
    """

    generated: float
    training: float
    heldout: float | None
    near_copies: float
    nearer_than_heldout: float | None
    copies: float
    nearest: tuple[int, ...] = field(repr=False)
    original: tuple[int, ...] = field(repr=False)
    ratio: tuple[float, ...] = field(repr=False)


def memorisation(features: Sets, thumbnails: Sets) -> Memorisation:
    """The report on features (n, d), (m, d), (h, d), and on thumbnails (n, 768) and so on."""
    generated, training, heldout = features
    x, y = centre(generated, training)
    distance, index = nearest(x, y)
    (between,) = radii(y, 1)
    fresh = between
    nearer = middle = None
    if heldout is not None:
        fresh = nearest(centre(heldout, training)[0], y)[0].sort().values
        ranks = sum(torch.searchsorted(fresh, distance, right=side).double() for side in (False, True)) / 2
        nearer, middle = 1 - ranks.mean().item() / len(fresh), fresh.median().item()
    medians = distance.median().item(), between.median().item(), middle
    made, real, new = thumbnails
    ratio, original = _ratio(made, real)
    fresh_ratio, _ = _ratio(real if new is None else new, real)
    return Memorisation(
        *medians,
        near_copies=_below(distance, fresh),
        nearer_than_heldout=nearer,
        copies=_below(ratio, fresh_ratio),
        nearest=tuple(index.tolist()),
        original=tuple(original.tolist()),
        ratio=tuple(ratio.tolist()),
    )


def _below(values: Tensor, fresh: Tensor) -> float:
    """The share of values below what COPY of the fresh ones are below."""
    return (values < fresh.quantile(COPY)).double().mean().item()


# ------------------------------------------------------------------------------------------------------------
# Thumbnails: noise and blur are averaged away in them, and a generator's own faults with them.


def thumbnailer(device: torch.device) -> Extractor:
    """Images as thumbnails: each of 16 x 16 places the mean of its pixels, three colours, in [0, 1]."""

    def thumbnails(x: Tensor) -> Tensor:
        return F.interpolate(x, size=(SIDE, SIDE), mode="area").flatten(1)

    resize = f"area {SIDE}"
    return Extractor(f"thumbnail-{resize.replace(' ', '-')}", resize, 3 * SIDE**2, thumbnails, device)


def likeness(x: Tensor, y: Tensor) -> Tensor:
    """Distances (n, m), from 0 to 2, of thumbnails x (n, 768) and y (m, 768), whatever light and place.

    The inner 14 x 14 of x, brought to mean 0 and length 1 as brightness and contrast change them, against
    each of the nine 14 x 14 of y and of y mirrored: the least counts. At 64 x 64 pixels that is a shift of up
    to 4 pixels. It is sqrt(2 - 2 c) for the largest correlation c.
    """
    x, y = (each.view(-1, 3, SIDE, SIDE) for each in (x, y))
    size, c = SIDE - 2, x.new_full((len(x), len(y)), -1.0)
    with float32(x.device):
        inner = _standard(x[:, :, 1:-1, 1:-1])
        for each, down, across in itertools.product((y, y.flip(3)), range(3), range(3)):
            shifted = _standard(each[:, :, down : down + size, across : across + size])
            c = torch.maximum(c, inner @ shifted.T)
    return (2 - 2 * c).clamp_(min=0).sqrt_()


def layouts(x: Tensor) -> float:
    """How many layouts thumbnails x (n, 768) amount to, whatever their colours, brightness and contrast.

    Their Vendi score, as grey images by their correlations: at least 1, and less the more they are alike.
    """
    grey = x.view(-1, 3, SIDE, SIDE).movedim(1, 3) @ x.new_tensor(LUMA)
    with float32(x.device):
        return vendi(_standard(grey.unsqueeze(1)))


def _standard(x: Tensor) -> Tensor:
    x = x - x.mean((1, 2, 3), keepdim=True)
    return F.normalize(x.flatten(1), eps=1e-3)  # a plain grey image is like none, not like all


def _ratio(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """`ratio` and `original` of x among y; where x is y, among the other ones."""
    k, found = min(NEIGHBOURS, len(y) - (x is y)), []
    for start in range(0, len(x), BLOCK):
        distance = likeness(x[start : start + BLOCK], y)
        if x is y:
            distance.diagonal(start).fill_(torch.inf)
        found.append(distance.topk(k, largest=False))
    near = torch.cat([block.values for block in found])
    return near[:, 0] / near.mean(1).clamp(min=1e-6), torch.cat([block.indices[:, 0] for block in found])


# ------------------------------------------------------------------------------------------------------------
# Looking.


def write(path: Path, report: Memorisation, generated: Features, training: Features, size: int = 64) -> Path:
    """Write the pairs with the least ratio, each generated image left of its original; a .csv of all beside.

    Nothing is overwritten: where path or its .csv exists, a number is put behind the name. Returns where
    the picture is.

    Raises:
        UserError: when it cannot be written.
    """
    order = sorted(range(len(report.ratio)), key=report.ratio.__getitem__)
    pairs = [(generated.rows[index], training.rows[report.original[index]]) for index in order]
    pictures = [
        Image.fromarray(features.images.pixels(index).permute(1, 2, 0).cpu().numpy())
        for pair in pairs[:PAIRS]
        for features, index in zip((generated, training), pair, strict=True)
    ]
    names, real_names = generated.images.names, training.images.names
    try:
        path = _free(path)
        told = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with open(path, "xb") as sheet, open(path.with_suffix(".csv"), "x", **told) as table:
            grid(torch.stack([to_tensor(picture, size) for picture in pictures])).save(sheet, "PNG")
            writer = csv.writer(table)
            writer.writerow(("generated", "training", "ratio"))
            for (made, real), index in zip(pairs, order, strict=True):
                writer.writerow((names[made], real_names[real], report.ratio[index]))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another place") from None
    return path


def _free(path: Path) -> Path:
    """path, or its first numbered neighbour that nothing is at."""
    numbered = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(
        each
        for each in itertools.chain([path], numbered)
        if not each.exists() and not each.with_suffix(".csv").exists()
    )
