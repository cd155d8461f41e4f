"""The engine: where a run computes, and how its steps are made fast."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transfer import UserError
from transfer.augment import Augment, mirrored
from transfer.images import Images
from transfer.layers import Conv, ConvUp, Norm, stages
from transfer.weights import learning

PAYS_FROM = 200  # iterations; compiling takes a minute or two, and saves a third of each
WARM_UP = 3  # iterations before a CUDA graph is captured, in which libraries choose and allocate
KEPT = 1 << 30  # bytes of frozen features that are kept at most
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str | None = None) -> torch.device:
    """The device called name; without a name CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: when torch does not know the name or cannot use the device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used here ({reason}): give cpu, or leave it out"
        ) from None
    return device


# ----------------------------------------------------------------------------------------------------------
# How networks compute.


def tune(*networks: nn.Module, iterations: int, fast: bool = True, double_backward: bool = False) -> None:
    """Decide how networks that are trained together compute, and print it.

    On CUDA and on CPUs with bf16 instructions: bf16 products of float32 weights; normalisation keeps float32
    statistics, and what a network returns is float32. Where those instructions are of matrices (AMX) the
    networks are compiled too. On other CPUs the wide 4x4 convolutions of stride 2 go through
    transfer.winograd, which needs 2.56 times fewer products and agrees with torch up to rounding.

    Args:
        networks: their `forward` is made fast, and `gradient` where a critic has one.
        iterations: compiling is for runs that are long enough to pay for it.
        fast: False for torch's own float32 everywhere.
        double_backward: a gradient of theirs is differentiated again, which torch.compile refuses.
    """
    device = next(networks[0].parameters()).device
    short = iterations < PAYS_FROM
    bf16 = bf16_on(device)
    matrix = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    how, compiled, few_products = "float32", False, False
    if fast and device.type == "cpu":
        keep_pages()
        compiled = matrix and not double_backward and not short and _compiles()
        few_products = not bf16 and not short and _compiles()
    if fast and bf16:
        how = "bf16"
        for network in networks:
            network.hasten = partial(_bf16, device=device.type, compiled=compiled)
            for name in ("forward", "gradient"):
                if hasattr(network, name):
                    setattr(network, name, network.hasten(getattr(network, name)))
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, Conv | ConvUp):
            module.few_products = few_products and module.stride == 2
    if compiled or few_products:
        how += ", compiled, which takes a minute or two of the first iteration when nothing is cached"
    elif fast and short and device.type == "cpu" and (matrix or not bf16):
        how += f", not compiled, since fewer than {PAYS_FROM} iterations would not pay for it"
    elif fast and double_backward and matrix:
        how += ", not compiled, since torch.compile refuses a gradient of a gradient"
    print(how)


def bf16_on(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _bf16(function: Callable[..., Tensor], device: str, compiled: bool = False) -> Callable[..., Tensor]:
    """function with bf16 products; only the forward pass is under autocast, backward passes follow it."""

    def fast(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            output = function(*inputs)
        return output.float()

    return torch.compile(fast, dynamic=False) if compiled else fast


def _compiles() -> bool:
    """Whether torch.compile works here: it needs a C++ compiler and Python's headers."""
    try:
        torch.compile(torch.neg)(torch.zeros(8))
    except Exception:  # torch, the compiler and the linker fail in many ways
        print("a C++ compiler and Python's headers would make this faster; going on without")
        return False
    return True


def keep_pages() -> None:
    """Let malloc keep the memory of large tensors, which glibc would map and fault in anew at every use."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


# ----------------------------------------------------------------------------------------------------------
# What does not change is computed once.


class Reals:
    """The critic's scores of batches of real images.

    D's layers below the first that learns are often a fixed function of the image: the first layer, which
    has no normalisation, and with frozen_norm "source" all that are frozen. Where the augmentation has a
    fixed number of outcomes too (none, flip), what these layers make of every image is kept, and a step
    begins above them. The scores are then the same up to rounding, from the same random numbers.
    """

    def __init__(self, D: nn.Module, images: Images, augment: Augment, fast: bool = True) -> None:
        self.D, self.images, self.augment = D, images, augment
        self.features, self.above = None, None
        if fast and augment.name in ("none", "flip"):
            self._keep(fixed_layers(D))

    @torch.no_grad()
    def _keep(self, layers: int) -> None:
        if not layers:
            return
        each = stages(self.D)
        below, above = nn.Sequential(*each[:layers]), nn.Sequential(*each[layers:])
        if hasattr(self.D, "hasten"):  # they are to compute as D does
            below, above = self.D.hasten(below, compiled=False), self.D.hasten(above)
        outcomes = [lambda x: x, lambda x: x.flip(3)][: 1 if self.augment.name == "none" else 2]
        one = below(self.images.at(slice(0, 1)))
        if len(outcomes) * len(self.images) * one.numel() * one.element_size() > KEPT:
            return
        parts = [slice(start, start + 64) for start in range(0, len(self.images), 64)]
        self.features = [
            torch.cat([below(side(self.images.at(part))) for part in parts]) for side in outcomes
        ]
        self.above = above

    def scores(self, n: int) -> Tensor:
        """D's scores (n,) of n images drawn with replacement and augmented."""
        if self.features is None:
            return self.D(self.augment.real(self.images.batch(n)))
        chosen = self.images.draw(n)
        features = [side[chosen] for side in self.features]
        if len(features) == 1:
            return self.above(features[0])
        return self.above(torch.where(mirrored(features[0]), features[1], features[0]))


def fixed_layers(D: nn.Module) -> int:
    """How many of D's layers, from the image's side, are a fixed function of their input."""
    layers = 0
    while layers < 4:
        conv, norm = (getattr(D, f"{kind}{layers + 1}", None) for kind in ("conv", "norm"))
        depends = isinstance(norm, Norm) and not norm.fixed
        if learning(conv) or depends:
            break
        layers += 1
    return layers


# ----------------------------------------------------------------------------------------------------------
# One launch an iteration.


def captured(iteration: Callable[[], Any], device: torch.device, fast: bool = True) -> Callable[[], Any]:
    """iteration, on CUDA as one graph that is launched whole: random numbers, every step, the clip.

    The first iterations run as they are, while libraries choose their kernels and optimizers make their
    state. What a graph returns is the same tensors every time, with new values. Elsewhere, iteration itself.
    """
    if device.type != "cuda" or not fast:
        return iteration
    stream, graph, results = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), []

    def launch() -> Any:
        if len(results) < WARM_UP:
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                results.append(iteration())
            torch.cuda.current_stream(device).wait_stream(stream)
            return results[-1]
        if len(results) == WARM_UP:
            with torch.cuda.graph(graph):
                results.append(iteration())
        graph.replay()
        return results[-1]

    return launch
