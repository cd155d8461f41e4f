"""The pace: what each row had been scored after the same minutes, whatever an iteration of it takes."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Any

from experiments import lines
from experiments.judge import FIRST, by_seed, mean, merit, short
from experiments.selection import Lines, lines_of, runs, scores_by

if TYPE_CHECKING:
    from experiments.page import Part

MINUTES = (5, 10, 20)


def after(run: dict[str, Any], minutes: int) -> float | None:
    """KID x 1000 at a run's last score by then; None where it had none, or was not trained for so long."""
    iterations = run["settings"]["iterations"] * 60 * minutes / run["seconds"]
    by_then = [scores for scores in scores_by(run, FIRST) if scores["step"] <= iterations]
    return merit(by_then[-1]) if by_then and iterations <= run["settings"]["iterations"] else None


def rows(part: Part, found: Lines) -> tuple[str, dict[str, list[list[float]]]]:
    """The machine that made most of a part's runs, and for each row its seeds' KID x 1000 at each of MINUTES.

    Longer and shorter runs of the same images count too. A row that no run took to the last of them is out.
    """
    machine, _ = Counter(run["hardware"] for each in part.runs.values() for run in each).most_common(1)[0]
    given = part.budget.images, part.budget.reference, machine
    reached = {}
    for row in part.plans:
        own = [
            run
            for run in lines_of(row, found)
            if (run["settings"].get("images"), run["settings"].get("reference"), run["hardware"]) == given
        ]
        kids = [by_seed(own, lambda run, minutes=minutes: after(run, minutes)) for minutes in MINUTES]
        if kids[-1]:
            reached[row.name] = kids
    return machine, reached


def markdown(part: Part) -> str:
    """The leaderboard's rows after the same minutes, the best at the end first."""
    machine, reached = rows(part, runs())
    if len(reached) < 2:
        return ""
    order = sorted(reached, key=lambda name: statistics.mean(reached[name][-1]))
    head = ("plan", *(f"{minutes} minutes" for minutes in MINUTES), "seeds at the end")
    body = [(name, *(mean(kid) for kid in reached[name]), str(len(reached[name][-1]))) for name in order]
    return (
        f"### After the same minutes\n\nKID x 1000 by {short(FIRST)} at the last score by then ({machine},"
        " beside other work, which slowed some runs more than others); a dash where there was none yet.\n\n"
        f"{lines.markdown(head, body)}\n"
    )
