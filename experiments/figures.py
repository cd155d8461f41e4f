"""The figures: what the dissertation shows as pictures, each as a strip of latents, a claim and a verdict.

    python -m experiments.figures

writes Table 2's picture anew, from the cartoons that ship. The strips are of runs, which keep theirs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from experiments.judge import merit, ranked
from experiments.runs import PICTURES
from experiments.selection import Lines, Spent, lines_of, runs, spent
from experiments.strip import TILE
from experiments.tables import Row
from transfer.augment import Augment
from transfer.images import Images, grid, to_float
from transfer.settings import ROOT, command_line, user_errors

if TYPE_CHECKING:
    from typing import Any

    from experiments.page import Part, Section

AUGMENTED = PICTURES.with_name("augmentation.webp")
SHOWN = ("none", "slight", "strong", "diffaugment")  # its rows
COUNT = 16  # images a row


@dataclass(frozen=True)
class Figure:
    """A picture of the page.

    Attributes:
        title: the dissertation's figure or table, and the plan. claim: its text's. verdict: ours.
        file: the picture. caption: what its rows are.
    """

    title: str
    claim: str
    verdict: str
    file: Path
    caption: str


def figures(section: Section) -> list[Figure]:
    """The pictures of a table's section: of each row that the dissertation shows and that has a run."""
    found, lines = [], runs()
    for row in section.table.rows:
        parts = [part for part in section.parts if row.figure and row.name in part.runs]
        run = longest(row, parts[-1].budget, lines) if parts else None
        if run is not None:
            title, file = f"{row.figure}: {row.name}", picture(run)
            caption = f"The same {COUNT} latents after {in_words(steps(run, file))} iterations."
            found.append(Figure(title, claim(row, section.table.rows), verdict(row, section), file, caption))
    return found


def longest(row: Row, budget: Spent, lines: Lines) -> dict[str, Any] | None:
    """A row's longest run on a budget's images and source that has kept its picture, of the first seed."""
    alike = [
        line
        for line in lines_of(row, lines)
        if replace(spent(row, line), count=budget.count) == budget and picture(line).exists()
    ]
    return max(alike, key=lambda line: (line["iterations"], -line["settings"]["seed"]), default=None)


def picture(run: dict[str, Any]) -> Path:
    """Where a run's picture is kept."""
    return PICTURES / f"{run['run']}.webp"


def shown(rows: tuple[Row, ...]) -> list[Row]:
    """The rows that the dissertation has scores of, from its best to its worst."""
    return sorted((row for row in rows if row.published is not None), key=lambda row: row.published)


def claim(row: Row, rows: tuple[Row, ...]) -> str:
    """What the dissertation says of a row: its place by FID, or what its text says of the picture."""
    if row.published is None:
        return row.claim
    theirs = shown(rows)
    return f"FID {row.published:g}, number {theirs.index(row) + 1} of {len(theirs)}."


def verdict(row: Row, section: Section) -> str:
    """What the runs say: a row's place in the part that has the most of the rows that are shown."""
    theirs = [each.name for each in shown(section.table.rows)] if row.published is not None else []
    names = theirs or [each.name for each in section.table.rows if each.figure]

    def those(part: Part) -> list[str]:
        return [name for name in ranked(part.runs)[1] if name in names]

    part = max((part for part in section.parts if row.name in those(part)), key=lambda part: len(those(part)))
    order = those(part)
    kid, place = statistics.mean(ranked(part.runs)[0][row.name]), order.index(row.name) + 1
    text = f"number {place} of {len(order)}"
    if theirs and len(order) == len(theirs):
        before = theirs.index(row.name) + 1
        text += " too" if before == place else f", not {before}"
    text += f", with {kid:.1f} after {part.title}"
    if not theirs and part.untouched:
        away = kid - merit(part.untouched)
        text += f", {abs(away):.1f} {'more' if away > 0 else 'less'} than the source itself"
    return f"{text}."


def steps(run: dict[str, Any], file: Path) -> list[int]:
    """The iterations that a run's picture shows, a row each: 0 and those of its scores, or even steps."""
    with Image.open(file) as image:
        rows = image.height // TILE - 1
    scored = [scores["step"] for scores in run["scores"]]
    even = [run["iterations"] * (row + 1) // rows for row in range(rows)]
    return [0, *(scored if len(scored) == rows else even)]


def in_words(steps: list[int]) -> str:
    """0, 250 and 500."""
    *first, last = (f"{step:,}" for step in steps)
    return f"{', '.join(first)} and {last}"


def markdown(section: Section) -> str:
    """The pictures of a table's section, for docs/results.md."""
    text, table = "", section.table
    if table.caption:
        text += f"![{table.title}](pictures/{AUGMENTED.name})\n\n{table.caption}\n\n"
    for each in figures(section):
        text += f"### {each.title}\n\nThe dissertation: {each.claim} Here: {each.verdict}\n\n"
        text += f"![{each.title}](pictures/runs/{each.file.name})\n\n{each.caption}\n\n"
    return text


@dataclass(frozen=True)
class Settings:
    """Which images Table 2's picture is of."""

    images: Path = ROOT / "train_images" / "target_domain"
    file: Path = AUGMENTED


def main(settings: Settings) -> None:
    """Write Table 2's picture: the first images as they are, and as each augmentation shows them."""
    torch.manual_seed(0)
    x = to_float(Images.load(settings.images).pixels[:COUNT])
    grid(torch.cat([Augment(name).real(x) for name in SHOWN]), len(x)).save(settings.file, quality=80)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
