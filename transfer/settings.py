"""The settings: a script's constants as a frozen dataclass, and the command line made from the same class."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from transfer import UserError
from transfer.plan import Named, Plan, Split, plan
from transfer.signals import Stop

S = TypeVar("S")
ROOT = Path(__file__).parents[1]
LATEST = "latest"  # for resume: the newest run of the same script
# In --help: before which setting a group begins, and what it is called. Scripts keep this order.
HEADINGS = {"source": "WHAT", "images": "WHAT", "G": "PLAN", "iterations": "TRAINING", "out": "OUTPUT"}
HEADINGS |= {"score_every": "SCORES", "resume": "START"}


@dataclass(frozen=True)
class Bound:
    """Annotated[type, Bound(...)]: what a number can be, in words and as least <= number < below."""

    sentence: str
    least: float = 0
    below: float = float("inf")

    def holds(self, number: float) -> bool:
        """Whether a number, which may be NaN, is within it."""
        return self.least <= number < self.below


SMALLEST = sys.float_info.min  # above 0
Count = Annotated[int, Bound("at least 1", 1)]
Whole = Annotated[int, Bound("at least 0")]
Batch = Annotated[int, Bound("at least 2", 2)]  # batch normalisation needs two images
Seed = Annotated[int, Bound("a whole number from 0 to 18446744073709551615", 0, 2**64)]  # what torch takes
Weight = Annotated[float, Bound("at least 0")]
Positive = Annotated[float, Bound("a number above 0", SMALLEST)]
Decay = Annotated[float, Bound("a number from 0 to just below 1, such as 0.999", 0, 1)]
Share = Annotated[float, Bound("a number from 0 to 0.5, such as 0.2", 0, math.nextafter(0.5, 1))]

Size = Literal[32, 64]  # pixels
Channels = Literal[1, 3]  # grey, or red, green and blue
Optimizer = Literal["rmsprop", "adam"]  # see weights.optimizer
Loss = Literal["source", "wgan", "wgan_gp"]  # see shared.Source.loss
Augmentation = Literal["none", "flip", "slight", "strong", "diffaugment"]  # see augment.Augment
Extractor = Literal[
    "inception", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"
]  # see fid.extractors


def command_line(settings: type[S], default: S | None = None) -> S:
    """The settings with what the command line overrides (--G 1 2 2 --iterations 2000 --dry-run).

    Called before torch is imported, so that a wrong value is answered at once; default is an instance whose
    values take the place of the class's own, and so do those of the run that --resume names. Ends the program
    with exit code 2 after one sentence when a value is wrong, and with 0 after --help.
    """
    import tyro

    whole = all(field.default is not MISSING for field in fields(settings))
    if default is None and whole and Path.cwd() != ROOT:
        default = settings()
    defaults = {} if default is None else {"default": at_home(default)}
    with user_errors():
        description = sys.modules["__main__"].__doc__
        read = partial(tyro.cli, settings, description=description, registry=registry())
        if {"-h", "--help"} & {*sys.argv[1:]}:
            told = TextIOWrapper(BytesIO(), sys.stdout.encoding)  # by which tyro chooses its lines
            with redirect_stdout(told), suppress(SystemExit):
                read(**defaults)
            told.seek(0)
            print("\n".join(_with_headings(told.read())))
            raise SystemExit
        chosen = read(**defaults)
        if getattr(chosen, "resume", None) is not None:
            script = Path(sys.argv[0])
            run = run_of(chosen.resume, chosen.out, script)
            chosen = replace(read(default=at_home(stored(settings, run, script))), resume=run)
        check(chosen)
    return chosen


def _with_headings(text: str) -> Iterator[str]:
    """The lines of tyro's help, with a heading before the first setting of each group."""
    told = set()
    for line in text.splitlines():
        flag = re.match("[│ ] --([A-Za-z-]+)", line)
        heading = flag and HEADINGS.get(flag[1].replace("-", "_"))
        if heading and heading not in told:
            told.add(heading)
            yield f"{line[0]} {heading}".ljust(len(line) - 1) + line[-1]
        yield line


def registry() -> Any:
    """How tyro reads plans, and paths, in which ~ is the user's folder wherever the shell leaves it."""
    import tyro

    rules = tyro.constructors.ConstructorRegistry()
    rules.primitive_rule(_plan_rule)
    rules.primitive_rule(_path_rule)
    return rules


