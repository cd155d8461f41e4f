"""Iterations of the scripts against a textbook loop, and transfers against each other by what they freeze.

    python -m benchmarks.step                 all parts, some minutes
    python -m benchmarks.step --parts pretrain --rounds 5 --threads 2

What is timed is the very iteration that a script's main trains with, at batch 64 and five critic steps, on
images of noise. First comes the gate: from equal weights and equal noise, one iteration's gradients agree
with the textbook's (benchmarks/textbook.py) to 1e-9 in float64 and 1e-2 in float32 (0.2 where the scripts
compute in bf16), or nothing is timed: rounding moves some values across a ReLU's kink, where the gradient
jumps. The sides then take turns in one process; a line has the median of each and the ratio of each turn:
median, smallest, largest. References times wgan_64.py against the textbook's loop, and against the same in
bf16 autocast and compiled, at batch 16 and 64; it reads the processor's time, which can be had beside other
work. The share of the floor is the counted arithmetic of the direct convolutions over that of a float32
matrix product of the same run, so kernels with fewer products, or in bf16, can pass 1.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import wgan_64
import wgan_64_transferlearning
import wgan_gp_64
from benchmarks import textbook
from benchmarks.timing import gradients, iteration_of, keep, products_a_second, ratios, synthetic, turns
from transfer.engine import PAYS_FROM, bf16_on
from transfer.images import Images
from transfer.plan import Split
from transfer.settings import Batch, Count, command_line, user_errors
from transfer.shared import share
from transfer.weights import Clip

BF16 = bf16_on(torch.device("cpu"))
GATE = {"apart_float64": 1e-9, "apart": 0.2 if BF16 else 1e-2}  # shares of the gradients' length
COUNTED = {"wgan_64": 528.2e9, "wgan_gp_64": 794.0e9}  # FLOP of an iteration at batch 64 and width 64
LEFT_BY_DEPTH = [1.00, 0.91, 0.70, 0.50, 0.38, 0.13]  # of a transfer's arithmetic, by D's frozen layers
FEW = 16  # images a step, beside the batch that is asked for
SCRIPTS = {"wgan_64": (wgan_64, 5e-5), "wgan_gp_64": (wgan_gp_64, 1e-4)}


def pair(name: str, images: Images, width: int, batch: int, **settings: Any) -> tuple[Any, Any, dict, dict]:
    """The script's iteration and the textbook's, from equal weights, and the networks of each."""
    script, rate = SCRIPTS[name]
    rate = settings.pop("learning_rate", rate)
    chosen = script.Settings(
        iterations=PAYS_FROM,
        width=width,
        batch_size=batch,
        learning_rate=rate,
        augment="none",
        device="cpu",
        **settings,
    )
    ours, parts = iteration_of(script, chosen, images)
    penalised = name == "wgan_gp_64"
    networks = {"G": textbook.generator(width=width), "D": textbook.critic(width, norm=not penalised)}
    for key, network in networks.items():
        own = parts[key].state_dict()
        theirs = network.state_dict()
        network.load_state_dict(dict(zip(theirs, own.values(), strict=True)))
    theirs = textbook.loop(images, networks["G"], networks["D"], rate, 10.0 if penalised else None, batch)
    return ours, theirs, parts, networks


def apart(name: str, images: Images, width: int, batch: int, **settings: Any) -> float:
    """How far one iteration's gradients are from the textbook's, as a share of their length, at the worst."""
    # A rate of nearly nothing keeps the weights equal, so that every step's gradients can be compared.
    ours, theirs, parts, networks = pair(name, images, width, batch, learning_rate=1e-30, **settings)
    for iteration in (ours, theirs):
        torch.manual_seed(0)
        iteration()
    both = [[gradients(side[key]) for side in (parts, networks)] for key in ("G", "D")]
    return max(((mine - its).norm() / its.norm()).item() for mine, its in both)


class Doubles(Images):
    """Images whose batches are float64."""

    def batch(self, n: int) -> torch.Tensor:
        return super().batch(n).double()


def gate(name: str, images: Images, width: int, batch: int) -> dict[str, float]:
    """Refuse to go on unless the script's iteration is the textbook's; returns how far they are apart."""
    doubles = Doubles(images.pixels, images.names, {}, "")
    torch.set_default_dtype(torch.float64)
    try:
        found = {"apart_float64": apart(name, doubles, min(width, 32), 2, fast=not BF16)}
    finally:
        torch.set_default_dtype(torch.float32)
    found["apart"] = apart(name, images, width, batch)
    for key, bound in GATE.items():
        if not found[key] < bound:
            dtype = "float64" if key == "apart_float64" else "bf16" if BF16 else "float32"
            raise SystemExit(
                f"{name} was not timed: its gradients and the textbook's are {found[key]:.1e} apart in"
                f" {dtype}, and {bound:.0e} is allowed"
            )
    return found


def pretrain(images: Images, rounds: int, rate: float, width: int, batch: int) -> None:
    """Time the two pre-training scripts against the textbook."""
    for name in SCRIPTS:
        found = gate(name, images, width, batch)
        ours, theirs, *_ = pair(name, images, width, batch)
        fast, plain = turns([ours, theirs], rounds, time.perf_counter)
        line = {
            "script": name,
            "textbook_ms": statistics.median(plain),
            "ours_ms": statistics.median(fast),
            **ratios(plain, fast),
            "floor": COUNTED[name] / rate / statistics.median(fast) * 1000,
            "textbook_floor": COUNTED[name] / rate / statistics.median(plain) * 1000,
            **found,
        }
        report("pretrain", line, rounds, rate, width, batch)


def references(images: Images, rounds: int, rate: float, width: int, batch: int) -> None:
    """Time wgan_64.py against the textbook's loop and against the same in bf16 autocast and compiled."""
    for size in dict.fromkeys((FEW, batch)):
        torch.compiler.reset()  # what is compiled counts against a limit, beyond which nothing is
        ours, plain, _, networks = pair("wgan_64", images, width, size)
        G, D = (copy.deepcopy(network) for network in networks.values())
        quick = textbook.loop(images, G, D, SCRIPTS["wgan_64"][1], None, size, quick=True)
        times = turns([ours, plain, quick], rounds, time.process_time)
        for reference, taken in zip(("textbook", "bf16 autocast, torch.compile"), times[1:], strict=True):
            line = {"script": "wgan_64", "reference": reference, "batch": size, **ratios(taken, times[0])}
            line |= {"reference_ms": statistics.median(taken), "ours_ms": statistics.median(times[0])}
            report("references", line, rounds, rate, width, batch)


