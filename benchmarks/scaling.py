"""The time of an iteration from 96 to 200,000 images, which should not depend on how many there are.

    python -m benchmarks.scaling

The iteration is that of wgan_64.py, on images of noise that are all in memory (2.5 GB at 200,000). The sizes
take turns in one process; a line has the ratio of each turn to that of 96 images: median, smallest, largest;
and beside it the time of drawing and mirroring one batch, which is all that can differ.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial

import torch

import wgan_64
from benchmarks.timing import iteration_of, keep, ratios, synthetic, turns
from transfer.augment import Augment
from transfer.engine import PAYS_FROM
from transfer.images import Images
from transfer.settings import Count, command_line, user_errors

SIZES = (96, 1_000, 20_000, 200_000)


def draw(images: Images, augment: Augment) -> None:
    augment.real(images.batch(64))


@dataclass(frozen=True)
class Settings:
    """What to time."""

    sizes: tuple[int, ...] = SIZES  # images
    rounds: Count = 7


def main(chosen: Settings) -> None:
    """Time a batch and an iteration on each number of images."""
    whole = synthetic(max(chosen.sizes))
    sets = [Images(whole.pixels[:n], whole.names[:n], {}, "") for n in chosen.sizes]
    settings = wgan_64.Settings(iterations=PAYS_FROM, device="cpu")
    iterations = [iteration_of(wgan_64, settings, images)[0] for images in sets]
    draws = [partial(draw, images, Augment("flip")) for images in sets]
    times = turns(iterations, chosen.rounds, time.perf_counter)
    drawn = turns(draws, 100, time.perf_counter)
    for n, taken, batches in zip(chosen.sizes, times, drawn, strict=True):
        line = {
            "images": n,
            "ms": statistics.median(taken),
            **ratios(taken, times[0]),
            "draw_ms": statistics.median(batches),
        }
        print(", ".join(f"{key} {value:.4g}" for key, value in line.items()), flush=True)
        keep("scaling", **line, rounds=chosen.rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
