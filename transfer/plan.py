"""The plan: G(i, j, k) and D(i, j, k) say which policy each layer's kernel is under."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from transfer import UserError
from transfer.policies import FINETUNE, POLICIES, Freeze, FrozenNorm, Policy, Rescale

if TYPE_CHECKING:
    from torch import nn

    from transfer.layers import Kernel, Norm

# ----------------------------------------------------------------------------------------------------------
# What a person says.


class Split(namedtuple("Split", ("freeze", "rescale", "finetune"))):
    """G(i, j, k) or D(i, j, k): how many layers of a network are frozen, rescaled and fine-tuned.

    Layers count from the input. In G the first k are fine-tuned, the next j rescaled and the last i frozen;
    in D the first i are frozen, the next j rescaled and the last k fine-tuned (dissertation, section 4.3.5):
    both networks keep what they know about pixels and learn anew what a face is.

    Raises:
        UserError: when i, j, k are not whole numbers of at least 0, or all are 0.
    """

    __slots__ = ()

    def __new__(cls, *counts: object) -> Split:
        numbers = [_whole(count) for count in counts]
        if len(numbers) != 3 or None in numbers or min(numbers) < 0 or not any(numbers):
            raise UserError(
                f"({', '.join(map(str, counts))}) does not split the layers: give three whole numbers of at"
                " least 0, how many to freeze, rescale and fine-tune, for example 1 2 2"
            )
        return super().__new__(cls, *numbers)

    def generator(self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch") -> tuple[Policy, ...]:
        """The policies of G's layers, latent side first."""
        return self.discriminator(rescale, frozen_norm)[::-1]

    def discriminator(
        self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch"
    ) -> tuple[Policy, ...]:
        """The policies of D's layers, image side first."""
        frozen, rescaled = Freeze(frozen_norm), POLICIES[rescale]()
        return (frozen,) * self.freeze + (rescaled,) * self.rescale + (FINETUNE,) * self.finetune

    @property
    def layers(self) -> int:
        """How many layers it is for."""
        return sum(self)

    @property
    def digits(self) -> str:
        """Such as 122, for the names of folders."""
        return "".join(map(str, self))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self))})"


class Named(tuple):
    """A policy for each layer, by name, counted from the input of either network.

    Raises:
        UserError: when one of them is no name of POLICIES.
    """

    __slots__ = ()

    def __new__(cls, names: Iterable[str]) -> Named:
        names = tuple(names)
        if not names or any(name not in POLICIES for name in names):
            raise UserError(
                f"{','.join(map(str, names))!r} does not name a policy for each layer: give for each one of"
                f" {', '.join(POLICIES)}, for example freeze,adafm,adafm,finetune,finetune"
            )
        return super().__new__(cls, names)

    def generator(self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch") -> tuple[Policy, ...]:
        """The policies of G's layers, latent side first; rescale has no part in them."""
        return tuple(POLICIES[name](frozen_norm) for name in self)

    discriminator = generator

    @property
    def layers(self) -> int:
        """How many layers it is for."""
        return len(self)

    @property
    def digits(self) -> str:
        """The policies' letters, for the names of folders."""
        return "".join(POLICIES[name].letter for name in self)

    def __str__(self) -> str:
        return f"({', '.join(self)})"


Plan = Split | Named


def plan(*words: object) -> Plan:
    """Three numbers as a split, or names, with commas or without, as a policy for each layer."""
    names = [name for word in words for name in str(word).split(",")]
    if len(names) > len(words) or any(name in POLICIES for name in names):
        return Named(name.strip() for name in names)
    return Split(*words)


def _whole(count: object) -> int | None:
    """count as an int, when it is a whole number or its text."""
    if isinstance(count, (bool, float)):
        return None
    try:
        return int(count)
    except (TypeError, ValueError):
        return None


# ----------------------------------------------------------------------------------------------------------
# What a network has.


@dataclass(frozen=True)
class Layer:
    """A layer of a network: the name of its kernel's module, that module, and its batch normalisation."""

    name: str
    kernel: Kernel
    norm: Norm | None = None


def layers_of(network: nn.Module) -> list[Layer]:
    """The layers of a network from its input on, which is the order in which it registers them.

    A layer is a kernel under a policy (layers.Conv, layers.ConvUp) and the normalisation (layers.Norm) that
    is registered after it and before the next kernel.
    """
    found: list[Layer] = []
    for name, module in network.named_modules():
        if hasattr(module, "convolve"):
            found.append(Layer(name, module))
        elif hasattr(module, "policy") and found and found[-1].norm is None:
            found[-1] = replace(found[-1], norm=module)
    return found


def others_of(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that belong to no layer, such as a miner's before the first, by where they are."""
    layers = [module for module in network.modules() if hasattr(module, "policy")]
    own = {id(parameter) for module in layers for parameter in module.parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if id(parameter) not in own:
            found.setdefault(name.partition(".")[0], []).append(parameter)
    return found


def table(**networks: nn.Module) -> str:
    """The printed plan: a row a layer with its kernel's shape, its policy and how many of its numbers learn.

    networks maps a title, "G" say, to a network.
    """
    rows = [("", "layer", "kernel", "policy", "learning", "of")]
    for title, network in networks.items():
        for name, shape, policy, parameters in _rows(network):
            rows.append((title, name, shape, policy, *_counts(parameters)))
        rows.append((title, "all", "", "", *_counts(network.parameters())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = (str.ljust, str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    return "\n".join(
        "  ".join(pad(text, width) for pad, text, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in rows
    )


def _rows(network: nn.Module) -> Iterator[tuple[str, str, str, list[nn.Parameter]]]:
    """The name, the kernel's shape, the policy and the parameters of what a network is made of."""
    for name, parameters in others_of(network).items():
        learns = any(parameter.requires_grad for parameter in parameters)
        yield name, "", "finetune" if learns else "freeze", parameters
    for number, layer in enumerate(layers_of(network), 1):
        shape = " x ".join(map(str, layer.kernel.weight.shape))
        parts = [layer.kernel] if layer.norm is None else [layer.kernel, layer.norm]
        parameters = [parameter for part in parts for parameter in part.parameters()]
        yield str(number), shape, layer.kernel.policy.name, parameters


def _counts(parameters: Iterable[nn.Parameter]) -> tuple[str, str]:
    """How many numbers learn, and how many there are."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return f"{sum(size for size, learns in sizes if learns):,}", f"{sum(size for size, _ in sizes):,}"
