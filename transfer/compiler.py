"""The compiler: what torch.compile makes of a function, or the function itself where it makes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """function, compiled for each shape of its inputs; from the first failure on, as it is.

    A failure costs a printed line and speed. Backward passes are compiled with the first forward pass, where
    this release of torch can, so that they fail there too and not in the middle of a step.
    """
    quick, first = torch.compile(function, dynamic=False), True

    def call(*inputs: Any) -> Any:
        nonlocal quick, first
        if quick is not function:
            try:
                with _backward_too() if first else nullcontext():
                    result = quick(*inputs)
                first = False
                return result
            except Exception as error:  # torch, the compiler and the linker fail in many ways
                _say(reason(error))
                quick = function
        return function(*inputs)

    return call


def _backward_too() -> Any:
    """While backward passes are compiled at once."""
    import torch._functorch.config as config  # not loaded before something is compiled

    name = "force_non_lazy_backward_lowering"
    return config.patch(name, True) if hasattr(config, name) else nullcontext()


@cache  # once for each reason
def _say(why: str) -> None:
    print(f"torch.compile failed ({why}): going on without, which is slower")


def reason(error: Exception) -> str:
    """The first line of what an error says, or its kind; of one that torch.compile wraps, what is in it."""
    error = getattr(error, "inner_exception", error)
    return (str(error).splitlines() or [type(error).__name__])[0]
