"""What a sweep costs on many workers: its schedule in simulated time, with stragglers and deaths.

    python -m experiments.sweep.simulation --workers 1 8 64

The trials, their order, who goes on and who waits are the sweep's own code, over a study in memory; only the
running is simulated. What an iteration takes depends on the critic's frozen layers, as measured.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from experiments import lines
from experiments.sweep import cost, space
from experiments.sweep.halving import DEAD, Halving, Sweep, retry
from transfer.settings import command_line, user_errors

# Of an iteration with none to five of the critic's layers frozen: docs/performance.md, AVX512-BF16.
FROZEN = (1.0, 0.84, 0.65, 0.49, 0.34, 0.12)


@dataclass(frozen=True)
class Settings:
    """How many workers, and what things take: measured on one core with AVX512-BF16, unless assumed."""

    workers: tuple[int, ...] = (1, 8, 64)
    plans: int = 441
    rungs: tuple[int, ...] = (100, 300, 900)
    reduction: int = 3
    iteration: float = 0.92  # seconds, of 16 images with nothing frozen (measured)
    score: float = 30.0  # seconds, of 1,000 samples (measured)
    start: float = 7.0  # seconds before a run's first iteration (measured)
    stragglers: float = 0.05  # share of runs that are slow (assumed)
    slowness: float = 3.0  # how many times as long those take (assumed)
    deaths: float = 0.05  # of a worker, in an hour (assumed)
    back: float = 600.0  # seconds until a dead worker is replaced (assumed)
    heartbeat: float = 20.0  # seconds, as the sweep's
    save_every: int = 20  # iterations, as the sweep's
    seed: int = 0


class Simulation:
    """A sweep by some workers, in simulated time.

    Attributes:
        now: seconds. busy: the workers' seconds of work, and again: those of it that deaths had lost.
        deaths: of workers. sweep: what came of it.
    """

    def __init__(self, settings: Settings, workers: int) -> None:
        self.settings, self.rng = settings, random.Random(settings.seed)
        self.now, self.busy, self.again, self.deaths, self.idle = 0.0, 0.0, 0.0, 0, 0
        self.saved: dict[tuple, int] = {}  # the iterations of each run that a checkpoint has
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.sweep = _in_memory(settings)
        for _ in range(workers):
            self._later(0.0, self._free)
        while not all(trial.state.is_finished() for trial in self.sweep.trials()):
            self.now, _, happens = heapq.heappop(self._events)
            happens()

    def _later(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happens))

    def _free(self) -> None:
        """A worker looks for a trial, and works on it to its next rung, or to its own death."""
        trial = self._take()
        if trial is None:
            self.idle += 1
            return
        s, run = self.settings, space.key(trial.params)
        rung, before = s.rungs[len(_reached(self.sweep, trial))], self.saved.get(run, 0)
        pace = s.iteration * FROZEN[space.plans_of(trial.params)["D"].freeze]
        pace *= s.slowness if self.rng.random() < s.stragglers else 1.0
        took = s.start + (rung - before) * pace + s.score
        death = self.rng.expovariate(s.deaths / 3600) if s.deaths else math.inf
        self.busy += min(took, death)
        if took <= death:
            self.saved[run] = rung
            self._later(took, lambda: self._arrives(trial, rung))
            return
        done = min(rung - before, int(max(0.0, death - s.start) / pace))
        self.saved[run] = (before + done) // s.save_every * s.save_every if done < rung - before else rung
        self.again += (before + done - self.saved[run]) * pace
        self.deaths += 1
        self._later(death + DEAD * s.heartbeat, lambda: self._given_back(trial))
        self._later(death + s.back, self._free)

    def _take(self) -> Trial | None:
        while (trial := self.sweep.claim(self.sweep.trials())) is not None:
            if not _reached(self.sweep, trial) or not trial.should_prune():
                return trial
            self.sweep.study.tell(trial, state=TrialState.PRUNED)
        return None

    def _arrives(self, trial: Trial, rung: int) -> None:
        value = _value(space.key(trial.params), rung, self.settings)
        trial.set_user_attr(str(rung), {"constraints": {}})
        trial.report(value, rung)
        if rung == self.settings.rungs[-1]:
            self.sweep.study.tell(trial, value)
        else:
            self.sweep.put_back(trial)
        self.idle += 1
        self._wake()

    def _given_back(self, trial: Trial) -> None:
        storage = self.sweep.storage
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        retry()(self.sweep.study, storage.get_trial(trial._trial_id))
        self._wake()

    def _wake(self) -> None:
        waiting, self.idle = self.idle, 0
        for _ in range(waiting):
            self._free()


def _in_memory(settings: Settings) -> Sweep:
    """A sweep of all pairs of splits, or the first of them, that nothing has been done for."""
    study = optuna.create_study(pruner=Halving(settings.reduction))
    own = space.Settings(rungs=settings.rungs, reduction=settings.reduction, seed=settings.seed)
    sweep = Sweep(study, study._storage, own)
    sweep.enqueue(space.candidates(own)[: settings.plans])
    return sweep


def _reached(sweep: Sweep, trial: Trial) -> dict[int, float]:
    return sweep.storage.get_trial(trial._trial_id).intermediate_values


def _value(run: tuple, rung: int, settings: Settings) -> float:
    """A plan's quality, which a later rung tells better: what counts is that it depends on nothing else."""
    quality = random.Random(f"{settings.seed} {run}").gauss(0, 1)
    return quality + random.Random(f"{settings.seed} {run} {rung}").gauss(0, 1) * settings.rungs[0] / rung


def main(settings: Settings) -> None:
    """Simulate, and print a table."""
    s, rows = settings, []
    mean = sum(FROZEN[split.freeze] for split in space.splits(5)) / len(space.splits(5))
    grid = s.plans * (s.start + s.rungs[-1] * s.iteration * mean + s.score) / 3600
    for workers in s.workers:
        told = Simulation(s, workers)
        idle = 1 - told.busy / (told.now * workers)
        cells: tuple[Any, ...] = (workers, f"{told.now / 3600:.1f}", f"{told.busy / 3600:.1f}", f"{idle:.0%}")
        rows.append([*map(str, cells), str(told.deaths), f"{told.again / 60:.0f}", f"{grid / workers:.1f}"])
    named = zip(cost.counts(s.plans, s.rungs, s.reduction), s.rungs, strict=True)
    print(f"{', '.join(f'{n} runs to {rung:,} iterations' for n, rung in named)}\n")
    head = ("workers", "hours", "hours of work", "idle", "deaths", "minutes lost", "hours of the full grid")
    print(lines.markdown(head, rows))


if __name__ == "__main__":
    sys.argv[0] = "python -m experiments.sweep.simulation"
    with user_errors():
        main(command_line(Settings))
