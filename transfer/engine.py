"""The engine: where a run computes, and with which convolutions."""

from __future__ import annotations

import torch
from torch import nn

from transfer import UserError
from transfer.layers import Conv, ConvUp

PAYS_FROM = 200  # iterations; compiling the kernels takes a minute or two, and saves a third of each


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


def tune(*networks: nn.Module, iterations: int) -> None:
    """Choose the convolutions of networks that are to be trained together.

    On a CPU without matrix instructions the wide 4x4 convolutions of stride 2 go through transfer.kernels,
    which needs 2.56 times fewer products and agrees with torch up to rounding, if the run is long enough to
    pay for compiling it and there is something to compile it with. Elsewhere torch's own are the fast ones.
    """
    device = next(networks[0].parameters()).device
    wanted = iterations >= PAYS_FROM and device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
    few_products = wanted and _compiles()
    for network in networks:
        for module in network.modules():
            if isinstance(module, Conv | ConvUp):
                module.few_products = few_products and module.stride == 2


def _compiles() -> bool:
    """Whether torch.compile works here: it needs a C++ compiler and Python's headers."""
    try:
        torch.compile(torch.neg)(torch.zeros(8))
    except Exception:  # torch, the compiler and the linker fail in many ways
        print("a C++ compiler and Python's headers would make this faster; going on without")
        return False
    return True
