"""The engine: where a run computes, and how its steps are made fast."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from transfer import UserError, compiler, windows, winograd
from transfer.augment import Augment, mirrored
from transfer.images import Images
from transfer.plan import layers_of
from transfer.weights import learning

PAYS_FROM = 200  # iterations; compiling takes a minute or two, and saves a third of each
WARM_UP = 3  # iterations before a CUDA graph is captured, in which libraries choose and allocate
Function = Callable[..., Tensor]
KEPT = 1 << 30  # bytes of frozen features that are kept at most
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def choose_device(name: str | None = None) -> torch.device:
    """The device called name; without a name CUDA or Apple's MPS where there is such a GPU, else the CPU.

    Raises:
        UserError: when torch does not know the name or cannot use the device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        with suppress(UserError):  # it may be there and not work, as in virtual machines
            if torch.backends.mps.is_available():
                return choose_device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which "meta" cannot do: it holds no numbers
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used here ({reason}): give cpu, or leave it out"
        ) from None
    return device


# ----------------------------------------------------------------------------------------------------------
# How networks compute.


class Tuned:
    """A network as the loop calls it: `tuned(x)` is its forward.

    Attributes:
        network: the network itself.
        hasten: what makes a function of its modules compute as this does.
    """

    def __init__(self, network: nn.Module, hasten: Callable[..., Function] | None = None) -> None:
        self.network = network
        self.hasten = hasten or (lambda function: function)
        self._forward = self.hasten(network.forward) if hasten else network

    def __call__(self, x: Tensor) -> Tensor:
        return self._forward(x)


def tune(*networks: nn.Module, iterations: int, fast: bool = True) -> list[Tuned]:
    """Decide how networks that are trained together compute, print it, and return them for the loop.

    On CUDA and on CPUs with bf16 instructions: bf16 products of float32 weights; normalisation keeps float32
    statistics, and what a network returns is float32. On CPUs the 4x4 convolutions of stride 2 go through
    transfer.windows in bf16, and in float32 through transfer.winograd, which needs 2.56 times fewer products
    and is compiled. Both agree with torch up to rounding.

    Args:
        networks: their `forward` is made fast; what else is made of their modules, by Tuned.hasten.
        iterations: compiling is for runs that are long enough to pay for it.
        fast: False for torch's own float32 everywhere.
    """
    device = next(networks[0].parameters()).device
    short = iterations < PAYS_FROM
    bf16 = bf16_on(device)
    how, few_products = "computing in float32", False
    if fast and device.type == "cpu":
        keep_pages()
        few_products = not bf16 and not short and _compiles()
    hasten = None
    if fast and bf16:
        how = "computing in bf16 (numbers of half the length; --no-fast keeps float32)"
        hasten = partial(_bf16, device=device.type)
    room = winograd if few_products else windows if hasten and device.type == "cpu" else None
    for network in networks if room else ():
        convolve_by(room, network)
    if few_products:
        how += ", compiled, which takes a minute or two of the first iteration when nothing is cached"
    elif fast and short and device.type == "cpu" and not bf16:
        how += f", not compiled, since fewer than {PAYS_FROM} iterations would not pay for it"
    print(how)
    return [Tuned(network, hasten) for network in networks]


def convolve_by(room: ModuleType, network: nn.Module) -> None:
    """Have the layers of stride 2 and padding 1 convolve by a room: transfer.winograd or transfer.windows."""
    down, up = (partial(_convolved, room, name) for name in ("conv2d", "conv_transpose2d"))
    for kernel in (layer.kernel for layer in layers_of(network)):
        if (kernel.stride, kernel.padding) == (2, 1):
            if kernel.out_axis == 0:
                kernel.convolve, kernel.convolve_back = down, up
            else:
                kernel.convolve = up


def _convolved(
    room: ModuleType, name: str, x: Tensor, kernel: Tensor, shift: Tensor | None, stride: int, padding: int
) -> Tensor:
    y = getattr(room, name)(x, kernel)
    return y if shift is None else y + shift.to(y.dtype)[:, None, None]


