"""The scores: every metric of a set of generated images against training and held-out ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fid import metrics, statistics
from fid.extractors import Extractor, load
from fid.memorisation import Memorisation, layouts, memorisation, thumbnailer, write
from fid.metrics import Gaussian
from fid.sets import Given, Set
from fid.statistics import Features
from transfer import UserError
from transfer.images import Images
from transfer.shared import Source

COMPARABLE = 2048  # images, below which Frechet distances should not be compared (pytorch-fid's README)


@dataclass(frozen=True)
class Comparison:
    """Generated images against one set of real ones; None for what mean and covariance alone cannot tell.

    Attributes:
        fid: Frechet distance, at least 0. kid: unbiased kernel distance; kid_mean, kid_std: over subsets.
        precision, recall, coverage: from 0 to 1. density: at least 0, near 1 for sets alike.
        fid_interval, kid_interval: 95 % intervals, where a bootstrap was asked for.
        n_real: the number of real images.
    """

    fid: float
    kid: float | None = None
    kid_mean: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    fid_interval: tuple[float, float] | None = None
    kid_interval: tuple[float, float] | None = None
    n_real: int | None = None


@dataclass(frozen=True)
class Scores:
    """What `score` found, and what it was found with.

    Attributes:
        training, heldout: against the real images and against the held-out ones, where given.
        inception_score: at least 1, over the extractor's classes.
        diversity, diversity_real: the mean distance of two generated and of two real images.
        intra_cluster: that of two generated ones with the same nearest real image.
        layouts, layouts_real: how many layouts the generated images amount to, and as many held-out ones or,
            without any, real ones; see memorisation.layouts.
        extractor, resize, n_generated, seed: what has to be said with every score.
        notes: what the reader should know. left_out: unreadable images, each with its reason.
    """

    training: Comparison
    heldout: Comparison | None
    inception_score: float | None
    diversity: float | None
    diversity_real: float | None
    intra_cluster: float | None
    layouts: float | None
    layouts_real: float | None
    memorisation: Memorisation | None
    extractor: str
    resize: str
    n_generated: int | None
    seed: int
    notes: tuple[str, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        """One line: the distances from both sets, and what they were measured with."""
        sides = [("", self.training), *([("held-out ", self.heldout)] if self.heldout else [])]
        found = "; ".join(f"{side}FID {_text(it.fid)}, KID {_text(it.kid)}" for side, it in sides)
        counts = " and ".join(f"{_text(it.n_real)} {side or 'real '}" for side, it in sides)
        made = f"{_text(self.n_generated)} generated against {counts}images"
        return "; ".join(
            [f"{found} ({self.extractor}, {self.resize}, {made}, seed {self.seed})", *self.notes]
        )

    def table(self) -> str:
        """Several lines: a column for each set of real images, what belongs to neither, and the notes."""
        sides = [asdict(side) for side in (self.training, self.heldout) if side]
        lines = [
            ("against", "real", "held-out"),
            *((key, *(side[key] for side in sides)) for key in sides[0]),
        ]
        report = {f"memorisation: {key}": value for key, value in self.as_dict()["memorisation"].items()}
        names = ("inception_score", "diversity", "diversity_real", "intra_cluster", "layouts", "layouts_real")
        names += ("n_generated", "extractor", "resize", "seed")
        lines += [*report.items(), *((name, getattr(self, name)) for name in names)]
        lines = [(key, *values[: len(sides)]) for key, *values in lines if values[0] is not None]
        width = max(len(key) for key, *_ in lines) + 2
        rows = [
            key.ljust(width) + "".join(_text(value).ljust(24) for value in values) for key, *values in lines
        ]
        return "\n".join([*map(str.rstrip, rows), *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """The scores for a line of JSON: those against the real images at the top, `heldout` beside them."""
        found = {key: value for key, value in vars(self).items() if key != "training"}
        report = self.memorisation
        shown = (each.name for each in fields(Memorisation) if each.repr)  # no numbers of single images
        found["memorisation"] = {name: getattr(report, name) for name in shown} if report else {}
        found["heldout"] = self.heldout and asdict(self.heldout)
        return asdict(self.training) | found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " to ".join(map(_text, value))
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def score(
    generated: Given,
    real: Given,
    reference: Given | None = None,
    *,
    extractor: str | Extractor = "inception",
    weights: Path | None = None,
    size: int | None = None,
    seed: int = 0,
    bootstrap: int = 0,
    device: str | None = None,
    cache: Path | None = None,
    nearest: Path | None = None,
    seen: tuple[str, ...] = (),
) -> Scores:
    """Score generated images against real ones and, where given, against held-out ones (`reference`).

    Each of the three is a folder, a zip, transfer.images.Images or a tensor (N, 3, H, W), uint8 or floats in
    [-1, 1]; or a .npz of statistics, with which only the Frechet distance can be had. Nothing is augmented,
    and no global random state is touched.

    Args:
        extractor: the name of one, see fid.load, or one from there.
        weights: a file with other weights for it, whose hash goes into its name.
        size: bring every image's centre square to size x size first, as training does; without one, to what
            the statistics say that theirs were brought to, if there are any.
        seed: of KID's subsets and the bootstrap.
        bootstrap: how many resampled sets the intervals come from; 0 for no intervals.
        cache: where the features of real and held-out images are kept, if not in statistics.default_cache().
        nearest: a PNG to write, see memorisation.write; a note says where it is, or why it is not.
        seen: the extractors that the critic saw through: a score of theirs says so in a note.

    Raises:
        UserError: when a set has fewer than two readable images, an extractor cannot be had, or statistics
            are of images of another size.
    """
    size, notes = _one_size((generated, real, reference), size)
    if not isinstance(extractor, Extractor):
        extractor = load(extractor, weights, device)

    def measured(given: Given, title: str) -> Features | Gaussian:
        if statistics.is_statistics(given):
            return statistics.read(Path(given), extractor)
        return features(Set.of(given, title, size), extractor, given is generated)

    def features(images: Set, extractor: Extractor, drawn: bool) -> Features:
        return statistics.extract(images, extractor) if drawn else statistics.cached(images, extractor, cache)

    made, training = measured(generated, "the generated images"), measured(real, "the real images")
    heldout = None if reference is None else measured(reference, "the held-out images")
    found = (made, training, heldout)
    sets = [each for each in found if isinstance(each, Features)]
    x, y, h = (each.values if isinstance(each, Features) else None for each in found)
    report, varied = None, (None, None)
    if x is not None and y is not None:
        small = thumbnailer(extractor.device)
        thumbnails = [
            features(each.images, small, each is made).values if isinstance(each, Features) else None
            for each in found
        ]
        report = memorisation((x, y, h), tuple(thumbnails))
        varied = _layouts(*thumbnails)
        if nearest is not None:
            notes.append(_written(Path(nearest), report, made, training))
    classes = extractor.classifier if x is not None else None
    sides = [_compare(made, each, seed, bootstrap) for each in (training, heldout) if each is not None]
    n = made.n if x is None else len(x)
    return Scores(
        training=sides[0],
        heldout=sides[1] if sides[1:] else None,
        inception_score=metrics.inception_score(x, *classes) if classes else None,
        diversity=None if x is None else metrics.diversity(x),
        diversity_real=None if y is None else metrics.diversity(y),
        intra_cluster=metrics.intra_cluster(x, report.nearest) if report else None,
        layouts=varied[0],
        layouts_real=varied[1],
        memorisation=report,
        extractor=extractor.name,
        resize=extractor.resize if size is None else f"centre square {size}, {extractor.resize}",
        n_generated=n,
        seed=seed,
        notes=(
            *(_seen(extractor) for name in seen if extractor.name.startswith(f"{name}-")),
            *_notes([n, *(side.n_real for side in sides)], {shape for each in sets for shape in each.shapes}),
            *notes,
        ),
        left_out={f"{s.images.title}: {name}": reason for s in sets for name, reason in s.left_out.items()},
    )


def _one_size(sets: tuple[Given | None, ...], size: int | None) -> tuple[int | None, list[str]]:
    """The size that all images are brought to, which statistics were too; a note where they do not say.

    Raises:
        UserError: when they were not.
    """
    notes, asked = [], size
    for path in (each for each in sets if statistics.is_statistics(each)):
        told = statistics.brought_to(path)
        if told is None:
            notes.append(f"{path} does not say what size its images were brought to")
        elif asked is None:
            asked = told  # 0: all as they are stored
        elif told != asked:
            of, others = (
                f"brought to {each}x{each}" if each else "as they are stored" for each in (told, asked)
            )
            again = f"write it again with --save{f' and --size {asked}' if asked else ''}"
            raise UserError(
                f"{path} is of images {of}, and the others are {others}: {again}"
                + (f", or give --size {told} with images in the place of statistics" if told else "")
            )
    return asked or None, notes


def _compare(made: Features | Gaussian, real: Features | Gaussian, seed: int, bootstrap: int) -> Comparison:
    a, b = (found if isinstance(found, Gaussian) else Gaussian.of(found.values) for found in (made, real))
    fid = metrics.frechet(a, b)
    if made is a or real is b:
        return Comparison(fid, n_real=b.n)
    x, y = made.values, real.values
    kid, mean, std = metrics.kid(x, y, seed)
    intervals = metrics.bootstrap(x, y, fid, kid, bootstrap, seed) if bootstrap else (None, None)
    return Comparison(fid, kid, mean, std, *metrics.neighbourhoods(x, y), *intervals, b.n)


def _layouts(made: Tensor, training: Tensor, heldout: Tensor | None) -> tuple[float, float]:
    """Of thumbnails (n, 768): the generated ones' layouts and the real ones', of equally many of each."""
    real = training if heldout is None else heldout
    n = min(len(made), len(real))
    evenly = (each[torch.linspace(0, len(each) - 1, n).long()] for each in (made, real))
    return tuple(map(layouts, evenly))


def _seen(extractor: Extractor) -> str:
    return f"the critic saw through {extractor.name}, so this says nothing: score with another extractor"


def _written(path: Path, report: Memorisation, made: Features, training: Features) -> str:
    """Write the closest pairs, and say where; a full disk or a folder that is not ours costs no scores."""
    try:
        return f"the closest pairs are in {write(path, report, made, training)}"
    except UserError as error:
        return str(error)


def _notes(counts: list[int | None], shapes: set[tuple[int, int]]) -> tuple[str, ...]:
    notes, fewest = [], min(COMPARABLE if n is None else n for n in counts)
    if fewest < COMPARABLE:
        notes.append(
            f"FID is biased at {fewest} images, fewer than {COMPARABLE:,}: KID is the number to compare"
        )
    if len(shapes) > 1:
        least, *_, most = named = [f"{height}x{width}" for height, width in sorted(shapes)]
        sizes = " and ".join(named) if len(named) < 4 else f"{len(named):,} from {least} to {most}"
        notes.append(f"the images are of different sizes, {sizes}: --size brings all to one")
    return tuple(notes)


def scorer(settings: Any, images: Images, seen: tuple[str, ...] = ()) -> Callable[[Tensor], Scores] | None:
    """What scores a run's images (n, 3, H, W), uint8: against those that it trains on and held-out ones.

    A first score, of one of the images, is made at once: whatever a score needs is opened before the first
    iteration, and the features of the real images are kept.

    Args:
        settings: a script's, which name the extractor, the reference and the seed, and say whether to score.
        images: what is trained on; their size is what all images are brought to. Where some of them were set
            aside, those are the held-out ones; else the reference is.
        seen: the extractors that the critic saw through; that of its source is known.

    Returns:
        None when score_every is 0; images that were set aside are then said to be of no use.

    Raises:
        UserError: when the extractor or the reference cannot be had, or a set has fewer than two images.
    """
    if not settings.score_every:
        if images.held_out is not None:
            print(f"{len(images.held_out)} images are set aside, and --score-every 0 never scores them")
        return None
    if getattr(settings, "source", None) is not None:
        seen += tuple(filter(None, [Source.read(settings.source).settings.get("features")]))
    extractor = load(settings.extractor, device=str(images.pixels.device))
    size = images.pixels.shape[-1]
    heldout = settings.reference if images.held_out is None else images.held_out

    def scored(pixels: Tensor) -> Scores:
        given = {"extractor": extractor, "size": size, "seed": settings.seed, "seen": seen}
        return score(pixels, images, heldout, **given)

    scored(images.pixels[:1].expand(2, -1, -1, -1))
    return scored