def transfer(images: Images, rounds: int, rate: float, width: int, batch: int) -> None:
    """Time transfers by D's frozen layers, and scale and shift against fine-tuning."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.safetensors"
        G, D = wgan_64.Generator(width=width), wgan_64.Discriminator(width)
        Clip(D, 0.01)()
        share(source, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {})
        plans = {f"D({i}, 0, {5 - i})": (Split(0, 0, 5), Split(i, 0, 5 - i)) for i in range(6)}
        plans["G(0, 5, 0) D(0, 5, 0)"] = Split(0, 5, 0), Split(0, 5, 0)
        sides = []
        for split_G, split_D in plans.values():
            settings = wgan_64_transferlearning.Settings(
                source=source, G=split_G, D=split_D, iterations=PAYS_FROM, batch_size=batch, augment="flip",
                frozen_norm="source", device="cpu",
            )  # fmt: skip
            sides.append(iteration_of(wgan_64_transferlearning, settings, images)[0])
    times = turns(sides, rounds, time.perf_counter)
    for plan, left, taken in zip(plans, [*LEFT_BY_DEPTH, 1.0], times, strict=True):
        line = {"plan": plan, "ms": statistics.median(taken), **ratios(taken, times[0]), "counted": left}
        report("transfer", line, rounds, rate, width, batch)


def report(part: str, line: dict[str, Any], rounds: int, rate: float, width: int, batch: int) -> None:
    shown = (f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in line.items())
    print(f"{part}: {', '.join(shown)}", flush=True)
    if (width, batch) == (64, 64):
        threads = torch.get_num_threads()
        keep("step", part=part, **line, rounds=rounds, threads=threads, gflops=rate / 1e9)


@dataclass(frozen=True)
class Settings:
    """What to time; other sizes than 64 are not kept."""

    parts: tuple[Literal["pretrain", "references", "transfer"], ...] = ("pretrain", "references", "transfer")
    rounds: Count = 5
    threads: Count = torch.get_num_threads()
    width: Count = 64
    batch: Batch = 64


def main(chosen: Settings) -> None:
    """Time each part."""
    torch.set_num_threads(chosen.threads)
    rate = products_a_second()
    print(
        f"{rate / 1e9:.0f} GFLOP/s in a float32 product, {chosen.threads} threads, torch {torch.__version__}"
    )
    for part in chosen.parts:
        time_part = {"pretrain": pretrain, "references": references, "transfer": transfer}[part]
        time_part(synthetic(96), chosen.rounds, rate, chosen.width, chosen.batch)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
