"""The weights: what learns, the clip, the moving average, and the files that share G and D."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transfer import UserError, checkpoints
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import FROM_SCRATCH, LAYERS, Policy, plan

# ----------------------------------------------------------------------------------------------------------
# What a step does to weights.


def learning(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that the network's plan lets learn; the optimizer gets these and no others."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


@torch.no_grad()
def clip_(critic: nn.Module, bound: float) -> None:
    """Bring what the critic computes with into [-bound, bound] (Arjovsky et al. 2017, algorithm 1, line 7).

    Tensors that learn and stand for themselves are clamped; of what modulates a kernel only what is no
    factor, since a modulated kernel is clamped where it is computed (set_clip). NaN stays NaN.
    """
    clamped = []
    for module in critic.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, Conv | ConvUp) and module.policy.modulation:
            clamped += [own[name] for name in module.policy.clamped]
        else:
            clamped += [each for each in own.values() if each.requires_grad]
    if clamped:
        torch._foreach_clamp_min_(clamped, -bound)
        torch._foreach_clamp_max_(clamped, bound)


def largest_kernel_value(critic: nn.Module) -> float:
    """The largest absolute value in any effective kernel of the critic that is the source's."""
    with torch.no_grad():
        layers = [m for m in critic.modules() if isinstance(m, Conv | ConvUp) and not m.policy.fresh]
        return max((float(layer.kernel().abs().max()) for layer in layers), default=0.0)


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
    extra: dict[str, Tensor] | None = None  # the heads of a critic that sees through a network
    policies: tuple[Policy, ...] = FROM_SCRATCH  # of the generator's layers, when it has been transferred
    settings: dict[str, Any] = field(default_factory=dict)  # of the run that trained them, where known

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
        settings = networks.get("settings", {})
        policies = _policies(settings)
        modulated = [f"conv{index}.gamma" in networks["ema"] for index in range(1, LAYERS + 1)]
        if modulated != [policy.modulation is not None for policy in policies]:
            raise UserError(
                f"{path} does not say under which policies its generator was trained: give the run's folder,"
                " or share it anew with python -m transfer"
            )
        return cls(
            networks["ema"],
            networks["D"],
            latent,
            eight_widths // 8,
            networks.get("heads"),
            policies,
            settings,
        )


def _policies(settings: dict[str, Any]) -> tuple[Policy, ...]:
    """The policies that a run's settings gave the generator; fine-tuned throughout in pre-training."""
    if "G" not in settings:
        return FROM_SCRATCH
    return plan(*settings["G"]).generator(settings.get("rescale", "adafm"))


def _read_shared(path: Path) -> dict[str, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            card = json.loads((file.metadata() or {}).get("card", "{}"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give a .safetensors file, a checkpoint or a run's folder"
        ) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): fetch it again") from None
    networks: dict[str, dict[str, Any]] = {name: {} for name in NETWORKS}
    networks["settings"] = card.get("settings", {})
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        if name in NETWORKS:
            networks[name][rest] = tensor.float() if tensor.is_floating_point() else tensor
    return networks


def carry(network: nn.Module, tensors: dict[str, Tensor], name: str) -> None:
    """Load pre-trained tensors into a network under a plan, and start what modulates them at the identity.

    Layers whose policy is fresh keep their random numbers, and so does what comes before the first layer,
    which is called mapping.

    Raises:
        UserError: when the tensors are not this network's; name is "G" or "D".
    """
    own = {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("mapping.")}
    modulation = {key for key in own if key.rpartition(".")[2] in ("gamma", "beta")}
    wrong = sorted((own.keys() - modulation) ^ tensors.keys())
    wrong += [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if wrong:
        raise UserError(
            f"the source's {name} does not fit this script's: {wrong[0]} is missing, new or of another shape"
            f" ({len(wrong)} such tensors); give a source trained by wgan_64.py"
        )
    fresh = [f"{key}." for key, module in network.named_modules() if _fresh(module)]
    wanted = {key: tensor for key, tensor in tensors.items() if not key.startswith(tuple(fresh))}
    network.load_state_dict(wanted, strict=False)
    for layer in network.modules():
        if isinstance(layer, Conv | ConvUp):
            layer.start()


def _fresh(module: nn.Module) -> bool:
    return isinstance(module, Conv | ConvUp | Norm) and module.policy.fresh


def set_clip(critic: nn.Module, bound: float) -> None:
    """Clamp every modulated kernel of the critic to [-bound, bound] wherever it is computed.

    Raises:
        UserError: when kernels of the source are beyond the bound, since frozen ones could never be brought
            into it; it names the bound that they fit.
    """
    largest = largest_kernel_value(critic)
    if largest > bound:
        raise UserError(
            f"clip is {bound}, and the source's critic has kernels up to {largest:.6g}: give at least that"
        )
    for layer in critic.modules():
        if isinstance(layer, Conv | ConvUp) and layer.policy.modulation:
            layer.bound = bound
