"""The rows: what a table and a row of it are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transfer.plan import Split


@dataclass(frozen=True)
class Row:
    """A plan: a script, the settings that it changes, and what the dissertation's score of it was."""

    name: str
    script: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: float | None = None  # the dissertation's FID, on other images with another extractor
    figure: str = ""  # what shows it in the dissertation, as pictures
    claim: str = ""  # what the text says of those, where it gives no FID


def named(G: Split | None, D: Split | None, what: str = "") -> str:
    """A row's name: the plan, G(i,j,k) D(i,j,k), and what else is told of it."""
    plans = (("G", G), ("D", D))
    plan = " ".join(f"{name}({','.join(map(str, own))})" for name, own in plans if own is not None)
    return f"{plan}, {what}" if what else plan


@dataclass(frozen=True)
class Table:
    """A table or figure of the dissertation, or a claim of its text."""

    key: str
    title: str
    claim: str
    rows: tuple[Row, ...]
    pretraining: bool = False  # its runs are of the source domain
    own_images: bool = False  # its rows name their images
    caption: str = ""  # of a picture of what its rows are trained on
    first: bool = False  # its first row is what the others are compared with: no part is shown without it
