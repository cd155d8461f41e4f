"""Minutes to a KID: from a script's start to KID x 1000 of 200 and 100 on held-out images, by two judges.

    python -m benchmarks.time_to IMAGES HELD_OUT

runs G(0, 0, 5) D(2, 0, 3) of wgan_64_freeze_layers.py, and methods.projected_critic with its defaults. Every
50 iterations 1,000 samples are scored, while the clock stands still; a run ends once both judges have given
100. The clock starts with main: libraries are loaded then, networks and images are not. Samples and
checkpoints are written as ever. A line is kept for each run, which python -m benchmarks.page shows.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from tyro.conf import Positional

from benchmarks.timing import keep
from fid import load, metrics
from fid.sets import Set
from fid.statistics import cached, extract
from transfer.plan import Split
from transfer.record import SCORED, Run
from transfer.settings import Count, Seed, command_line, user_errors

TARGETS = (200, 100)  # KID x 1000
# The critic of methods.projected_critic sees through Lite1.
JUDGES = ("efficientnet_lite0", "efficientnet_lite2")
RUNS: dict[str, dict[str, Any]] = {
    "wgan_64_freeze_layers": {"G": Split(0, 0, 5), "D": Split(2, 0, 3)},
    "methods.projected_critic": {},
}


class Reached(Exception):
    """All judges have given the last of the targets."""


def readings(
    script: Any, settings: Any, every: int, judged: Callable[[Tensor], dict[str, float]], last: float
) -> list[dict[str, Any]]:
    """Train until every judge gives `last` or less, and return what was read on the way.

    Args:
        judged: pixels (n, 3, H, W), uint8 -> KID x 1000 by each judge.

    Returns:
        For each reading its step, the seconds by the clock and of the processor since main began, without
        those of the readings, and each judge's number.
    """
    found: list[dict[str, Any]] = []
    clocks = time.perf_counter, time.process_time
    began = [clock() for clock in clocks]

    class Timed(Run):
        def _between(self, again: bool = False) -> None:
            super()._between(again)
            if self.step % every == 0:
                now = [clock() for clock in clocks]
                seconds = [b - a for a, b in zip(began, now, strict=True)]
                kids = judged(self._draw(SCORED))
                found.append({"step": self.step, "seconds": seconds[0], "processor": seconds[1], **kids})
                print(found[-1], flush=True)
                if max(kids.values()) <= last:
                    raise Reached
                began[:] = [clock() - past for clock, past in zip(clocks, seconds, strict=True)]

    with patch.object(script, "Run", Timed), suppress(Reached):
        script.main(settings)
    return found


def judged(pixels: Tensor, heldout: Path) -> dict[str, float]:
    """KID x 1000 of images against held-out ones, by each judge."""
    kids = {}
    for name in JUDGES:
        extractor = load(name)
        theirs = cached(Set.of(heldout, "the held-out images", 64), extractor).values
        mine = extract(Set.of(pixels, "the samples", 64), extractor).values
        kids[name] = 1000 * metrics.kid(mine, theirs, seed=0)[0]
    return kids


def minutes(
    found: Sequence[dict[str, Any]], judge: str, target: float, clock: str = "seconds"
) -> float | None:
    """The minutes at the first reading of a judge's target or less; None when there is none."""
    return next((line[clock] / 60 for line in found if line[judge] <= target), None)


@dataclass(frozen=True)
class Settings:
    """What to train on, and how far."""

    images: Positional[Path]  # a folder or a zip
    reference: Positional[Path]  # held-out images likewise, a folder or a zip
    scripts: tuple[Literal["wgan_64_freeze_layers", "methods.projected_critic"], ...] = tuple(RUNS)
    every: Count = 50  # iterations between readings
    iterations: Count = 2_000  # at most
    seed: Seed = 0
    threads: Count = torch.get_num_threads()


def main(chosen: Settings) -> None:
    """Train each, and keep a line for it."""
    torch.set_num_threads(chosen.threads)
    judge = partial(judged, heldout=chosen.reference)
    judge(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))  # what is held out is looked at once
    for name in chosen.scripts:
        script = importlib.import_module(name)
        with tempfile.TemporaryDirectory() as out:
            settings = script.Settings(
                images=chosen.images,
                out=Path(out),
                iterations=chosen.iterations,
                seed=chosen.seed,
                **RUNS[name],
            )
            found = readings(script, settings, chosen.every, judge, TARGETS[-1])
        to = {
            each: {
                str(target): [minutes(found, each, target, clock) for clock in ("seconds", "processor")]
                for target in TARGETS
            }
            for each in JUDGES
        }
        print(f"{name}: {to}", flush=True)
        keep(
            "time_to", settings.device or "cpu", script=name, images=chosen.images.name, seed=chosen.seed,
            every=chosen.every, reference=chosen.reference.name, minutes=to, readings=found,
        )  # fmt: skip


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
