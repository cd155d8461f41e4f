"""The board: runs as TensorBoard shows them, side by side, from what their folders hold."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transfer import UserError
from transfer.folder import grids, lines

EVERY = 5.0  # seconds between two looks at the runs


class Mirror:
    """A run's log, scores and grids as an event file of TensorBoard, which follows while the run grows."""

    def __init__(self, run: Path, to: Path) -> None:
        self.run, self.to = run, to
        self._begin()

    def _begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.to, ignore_errors=True)
        self._writer, self._told = SummaryWriter(str(self.to)), {"log": 0, "scores": 0}
        self._grids: set[int] = set()

    def follow(self) -> None:
        """Write what is new. A run that has gone back to a checkpoint is written anew, so nothing doubles."""
        found = {name: lines(self.run, name) for name in self._told}
        if any(len(found[name]) < count for name, count in self._told.items()):
            self._writer.close()
            self._begin()
        for name, count in self._told.items():
            for line in found[name][count:]:
                for key, value in numbers(line).items():
                    self._writer.add_scalar(f"{name}/{key}", value, line["step"])
            self._told[name] = len(found[name])
        for step, picture in grids(self.run).items():
            if step not in self._grids:
                pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image("samples", pixels, step, dataformats="HWC")
                self._grids.add(step)
        self._writer.flush()


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log or of the scores by name; of a part, such as heldout, heldout/kid."""
    found = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= {f"{key}/{name}": number for name, number in numbers(value).items()}
        elif isinstance(value, int | float) and key != "step" and not isinstance(value, bool):
            found[key] = value
    return found


def runs(folder: Path) -> list[Path]:
    """The runs in a folder, or the folder itself where it is one.

    Raises:
        UserError: when there is none.
    """
    found = sorted(path.parent for path in folder.rglob("settings.json"))
    if not found:
        raise UserError(f"{folder} holds no run: give a run's folder, or one with runs in it")
    return found


def write(folder: Path, to: Path, known: Sequence[Mirror] = ()) -> list[Mirror]:
    """Write the event files of all runs in a folder to `to`, each in a folder of its run's name.

    known: the mirrors that are there already; what is new in their runs is added.
    """
    try:
        import tensorboard  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("tensorboard is not installed: pip install -r requirements-tensorboard.txt") from None
    above, old = folder.resolve().parent, {mirror.run: mirror for mirror in known}
    found = [old.get(run) or Mirror(run, to / run.resolve().relative_to(above)) for run in runs(folder)]
    for mirror in found:
        mirror.follow()
    return found


def show(folder: Path, port: int) -> None:
    """Start TensorBoard on the runs in a folder, and follow them until Ctrl-C. It leaves no file behind."""
    with tempfile.TemporaryDirectory() as place:
        mirrors = write(folder, Path(place))
        words = ["-m", "tensorboard.main", "--logdir", place, "--host", "localhost", "--port", str(port)]
        server = subprocess.Popen([sys.executable, *words, "--reload_interval", "5"])
        try:
            with contextlib.suppress(KeyboardInterrupt):
                while server.poll() is None:
                    time.sleep(EVERY)
                    mirrors = write(folder, Path(place), mirrors)
        finally:
            server.terminate()
            server.wait()
