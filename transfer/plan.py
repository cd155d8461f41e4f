"""The plan: G(i, j, k) and D(i, j, k) say which policy each layer's kernel is under."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from transfer import UserError

LAYERS = 5
FrozenNorm = Literal["batch", "source"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """What becomes of a pre-trained kernel W: its effective value, and the tensors that learn.

    The functions take a layer (see layers.Conv) with its `weight` W, `gamma`, `beta` and `out_axis`.

    Attributes:
        name: the policy's name in plans and tables.
        learns: the tensors of the layer that learn, of "weight", "gamma" and "beta".
        modulation: the shapes of gamma and beta, either of which can be None, for a kernel (first, second, k,
            k) whose axis of output channels is `out`; None when the policy has neither.
        start: brings gamma and beta to where the effective kernel is W.
        kernel: the effective kernel, shaped as W.
        bias: what is added to the layer's output, one number a channel, or None.
        clamped: those of gamma and beta that the critic's clip clamps for themselves, being of the weight's
            or the output's scale and no factor; the modulated kernel is clamped where it is computed.
        norm: for a layer that does not learn, whether its batch normalisation uses the batch's statistics
            ("batch") or the source's running statistics ("source").
        fresh: the layer starts from random numbers, not from the source.
    """

    name: str
    learns: tuple[str, ...]
    modulation: Callable[[Shape, int], tuple[Shape | None, Shape | None]] | None = None
    start: Callable[[Any], None] = lambda layer: None
    kernel: Callable[[Any], Any] = lambda layer: layer.weight
    bias: Callable[[Any], Any] = lambda layer: None
    clamped: tuple[str, ...] = ()
    norm: FrozenNorm = "batch"
    fresh: bool = False


def _per_slice(shape: Shape, out: int) -> tuple[Shape, Shape]:
    return (*shape[:2], 1, 1), (*shape[:2], 1, 1)


def _per_filter(shape: Shape, out: int) -> tuple[Shape, Shape]:
    one = tuple(size if axis == out else 1 for axis, size in enumerate(shape))
    return one, one


def _at_one_and_zero(layer: Any) -> None:
    layer.gamma.fill_(1)
    layer.beta.zero_()


# Normalised AdaFM: gamma (W - mu) / sigma + beta, from gamma = sigma and beta = mu.


def _moments(layer: Any) -> tuple[Any, Any]:
    """Mean and standard deviation of each slice of W; a slice whose numbers are all the same has 1."""
    mu = layer.weight.mean((2, 3), keepdim=True)
    sigma = (layer.weight - mu).square().mean((2, 3), keepdim=True).sqrt()
    return mu, sigma.where(sigma > 0, sigma.new_ones(sigma.shape))


def _start_normalised(layer: Any) -> None:
    mu, sigma = _moments(layer)
    layer.gamma.copy_(sigma)
    layer.beta.copy_(mu)


def _normalised(layer: Any) -> Any:
    mu, sigma = _moments(layer)
    # The same as gamma (W - mu) / sigma + beta, and W to the bit at the start.
    return layer.weight + (layer.gamma / sigma - 1) * (layer.weight - mu) + (layer.beta - mu)


# Singular values: W as a matrix (C_in k k, C_out) is U diag(s) V', and s is scaled.


def _matrix(layer: Any) -> Any:
    return layer.weight.movedim(layer.out_axis, -1).flatten(0, -2)


def _rank(shape: Shape, out: int) -> tuple[Shape, None]:
    rows = shape[1 - out] * shape[2] * shape[3]
    return (min(rows, shape[out]),), None


def _start_singular(layer: Any) -> None:
    from torch.linalg import svd

    U, s, V = svd(_matrix(layer), full_matrices=False)
    layer.register_buffer("left", U * s, persistent=False)  # W has them, so no file needs to
    layer.register_buffer("right", V, persistent=False)
    layer.gamma.fill_(1)


def _singular(layer: Any) -> Any:
    change = (layer.left * (layer.gamma - 1)) @ layer.right  # nothing, to the bit, at the start
    first, second, *window = layer.weight.shape
    rows = (second if layer.out_axis == 0 else first, *window)
    return layer.weight + change.unflatten(0, rows).movedim(-1, layer.out_axis)


# Rank one: W (1 + v u'), v for each filter and u for each number of it; gamma is v and beta is u.


def _outer(shape: Shape, out: int) -> tuple[Shape, Shape]:
    v = tuple(size if axis == out else 1 for axis, size in enumerate(shape))
    u = tuple(1 if axis == out else size for axis, size in enumerate(shape))
    return v, u


def _start_outer(layer: Any) -> None:
    for tensor in (layer.gamma, layer.beta):
        tensor.normal_(0, 1e-7)  # their product vanishes beside 1


# FreezeD (Mo et al. 2020): the kernel stays as it is.
FREEZE = Policy("freeze", learns=())
# AdaFM (Zhao, Cong and Carin 2020): one gamma and one beta for each two-dimensional slice of the kernel.
ADAFM = Policy(
    "adafm",
    ("gamma", "beta"),
    _per_slice,
    _at_one_and_zero,
    kernel=lambda layer: layer.gamma * layer.weight + layer.beta,
    clamped=("beta",),
)
# GAN memory (Cong et al. 2020): the same of the slice made to have mean 0 and standard deviation 1.
NORMALISED_ADAFM = Policy(
    "normalised_adafm",
    ("gamma", "beta"),
    _per_slice,
    _start_normalised,
    kernel=_normalised,
    clamped=("gamma", "beta"),
)
# Filter selection (Noguchi and Harada 2019): one gamma for each output filter, beta added to its output.
FILTER_SELECTION = Policy(
    "filter_selection",
    ("gamma", "beta"),
    _per_filter,
    _at_one_and_zero,
    kernel=lambda layer: layer.gamma * layer.weight,
    bias=lambda layer: layer.beta.flatten(),
    clamped=("beta",),
)
# FSGAN (Robb et al. 2020): the singular values of the kernel as a matrix are scaled.
SINGULAR_VALUES = Policy("singular_values", ("gamma",), _rank, _start_singular, kernel=_singular)
# AdAM's kernel modulation (Zhao et al. 2022): each number of the kernel times 1 + v u'.
RANK_ONE = Policy(
    "rank_one",
    ("gamma", "beta"),
    _outer,
    _start_outer,
    kernel=lambda layer: layer.weight * (1 + layer.gamma * layer.beta),
)
# TransferGAN (Wang et al. 2018): the kernel itself learns.
FINETUNE = Policy("finetune", ("weight",))
# The kernel learns from random numbers, as if there were no source.
REINITIALISE = Policy("reinitialise", ("weight",), fresh=True)

_MODULATED = (ADAFM, NORMALISED_ADAFM, FILTER_SELECTION, SINGULAR_VALUES, RANK_ONE)
RESCALE = {policy.name: policy for policy in _MODULATED}
Rescale = Literal["adafm", "normalised_adafm", "filter_selection", "singular_values", "rank_one"]
POLICIES = {policy.name: policy for policy in (FREEZE, *_MODULATED, FINETUNE, REINITIALISE)}

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


class Layers(tuple):
    """A policy for each of the five layers, by name, counted from the input of either network.

    Raises:
        UserError: when they are not five names of POLICIES.
    """

    __slots__ = ()

    def __new__(cls, names: Iterable[str]) -> Layers:
        names = tuple(names)
        if len(names) != LAYERS or any(name not in POLICIES for name in names):
            raise UserError(
                f"{','.join(map(str, names))!r} does not name a policy for each of the {LAYERS} layers: give"
                f" {LAYERS} of {', '.join(POLICIES)}, for example freeze,adafm,adafm,finetune,finetune"
            )
        return super().__new__(cls, names)

    def generator(self, rescale: Rescale = "adafm", frozen_norm: FrozenNorm = "batch") -> tuple[Policy, ...]:
        """The policies of G's layers 1 to 5, latent side first; rescale has no part in them."""
        return tuple(replace(POLICIES[name], norm=frozen_norm) for name in self)

    discriminator = generator

    @property
    def digits(self) -> str:
        """The policies' first letters, for the names of folders, with t for fine-tuning."""
        return "".join("t" if name == "finetune" else name[0] for name in self)

    def __str__(self) -> str:
        return f"({', '.join(self)})"


