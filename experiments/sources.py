"""The sources: what a source's size, density, diversity and distance to the target do to a transfer (2.1).

    python -m experiments.sources --faces FACES --avatars DRAWN --anime TARGET_96 --anime-reference HELD_OUT

1,000, 5,000 and 15,000 faces and 5,000 drawn avatars (avatars.mjs draws them): each pre-trains the same
networks from nothing, on drawings with heads that never rest, and each model is carried over to the same
targets, the cartoons and the anime faces. What has been made is not made again, and what was interrupted
goes on. --dry-run says what is missing; python -m experiments report writes the page.
"""

from __future__ import annotations

import io
import zipfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import fid
from experiments import lines
from experiments.judge import DASH, FIRST, by_seed, figure, final, mean, ranked, short
from experiments.runs import JUDGES, Budget, identity, made, make
from experiments.selection import Lines, runs
from experiments.tables import PLAIN, Row, Table
from experiments.verdict import lead
from fid.sets import Set
from fid.statistics import cached
from transfer import UserError, checkpoints
from transfer.__main__ import share
from transfer.engine import choose_device
from transfer.folder import hardware, versions
from transfer.images import Images
from transfer.settings import command_line, user_errors

SIZES = (1_000, 5_000, 15_000)  # of the sources of faces
AVATARS = 5_000
SCORED = 1_000  # images of a source, by which its distance to a target is measured
CHUNK = 1_000  # images whose neighbours are looked for at once
# From nothing the critic of pixels takes WGAN's own five steps, at WGAN's own rate: with two at four times
# that rate all latents became one face. On drawings heads would rest from the blur on: there they never do.
NOTHING = {"source": None, "augment": "flip", "critic_steps": 5, "critic_learning_rate": 5e-5}
FACES = Row("pre-trained from nothing", "projected_critic", NOTHING | {"learning_rate": 2e-4} | PLAIN)
DRAWN = replace(FACES, settings=FACES.settings | {"rest": 0.0})
CARRIED = Row("a critic that sees", "projected_critic", PLAIN)
CLAIM = (
    "what a transfer inherits depends on the source's size, density and diversity, and on its distance to the"
    " target."
)


@dataclass(frozen=True)
class Settings:
    """Which images, and how long."""

    faces: Path  # a folder or a zip of 15,000 faces or more
    avatars: Path  # a folder or a zip of 5,000 drawn avatars or more
    anime: Path  # 96 anime faces: a target
    anime_reference: Path  # held-out ones
    cartoons: Path = Path("train_images/target_domain")  # the other target
    cartoons_reference: Path = Path("train_images/target_domain_held_out.zip")
    iterations: int = 1_000  # of each pre-training
    transfer: int = 500  # iterations of each transfer
    batch_size: int = 16
    device: str | None = None
    out: Path = Path("source_domain/sources")  # images, runs and models
    dry_run: bool = False  # print what is missing and how long it would take, and stop

    def targets(self) -> tuple[tuple[Path, Path], ...]:
        """Each target's images, and its held-out ones."""
        return (self.cartoons, self.cartoons_reference), (self.anime, self.anime_reference)


def sources() -> dict[str, tuple[str, int]]:
    """The sources by their files' names: what the page calls them, and how many images they have."""
    return {f"faces_{size}": (f"{size:,} faces", size) for size in SIZES} | {
        f"avatars_{AVATARS}": (f"{AVATARS:,} drawn avatars", AVATARS)
    }


def given(name: str, settings: Settings) -> Path:
    """Where a source's images are taken from."""
    return settings.faces if name.startswith("faces") else settings.avatars