def _path_rule(info: Any) -> Any:
    import tyro

    if info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: Path(os.path.expanduser(words[0])),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )


def _plan_or_error(words: list[str]) -> Plan | UserError:
    """The plan; or what is wrong with it, which check raises, since it knows the flag."""
    try:
        return plan(*words)
    except UserError as error:
        return error


def at_home(settings: S) -> S:
    """Settings in which the paths that are the script's own defaults are in the project's folder."""
    own = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, Path) and value == field.default and Path.cwd() != ROOT:
            own[field.name] = ROOT / value
    return replace(settings, **own)


def _plan_rule(info: Any) -> Any:
    """How tyro reads a plan: any number of words, so that the plan itself says what is wrong with them."""
    import tyro

    if info.type != Plan:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="I J K|NAMES",
        instance_from_str=_plan_or_error,
        is_instance=lambda value: isinstance(value, Split | Named),
        str_from_instance=lambda value: [str(each) for each in value],
    )


# ----------------------------------------------------------------------------------------------------------
# A run's settings are read again when it goes on; none of this needs torch.


@dataclass(frozen=True)
class Before:
    """Annotated[type, Before(value)]: what runs did from before the setting existed, if not its default.

    A default that changes needs one too: results from before the setting still mean the old one.
    """

    value: Any


