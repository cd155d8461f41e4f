"""What benchmarks share: turns in one process, a script's own iteration, the machine's rate, the results."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from transfer.folder import hardware, timestamp
from transfer.images import Images

RESULTS = Path(__file__).with_name("results.jsonl")
Clock = Callable[[], float]


def turns(sides: Sequence[Callable[[], object]], rounds: int, clock: Clock) -> list[list[float]]:
    """Milliseconds of each side in each round, after one that does not count; the sides take turns."""
    times: list[list[float]] = [[] for _ in sides]
    for round_ in range(rounds + 1):
        for side, taken in zip(sides, times, strict=True):
            start = clock()
            side()
            if round_:
                taken.append(1000 * (clock() - start))
    return times


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The ratio of each turn: median, smallest and largest."""
    each = [a / b for a, b in zip(above, below, strict=True)]
    return {"ratio": statistics.median(each), "min": min(each), "max": max(each)}


def products_a_second(rounds: int = 5) -> float:
    """FLOP/s of a float32 product of two 2048 x 2048 matrices, the best of some: what the machine can do."""
    a, b = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / min(turns([lambda: a @ b], rounds, time.perf_counter)[0]) * 1000


def synthetic(n: int, seed: int = 0) -> Images:
    """n images of noise, as Images.load would return them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.empty(n, 3, 64, 64, dtype=torch.uint8)
    for part in pixels.split(1024):  # random_ of it all would take int64's room
        part.random_(0, 256, generator=generator)
    return Images(pixels, tuple(map(str, range(n))), {}, "")


def trained(script: ModuleType, settings: Any, images: Images, steps: Iterable[int]) -> dict[str, Any]:
    """What a script's main trains, by name, and its last "losses"; it keeps no run.

    Args:
        steps: the numbers of the iterations, from 1; what a generator of them does comes in between.
    """
    kept: dict[str, Any] = {}

    class Run:
        folder = None

        def __init__(
            self, settings: Any, script: str, images: Images, parts: dict, *_: Any, **__: Any
        ) -> None:
            kept.update(parts)

        def steps(self) -> Any:
            return iter(steps)

        def losses(self, **losses: torch.Tensor) -> None:
            kept["losses"] = losses

        def warn(self, *_: Any) -> None:
            pass

    with patch.object(script, "Run", Run), patch.object(script.Images, "load", lambda *_, **__: images):
        script.main(settings)
    return kept


def iteration_of(
    script: ModuleType, settings: Any, images: Images
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The iteration that the script's main trains with, and its networks and optimizers by name."""
    found: list[Callable[[], Any]] = []
    with (
        patch.object(script, "captured", lambda iteration, *_: found.append(iteration)),
        redirect_stdout(None),
    ):
        parts = trained(script, settings, images, ())
    return found[-1], parts


def gradients(network: nn.Module) -> torch.Tensor:
    """The gradients that the last backward pass left in a network, one after the other."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def keep(benchmark: str, device: torch.device | str = "cpu", **content: Any) -> None:
    """Append a line to results.jsonl, from which benchmarks.page writes docs/performance.md."""
    line = {
        "benchmark": benchmark,
        **content,
        "hardware": hardware(torch.device(device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "time": timestamp(),
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
