"""The engine: where a run computes."""

from __future__ import annotations

import torch

from transfer import UserError


def choose_device(name: str | None = None) -> torch.device:
    """The device called name; without a name CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: when torch does not know the name or cannot use the device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used here ({reason}): give cpu, or leave it out"
        ) from None
    return device
