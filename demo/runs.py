"""The runs: how far each one is, as its folder tells, and starting and stopping one as a person would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer import UserError, drawing
from transfer.folder import holder, lines
from transfer.settings import ROOT, command, complete, description_of, flags, plain

SAID = 8  # lines of a program's output that are shown when it ends before its run begins


@dataclass(frozen=True)
class State:
    """How far a run is, as its folder tells.

    Attributes:
        step, iterations: so many iterations are done, of so many.
        process: the one that works on it; None when none does.
        seconds_left: by the speed of the last line of its log; None before the first line.
        losses: a row of iteration, value and loss (its name) for each number of the log.
        grid: the newest grid of samples, or None.
        warning: the newest one, or an empty text.
        command: the line that it was started by.
        resume: the line that goes on with it.
    """

    step: int
    iterations: int
    process: int | None
    seconds_left: float | None
    losses: list[dict[str, Any]]
    grid: Path | None
    warning: str
    command: str
    resume: str

    @classmethod
    def of(cls, run: Path) -> State:
        """Read a run's folder.

        Raises:
            UserError: when its settings.json is missing or damaged.
        """
        told, log = description_of(run), lines(run, "log")
        try:
            settings, script = told["settings"], _script(told["script"])
            iterations = int(settings["iterations"])
            images = settings["batch_size"] * settings.get("critic_steps", 1)  # that an iteration sees
        except (KeyError, TypeError, ValueError):
            if holder(run) is not None:
                raise UserError(f"{run.name} is beginning: look again in a moment") from None
            raise UserError(
                f"the settings.json of {run.name} is missing or damaged: --resume makes a new one from its"
                " checkpoint"
            ) from None
        measured = [line for line in log if line.get("images_per_second")]
        grids = sorted(path for path in run.glob("samples/*.png") if path.stem.isdigit())
        step = max([line["step"] for line in log] + [int(path.stem) for path in grids], default=0)
        rate = measured[-1]["images_per_second"] if measured else None
        return cls(
            step=step,
            iterations=iterations,
            process=holder(run),
            seconds_left=(iterations - step) * images / rate if rate else None,
            losses=[
                {"iteration": line["step"], "value": value, "loss": name}
                for line in measured
                for name, value in line.items()
                if name not in ("step", "images_per_second") and isinstance(value, int | float)
            ],
            grid=grids[-1] if grids else None,
            warning=([""] + [line["warning"] for line in log if "warning" in line])[-1],
            command=command(script, *shlex.split(flags(_changed(script.stem, settings)))),
            resume=command(script, "--resume", _near(run)),
        )


def _script(name: str) -> Path:
    """The file of a script of this name, at the top level or one of the methods."""
    return ROOT / name if (ROOT / name).exists() else ROOT / "methods" / name


def _changed(script: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that are not its script's defaults; all of them where that is not here."""
    try:
        script_settings = drawing.script(script).Settings
        settings, defaults = complete(script_settings, settings), plain(script_settings())
    except (UserError, AttributeError):
        defaults = {}
    left_out = ("resume", "dry_run")
    return {k: v for k, v in settings.items() if k not in left_out and v is not None and v != defaults.get(k)}


class Starter:
    """Starts one run at a time, as its command would from a terminal, in a session of its own.

    The run goes on when the page ends. What the program writes is kept until then.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.waits = False  # for the run's folder
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    @property
    def _output(self) -> Path:
        return Path(self._folder.name, "output")

    @staticmethod
    def line(script: str, images: Path, iterations: int) -> str:
        """The command of a new run, which logs and samples often enough to be looked at.

        script: its path in the project's folder.
        """
        often = {"log_every": 10, "sample_every": 20}
        settings = {"images": _near(images), "iterations": iterations, **often}
        return command(ROOT / script, *shlex.split(flags(settings)))

    def start(self, line: str) -> None:
        """Start a command.

        Raises:
            UserError: when the run that was started before is still going on.
        """
        if self.running():
            raise UserError("The run that this page has started is still going on: stop it first")
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                shlex.split(line),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.waits = True

    def found(self, runs: Iterable[Path]) -> Path | None:
        """The folder of the run that was started last, when it is first seen among runs.

        Raises:
            UserError: when the program has ended before its run began, with what it has said.
        """
        if not self.waits or self.process is None:
            return None
        own = next((run for run in runs if holder(run) == self.process.pid), None)
        ended = self.process.poll()
        self.waits = own is None and ended is None
        if own is None and ended:
            raise UserError(f"The run has not begun. The program said: {self.said()}")
        return own

    def running(self) -> bool:
        """Whether the program that was started last still runs."""
        return self.process is not None and self.process.poll() is None

    def said(self) -> str:
        """The last lines that it has written."""
        text = self._output.read_bytes().decode(errors="replace")
        return "\n".join(text.splitlines()[-SAID:])


def stop(run: Path) -> None:
    """Ask the process that works on a run to save and to end.

    Raises:
        UserError: when none does.
    """
    process = holder(run)
    if process is None:
        raise UserError(f"Nothing works on {run.name} on this machine: it has ended already")
    os.kill(process, signal.SIGTERM)


def _near(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