def bf16_on(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16, and convolutions that use them."""
    if device.type == "cpu":
        has = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        has = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return has and _convolves(device, torch.bfloat16)


def _convolves(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has the scripts' convolutions and their gradients in this precision."""
    x, kernel = (torch.ones(2, 8, 4, 4, device=device, requires_grad=True) for _ in range(2))
    try:
        with torch.autocast(device.type, dtype):
            y = F.conv2d(x, kernel, stride=2, padding=1)
            y = F.conv_transpose2d(y, kernel, stride=2, padding=1)
        torch.autograd.grad(y.float().sum(), (x, kernel))
    except RuntimeError as error:
        name = str(dtype).removeprefix("torch.")
        print(f"{device} lacks convolutions in {name} ({compiler.reason(error)}): going on without, slower")
        return False
    return True


def _bf16(function: Function, *, device: str) -> Function:
    """function with bf16 products; only the forward pass is under autocast, backward passes follow it."""

    def fast(*inputs: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            output = function(*inputs)
        return output.float()

    return fast


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

    def __init__(self, D: Tuned, images: Images, augment: Augment, fast: bool = True) -> None:
        self.D, self.images, self.augment = D, images, augment
        self.features, self.above = None, None
        self._begun = not fast or augment.name not in ("none", "flip")

    @torch.no_grad()
    def _keep(self, layers: int) -> None:
        self._begun = True
        if not layers:
            return
        each = stages(self.D.network)
        below, above = nn.Sequential(*each[:layers]), nn.Sequential(*each[layers:])
        below, above = self.D.hasten(below), self.D.hasten(above)  # they are to compute as D does
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
        """D's scores (n,) of n images drawn with replacement and augmented.

        What is kept is made here, in the first iteration: a stop does not wait for it, nor leaves a folder.
        """
        if not self._begun:
            self._keep(fixed_layers(self.D.network))
        if self.features is None:
            return self.D(self.augment.real(self.images.batch(n)))
        chosen = self.images.draw(n)
        features = [side[chosen] for side in self.features]
        if len(features) == 1:
            return self.above(features[0])
        return self.above(torch.where(mirrored(features[0]), features[1], features[0]))


def fixed_layers(D: nn.Module) -> int:
    """How many of D's layers, from the image's side, are a fixed function of their input; never all."""
    layers = layers_of(D)[:-1]
    for count, layer in enumerate(layers):
        if learning(layer.kernel) or (layer.norm is not None and not layer.norm.fixed):
            return count
    return len(layers)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return hasattr(module, "policy") or not layers_of(module)


def stages(network: nn.Module) -> list[nn.Module]:
    """forward of a generator or a critic as one network for each layer, which share its tensors.

    Each but the first begins with its convolution and ends before the next one: one after the other they are
    forward. It is for networks in which a layer reads the one before it and nothing else.
    """
    graphs, copies = [fx.Graph()], {}
    begins = {layer.name for layer in layers_of(network)[1:]}
    for node in _Tracer().trace(network).nodes:
        if node.target in begins:
            (features,) = node.args
            graphs[-1].output(copies[features])
            graphs.append(fx.Graph())
            copies[features] = graphs[-1].placeholder("features")
        copies[node] = graphs[-1].node_copy(node, copies.__getitem__)
    return [fx.GraphModule(network, graph) for graph in graphs]


# ----------------------------------------------------------------------------------------------------------
# One launch an iteration.


def captured(iteration: Callable[[], Any], device: torch.device, fast: bool = True) -> Callable[[], Any]:
    """iteration, on CUDA as one graph that is launched whole: random numbers, every step, the clip.

    The first iterations run as they are, while libraries choose their kernels and optimizers make their
    state. What a graph returns is the same tensors every time, with new values. Where no graph can be had,
    which shows by its first launch, a line says so, and iteration goes on as it is from the same random
    numbers. Elsewhere than on CUDA, iteration itself.
    """
    if device.type != "cuda" or not fast:
        return iteration
    launches, unproven = _launches(iteration, device), WARM_UP + 1

    def launch() -> Any:
        nonlocal launches, unproven
        if not unproven:
            return next(launches)
        unproven -= 1
        before = torch.cuda.get_rng_state(device)
        try:
            # A capture that fails does not leave its stream.
            with torch.cuda.stream(torch.cuda.current_stream(device)):
                return next(launches)
        except Exception as error:  # torch, the driver and the card fail in many ways
            print(f"no CUDA graph ({compiler.reason(error)}): going on without, which is slower")
        launches, unproven = iter(iteration, launches), 0  # without end: no iteration returns launches
        _restart_random_numbers(device, before)
        return next(launches)

    return launch


def _launches(iteration: Callable[[], Any], device: torch.device) -> Iterator[Any]:
    """What iteration returns, of each launch: WARM_UP as it is, then of its graph."""
    stream = torch.cuda.Stream(device)
    for _ in range(WARM_UP):
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            results = iteration()
        torch.cuda.current_stream(device).wait_stream(stream)
        yield results
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = iteration()
    while True:
        graph.replay()
        yield results


def _restart_random_numbers(device: torch.device, state: Tensor) -> None:
    """Give the device's generator this state, in a place of its own.

    A capture that fails leaves the old place in the mode of captures, in which nothing else can draw.
    """
    fresh = torch.Generator(device)
    fresh.set_state(state)
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())
