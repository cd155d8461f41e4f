"""The compiler: what torch.compile makes of a function, or the function itself where it makes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """function, compiled for each shape of its inputs; from the first failure on, as it is.

    A failure costs a printed line and speed.
    """
    quick = torch.compile(function, dynamic=False)

    def call(*inputs: Any) -> Any:
        nonlocal quick
        if quick is not function:
            try:
                return quick(*inputs)
            except Exception as error:  # torch, the compiler and the linker fail in many ways
                _say(reason(error))
                quick = function
        return function(*inputs)

    return call


@cache  # once for each reason
def _say(why: str) -> None:
    print(f"torch.compile failed ({why}): going on without, which is slower")


def reason(error: Exception) -> str:
    """The first line of what an error says, or its kind; of one that torch.compile wraps, what is in it."""
    error = getattr(error, "inner_exception", error)
    return (str(error).splitlines() or [type(error).__name__])[0]
