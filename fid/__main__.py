"""Score generated images against real ones and, where given, against held-out ones.

python -m fid GENERATED REAL [REFERENCE]: folders, zips, or statistics in .npz files.

python -m fid --model RUN REAL [REFERENCE]: images drawn from a run, a checkpoint or a .safetensors file. Of
the own images of a run with --hold-out, those that it set aside are REFERENCE unless another is given.

python -m fid IMAGES --save FILE.npz: write the statistics of a set, as pytorch-fid reads them.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from transfer import UserError
from transfer.settings import ROOT, Bound, Extractor, Seed, Whole, check, command_line, user_errors

if TYPE_CHECKING:
    from fid.sets import Given
    from transfer.shared import Source

GENERATED = ROOT / "generated_image"
DRAWN = 1000  # images, unless count says otherwise


@dataclass(frozen=True)
class Settings:
    """What to score, and with what."""

    paths: Positional[tuple[Path, ...]] = ()  # GENERATED REAL [REFERENCE], or as above
    model: Path | None = None  # a run's folder, a checkpoint or a .safetensors file to draw images from
    best: bool = False  # the run's checkpoint with the best score, not its newest
    label: str | None = None  # of a run with several target domains the one to draw
    count: Annotated[int | None, Bound("at least 2", 2)] = (
        None  # images to draw from the model, 1000 unless given
    )
    keep: bool = False  # write the drawn images to generated_image/
    extractor: Extractor = "inception"
    weights: Path | None = None  # other weights for the extractor; their hash goes into its name
    size: Annotated[int | None, Bound("at least 1", 1)] = (
        None  # bring every image's centre square to this size first; the model's with one
    )
    bootstrap: Whole = 0  # resampled sets that 95 % intervals come from
    seed: Seed = 0
    json: bool = False  # print one line of JSON instead of a table
    nearest: Path | None = Path("nearest_pairs.png")  # to write: the closest pairs, and a .csv of all
    save: Path | None = None  # a .npz to write: the statistics of IMAGES
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    cache: Path | None = (
        None  # where features of real images are kept: $FID_CACHE, or the user's cache folder
    )


def main(settings: Settings) -> None:
    """Score and print.

    Raises:
        UserError: when the settings do not fit each other, or what they name cannot be used.
    """
    sets, size, seen = _sets(settings), settings.size, ()
    from fid import extractors, metrics, statistics
    from fid.scores import score
    from fid.sets import Set
    from transfer import drawing
    from transfer.shared import Source

    extractor = extractors.load(settings.extractor, settings.weights, settings.device)
    if settings.save is not None:
        features = statistics.extract(Set.of(sets[0], "the images", size), extractor)
        statistics.save(settings.save, metrics.Gaussian.of(features.values), extractor, size)
        return print(f"the statistics of {len(features.rows)} images are in {settings.save}")
    if settings.model is not None:
        source = Source.read(settings.model, settings.best, settings.label)
        size = size or source.size
        seen = (source.settings.get("features"),)  # what the critic saw through, where it did
        sets = _apart(source, sets, size)
        drawn = drawing.draw(source, settings.count or DRAWN, settings.seed, extractor.device)
        sets = (drawn, *sets)
        if settings.keep:
            drawing.keep(drawn, GENERATED)
    chosen = {name: getattr(settings, name) for name in ("seed", "bootstrap", "cache", "nearest")}
    scores = score(*sets, extractor=extractor, size=size, seen=seen, **chosen)
    for name, reason in scores.left_out.items():
        print(f"left out: {name!r} ({reason})", file=sys.stderr)
    print(json.dumps(scores.as_dict()) if settings.json else scores.table())


def _apart(source: Source, sets: tuple[Path, ...], size: int) -> tuple[Given, ...]:
    """REAL, and REFERENCE where there is one; of the run's own images those that it set aside are REFERENCE.

    Raises:
        UserError: when the images are to be of another size than the run's.
    """
    from fid.statistics import is_statistics
    from transfer.images import Images

    share = source.settings.get("hold_out")
    if not share or is_statistics(sets[0]):
        return sets
    with redirect_stdout(sys.stderr):
        images = Images.load(sets[0], **source.shape)
    if images.fingerprint != source.images:
        print(f"{sets[0]} holds other images than the run had, so none is set aside", file=sys.stderr)
        return sets
    if size != source.size:
        side = f"{source.size} x {source.size}"
        raise UserError(f"what the run set aside is known at {side} pixels only: leave --size out")
    images = images.hold_out(share, source.settings["seed"])
    return images, *(sets[1:] or (images.held_out,))


def _sets(settings: Settings) -> tuple[Path, ...]:
    """The paths, after everything that can be said of the settings without reading a file."""
    check(settings)
    count, drawn = len(settings.paths), settings.model is not None
    if settings.save is not None:
        fitting, wanted = count == 1 and not drawn, "IMAGES --save FILE.npz"
    elif drawn:
        fitting, wanted = count in (1, 2), "--model RUN REAL [REFERENCE]"
    else:
        fitting, wanted = count in (2, 3), "GENERATED REAL [REFERENCE], each a folder or a zip of images"
    if not fitting:
        raise UserError(f"{count} path{'s' * (count != 1)} given: python -m fid wants {wanted}")
    about_drawing = settings.keep or settings.best or settings.label is not None or settings.count is not None
    if not drawn and about_drawing:
        raise UserError(
            "--keep, --best, --label and --count are about images that are drawn: give --model RUN with them"
        )
    if settings.keep and GENERATED.is_dir() and any(GENERATED.iterdir()):
        raise UserError(
            f"{GENERATED} is not empty, and nothing is overwritten: move what is in it elsewhere, or leave"
            " --keep out"
        )
    return settings.paths


if __name__ == "__main__":
    sys.argv[0] = "python -m fid"
    with user_errors():
        main(command_line(Settings))
