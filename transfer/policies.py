"""The policies: what becomes of a pre-trained kernel, its effective value and the numbers that learn.

A kernel W has the shape (first, second, k, k): `out` says which of the first two axes counts the output
channels, and the other one counts the input channels. Each policy is a class with three answers: the shapes
of the tensors that it puts beside W, where they start (the effective kernel is W then), and the effective
kernel itself. Nothing here loads torch, so that a script can read its settings before it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from transfer.layers import Kernel

FrozenNorm = Literal["batch", "source"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """What becomes of a kernel; as it stands here, the kernel stays.

    Attributes:
        norm: for a layer that does not learn, whether its batch normalisation uses the batch's statistics
            ("batch") or the source's running statistics ("source").
        name: the policy's name in plans and tables, letter: in the names of folders.
        learns: the layer's tensors that learn, of "weight" and those that the policy puts beside it.
        clamped: those of them that the critic's clip clamps for themselves, being of the weight's or the
            output's scale and no factor; the effective kernel is clamped where it is computed.
        cancelled: those of them that batch normalisation with the batch's statistics takes away again.
        fresh: the layer starts from random numbers, not from the source.
    """

    norm: FrozenNorm = "batch"
    name: ClassVar[str]
    letter: ClassVar[str]
    learns: ClassVar[tuple[str, ...]] = ()
    clamped: ClassVar[tuple[str, ...]] = ()
    cancelled: ClassVar[tuple[str, ...]] = ()
    fresh: ClassVar[bool] = False

    def shapes(self, shape: Shape, out: int) -> dict[str, Shape]:
        """The tensors beside a kernel of this shape, by name."""
        return {}

    def start(self, layer: Kernel) -> None:
        """Bring them to where the effective kernel is W."""

    def kernel(self, layer: Kernel) -> Tensor:
        """The effective kernel, shaped as W."""
        return layer.weight

    def bias(self, layer: Kernel) -> Tensor | None:
        """What is added to the layer's output, (C_out,), or None."""
        return None

    @property
    def modulates(self) -> bool:
        """Whether the effective kernel is made of W and learning tensors beside it."""
        return bool(self.learns) and "weight" not in self.learns


# ----------------------------------------------------------------------------------------------------------
# The kernel as a whole: it stays, it learns, or it starts anew.


class Freeze(Policy):
    """W stays (FreezeD, Mo et al. 2020)."""

    name, letter = "freeze", "f"


class Finetune(Policy):
    """W learns (TransferGAN, Wang et al. 2018)."""

    name, letter = "finetune", "t"
    learns = ("weight",)


class Reinitialise(Policy):
    """W learns from random numbers, as if there were no source."""

    name, letter = "reinitialise", "n"
    learns = ("weight",)
    fresh = True


# ----------------------------------------------------------------------------------------------------------
# Scale and shift.
#
#               input channel                        a slice: k x k numbers
#           +---+---+---+---+
#  output   | W | W | W | W |     gamma W + beta     AdaFM, normalised AdaFM: one gamma, one beta a slice
#  channel  +---+---+---+---+
#           | W | W | W | W |     a row is a filter  filter selection: one of each for a filter; beta is
#           +---+---+---+---+                        added to what the filter puts out


class AdaFM(Policy):
    """gamma W + beta, one of each for each slice (Zhao, Cong and Carin 2020)."""

    name, letter = "adafm", "a"
    learns = ("gamma", "beta")
    clamped = ("beta",)

    def shapes(self, shape: Shape, out: int) -> dict[str, Shape]:
        return {"gamma": (*shape[:2], 1, 1), "beta": (*shape[:2], 1, 1)}

    def start(self, layer: Kernel) -> None:
        layer.gamma.fill_(1)
        layer.beta.zero_()

    def kernel(self, layer: Kernel) -> Tensor:
        return layer.gamma * layer.weight + layer.beta


