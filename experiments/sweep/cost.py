"""The cost of a sweep, in advance and afterwards: runs, hours, and what stopping early saved."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from experiments import lines
from experiments.sweep.space import Settings

SECONDS = 0.05  # of an iteration for each image, where none has been measured
SCORE = 20.0  # seconds of a score, likewise
BYTES = 62e6  # of a checkpoint at full width; each plan that waits or is complete keeps one


def counts(plans: int, rungs: Sequence[int], reduction: int) -> list[int]:
    """How many of the plans run to each rung."""
    found = [plans]
    while len(found) < len(rungs):
        found.append(max(1, found[-1] // reduction) if plans else 0)
    return found


def lengths(rungs: Sequence[int]) -> list[int]:
    """The iterations from each rung to the next, the first from 0."""
    return [after - before for before, after in itertools.pairwise((0, *rungs))]


def each(trials: Sequence[FrozenTrial], settings: Settings) -> list[float]:
    """Seconds of a run from each rung to the next: as measured in this sweep, else as runs took before."""
    found: list[float] = []
    for rung, length in zip(settings.rungs, lengths(settings.rungs), strict=True):
        measured = [took for trial in trials if (took := seconds(trial, rung))]
        if measured:
            found.append(statistics.mean(measured))
        elif found:
            found.append(found[0] * length / settings.rungs[0])
        else:
            found.append(length * settings.batch_size * _before(settings) + SCORE)
    return found


def seconds(trial: FrozenTrial, rung: int) -> float:
    """What a trial took to a rung from the one before; 0 where it is not known."""
    return trial.user_attrs.get(str(rung), {}).get("seconds") or 0.0


def _before(settings: Settings) -> float:
    """Seconds of an iteration for each image, in the runs of the same scripts before, on whatever machine."""
    took = [
        line["seconds"] / line["iterations"] / line["settings"]["batch_size"]
        for line in lines.read("run")
        if line["script"] in settings.scripts
    ]
    return statistics.median(took) if took else SECONDS


def total(plans: int, per_run: Sequence[float], settings: Settings) -> float:
    """Seconds of one worker for a sweep of so many plans."""
    return sum(
        n * took for n, took in zip(counts(plans, settings.rungs, settings.reduction), per_run, strict=True)
    )


def within(hours: float, plans: int, trials: Sequence[FrozenTrial], settings: Settings, workers: int) -> int:
    """How many of the plans can be swept in so many hours by so many workers, at least one."""
    per_run = each(trials, settings)
    spent = sum(seconds(trial, rung) for trial in trials for rung in settings.rungs)
    have = hours * 3600 * workers + spent
    fitting = [n for n in range(1, plans + 1) if total(n, per_run, settings) <= have]
    return max(fitting, default=1)


def sentence(plans: int, trials: Sequence[FrozenTrial], settings: Settings, workers: int) -> str:
    """What a sweep of so many plans costs, in words."""
    per_run = each(trials, settings)
    named = [
        f"{n} to {rung:,} iterations"
        for n, rung in zip(counts(plans, settings.rungs, settings.reduction), settings.rungs, strict=True)
    ]
    whole = total(plans, per_run, settings)
    spent = sum(seconds(trial, rung) for trial in trials for rung in settings.rungs)
    measured = "measured in this sweep" if spent else "by what runs took before, on whatever machine"
    left = f", {max(0.0, whole - spent) / 3600 / workers:.1f} of them still to come" if spent else ""
    grid = plans * sum(per_run) / 3600 / workers
    return (
        f"{plans} plans, {', '.join(named)}: some {whole / 3600 / workers:.1f} hours{left} on"
        f" {workers} worker{'s' * (workers != 1)} ({measured}), and {plans * BYTES / 1e9:.1f} GB; all of them"
        f" to the end would take {grid:.1f} hours"
    )


def saved(trials: Sequence[FrozenTrial], settings: Settings) -> tuple[float, float]:
    """Hours of one worker that the trials took, and that all of them would have taken to the last rung."""
    per_run = each(trials, settings)
    took = 0.0
    for trial in trials:
        for rung, usual in zip(settings.rungs, per_run, strict=True):
            if rung in trial.intermediate_values:
                took += seconds(trial, rung) or usual
    return took / 3600, len(trials) * sum(per_run) / 3600
