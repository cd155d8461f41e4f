"""The state of a run: what its networks, optimizers and random numbers are, into a checkpoint and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from transfer import UserError
from transfer.weights import Average

Parts = dict[str, Any]  # by name: networks and other modules, optimizers, a weights.Average


def of(parts: Parts, device: torch.device) -> dict[str, Any]:
    """The state of the parts and of the random numbers: tensors, for checkpoints.Checkpoints.save."""
    state: dict[str, Any] = {"random": {"cpu": torch.get_rng_state()}, "optimizers": {}}
    if device.type == "cuda":
        state["random"]["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type != "cpu":
        state["random"][device.type] = getattr(torch, device.type).get_rng_state()
    for name, part in parts.items():
        if isinstance(part, Average):
            state["ema"] = part.network.state_dict()
        elif _is_optimizer(part):
            state["optimizers"][name] = part.state_dict()
        else:
            state[name] = part.state_dict()
    return state


def load(parts: Parts, state: dict[str, Any], path: Path, device: torch.device) -> None:
    """Take up a state.

    Args:
        path: where it was read from.

    Raises:
        UserError: when it is of other parts.
    """
    try:
        for name, part in parts.items():
            if isinstance(part, Average):
                part.network.load_state_dict(state["ema"])
            elif _is_optimizer(part):
                _load_optimizer(part, state["optimizers"][name])
            else:
                part.load_state_dict(state[name])
        torch.set_rng_state(state["random"]["cpu"])
    except (KeyError, RuntimeError, ValueError):
        raise UserError(f"{path} does not fit this script's networks: start a new run") from None
    own = None if device.type == "cpu" else state["random"].get(device.type)
    if own is not None:
        where = (device,) if device.type == "cuda" else ()  # mps is one device
        getattr(torch, device.type).set_rng_state(own, *where)
    elif device.type != "cpu" or len(state["random"]) > 1:
        print("the run was on another kind of device: it goes on, but not bit for bit")


def learning(parts: Parts) -> dict[str, int]:
    """How many numbers each optimizer teaches."""
    return {
        name: sum(tensor.numel() for group in part.param_groups for tensor in group["params"])
        for name, part in parts.items()
        if _is_optimizer(part)
    }


def _is_optimizer(part: Any) -> bool:
    return isinstance(part, torch.optim.Optimizer)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load its state, but for what the device decides: the state may come from another, or another layout."""
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved["capturable"] = own["capturable"]
    optimizer.load_state_dict(state)
    for parameter, own in optimizer.state.items():
        for name, tensor in own.items():
            if tensor.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
