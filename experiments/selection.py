"""The selection: which lines of results a table's rows have, by what was spent on them, and their scores."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from experiments import lines
from experiments.runs import IGNORED, chosen, judge, module, seen_by, told, versioned
from experiments.tables import Row, Table
from transfer.settings import plain

UNSAID = {"images", "reference", "iterations", "seed", "extractor", "source"}  # a table does not say these
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Spent:
    """What was spent on a run: how much, and on which images and source.

    Attributes:
        count: iterations of batches, or images where batch_size is None; 0 where rows have their own.
        source: None from scratch, and where the row has one of its own.
    """

    count: int
    batch_size: int | None
    images: str
    reference: str | None
    source: str | None

    @property
    def much(self) -> str:
        """How much, in words."""
        if not self.count:
            return "the iterations of each row"
        return (
            f"{self.count:,} images"
            if self.batch_size is None
            else (f"{self.count:,} iterations of {self.batch_size} images")
        )

    def beside(self, other: Spent) -> bool:
        """Whether other is the same, its source apart."""
        return replace(self, source=None) == replace(other, source=None)


def runs() -> Lines:
    """The lines of all runs, each with what further judges have said of it."""
    said: dict[tuple[str, str], Lines] = defaultdict(list)
    for line in lines.read("judged"):
        said[line["run"], line["hardware"]].append(line["scores"])
    return [line | {"judged": said[line["run"], line["hardware"]]} for line in lines.read("run")]


def scores_by(line: dict[str, Any], name: str) -> Lines:
    """A run's scores by a judge, in the order of its iterations; none where it saw through that network."""
    if name in seen_by(line):
        return []
    end = line["settings"]["iterations"]
    found = [*line["scores"], *line.get("judged", ())]
    return [scores for scores in found if judge(scores) == name and scores["step"] <= end]


def lines_of(row: Row, found: Lines) -> Lines:
    """The lines of a row's runs: those of its script with the settings that it would have today."""
    settings = module(row.script).Settings(**chosen(row))
    fields = plain(settings) | versioned(settings)
    unsaid = IGNORED | ((UNSAID | {"batch_size"}) - row.settings.keys())  # the budget's, or the row's own
    wanted = {key: value for key, value in fields.items() if key not in unsaid}
    return [line for line in found if line["script"] == row.script and _agrees(line, wanted)]


def groups(table: Table, found: Lines) -> dict[Spent, dict[str, Lines]]:
    """The lines of a table by what was spent, and by row: only runs of equal budgets stand in one table.

    What has no source, because it was trained from scratch, stands beside each of them. A longer run
    stands for a shorter one with its seed on its machine, where there are others to compare it with. A run
    from the source that a row names is not another row's too.
    """
    told = [line for row in table.rows if "source" in row.settings for line in lines_of(row, found)]
    plans = [
        (row, line, spent(row, line))
        for row in table.rows
        for line in lines_of(row, found)
        if "source" in row.settings or line not in told
    ]
    budgets = {budget for *_, budget in plans}
    there = {which(*plan) for plan in plans}
    for row, line, _ in tuple(plans):
        for stage in at_each_score(line):
            plan = row, stage, spent(row, stage)
            if which(*plan) not in there and any(_stands_in(plan[-1], budget) for budget in budgets):
                there.add(which(*plan))
                plans.append(plan)
    by_budget: dict[Spent, dict[str, Lines]] = defaultdict(dict)
    for row, line, budget in plans:
        beside = [other for *_, other in plans if other.source and other.beside(budget)]
        for home in dict.fromkeys(beside if budget.source is None and beside else [budget]):
            by_budget[home].setdefault(row.name, []).append(line)
    return dict(by_budget)


def _stands_in(own: Spent, budget: Spent) -> bool:
    """Whether what was spent so stands in a table of this budget: without a source of the table, in any."""
    return own.beside(budget) if own.source is None else own == budget


def which(row: Row, line: dict[str, Any], budget: Spent) -> tuple:
    """What no two runs of a table have in common."""
    return row.name, line["settings"]["seed"], line["hardware"], budget


def at_each_score(line: dict[str, Any]) -> Lines:
    """A run as it was at each of its scores: the run of so many iterations, as none knows how many follow."""
    settings = line["settings"]
    return [
        line
        | {
            "settings": settings | {"iterations": scores["step"]},
            "scores": line["scores"][:number],
            "seconds": line["seconds"] * scores["step"] / settings["iterations"],
        }
        for number, scores in enumerate(line["scores"], 1)
    ]


def spent(row: Row, line: dict[str, Any]) -> Spent:
    """A run's budget: its iterations, or the images that it drew where a row has a batch size of its own."""
    settings = line["settings"]
    count, batch_size = settings["iterations"], settings["batch_size"]
    if "iterations" in row.settings:
        count, batch_size = 0, None
    elif "batch_size" in row.settings:
        count, batch_size = count * batch_size, None
    source = None if "source" in row.settings else settings.get("source")  # a row that says it beside others
    return Spent(count, batch_size, settings.get("images"), settings.get("reference"), source)


def _agrees(line: dict[str, Any], wanted: dict[str, Any]) -> bool:
    settings = told(line)
    return all(settings.get(key) == value for key, value in wanted.items())
