"""python -m fid against python -m pytorch_fid: whole processes at equal value, and the distance step alone.

    python -m benchmarks.score GENERATED REAL --pairs 3

Both sides read the same two folders with the same weights: the file in torch's hub cache or, without one,
seeded stand-ins that give the same work and another value. A pair is one run of the reference and one of each
candidate: `cold` starts with an empty cache, `warm` with the real images' features in it. What is printed are
ratios of their times, the reference's over the candidate's, by the clock and in processor time, which other
work on the machine disturbs less. The distance step is that of 96 against 2,000 images at 2,048 features,
compared with scipy's sqrtm. Needs scipy < 1.18, for pytorch-fid's sake.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tyro.conf import Positional

from fid.metrics import Gaussian, frechet
from transfer import UserError
from transfer.settings import Count, command_line, user_errors

ROOT = Path(__file__).parents[1]
FILE = "pt_inception-2015-12-05-6726825d.pth"
TOLERANCE = 1e-3  # of the distance, between the two programs


def stand_in(seed: int = 0) -> dict[str, Tensor]:
    """Random weights for pytorch-fid's Inception, with which activations keep their scale."""
    from pytorch_fid import inception

    with (
        patch.object(inception, "load_state_dict_from_url"),
        patch.object(torch.nn.Module, "load_state_dict"),
        torch.device("meta"),
    ):
        shapes = inception.fid_inception_v3().state_dict()
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in shapes.items():
        if tensor.ndim > 1:
            spread = (2 / tensor[0].numel()) ** 0.5
            state[name] = torch.randn(tensor.shape, generator=generator) * spread
        elif tensor.is_floating_point():
            one = name.endswith(("running_var", "bn.weight"))
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.1 + (1.0 if one else 0.0)
        else:
            state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return state


def processes(generated: Path, real: Path, pairs: int, threads: int) -> dict[str, Any]:
    """Ratios of whole processes, interleaved; refuses to report any when the values differ."""
    published = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        place = home / "hub" / "checkpoints" / FILE
        place.parent.mkdir(parents=True)
        if published.exists():
            place.symlink_to(published.resolve())
        else:
            torch.save(stand_in(), place)
        weights = [] if published.exists() else ["--weights", str(place)]
        environment = os.environ | {"TORCH_HOME": folder, "OMP_NUM_THREADS": str(threads)}

        def run(*command: str) -> tuple[tuple[float, float], str]:
            began, used = time.perf_counter(), _processor()
            done = subprocess.run(
                [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, cwd=ROOT
            )
            seconds = time.perf_counter() - began, _processor() - used
            if done.returncode:
                raise SystemExit(done.stderr)
            return seconds, done.stdout

        theirs, cold, warm, values = [], [], [], []
        for pair in range(pairs):
            ours = (
                "fid",
                str(generated),
                str(real),
                "--json",
                *weights,
                "--cache",
                str(home / f"cache{pair}"),
            )
            seconds, text = run("pytorch_fid", str(generated), str(real))
            theirs.append(seconds)
            reference = float(text.rpartition("FID:")[2])
            for times in (cold, warm):
                seconds, text = run(*ours)
                times.append(seconds)
                values.append(json.loads(text)["fid"])
                if abs(values[-1] - reference) > TOLERANCE:
                    raise SystemExit(
                        f"the values differ: {values[-1]} against {reference}, so no time is reported"
                    )
    return {
        "weights": "published" if published.exists() else "stand-in",
        "fid": values[0],
        "difference": max(abs(value - reference) for value in values),
        "threads": threads,
        "reference_seconds": [clock for clock, _ in theirs],
        "cold": _ratios(theirs, cold),
        "warm": _ratios(theirs, warm),
    }


def _processor() -> float:
    """Processor seconds that the finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def distance_step(
    pairs: int, threads: int, few: int = 96, many: int = 2000, features: int = 2048
) -> dict[str, Any]:
    """Ratios of the time from two sets' covariances, or centred features, to their distance."""
    import numpy as np
    from pytorch_fid.fid_score import calculate_frechet_distance
    from threadpoolctl import threadpool_limits

    def timed(function: Callable[..., float], *arguments: Any) -> tuple[tuple[float, float], float]:
        began, used = time.perf_counter(), time.process_time()
        value = function(*arguments)
        return (time.perf_counter() - began, time.process_time() - used), float(value)

    theirs, ours, difference = [], [], 0.0
    for seed in range(pairs):
        generator = torch.Generator().manual_seed(seed)
        scales = torch.linspace(0.1, 1, features)
        x, y = (torch.randn(n, features, generator=generator) * scales for n in (few, many))
        arrays = [(s.double().mean(0).numpy(), np.cov(s.double().numpy(), rowvar=False)) for s in (x, y)]
        gaussians = Gaussian.of(x), Gaussian.of(y)
        frechet(*gaussians)  # the first call sets up the linear algebra library
        with threadpool_limits(threads):
            seconds, expected = timed(calculate_frechet_distance, *arrays[0], *arrays[1])
        theirs.append(seconds)
        seconds, found = timed(frechet, *gaussians)
        ours.append(seconds)
        difference = max(difference, abs(found - expected))
    sizes = {"images": [few, many], "features": features, "threads": threads, "difference": difference}
    return sizes | _ratios(theirs, ours)


def _ratios(
    theirs: list[tuple[float, float]], ours: list[tuple[float, float]]
) -> dict[str, dict[str, float]]:
    found = {}
    for index, kind in enumerate(("clock", "processor")):
        ratios = [a[index] / b[index] for a, b in zip(theirs, ours, strict=True)]
        found[kind] = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return found


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    folders: Positional[tuple[Path, ...]] = ()  # GENERATED REAL; without them the distance step only
    pairs: Count = 3
    threads: Count = torch.get_num_threads()


def main(chosen: Settings) -> None:
    """Measure, and print one line of JSON for each benchmark."""
    if len(chosen.folders) not in (0, 2):
        raise UserError(f"{len(chosen.folders)} folders given: give two, or none")
    torch.set_num_threads(chosen.threads)
    found = distance_step(chosen.pairs, chosen.threads)
    print(json.dumps({"benchmark": "distance_step", **found}), flush=True)
    if chosen.folders:
        folders = [folder.resolve() for folder in chosen.folders]
        found = processes(*folders, chosen.pairs, chosen.threads)
        print(json.dumps({"benchmark": "processes", **found}), flush=True)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