def complete(script: type, stored: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run was made with, as plain gives them: each field of its script has a value.

    A run from before a field existed does not tell of it: it reads as what runs did then.
    """
    return {name: stored.get(name, value) for name, value in unsaid(script).items()}


def unsaid(script: type) -> dict[str, Any]:
    """What each field of a script's Settings reads as in a run that does not tell of it."""
    hints = get_type_hints(script, include_extras=True)
    before = {
        name: [b.value for b in getattr(hint, "__metadata__", ()) if isinstance(b, Before)]
        for name, hint in hints.items()
    }
    return {field.name: _plain(*before[field.name] or [field.default]) for field in fields(script)}


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON has them: paths as text, those in the project from its folder on; plans as lists."""
    return {name: _plain(value) for name, value in vars(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.relative_to(ROOT) if value.is_relative_to(ROOT) else value)
    return list(value) if isinstance(value, tuple) else value


def run_of(resume: Path, out: Path, script: Path) -> Path:
    """The folder of the run that is to go on: resume, or with "latest" the newest of the script in out.

    Raises:
        UserError: when it is no run with a checkpoint, or another script's.
    """
    if str(resume) != LATEST or resume.is_dir():
        if not _checkpoints(resume):
            what = "is a file" if resume.is_file() else "does not exist"
            what = "holds no checkpoint" if resume.is_dir() else what
            raise UserError(
                f"{resume} {what}: give a run's folder, such as {out / '0001-...'}, or {LATEST}; or leave"
                " --resume out to start a run"
            )
        name = description_of(resume).get("script", script.name)
        if name != script.name:
            places = [ROOT / name, ROOT / "methods" / name]
            other = command(next(filter(Path.exists, places), Path(name)), "--resume", resume)
            raise UserError(f"{resume} is a run of {name}: resume it with {other}")
        return resume
    for folder in sorted(out.glob("*/"), reverse=True):
        copied = script.name if (folder / script.name).is_file() else None
        if description_of(folder).get("script", copied) == script.name and _checkpoints(folder):
            return folder
    raise UserError(
        f"{out} holds no run of {script.name} with a checkpoint: give the run's folder, or leave --resume"
        " out to start one"
    )


def _checkpoints(run: Path) -> bool:
    return any(path.stem.isdigit() for path in run.glob("checkpoints/*.pt"))


def description_of(run: Path) -> dict[str, Any]:
    """What a run's settings.json holds; nothing when it is missing or cut off."""
    with suppress(OSError, ValueError):
        content = json.loads((run / "settings.json").read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("settings"), dict):
            return content
    return {}


def stored(settings: type[S], run: Path, script: Path) -> S:
    """The settings that a run was made with; from its newest checkpoint when settings.json does not tell.

    Raises:
        UserError: when neither holds settings of this script.
    """
    told = description_of(run).get("settings")
    if told is None:
        from transfer.checkpoints import Checkpoints  # which needs torch

        _, state = Checkpoints(run).newest()
        told = state.get("settings", {}) if state.get("script", script.name) == script.name else {}
        print(f"{run / 'settings.json'} is missing or damaged: the settings are those of the checkpoint")
    hints = get_type_hints(settings)
    values = complete(settings, told) | {"resume": None, "dry_run": False}
    return settings(**{name: _from_plain(hints[name], value) for name, value in values.items()})


def flags(values: dict[str, Any]) -> str:
    """Settings, as plain gives them, as the flags that they are given by."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(value if isinstance(value, list) else [value])]
    return shlex.join(map(str, words))


def _from_plain(hint: Any, value: Any) -> Any:
    """A value of plain's as the field has it."""
    if value is not None and Path in (hint, *get_args(hint)):
        return Path(value)
    return plan(*value) if isinstance(value, list) else value


def command(script: Path, *words: object) -> str:
    """The line that starts a script from where this program was started, by the same Python."""
    package = (script.parent / "__init__.py").exists()
    what = ("-m", f"{script.parent.name}.{script.stem}") if package else (_near(script),)
    named = [name for name in ("python", "python3") if _same(shutil.which(name), sys.executable)]
    return shlex.join(map(str, ([*named, _near(Path(sys.executable))][0], *what, *words)))


def _near(path: Path) -> Path:
    """path as it is found from the current folder, where it is below that."""
    with suppress(ValueError):
        return path.absolute().relative_to(Path.cwd())
    return path


def _same(found: str | None, python: str) -> bool:
    return found is not None and os.path.abspath(found) == os.path.abspath(python)


def check(settings: Any) -> None:
    """Refuse values that no run can have, by the bounds beside the fields' types.

    Raises:
        UserError: naming the setting, its value and what it can be; or two that exclude each other.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    defaults = {field.name: field.default for field in fields(settings)}
    for name, value in vars(settings).items():
        if isinstance(value, UserError):
            raise UserError(f"--{name} {value}")
        for bound in getattr(hints[name], "__metadata__", ()):
            if isinstance(bound, Bound) and value is not None and not bound.holds(value):
                raise UserError(f"{name} is {value}: give {bound.sentence}")
        if isinstance(value, Plan) and value.layers != defaults[name].layers:
            count = defaults[name].layers
            raise UserError(
                f"--{name} {value} is for {value.layers} layers, and the network has {count}: give three"
                f" numbers with i + j + k = {count}, such as {' '.join(map(str, defaults[name]))},"
                f" or {count} names"
            )
    if getattr(settings, "hold_out", 0) and settings.reference is not None:
        raise UserError(
            f"hold_out {settings.hold_out} and reference {settings.reference} both say what to score against:"
            " leave one of them out"
        )


@contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one sentence, not a traceback, on a UserError; the exit status is the error's."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, head say, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None  # 128 + SIGPIPE, as a shell tells it
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    except Stop as stop:
        print(f"stopped by {stop.name} {stop.sentence}")
        raise
    except Exception as error:
        if not (sentence := limit(error)):
            raise
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def limit(error: Exception) -> str:
    """The sentence for an error that comes from the machine's limits; nothing for others."""
    text, of_torch = str(error), isinstance(error, RuntimeError | TypeError)
    full = "can't allocate memory" in text or "out of memory" in text  # torch's words, on a CPU and on mps
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or (of_torch and full):
        return f"the memory is used up: {_less()}"
    if of_torch and "MPS" in text and "CUDA" not in text:  # which has an MPS of its own
        return f"mps cannot do all of this ({text.splitlines()[0]}): give --device cpu"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'what this prints'} cannot be written ({error.strerror}): make room"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"{str(error.filename)[:60]}... is a longer name than the system allows: give a shorter one"
    return ""


def _less() -> str:
    """What takes less memory, by what the command that runs can be told."""
    program = sys.modules["__main__"]
    command = getattr(program, (sys.argv[1:] or [""])[0], None)  # of a program with several
    has = getattr(getattr(program, "Settings", command), "__annotations__", {})
    ways = {
        "batch_size": "give a smaller --batch-size, or fewer images",
        "count": "give a smaller --count, or fewer images",
        "images": "give fewer images",
    }
    found = [way for name, way in ways.items() if name in has]
    return [*found, "end other programs, or take a machine with more"][0]
