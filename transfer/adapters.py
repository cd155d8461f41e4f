"""The adapters: what a target domain adds to its source, as a small file, to be applied and mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from transfer import UserError, checkpoints, drawing
from transfer.card import card_of
from transfer.plan import others_of
from transfer.settings import ROOT
from transfer.shared import Source, carry, folded

Tensors = dict[str, dict[str, Tensor]]  # of "ema", the averaged generator, and of "D"


@dataclass(frozen=True)
class Adapter:
    """A target domain's own tensors, which its source has not, of the averaged generator and the critic.

    Attributes:
        networks: "ema" and "D", each the tensors by their name; none of a critic that is not the source's.
        source: the fingerprint of the source that they belong to.
        card: what the run's folder says of it: script, settings, iterations.
    """

    networks: Tensors
    source: str
    card: dict[str, Any]

    @classmethod
    def of(cls, run: Path, best: bool = False, source: Path | None = None) -> Adapter:
        """What a checkpoint, or a run's newest or best one, has that the run's source has not.

        source: where the source is, if not where it was when the run began.

        Raises:
            UserError: when the run was not carried over from a source, or that is not there.
        """
        path, state = checkpoints.of_run(run, best)
        settings = state["settings"]
        if settings.get("source") is None or "G" not in settings:
            raise UserError(f"{run} was not carried over from a source under a plan: share it whole")
        where = Path(settings["source"]) if source is None else source
        if not where.exists() and (ROOT / where).exists():
            where = ROOT / where  # as settings.plain tells of the project's own files
        if not where.exists():
            raise UserError(f"{where}, the run's source, is not there: give --source with where it is now")
        origins = Source.read(where)
        networks: Tensors = {}
        for name, origin in _carried(origins).items():
            own = state.get(name, {})
            if not origin.keys() <= own.keys():  # no critic, or one of another kind than the source's
                own = {}
            networks[name] = {k: v.cpu() for k, v in own.items() if not _same(v, origin.get(k))}
        return cls(networks, fingerprint(origins), card_of(path, state))

    @classmethod
    def between(cls, source: Source, model: Source) -> Adapter:
        """What a model's generator has that its source's has not; the tensors are the model's, not copies."""
        start = _carried(source)["ema"]
        own = {key: tensor for key, tensor in model.generator.items() if not _same(tensor, start.get(key))}
        card = {"script": f"{model.script}.py", "settings": model.settings}
        return cls({"ema": own}, fingerprint(source), {**card, "arguments": {"G": model.arguments}})

    @classmethod
    def read(cls, file: Path) -> Adapter:
        """Read a file that write has written.

        Raises:
            UserError: when it is none.
        """
        try:
            with safe_open(file, "pt") as handle:
                card = json.loads((handle.metadata() or {})["adapter"])
                keys = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118, no mapping
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            why = "its header tells of none" if isinstance(error, KeyError) else error
            raise UserError(
                f"{file} is no adapter ({why}): write one with python -m transfer adapter"
            ) from None
        networks: Tensors = {"ema": {}, "D": {}}
        for key, tensor in keys.items():
            name, _, rest = key.partition(".")
            networks[name][rest] = tensor.float() if tensor.is_floating_point() else tensor
        return cls(networks, card.pop("source"), card)

    def write(self, file: Path) -> None:
        """Write a safetensors file, the generator's tensors in half precision."""
        tensors = {
            f"{name}.{key}": (
                tensor.half() if name == "ema" and tensor.is_floating_point() else tensor
            ).contiguous()
            for name, own in self.networks.items()
            for key, tensor in own.items()
        }
        data = save(tensors, {"adapter": json.dumps({**self.card, "source": self.source})})
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.write(file, lambda handle: handle.write(data))

    def as_model(self, source: Source) -> Source:
        """A model of this adapter's script and plan, with the source's tensors."""
        script, settings = Path(self.card["script"]).stem, self.card["settings"]
        arguments = (self.card.get("arguments") or {}).get("G") or source.arguments
        return replace(source, script=script, settings=settings, arguments=arguments)

    @property
    def plan(self) -> tuple[object, ...]:
        """What adapters must have in common to be mixed: the policies of G and D, and the script."""
        settings = self.card["settings"]
        return tuple(str(settings.get(key)) for key in ("G", "D", "rescale")), self.card["script"]


def applied(source: Source, adapters: Sequence[Adapter], shares: Sequence[float]) -> Tensors:
    """The source with each adapter's difference from it, times its share, added.

    One adapter with share 1 gives the run that it is of; shares that add up to 1 go between target domains, a
    smaller sum towards the source. What is no float is the first adapter's.

    Raises:
        UserError: when the adapters are of another source, or of different plans.
    """
    first, wanted = adapters[0], fingerprint(source)
    for adapter in adapters:
        if adapter.source != wanted:
            raise UserError("the adapter was made for another source: give that one as --source")
        if adapter.plan != first.plan:
            raise UserError("the adapters have different plans: mix those of one G(i,j,k), D(i,j,k)")
    result: Tensors = {}
    for name in first.networks:
        if not any(adapter.networks[name] for adapter in adapters):
            result[name] = _carried(source)[name]
            continue
        start = _start(first.as_model(source), source, "G" if name == "ema" else name)
        result[name] = dict(start)
        for key in {key: None for adapter in adapters for key in adapter.networks[name]}:
            mine = [adapter.networks[name].get(key, start[key]) for adapter in adapters]
            result[name][key] = mine[0]
            if mine[0].is_floating_point():
                parts = (share * (each - start[key]) for share, each in zip(shares, mine, strict=True))
                result[name][key] = mine[0] if tuple(shares) == (1,) else start[key] + sum(parts)
    return result


def _start(model: Source, source: Source, name: str) -> dict[str, Tensor]:
    """What a run of the model's script began with; what the source has nothing of counts from zero."""
    network = drawing.untrained(model, name)
    carry(network, source, name)
    others = {id(parameter) for parameters in others_of(network).values() for parameter in parameters}
    for key, parameter in network.named_parameters():
        if id(parameter) in others and key not in source.tensors(name):
            parameter.data.zero_()
    return network.state_dict()


def fingerprint(source: Source) -> str:
    """SHA-256 over the source's tensors."""
    digest = hashlib.sha256()
    for name, tensors in _networks(source).items():
        for key in sorted(tensors):
            digest.update(f"{name}.{key}".encode() + tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _networks(source: Source) -> Tensors:
    return {"ema": source.generator, "D": source.discriminator or {}}


def _carried(source: Source) -> Tensors:
    """What a run takes over from a source: of one that was itself modulated, its effective kernels."""
    networks = _networks(source)
    for name, letter in (("ema", "G"), ("D", "D")):
        if networks[name] and source.policies(letter) is not None:
            networks[name] = folded(drawing.untrained(source, letter), source, letter)
    return networks


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(tensor.cpu(), other)
