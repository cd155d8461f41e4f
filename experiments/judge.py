"""The judge: what the runs of a table's rows were scored, by which network, and their order."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from experiments.runs import JUDGES, judge, seen_by
from experiments.selection import Lines, scores_by
from transfer import record

FIRST = JUDGES[0]  # the judge that all runs have, unless they saw through it: sentences go by its scores
DASH = "–"


def short(name: str) -> str:
    """A judge in the head of a column: Lite0."""
    return name.removeprefix("efficientnet_").capitalize()


def last(line: dict[str, Any], name: str = FIRST) -> dict[str, Any] | None:
    """A judge's scores at a run's end; None where there are none, or the run saw through that network."""
    found = [each for each in scores_by(line, name) if each["step"] == line["settings"]["iterations"]]
    return found[-1] if found else None


def side(scores: dict[str, Any]) -> dict[str, Any]:
    """Those of the scores that are against held-out images, where there are any."""
    return scores.get("heldout") or scores


def merit(scores: dict[str, Any]) -> float:
    """KID x 1000, by which a run chooses its best checkpoint too: less is better."""
    return 1000 * record.merit(scores)


def final(run: dict[str, Any], name: str = FIRST) -> float | None:
    """KID x 1000 at a run's end, by a judge."""
    scores = last(run, name)
    return None if scores is None else merit(scores)


def figure(run: dict[str, Any], key: str, name: str = FIRST) -> float | None:
    """One of a judge's scores at a run's end: a key of the comparison, or of the memorisation report."""
    scores = last(run, name)
    if scores is None:
        return None
    found = {**scores, **side(scores), **(scores.get("memorisation") or {})}
    return found.get(key)


def best(run: dict[str, Any]) -> dict[str, Any] | None:
    """The scores of a run's best checkpoint, by the judge that scored it while it trained."""
    name = judge(run["scores"][-1])
    return None if name in seen_by(run) else min(run["scores"], key=merit)


def by_seed(runs: Lines, figure: Callable[[dict[str, Any]], float | None]) -> list[float]:
    """A figure of each seed's run that has it; the mean where several machines have made it."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        number = figure(run)
        if number is not None:
            found[run["settings"]["seed"]].append(number)
    return [statistics.mean(each) for each in found.values()]


def mean(numbers: list[float], digits: int = 1) -> str:
    """The mean, with the standard deviation where there are several; a dash where there are none."""
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}" if numbers else DASH


def ranked(runs: dict[str, Lines], name: str = FIRST) -> tuple[dict[str, list[float]], list[str]]:
    """KID x 1000 at the end for each row's seeds, and the rows from the best to the worst.

    Rows that the judge has not scored, or that saw through it, have no place.
    """
    ends = {row: by_seed(each, lambda run: final(run, name)) for row, each in runs.items()}
    ends = {row: found for row, found in ends.items() if found}
    return ends, sorted(ends, key=lambda row: statistics.mean(ends[row]))
