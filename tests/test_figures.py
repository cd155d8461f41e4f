"""The figures: the dissertation's pictures as strips, each with what it says and what the runs say."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from experiments import figures, page, tables
from experiments.page import Part, Section
from experiments.selection import Spent
from experiments.tables import Row, Table

OURS = ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 23", "Figure 24")
OURS += ("Table 8", "Table 9", "Table 10")
BUDGET = Spent(300, 16, "96", "held", "faces")


def section(*rows, untouched=None, **kids):
    """A table of rows, and what each one's run ended at: KID x 1000 by its name."""
    runs = {
        name: [
            {
                "settings": {"seed": 0, "iterations": 300},
                "scores": [
                    {"step": 300, "kid": kid / 1000, "heldout": None, "extractor": "efficientnet_lite0-1"}
                ],
                "seen": [],
            }
        ]
        for name, kid in kids.items()
    }
    plans = [row for row in rows if row.name in runs]
    part = Part("300 iterations", "", (), [], [], [], BUDGET, plans, runs, untouched=untouched)
    return Section(Table("", "", "", rows), [part])


def test_every_picture_of_the_dissertation_is_on_the_page_with_its_claim_and_our_verdict():
    shown = [row.figure for table in tables.TABLES for row in table.rows if row.figure]
    assert sorted(set(shown)) == sorted(OURS)
    assert len(shown) == len(OURS) + 2 + 4, "Table 1 has three rows, and Table 2 five"
    text = page.PAGE.read_text()
    for name in OURS:
        found = re.findall(
            rf"### {name}: .+\n\nThe dissertation: .+\. Here: number .+\.\n\n!\[.+\]\((.+)\)", text
        )
        assert len(found) == shown.count(name), name
        assert all((page.PAGE.parent / file).exists() for file in found)
    assert "![Table 2: augmentation](pictures/augmentation.webp)" in text


@pytest.mark.parametrize(
    "ends, said",
    [
        ({"a": 1.0, "b": 2.0}, "number 2 of 2 too, with 2.0 after 300 iterations."),
        ({"a": 3.0, "b": 2.0}, "number 1 of 2, not 2, with 2.0 after 300 iterations."),
        ({"b": 2.0}, "number 1 of 1, with 2.0 after 300 iterations."),
    ],
)
def test_a_row_with_a_score_of_the_dissertations_has_its_place_among_those(ends, said):
    rows = Row("a", "", {}, 195, "Table 4"), Row("b", "", {}, 220, "Table 3"), Row("new", "")
    own = section(*rows, **ends, new=0.5)
    assert figures.verdict(rows[1], own) == said
    assert figures.claim(rows[1], rows) == "FID 220, number 2 of 2."


def test_a_row_without_one_is_compared_with_those_shown_beside_it_and_with_the_source():
    rows = Row("a", "", figure="Figure 23", claim="Near."), Row("b", "", figure="Figure 24"), Row("new", "")
    own = section(*rows, untouched={"kid": 0.0035}, a=2.0, b=5.0, new=0.5)
    assert figures.verdict(rows[0], own) == (
        "number 1 of 2, with 2.0 after 300 iterations, 1.5 less than the source itself."
    )
    assert "1.5 more than the source itself" in figures.verdict(rows[1], own)
    assert figures.claim(rows[0], rows) == "Near."


def test_the_picture_is_of_the_longest_run_that_has_kept_one(tmp_path, monkeypatch):
    def run(name, iterations, seed, kept=True):
        if kept:
            Image.new("RGB", (128, 3 * 64)).save(tmp_path / f"{name}.webp")
        settings = {"iterations": iterations, "seed": seed, "batch_size": 16}
        settings |= {"images": "96", "reference": "held", "source": "faces"}
        return {"run": name, "iterations": iterations, "settings": settings, "scores": []}

    monkeypatch.setattr(figures, "PICTURES", tmp_path)
    monkeypatch.setattr(figures, "lines_of", lambda row, lines: lines)
    found = [run("a", 300, 0), run("b", 600, 1), run("c", 600, 0), run("d", 900, 0, kept=False)]
    found.append(run("e", 900, 0))
    found[-1]["settings"]["images"] = "others"
    assert figures.longest(Row("", ""), BUDGET, found)["run"] == "c"
    assert figures.longest(Row("", ""), replace(BUDGET, source="another"), found) is None
    scored = {**found[0], "scores": [{"step": 100}, {"step": 300}]}
    assert figures.steps(scored, tmp_path / "a.webp") == [0, 100, 300]
    assert figures.steps(found[0], tmp_path / "a.webp") == [0, 150, 300], "grids between its scores"
    assert figures.in_words([0, 1000, 2000]) == "0, 1,000 and 2,000"


def test_the_picture_of_the_augmentations_is_of_the_same_images_row_by_row(tmp_path, faces):
    figures.main(figures.Settings(faces, tmp_path / "made.png"))
    made = np.asarray(Image.open(tmp_path / "made.png")).astype(int)
    assert made.shape == (4 * 64, 8 * 64, 3)
    first = np.asarray(Image.open(faces / "0.png"))
    assert (made[:64, :64] == first).all()
    changed = [abs(made[row : row + 64, :64] - first).mean() for row in (64, 128)]
    assert min(changed) > 0
