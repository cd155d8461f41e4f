"""The weights: what learns, the clip, the moving average, and the files that share G and D."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfer import UserError, checkpoints
from transfer.layers import Conv, ConvUp

# ----------------------------------------------------------------------------------------------------------
# What a step does to weights.


def learning(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that the network's plan lets learn; the optimizer gets these and no others."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@torch.no_grad()
def clip_(critic: nn.Module, bound: float) -> None:
    """Bring what the critic computes with into [-bound, bound] (Arjovsky et al. 2017, algorithm 1, line 7).

    Tensors that learn and stand for themselves are clamped. Where a kernel is modulated, gamma and beta are
    scaled down together, slice by slice (AdaFM) or filter by filter (filter selection), just enough for the
    effective kernel to fit: gamma W + beta is linear in them, so the kernel keeps its direction, and at the
    identity nothing changes. NaN stays NaN.
    """
    clamped = []
    for module in critic.modules():
        modulated = isinstance(module, Conv | ConvUp) and module.gamma is not None
        if not modulated:
            clamped += [
                parameter for parameter in module.parameters(recurse=False) if parameter.requires_grad
            ]
            continue
        over = [axis for axis, size in enumerate(module.gamma.shape) if size == 1]
        largest = module.kernel().abs().amax(over, keepdim=True)
        # A hair below the bound, so that rounding in gamma W + beta cannot carry the kernel over it.
        factor = (bound * (1 - 1e-6) / largest).where(largest > bound, torch.ones_like(largest))
        module.gamma.mul_(factor)
        if module.policy.bias(module.beta) is None:
            module.beta.mul_(factor)
        else:
            clamped.append(module.beta)
    if clamped:
        torch._foreach_clamp_min_(clamped, -bound)
        torch._foreach_clamp_max_(clamped, bound)


def largest_kernel_value(critic: nn.Module) -> float:
    """The largest absolute value in any effective kernel of the critic."""
    with torch.no_grad():
        return max(float(m.kernel().abs().max()) for m in critic.modules() if isinstance(m, Conv | ConvUp))


class Average:
    """The exponential moving average of a generator: what is sampled and scored (Karras et al. 2018).

    After step t of training the decay is min(decay, (1 + t) / (10 + t)), so that the early averages are not
    grey with the random start. Running statistics are averaged like weights.
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, generator: nn.Module, step: int) -> None:
        """Move towards the generator as it is after `step` updates, 1 after the first."""
        mine, its = _floats(self.network), _floats(generator)
        torch._foreach_lerp_(mine, its, 1 - min(self.decay, (1 + step) / (10 + step)))


def _floats(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]


# ----------------------------------------------------------------------------------------------------------
# Shared files: they carry G, its average and D to other people.

NETWORKS = ("G", "ema", "D")


def share(
    path: Path, networks: dict[str, dict[str, Tensor]], card: dict[str, Any], half: Iterable[str] = ()
) -> None:
    """Write G, ema and D as one safetensors file; those named in half in half precision.

    networks maps each of "G", "ema" and "D" to its tensors; the card goes into the file's metadata as JSON.
    """
    from safetensors.torch import save as to_bytes

    tensors = {
        f"{name}.{key}": tensor.half() if name in half and tensor.is_floating_point() else tensor
        for name in NETWORKS
        for key, tensor in networks[name].items()
    }
    data = to_bytes(
        {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, {"card": json.dumps(card)}
    )
    checkpoints.write(path, lambda handle: handle.write(data))


@dataclass(frozen=True)
class Source:
    """A pre-trained generator and discriminator: their tensors, and what they say of the networks' size.

    `generator` holds the moving average's tensors, which are what is sampled and what a transfer starts from.
    """

    generator: dict[str, Tensor]
    discriminator: dict[str, Tensor]
    latent: int
    width: int

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a shared file, a run's checkpoint, or a run's folder (its newest checkpoint).

        Raises:
            UserError: when path is none of these, or lacks G or D.
        """
        path = Path(path)
        if path.is_dir():
            path, networks = checkpoints.Checkpoints(path).newest()
        else:
            networks = _read_shared(path) if path.suffix == ".safetensors" else checkpoints.load(path)
        missing = [name for name in ("ema", "D") if not networks.get(name)]
        if missing:
            raise UserError(
                f"{path} lacks {' and '.join(missing)}: a transfer needs a pre-trained generator and"
                " discriminator, as in pretrained_model/wgan_64.safetensors"
            )
        try:
            latent, eight_widths = networks["ema"]["conv1.weight"].shape[:2]
        except (KeyError, ValueError, TypeError, AttributeError):
            raise UserError(
                f"{path} holds other networks than this project's: train one with wgan_64.py"
            ) from None
        return cls(networks["ema"], networks["D"], latent, eight_widths // 8)


def _read_shared(path: Path) -> dict[str, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give a .safetensors file, a checkpoint or a run's folder"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): fetch it again") from None
    networks: dict[str, dict[str, Tensor]] = {name: {} for name in NETWORKS}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        if name in networks:
            networks[name][rest] = tensor.float() if tensor.is_floating_point() else tensor
    return networks


def carry(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load pre-trained tensors into a network under a plan, whose gamma and beta stay at the identity.

    Raises:
        UserError: when the tensors are not this network's; name is "G" or "D".
    """
    own = network.state_dict()
    modulation = {key for key in own if key.rpartition(".")[2] in ("gamma", "beta")}
    wrong = sorted((own.keys() - modulation) ^ tensors.keys())
    wrong += [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if wrong:
        raise UserError(
            f"the source's {name} does not fit this script's: {wrong[0]} is missing, new or of another shape"
            f" ({len(wrong)} such tensors); give a source trained by wgan_64.py"
        )
    network.load_state_dict(tensors, strict=False)


def check_clip(critic: nn.Module, bound: float) -> None:
    """Refuse a bound that the source's kernels are beyond, since frozen ones could never be brought into it.

    Raises:
        UserError: naming the bound that they fit.
    """
    largest = largest_kernel_value(critic)
    if largest > bound:
        raise UserError(
            f"clip is {bound}, and the source's critic has kernels up to {largest:.6g}: give at least that"
        )