Plan = Split | Layers


def plan(*words: object) -> Plan:
    """Three numbers as a split, or five names, with commas or without, as layers."""
    names = [name for word in words for name in str(word).split(",")]
    if len(names) > len(words) or any(name in POLICIES for name in names):
        return Layers(name.strip() for name in names)
    return Split(*words)


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

    networks maps a title, "G" say, to a network whose layers are called conv1, norm1, ..., conv5; what comes
    before the first is called mapping.
    """
    rows = [("", "layer", "kernel", "policy", "learning", "of")]
    for title, network in networks.items():
        totals = [0, 0]
        for name, shape, policy, modules in _rows(network):
            parameters = [parameter for module in modules for parameter in module.parameters()]
            counts = [
                sum(p.numel() for p in parameters if p.requires_grad),
                sum(p.numel() for p in parameters),
            ]
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            rows.append((title, name, shape, policy, *(f"{count:,}" for count in counts)))
        rows.append((title, "all", "", "", *(f"{total:,}" for total in totals)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = (str.ljust, str.rjust, str.ljust, str.ljust, str.rjust, str.rjust)
    return "\n".join("  ".join(map(_pad, pads, row, widths)).rstrip() for row in rows)


def _rows(network: Any) -> Iterator[tuple[str, str, str, list[Any]]]:
    """The name, the kernel's shape, the policy and the modules of what a network is made of."""
    if hasattr(network, "mapping"):
        yield "map", "", "finetune", [network.mapping]
    for index in range(1, LAYERS + 1):
        conv, norm = getattr(network, f"conv{index}"), getattr(network, f"norm{index}", None)
        shape = " x ".join(map(str, conv.weight.shape))
        yield str(index), shape, conv.policy.name, [conv] if norm is None else [conv, norm]


def _pad(pad: Callable[[str, int], str], text: str, width: int) -> str:
    return pad(text, width)
