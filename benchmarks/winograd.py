"""transfer.winograd against torch's own convolutions: layer by layer, and in the steps of a whole WGAN.

    python -m benchmarks.winograd                   layers and steps, some minutes
    python -m benchmarks.winograd --parts layers    or steps alone
    python -m benchmarks.winograd --parts steps --sides torch torch-compiled ours ours-compiled

The sides take turns in one process, channels last, float32. What is printed are the medians in milliseconds
and the ratio of each turn, torch's time over ours: median, smallest, largest. With one thread, the default,
time is the processor's, which other work on the machine disturbs least; with more it is the clock's. A side
called compiled has its whole networks compiled, losses and backward passes included; that takes minutes.
--malloc default leaves to glibc what it does with large tensors (see engine.keep_pages).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.timing import Clock, ratios, turns
from transfer import winograd
from transfer.engine import convolve_by, keep_pages
from transfer.settings import Batch, Count, command_line, user_errors
from transfer.weights import Clip, learning
from wgan_64 import Discriminator, Generator

LAYERS = ((64, 128, 32), (128, 256, 16), (256, 512, 8))  # wide channels, narrow channels, wide pixels
Side = Literal["torch", "torch-compiled", "ours", "ours-compiled"]


def line(name: str, torchs: list[float], ours: list[float], note: str = "") -> str:
    each = ratios(torchs, ours)
    return (
        f"{name:44}{statistics.median(torchs):8.1f}{statistics.median(ours):8.1f}"
        f"{each['ratio']:8.2f}{each['min']:7.2f}{each['max']:7.2f}   {note}"
    )


def layers(batch: int, rounds: int, clock: Clock) -> None:
    """Print a line for each layer and direction, with the largest error as a share of the largest value."""
    pairs = {
        "conv": (partial(F.conv2d, stride=2, padding=1), winograd.conv2d),
        "conv_transpose": (partial(F.conv_transpose2d, stride=2, padding=1), winograd.conv_transpose2d),
    }
    for C, K, size in LAYERS:
        weight = torch.randn(K, C, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
        for kind, pair in pairs.items():
            shape = (batch, C, size, size) if kind == "conv" else (batch, K, size // 2, size // 2)
            x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
            outputs = [convolve(x, weight) for convolve in pair]
            grad = torch.randn_like(outputs[0])
            for direction, inputs in (
                ("forward", ()),
                ("input's gradient", (x,)),
                ("weight's gradient", (weight,)),
                ("forward, both gradients", (x, weight)),
            ):

                def side(index, pair=pair, x=x, outputs=outputs, grad=grad, inputs=inputs, weight=weight):
                    if not inputs:
                        with torch.no_grad():
                            return (pair[index](x, weight),)
                    y = pair[index](x, weight) if len(inputs) == 2 else outputs[index]
                    return torch.autograd.grad(y, inputs, grad, retain_graph=True)

                both = zip(side(1), side(0), strict=True)
                error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in both)
                times = turns([partial(side, 0), partial(side, 1)], rounds, clock)
                print(line(f"{kind} {C}-{K}, {direction}", *times, note=f"error {error:.0e}"), flush=True)


class Wgan:
    """The steps of wgan_64.py, with the convolutions of one side."""

    def __init__(self, few_products: bool, compiled: bool, batch: int) -> None:
        torch.manual_seed(0)
        G, D = (network().to(memory_format=torch.channels_last) for network in (Generator, Discriminator))
        if few_products:
            convolve_by(winograd, G)
            convolve_by(winograd, D)
        self.G, self.D, self.clip = G, D, Clip(D, 0.01)
        self.optimizers = [torch.optim.RMSprop(learning(network), 5e-5) for network in (G, D)]
        real = (2 * torch.rand(batch, 3, 64, 64) - 1).to(memory_format=torch.channels_last)
        self.latent = lambda: torch.randn(batch, 100)
        wrap = partial(torch.compile, dynamic=False) if compiled else lambda f: f
        self.generate = wrap(torch.no_grad()(lambda z: G(z)))
        self.critic_loss = wrap(lambda fake: D(fake).mean() - D(real).mean())
        self.generator_loss = wrap(lambda z: -D(G(z)).mean())

    def _update(self, network: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward(inputs=learning(network))
        optimizer.step()

    def critic_step(self) -> None:
        self._update(self.D, self.optimizers[1], self.critic_loss(self.generate(self.latent())))
        self.clip()

    def generator_step(self) -> None:
        self._update(self.G, self.optimizers[0], self.generator_loss(self.latent()))


def steps(sides: Sequence[str], batch: int, rounds: int, clock: Clock) -> None:
    """Print a line for each step and for an iteration, five critic steps and one of the generator."""
    wgans = [Wgan(side.startswith("ours"), side.endswith("compiled"), batch) for side in sides]
    critic = turns([wgan.critic_step for wgan in wgans], rounds, clock)
    generator = turns([wgan.generator_step for wgan in wgans], rounds, clock)
    iteration = [
        [5 * c + g for c, g in zip(*times, strict=True)] for times in zip(critic, generator, strict=True)
    ]
    for i, torchs in enumerate(sides):
        for j, ours in enumerate(sides):
            if torchs.startswith("torch") and ours.startswith("ours"):
                for name, times in (("critic", critic), ("generator", generator), ("iteration", iteration)):
                    print(line(f"{name}, {torchs} / {ours}", times[i], times[j]), flush=True)


@dataclass(frozen=True)
class Settings:
    """What to time."""

    parts: tuple[Literal["layers", "steps"], ...] = ("layers", "steps")
    sides: tuple[Literal["torch", "torch-compiled", "ours", "ours-compiled"], ...] = (
        "torch",
        "ours",
    )  # of steps
    batch: Batch = 64
    rounds: Count = 9
    threads: Count = 1
    malloc: Literal["keep", "default"] = "keep"


def main(chosen: Settings) -> None:
    """Time layers and steps."""
    torch.set_num_threads(chosen.threads)
    if chosen.malloc == "keep":
        keep_pages()
    clock = time.process_time if chosen.threads == 1 else time.perf_counter
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {capability}, {clock.__name__}, {vars(chosen)}")
    print(f"{'ms':44}{'torch':>8}{'ours':>8}{'ratio':>8}{'min':>7}{'max':>7}")
    if "layers" in chosen.parts:
        layers(chosen.batch, chosen.rounds, clock)
    if "steps" in chosen.parts:
        steps(chosen.sides, chosen.batch, chosen.rounds, clock)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
