"""Whole short runs: what the scripts' iteration leads to against the textbook's, over seeds.

    python -m benchmarks.runs IMAGES --seeds 3

Trains both for 200 iterations from equal weights with equal random numbers at half the width and a quarter of
the batch, and scores 1,000 samples of each generator against IMAGES (a folder or a zip). Speed that is bought
with worse pictures would show here: the mean of ours should lie within the spread of the textbook's seeds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tyro.conf import Positional

from benchmarks.step import pair
from benchmarks.timing import keep
from fid import load, score
from transfer.images import Images, to_uint8
from transfer.settings import Count, Extractor, command_line, user_errors

WIDTH, BATCH, ITERATIONS = 32, 16, 200


@torch.no_grad()
def samples(network: nn.Module, shape: tuple[int, ...], n: int = 1000) -> Tensor:
    """n images of a generator, with running statistics."""
    z = torch.randn(n, 100, generator=torch.Generator().manual_seed(0)).view(n, *shape)
    network.eval()
    return torch.cat([to_uint8(network(part)) for part in z.split(100)])


@dataclass(frozen=True)
class Settings:
    """Which scripts, and on what."""

    images: Positional[Path]  # a folder or a zip
    seeds: Count = 3
    scripts: tuple[Literal["wgan_64", "wgan_gp_64"], ...] = ("wgan_64", "wgan_gp_64")
    extractor: Extractor = "efficientnet_lite0"


def main(chosen: Settings) -> None:
    """Train both sides, score them, and keep a line for each script."""
    images, extractor = Images.load(chosen.images), load(chosen.extractor)
    for name in chosen.scripts:
        scores: dict[str, list[float]] = {"ours": [], "textbook": []}
        for seed in range(chosen.seeds):
            ours, theirs, parts, networks = pair(name, images, WIDTH, BATCH, seed=seed)
            sides = {
                "ours": (ours, parts["G"], (100,)),
                "textbook": (theirs, networks["G"], (100, 1, 1)),
            }
            for side, (iteration, network, shape) in sides.items():
                torch.manual_seed(seed)
                for _ in range(ITERATIONS):
                    iteration()
                found = score(
                    samples(network, shape), images, extractor=extractor, size=64, seed=0
                ).as_dict()["fid"]
                scores[side].append(found)
                print(f"{name}, seed {seed}, {side}: Frechet distance {found:.2f}", flush=True)
        line = {
            f"{side}_{what}": function(each)
            for side, each in scores.items()
            for what, function in (("mean", statistics.mean), ("std", statistics.pstdev))
        }
        keep(
            "runs", script=name, **line, seeds=chosen.seeds, iterations=ITERATIONS, width=WIDTH, batch=BATCH,
            images=len(images), generated=1000, extractor=extractor.name,
        )  # fmt: skip


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
