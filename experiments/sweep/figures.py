"""The figures of a sweep: functions of a study's trials, which optuna.load_study gives as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from PIL import Image

from experiments.strip import TILE
from experiments.sweep.halving import ranked
from experiments.sweep.space import plans_of
from transfer.plan import Split

LATENTS = 8  # of a strip


def furthest(trial: FrozenTrial) -> int:
    """The last rung that a trial reached, 0 before the first."""
    return trial.last_step or 0


def ranking(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials from the best to the worst: those that went further first, then as ranked there."""
    steps = sorted({furthest(trial) for trial in trials} - {0}, reverse=True)
    return [trial for step in steps for trial in ranked(list(trials), step) if furthest(trial) == step]


def winner(study: optuna.Study) -> FrozenTrial | None:
    """Optuna's best trial: of those that are complete and within the bounds the one with the least KID."""
    try:
        return study.best_trial
    except ValueError:  # none is
        return None


def by_split(trials: Sequence[FrozenTrial], step: int) -> dict[tuple[Split, Split], FrozenTrial]:
    """For each pair of splits, G's and D's, the best trial at a rung."""
    found: dict[tuple[Split, Split], FrozenTrial] = {}
    for trial in ranked(list(trials), step):
        plans = plans_of(trial.params)
        if len(plans) == 2 and all(isinstance(plan, Split) for plan in plans.values()):
            found.setdefault((plans["G"], plans["D"]), trial)
    return found


def importances(trials: Sequence[FrozenTrial], step: int) -> dict[str, float]:
    """How much each param decides which trials are among the best tenth at a rung, by Optuna; they sum to 1.

    Optuna asks complete trials, and most were stopped: so it is asked about a study in which a trial's value
    is its KID at that rung, which all have reached.
    """
    reached = [t for t in trials if math.isfinite(t.intermediate_values.get(step, math.inf))]
    varied = [
        name for name in (reached[0].params if reached else ()) if len({t.params[name] for t in reached}) > 1
    ]
    if len(reached) < 2 or not varied:
        return {}
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.create_trial(
                params=t.params, distributions=t.distributions, value=t.intermediate_values[step]
            )
            for t in reached
        ]
    )
    return optuna.importance.get_param_importances(study, params=varied)


def strip(out: Path, trial: FrozenTrial, step: int) -> Image.Image | None:
    """The first latents of a run's grid, the same ones for all runs; None where it is gone."""
    run = trial.user_attrs.get(str(furthest(trial)), {}).get("run")
    path = out / (run or "") / "samples" / f"{step:06d}.png"
    if not run or not path.exists():
        return None
    with Image.open(path) as image:
        return image.convert("RGB").crop((0, 0, LATENTS * TILE, TILE))
