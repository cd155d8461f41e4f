"""Which split, policy and settings suit these images? Try many plans a little, and the best of them further.

    python -m experiments.sweep --images MINE --dry-run                    what it would cost
    python -m experiments.sweep --images MINE --reference HELD_OUT --hours 2
    python -m experiments.sweep --images MINE --plans G122-D122 G005-D203 --policies adafm rank_one
    python -m experiments.sweep --images MINE --set learning_rate=1e-4,2e-4 batch_size=8,16

All plans run to the first rung, the best third goes on to the second, and so on: a run goes on where it
stopped. The same command goes on after any interruption, and works on as many machines as share --storage and
--out. OUT/sweep.html shows what was found, and optuna-dashboard reads the same storage. See docs/sweep.md.
"""

from __future__ import annotations

import math
import sys
import time

from experiments.sweep import space, summary
from experiments.sweep.space import Settings
from transfer import UserError
from transfer.settings import command_line, user_errors


def main(settings: Settings) -> None:
    """Sweep, and write the page; after --dry-run only say what it costs."""
    space.verify(settings)
    try:
        from experiments.sweep import cost, page, worker
        from experiments.sweep.halving import Sweep
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install -r requirements-sweep.txt") from None

    until = math.inf if settings.hours is None else time.time() + 3600 * settings.hours
    plans, workers = space.candidates(settings), worker.processes(settings)
    new = settings.storage is None and not (settings.out / "study.db").exists()
    look = settings.dry_run or settings.page or settings.keep
    sweep = None if new and look else Sweep.open(settings)
    trials = sweep.trials() if sweep else []
    count = min(settings.trials or len(plans), len(plans))
    if settings.hours is not None:
        count = cost.within(settings.hours, count, trials, settings, workers)
    known = {space.key(trial.params) for trial in trials}
    chosen = [plan for plan in plans[:count] if space.key(plan) not in known]
    print(cost.sentence(len(trials) + len(chosen), trials, settings, workers))
    if settings.page and sweep:
        print(page.write(sweep))
    if settings.keep:
        if sweep is None:
            raise UserError(f"{settings.out} holds no sweep to keep: run it without --keep first")
        print(summary.keep(sweep))
    if look:
        return
    sweep.enqueue(chosen)
    try:
        worker.start(settings, until)
    finally:
        print(page.write(sweep))


if __name__ == "__main__":
    sys.argv[0] = "python -m experiments.sweep"
    with user_errors():
        main(command_line(Settings))
