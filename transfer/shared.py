"""The shared files: a model and its card, written, read, and carried into a network under a plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from transfer import UserError, checkpoints
from transfer.plan import Plan, layers_of, plan
from transfer.policies import Policy
from transfer.weights import Clip

NETWORKS = ("G", "ema", "D", "heads")
IMPORT = "python -m transfer import {} --to mine.safetensors brings them in"
Tensors = dict[str, Tensor]


def as_bytes(networks: dict[str, Tensors], card: dict[str, Any], half: Iterable[str] = ()) -> bytes:
    """Networks as the content of a safetensors file; those named in half in half precision.

    networks maps some of "G", "ema", "D" and "heads" to their tensors; the card goes into the file's metadata
    as JSON.
    """
    tensors = {
        f"{name}.{key}": tensor.half() if name in half and tensor.is_floating_point() else tensor
        for name in NETWORKS
        for key, tensor in networks.get(name, {}).items()
    }
    return to_bytes(
        {key: tensor.clone().contiguous() for key, tensor in tensors.items()}, {"card": json.dumps(card)}
    )


def share(path: Path, networks: dict[str, Tensors], card: dict[str, Any], half: Iterable[str] = ()) -> None:
    """Write networks and their card as a file: see as_bytes."""
    data = as_bytes(networks, card, half)
    checkpoints.write(path, lambda handle: handle.write(data))


@dataclass(frozen=True)
class Source:
    """A trained model: the tensors of its networks, and what its card or its run says of them.

    Attributes:
        path: where it was read from.
        generator: the moving average's tensors, which are what is sampled and what a transfer starts from.
        discriminator: the critic's, or None where the method has none.
        heads: those of methods.projected_critic, or None.
        script: the name of the script that trained it.
        settings: that script's settings.
        arguments: what its Generator was made with, apart from policies.
        images: the fingerprint of the images that it was trained on, where that is told; see images.Images.
    """

    path: Path
    generator: Tensors
    discriminator: Tensors | None
    heads: Tensors | None = None
    script: str = "wgan_64"
    settings: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    images: str | None = None

    @classmethod
    def read(cls, path: Path, best: bool = False, label: str | None = None) -> Source:
        """Read a shared file, a run's checkpoint, or a run's folder: its newest checkpoint, or its best one.

        label: of a run with several target domains, see checkpoints.of_label.

        Raises:
            UserError: when path is none of these, holds no generator of this project, or has not this label.
        """
        path = Path(path)
        if path.suffix == ".safetensors" and not path.is_dir() and not best:
            found = checkpoints.of_label(path, _read_shared(path), label)
        else:
            path, found = checkpoints.find(path, best, label)
        return cls.of(path, found)

    @classmethod
    def of(cls, path: Path, found: dict[str, Any]) -> Source:
        """The model of a checkpoint's content, or of networks and their card.

        Raises:
            UserError: when it holds no generator of this project.
        """
        if not isinstance(found.get("ema"), dict) or not found["ema"]:
            if any(isinstance(value, Tensor | dict) and len(value) for value in found.values()):
                raise UserError(
                    f"{path} holds networks, but none of this project's (no ema, the averaged generator): if"
                    f" they are like DCGAN's, {IMPORT.format(path)}"
                )
            raise UserError(
                f"{path} holds no networks: give a model such as pretrained_model/wgan_64.safetensors"
            )
        said = {key: found.get(key) for key in ("settings", "arguments")}
        settings, arguments = ({} if value is None else value for value in said.values())
        arguments = arguments.get("G") or _arguments(path, found["ema"], settings)
        script = Path(found.get("script") or "wgan_64").stem
        told = found.get("images")
        images = found.get("fingerprint", told.get("fingerprint") if isinstance(told, dict) else None)
        networks = found["ema"], found.get("D"), found.get("heads")
        source = cls(path, *networks, script, settings, arguments, images)
        try:
            source.latent + source.width, source.policies("G"), source.policies("D")
        except (KeyError, TypeError, UserError) as error:
            raise UserError(f"the card of {path} cannot be made sense of ({error}): share it anew") from None
        return source

    @property
    def latent(self) -> int:
        """The numbers of a latent."""
        return self.arguments["latent"]

    @property
    def width(self) -> int:
        """The channels of the layer next to the image."""
        return self.arguments["width"]

    @property
    def shape(self) -> dict[str, int]:
        """The size and channels of its images, as networks and Images.load take them; none from before."""
        return {key: self.arguments[key] for key in ("size", "channels") if key in self.arguments}

    @property
    def size(self) -> int:
        """The side of its images in pixels."""
        return self.arguments.get("size", 64)

    @property
    def norm(self) -> bool:
        """Whether the critic has batch normalisation."""
        return self.discriminator is None or any(key.endswith("running_mean") for key in self.discriminator)

    @property
    def loss(self) -> str:
        """What its critic was trained with: "wgan" (weight clipping) or "wgan_gp" (gradient penalty)."""
        said = self.settings.get("loss")
        if said in ("wgan", "wgan_gp"):
            return said
        if self.script == "wgan_gp_64" or not self.norm:
            return "wgan_gp"
        # A run that took over its source's loss does not tell which; a clipped critic has no larger kernel.
        kernels = [t for t in (self.discriminator or {}).values() if t.ndim == 4] if said == "source" else []
        clip = self.settings.get("clip", math.inf)
        return "wgan_gp" if any(bool((kernel.abs() > clip).any()) for kernel in kernels) else "wgan"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its tensors: the same wherever its file is."""
        digest = hashlib.sha256()
        for name, tensors in (("G", self.generator), ("D", self.discriminator), ("heads", self.heads)):
            for key in sorted(tensors or {}):
                digest.update(f"{name}.{key}".encode() + tensors[key].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def plan(self, name: str) -> Plan | None:
        """The plan that its "G" or "D" was trained under; None when it was trained from random numbers."""
        if self.settings.get("source") is None or name not in self.settings:
            return None
        return plan(*self.settings[name])

    def policies(self, name: str) -> tuple[Policy, ...] | None:
        """The policies of that plan, one a layer."""
        own = self.plan(name)
        if own is None:
            return None
        policies = own.generator if name == "G" else own.discriminator
        return policies(self.settings.get("rescale", "adafm"), self.settings.get("frozen_norm", "batch"))

    def tensors(self, name: str) -> Tensors:
        """The tensors of "G", which is the average, or of "D".

        Raises:
            UserError: when it has no D.
        """
        found = self.generator if name == "G" else self.discriminator
        if not found:
            raise UserError(f"{self.path} lacks D: a transfer needs a generator and a discriminator")
        return found


def _arguments(path: Path, generator: Tensors, settings: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments of a generator whose file does not tell of them: those of wgan_64.py."""
    try:
        latent, eight_widths = generator["conv1.weight"].shape[:2]
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(
            f"{path} holds other networks than this project's: if they are like DCGAN's,"
            f" {IMPORT.format(path)}"
        ) from None
    hidden = {"hidden": settings["hidden"]} if "hidden" in settings else {}
    return {"latent": latent, "width": eight_widths // 8, **hidden}


def _read_shared(path: Path) -> dict[str, Any]:
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
        if "adapter" in told:
            raise UserError(
                f"{path} is an adapter, which is part of a model: python -m transfer apply {path} --to"
                " whole.safetensors makes a model of it"
            )
        card = _card(told.get("card", "{}"), path)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: give a .safetensors file, a checkpoint or a run's folder"
        ) from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}): fetch it again") from None
    networks: dict[str, Any] = {name: {} for name in NETWORKS}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        networks.setdefault(name, {})[rest] = tensor.float() if tensor.is_floating_point() else tensor
    return {**card, **networks}


def _card(text: str, path: Path) -> dict[str, Any]:
    """The card of a file; one that share cannot have written counts as none, and that is said."""
    with suppress(ValueError):
        card = json.loads(text)
        kinds = {"settings": dict, "arguments": dict, "script": str}
        if isinstance(card, dict) and all(
            isinstance(card.get(key), kind | None) for key, kind in kinds.items()
        ):
            return card
    print(f"{path}: its card is not this project's, and counts as none")
    return {}


# ----------------------------------------------------------------------------------------------------------
# Into a network.


def carry(network: nn.Module, source: Source, name: str, anew: Iterable[str] = ()) -> None:
    """Load a model's "G" or "D" into a network under a plan, and start what modulates its kernels.

    Where the source was itself modulated, its effective kernels are what is carried over. Layers whose policy
    is fresh and those called in anew keep their random numbers, and so does what belongs to no layer where
    the source has nothing of it.

    Raises:
        UserError: when the tensors are not this network's.
    """
    anew = tuple(f"{key}." for key in anew)
    tensors = {k: v for k, v in folded(network, source, name).items() if not k.startswith(anew)}
    layers = tuple(f"{key}." for key, module in network.named_modules() if hasattr(module, "policy"))
    beside = {f"{layer.name}.{key}" for layer in layers_of(network) for key in _beside(layer.kernel)}
    own = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if (key.startswith(layers) or key in tensors) and not key.startswith(anew)
    }
    wrong = sorted((own.keys() - beside) ^ tensors.keys())
    wrong += [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if wrong:
        raise UserError(
            f"the source's {name} does not fit this script's: {wrong[0]} is missing, new or of another shape"
            f" ({len(wrong)} such tensors); give a source trained by wgan_64.py"
        )
    fresh = tuple(f"{key}." for key, module in network.named_modules() if _fresh(module))
    wanted = {key: tensor for key, tensor in tensors.items() if not key.startswith(fresh)}
    network.load_state_dict(wanted, strict=False)
    for layer in layers_of(network):
        layer.kernel.start()
        if layer.norm is not None and not layer.norm.fixed:
            for cancelled in layer.kernel.policy.cancelled:
                getattr(layer.kernel, cancelled).requires_grad_(False)


def _fresh(module: nn.Module) -> bool:
    return hasattr(module, "policy") and module.policy.fresh


def _beside(kernel: nn.Module) -> Iterable[str]:
    """The names of what its policy puts beside a kernel."""
    return kernel.policy.shapes(tuple(kernel.weight.shape), kernel.out_axis)


@torch.no_grad()
def folded(network: nn.Module, source: Source, name: str) -> Tensors:
    """The tensors of a model as a network without modulation has them: its effective kernels.

    What filter selection adds to a layer's output is taken from the mean that the normalisation after it
    subtracts, which is the same.

    Raises:
        UserError: when no normalisation follows that could take it.
    """
    tensors, policies = dict(source.tensors(name)), source.policies(name)
    layers = layers_of(network)
    if policies is None or len(policies) != len(layers):
        return tensors
    with torch.random.fork_rng(devices=[]):  # a layer draws the weights that are replaced at once
        for layer, policy in zip(layers, policies, strict=True):
            if not policy.modulates:
                continue
            kernel = layer.kernel.under(policy)
            names = {key: f"{layer.name}.{key}" for key in kernel.state_dict()}
            if all(name in tensors for name in names.values()):  # else it never was, such as
                own = {key: tensors.pop(name) for key, name in names.items()}  # a critic that saw instead
                kernel.load_state_dict(own)
                kernel.start()  # from this weight, ...
                kernel.load_state_dict(own)  # ... from which the policy's tensors have moved
                if name == "D" and source.loss == "wgan":
                    Clip(kernel, source.settings["clip"])
                tensors[f"{layer.name}.weight"] = kernel.kernel()
                tensors |= {f"{layer.name}.{key}": own[key] for key in own if key == "bias"}
                added = policy.bias(kernel)
                if added is not None and added.any():
                    _add_before(tensors, network, layer, added, name)
    return tensors


def _add_before(tensors: Tensors, network: nn.Module, layer: Any, added: Tensor, name: str) -> None:
    norms = {module: key for key, module in network.named_modules()}
    if layer.norm is None:
        raise UserError(
            f"the source's {name} adds to the output of {layer.name} (filter_selection), which no layer of a"
            " new run can take over: give a source with another rescale"
        )
    mean = f"{norms[layer.norm]}.running_mean"
    tensors[mean] = tensors[mean] - added
