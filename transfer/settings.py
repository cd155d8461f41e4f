"""The settings: a script's constants as a frozen dataclass, and the command line made from the same class."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from transfer import UserError
from transfer.plan import Layers, Plan, Split, plan
from transfer.signals import Stop

S = TypeVar("S")
Augmentation = Literal["none", "flip", "slight", "strong", "diffaugment"]  # see augment.Augment
Extractor = Literal[
    "inception", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"
]  # see fid.extractors


def command_line(settings: type[S], default: S | None = None) -> S:
    """The settings with what the command line overrides (--G 1 2 2 --iterations 2000 --dry-run).

    Called before torch is imported, so that a wrong value is answered at once; default is an instance whose
    values take the place of the class's own. Ends the program with exit code 2 after one sentence when a
    value is wrong, and with 0 after --help.
    """
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_plan_rule)
    defaults = {} if default is None else {"default": default}
    with user_errors():
        description = sys.modules["__main__"].__doc__
        chosen = tyro.cli(settings, description=description, registry=registry, **defaults)
        check(chosen)
    return chosen


def _plan_rule(info: Any) -> Any:
    """How tyro reads a plan: any number of words, so that the plan itself says what is wrong with them."""
    import tyro

    if info.type != Plan:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="I J K|NAMES",
        instance_from_str=lambda words: plan(*words),
        is_instance=lambda value: isinstance(value, Split | Layers),
        str_from_instance=lambda value: [str(each) for each in value],
    )


LOWEST = {  # the least value of each number, by the name every script gives it
    "iterations": 1,
    "batch_size": 2,  # batch normalisation needs two images
    "critic_steps": 1,
    "autoencoder": 1,
    "latent": 1,
    "width": 1,
    "sample_every": 1,
    "save_every": 1,
    "log_every": 1,
    "score_every": 0,
    "seed": 0,
    "l2_sp": 0,
    "distillation": 0,
    "ewc": 0,
    "consistency": 0,
    "lecam": 0,
    "adapt": 0,
    "perceptual": 0,
    "spread": 0,
    "stay": 0,
    "noise": 0,
}
POSITIVE = ("learning_rate", "latent_rate", "clip", "penalty")


def check(settings: Any) -> None:
    """Refuse values that no run can have.

    Raises:
        UserError: naming the setting, its value and the least value it can have.
    """
    values = vars(settings)
    for name, least in LOWEST.items():
        if name in values and values[name] < least:
            raise UserError(f"{name} is {values[name]}: give at least {least}")
    for name in POSITIVE:
        if name in values and not 0 < values[name] < float("inf"):
            raise UserError(f"{name} is {values[name]}: give a number above 0")
    if not 0 <= values.get("ema_decay", 0) < 1:
        raise UserError(
            f"ema_decay is {values['ema_decay']}: give a number from 0 to just below 1, such as 0.999"
        )


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one sentence, not a traceback, on a UserError; the exit status is the error's."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    except Stop as stop:
        print(f"stopped by {stop.name} {stop.sentence}")
        raise
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError" and not isinstance(error, MemoryError):
            raise
        print(f"{Path(sys.argv[0]).name}: the memory is used up: give a smaller batch_size", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