def cut(images: Images, count: int, file: Path) -> None:
    """Write a zip of so many images, the first in an order that is drawn once: smaller zips nest in larger.

    Raises:
        UserError: when there are too few.
    """
    if len(images) < count:
        raise UserError(f"{file.name} needs {count:,} images, and {len(images):,} are given: give more")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for place in sorted(order[:count].tolist()):
            picture = io.BytesIO()
            Image.fromarray(images.pixels[place].permute(1, 2, 0).numpy()).save(picture, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{place:05d}.png"), picture.getvalue())
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(file, lambda handle: handle.write(held.getvalue()))


def pretrained(name: str) -> Row:
    """The row by which the source of this name is pre-trained."""
    return FACES if name.startswith("faces") else DRAWN


def pretrain(name: str, settings: Settings) -> Path | None:
    """Pre-train on a source's images, and share the model: its file; None where it is not there yet.

    Raises:
        UserError: when the run has been made, and its folder is gone.
    """
    file = settings.out / f"{name}.zip"
    model = settings.out / f"{name}-{settings.iterations}.safetensors"
    budget = Budget(
        images=file,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        score_every=min(500, settings.iterations),
        judges=JUDGES[:1],
        device=settings.device,
        out=settings.out,
        dry_run=settings.dry_run,
    )
    if not settings.dry_run and not file.exists():
        cut(Images.load(given(name, settings)), sources()[name][1], file)
    row = pretrained(name)
    make([Table("", "", "", (row,))], budget)
    if not model.exists() and not settings.dry_run:
        run = identity(row, 0, budget)
        folders = sorted((settings.out / run).glob("0*"))
        if run not in made():
            print(f"{run} is being made by another process")
            return None
        if not folders:
            raise UserError(
                f"{settings.out} has no folder of {run} any more: take its line out of"
                f" {lines.RESULTS.name}, and it is made again"
            )
        share(folders[-1], model, "cc-by-4.0" if name.startswith("avatars") else None)
    return model


def transfer(models: dict[str, Path], settings: Settings) -> None:
    """Carry every model over to every target."""
    rows = tuple(
        replace(CARRIED, name=name, settings={**CARRIED.settings, "source": model})
        for name, model in models.items()
    )
    for images, reference in settings.targets():
        budget = Budget(
            images=images,
            reference=reference,
            iterations=settings.transfer,
            batch_size=settings.batch_size,
            score_every=min(250, settings.transfer),
            device=settings.device,
            out=settings.out,
            dry_run=settings.dry_run,
        )
        make([Table("", "", "", rows)], budget)


def nearest(features: Tensor) -> float:
    """The mean distance of each image to the nearest other one, in features (n, d): less is denser."""
    found = [
        torch.cdist(chunk, features).topk(2, largest=False).values[:, 1] for chunk in features.split(CHUNK)
    ]
    return torch.cat(found).mean().item()


def measure(name: str, settings: Settings) -> None:
    """Add a line for each target that a source was not measured against."""
    done = {(line["row"], line["reference"]) for line in lines.read("source")}
    open_ = [pair for pair in settings.targets() if (name, pair[1].name) not in done]
    if not open_:
        return
    device = choose_device(settings.device)
    extractor = fid.load(FIRST, device=str(device))
    images = Images.load(settings.out / f"{name}.zip", device)
    dense = nearest(cached(Set.of(images, name, 64), extractor).values)
    for target, reference in open_:
        some = images.pixels[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:SCORED]]
        scores = fid.score(some, target, reference, extractor=extractor, size=64)
        line = {"table": "source", "row": name, "count": len(images), "reference": reference.name}
        line |= {"nearest": dense, **scores.as_dict(), "hardware": hardware(device), "versions": versions()}
        lines.append(line)


def markdown() -> str:
    """The experiment's part of docs/results.md."""
    text = f"## Sources and targets\n\nThe dissertation, after TransferGAN: {CLAIM}\n\n"
    measured = {(line["row"], line["reference"]): line for line in lines.read("source")}
    found = carried(runs())
    for (reference, iterations, batch_size), by_source in found.items():
        rows = [
            cells(title, by_source[name], measured.get((name, reference)))
            for name, (title, _) in sources().items()
            if name in by_source
        ]
        text += f"{iterations:,} iterations of {batch_size} images, held-out images: {reference}.\n\n"
        head = ("source", "diversity", "nearest other image", "KID x 1000 of its own images")
        head += (*(f"KID x 1000, {short(name)}" for name in JUDGES), "coverage", "seeds")
        text += f"{lines.markdown(head, rows)}\n{said(by_source)}\n\n"
    if not found:
        text += "Not run yet: `python -m experiments.sources`.\n\n"
    return text


def carried(found: Lines) -> dict[tuple[str, int, int], dict[str, Lines]]:
    """The transfers from these sources: by held-out images, iterations and batch size, and by source."""
    result: dict[tuple[str, int, int], dict[str, Lines]] = defaultdict(lambda: defaultdict(list))
    for line in found:
        settings = line["settings"]
        name = str(settings.get("source")).partition("-")[0]
        if line["script"] == CARRIED.script and name in sources():
            key = settings["reference"], settings["iterations"], settings["batch_size"]
            result[key][name].append(line)
    return result


def cells(title: str, found: Lines, line: dict[str, Any] | None) -> tuple[str, ...]:
    """A source's row: what it is, how far from the target, and what its transfers came to."""
    own = (DASH,) * 3
    if line is not None:
        far = 1000 * line["heldout"]["kid"]
        own = f"{line['diversity']:.1f}", f"{line['nearest']:.1f}", f"{far:.1f}"
    kids = (mean(by_seed(found, lambda run, by=by: final(run, by))) for by in JUDGES)
    coverage = mean(by_seed(found, lambda run: figure(run, "coverage")), 2)
    return title, *own, *kids, coverage, str(len({run["settings"]["seed"] for run in found}))


def said(by_source: dict[str, Lines]) -> str:
    """The order of the sources in one sentence."""
    ends, ours = ranked({sources()[name][0]: found for name, found in by_source.items()})
    if len(ours) < 2:
        return ""
    order = ", ".join(f"{title} ({mean(ends[title])})" for title in ours)
    return f"From the best to the worst: {order}; the first leads {lead(ends, *ours[:2])}."


def main(settings: Settings) -> None:
    """Make what is missing: the sources' images and models, the transfers, and what the sources are like."""
    models = {}
    for name in sources():
        model = pretrain(name, settings)
        if model is not None:
            models[name] = model
        if not settings.dry_run:
            measure(name, settings)
    transfer(models, settings)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
