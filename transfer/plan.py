"""The plan: G(i, j, k) and D(i, j, k) say which policy each layer's kernel is under."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from transfer import UserError

LAYERS = 5
FrozenNorm = Literal["batch", "source"]


@dataclass(frozen=True)
class Policy:
    """What becomes of a pre-trained kernel W: its effective value, and the tensors that learn.

    Attributes:
        name: the policy's name in plans and tables. learns: the tensors of the layer that learn, of "weight",
        "gamma" and "beta". modulation: the shape of gamma and beta for a kernel (first, second, k, k) whose
        axis of output channels is
            `out`, or None when the policy has neither. gamma starts at 1, beta at 0, which leaves W as it is.
        kernel: (W, gamma, beta) -> the effective kernel, shaped as W. bias: beta -> what is added to the
        layer's output, one number a channel, or None. norm: for a layer that does not learn, whether its
        batch normalisation uses the batch's statistics ("batch")
            or the source's running statistics ("source").
    """

    name: str
    learns: tuple[str, ...]
    modulation: Callable[[tuple[int, ...], int], tuple[int, ...]] | None = None
    kernel: Callable[[Any, Any, Any], Any] = lambda weight, gamma, beta: weight
    bias: Callable[[Any], Any] = lambda beta: None
    norm: FrozenNorm = "batch"


def _per_slice(shape: tuple[int, ...], out: int) -> tuple[int, ...]:
    return (shape[0], shape[1], 1, 1)


def _per_filter(shape: tuple[int, ...], out: int) -> tuple[int, ...]:
    return tuple(size if axis == out else 1 for axis, size in enumerate(shape))


# FreezeD (Mo et al. 2020): the kernel stays as it is.
FREEZE = Policy("freeze", learns=())
# AdaFM (Zhao, Cong and Carin 2020): one gamma and one beta for each two-dimensional slice of the kernel.
ADAFM = Policy(
    "adafm", ("gamma", "beta"), _per_slice, kernel=lambda weight, gamma, beta: gamma * weight + beta
)
# Filter selection (Noguchi and Harada 2019): one gamma for each output filter, beta added to its output.
FILTER_SELECTION = Policy(
    "filter_selection",
    ("gamma", "beta"),
    _per_filter,
    kernel=lambda weight, gamma, beta: gamma * weight,
    bias=lambda beta: beta.flatten(),
)
# TransferGAN (Wang et al. 2018): the kernel itself learns.
FINETUNE = Policy("finetune", ("weight",))

RESCALE = {policy.name: policy for policy in (ADAFM, FILTER_SELECTION)}
Rescale = Literal["adafm", "filter_selection"]

FROM_SCRATCH = (FINETUNE,) * LAYERS


class Split(namedtuple("Split", ("freeze", "rescale", "finetune"))):
    """G(i, j, k) or D(i, j, k): how many of the five layers are frozen, rescaled and fine-tuned.

    Layers count from the input. In G the first k are fine-tuned, the next j rescaled and the last i frozen;
    in D the first i are frozen, the next j rescaled and the last k fine-tuned (dissertation, section 4.3.5):
    both networks keep what they know about pixels and learn anew what a face is.

    Raises:
        UserError: when i, j, k are not whole numbers of at least 0 with i + j + k = 5.
    """

    __slots__ = ()

    def __new__(cls, *counts: object) -> Split:
        numbers = [_whole(count) for count in counts]
        if len(numbers) != 3 or None in numbers or min(numbers) < 0 or sum(numbers) != LAYERS:
            raise UserError(
                f"({', '.join(map(str, counts))}) is no split of the {LAYERS} layers: give three whole"
                f" numbers of at least 0 with i + j + k = {LAYERS}, how many to freeze,"
                " rescale and fine-tune, for example 1 2 2"
            )
        return super().__new__(cls, *numbers)

    def generator(self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch") -> tuple[Policy, ...]:
        """The policies of G's layers 1 to 5, latent side first."""
        return self.discriminator(rescale, frozen_norm)[::-1]

    def discriminator(
        self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch"
    ) -> tuple[Policy, ...]:
        """The policies of D's layers 1 to 5, image side first."""
        frozen = replace(FREEZE, norm=frozen_norm)
        return (frozen,) * self.freeze + (RESCALE[rescale],) * self.rescale + (FINETUNE,) * self.finetune

    @property
    def digits(self) -> str:
        """Such as 122, for the names of folders."""
        return "".join(map(str, self))

    def __str__(self) -> str:
        return f"({', '.join(map(str, self))})"


def _whole(count: object) -> int | None:
    """count as an int, when it is a whole number or its text."""
    if isinstance(count, (bool, float)):
        return None
    try:
        return int(count)
    except (TypeError, ValueError):
        return None


def table(**networks: Any) -> str:
    """The printed plan: a row a layer with its kernel's shape, its policy and how many of its numbers learn.

    networks maps a title, "G" say, to a network whose layers are called conv1, norm1, ..., conv5.
    """
    rows = [("", "layer", "kernel", "policy", "learning", "of")]
    for title, network in networks.items():
        totals = [0, 0]
        for index in range(1, LAYERS + 1):
            conv, norm = getattr(network, f"conv{index}"), getattr(network, f"norm{index}", None)
            parameters = [*conv.parameters(), *(norm.parameters() if norm is not None else ())]
            counts = [
                sum(p.numel() for p in parameters if p.requires_grad),
                sum(p.numel() for p in parameters),
            ]
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            shape = " x ".join(map(str, conv.weight.shape))
            rows.append((title, str(index), shape, conv.policy.name, *(f"{count:,}" for count in counts)))
        rows.append((title, "all", "", "", *(f"{total:,}" for total in totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = (str.ljust, str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    return "\n".join("  ".join(map(_pad, pads, row, widths)).rstrip() for row in rows)


def _pad(pad: Callable[[str, int], str], text: str, width: int) -> str:
    return pad(text, width)