class NormalisedAdaFM(AdaFM):
    """gamma (W - mu) / sigma + beta, mu and sigma of each slice (GAN memory, Cong et al. 2020)."""

    name, letter = "normalised_adafm", "m"
    clamped = ("gamma", "beta")

    def start(self, layer: Kernel) -> None:
        mu, sigma = self._moments(layer)
        layer.gamma.copy_(sigma)
        layer.beta.copy_(mu)

    def kernel(self, layer: Kernel) -> Tensor:
        mu, sigma = self._moments(layer)
        # The same as the formula above, and W to the bit at the start.
        return layer.weight + (layer.gamma / sigma - 1) * (layer.weight - mu) + (layer.beta - mu)

    @staticmethod
    def _moments(layer: Kernel) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each slice; a slice whose numbers are all the same has 1."""
        mu = layer.weight.mean((2, 3), keepdim=True)
        sigma = (layer.weight - mu).square().mean((2, 3), keepdim=True).sqrt()
        return mu, sigma.where(sigma > 0, sigma.new_ones(sigma.shape))


class FilterSelection(AdaFM):
    """gamma W, and beta added to the output, one of each for a filter (BSA, Noguchi and Harada 2019)."""

    name, letter = "filter_selection", "s"
    cancelled = ("beta",)

    def shapes(self, shape: Shape, out: int) -> dict[str, Shape]:
        one = tuple(size if axis == out else 1 for axis, size in enumerate(shape))
        return {"gamma": one, "beta": one}

    def kernel(self, layer: Kernel) -> Tensor:
        return layer.gamma * layer.weight

    def bias(self, layer: Kernel) -> Tensor:
        return layer.beta.flatten()


# ----------------------------------------------------------------------------------------------------------
# The kernel as a matrix.
#
#      W as (C_in k k, C_out) = U diag(s) V'      singular values: s is scaled by gamma
#
#                    u' (one for each number of a filter)
#           v   +---------------+
#      (one for | 1 + v u'      |  times W        rank one
#      a filter)+---------------+


class SingularValues(Policy):
    """U diag(gamma s) V', where U diag(s) V' is W as a matrix (FSGAN, Robb et al. 2020)."""

    name, letter = "singular_values", "v"
    learns = ("gamma",)

    def shapes(self, shape: Shape, out: int) -> dict[str, Shape]:
        rows = shape[1 - out] * shape[2] * shape[3]
        return {"gamma": (min(rows, shape[out]),)}

    def start(self, layer: Kernel) -> None:
        from torch.linalg import svd

        matrix = layer.weight.movedim(layer.out_axis, -1).flatten(0, -2)
        U, s, V = svd(matrix, full_matrices=False)
        layer.register_buffer("left", U * s, persistent=False)  # W has them, so no file needs to
        layer.register_buffer("right", V, persistent=False)
        layer.gamma.fill_(1)

    def kernel(self, layer: Kernel) -> Tensor:
        change = (layer.left * (layer.gamma - 1)) @ layer.right  # nothing, to the bit, at the start
        first, second, *window = layer.weight.shape
        rows = (second if layer.out_axis == 0 else first, *window)
        return layer.weight + change.unflatten(0, rows).movedim(-1, layer.out_axis)


class RankOne(Policy):
    """W (1 + v u'), v for each filter and u for each number of it (AdAM, Zhao et al. 2022)."""

    name, letter = "rank_one", "o"
    learns = ("v", "u")

    def shapes(self, shape: Shape, out: int) -> dict[str, Shape]:
        v = tuple(size if axis == out else 1 for axis, size in enumerate(shape))
        u = tuple(1 if axis == out else size for axis, size in enumerate(shape))
        return {"v": v, "u": u}

    def start(self, layer: Kernel) -> None:
        for tensor in (layer.v, layer.u):
            tensor.normal_(0, 1e-7)  # their product vanishes beside 1

    def kernel(self, layer: Kernel) -> Tensor:
        return layer.weight * (1 + layer.v * layer.u)


# ----------------------------------------------------------------------------------------------------------

Rescale = Literal["adafm", "normalised_adafm", "filter_selection", "singular_values", "rank_one"]
POLICIES = {
    policy.name: policy
    for policy in (
        Freeze,
        AdaFM,
        NormalisedAdaFM,
        FilterSelection,
        SingularValues,
        RankOne,
        Finetune,
        Reinitialise,
    )
}
FINETUNE = Finetune()
