"""The folder: a run's own, numbered and locked, with its description and its lines."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image

from transfer import NoSpace, UserError, checkpoints
from transfer.checkpoints import Checkpoints
from transfer.decoding import Unreadable, decode
from transfer.settings import command, description_of
from transfer.signals import Signals

OWNER = r"process (\d+) on (\S+) since"  # what .owner begins with


class Folder:
    """A run's folder, held by this process until it is released or the process ends, however it ends.

    Attributes:
        path: the folder.
        checkpoints: those in it.
        go_on: the command by which the run goes on.

    Raises:
        UserError: when another process holds it, or it cannot be written.
    """

    def __init__(self, path: Path, script: Path) -> None:
        self.path, self.checkpoints = path, Checkpoints(path)
        self.go_on = command(script, "--resume", path)
        self._lock, owner = FileLock(path / ".lock"), path / ".owner"
        whom = "another process"
        try:
            self._lock.acquire(timeout=0)
            owner.write_text(
                f"process {os.getpid()} on {socket.gethostname()} since {timestamp()}", encoding="utf-8"
            )
        except Timeout:
            with contextlib.suppress(OSError, ValueError):
                whom = owner.read_text(encoding="utf-8")
            raise UserError(f"{path} is in use by {whom}: wait for that, or stop it") from None
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): look after its permissions"
            ) from None
        self.checkpoints.remove_unfinished()

    @classmethod
    def new(cls, parent: Path, name: str, script: Path) -> Folder:
        """A new numbered folder: mkdir is exclusive, so two runs that start together get two."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            taken = [int(p.name[:4]) for p in parent.iterdir() if p.name[:4].isdigit() and p.name[4:5] == "-"]
            for number in itertools.count(max(taken, default=0) + 1):
                path = parent / f"{number:04d}-{name}"
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
            for part in ("samples", "checkpoints"):
                (path / part).mkdir()
        except OSError as error:
            raise UserError(
                f"no run's folder can be made in {parent} ({error.strerror}): give another out"
            ) from None
        return cls(path, script)

    def release(self) -> None:
        """Let other processes have it."""
        self._lock.release()

    @contextlib.contextmanager
    def begun(self) -> Iterator[None]:
        """Meanwhile a stop is at once, and it or whatever else goes wrong takes the folder away again."""
        with Signals() as signals:
            signals.at_once = True
            try:
                yield
            except BaseException:
                self.remove()
                raise

    def remove(self) -> None:
        """Take it away again: a run that ended before its first iteration leaves nothing."""
        self.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def describe(self, **content: Any) -> None:
        """Write settings.json: what is given, and the libraries and the time."""
        content |= {"versions": versions(), "started": timestamp()}
        checkpoints.write_json(self.path / "settings.json", content)

    def describe_again(self, step: int, **content: Any) -> None:
        """Add to settings.json that the run goes on after a step, with which settings, on what hardware.

        Of a settings.json that is missing or cut off, what is given takes the place.
        """
        before = description_of(self.path)
        again = {"step": step, "time": timestamp(), "hardware": content["hardware"], "versions": versions()}
        new = {"settings": content["settings"], "resumed": [*before.get("resumed", []), again]}
        content |= {"versions": versions()} | before | new
        checkpoints.write_json(self.path / "settings.json", content)

    def write_line(self, name: str, step: int, content: dict[str, Any]) -> None:
        """Add a line to NAME.jsonl."""
        try:
            with open(self.path / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **content}) + "\n")
        except OSError as error:
            raise NoSpace(
                f"{self.path} cannot be written ({error.strerror}): {checkpoints.mend(error)}"
            ) from None

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of NAME.jsonl."""
        return lines(self.path, name)

    def forget_after(self, step: int) -> None:
        """Take from the logs what came after a checkpoint that the run goes back to: it comes again."""
        for name in ("log", "scores"):
            path = self.path / f"{name}.jsonl"
            if path.exists():
                kept = [line for line in self.lines(name) if line["step"] <= step]
                text = "".join(json.dumps(line) + "\n" for line in kept).encode()
                if text != path.read_bytes():
                    checkpoints.write(path, lambda handle, text=text: handle.write(text))

    def then(self) -> str:
        """What to do when the reason for which the run ended is mended."""
        return f"go on with {self.go_on}" if self.checkpoints.found() else "start again"

    def write_picture(self, picture: Image.Image, name: str) -> None:
        """Write a picture under this name; its folder is made again where it was tidied away."""
        file, data = self.path / name, io.BytesIO()
        try:
            picture.save(data, "PNG")
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise NoSpace(f"{file} cannot be written ({error.strerror}): {checkpoints.mend(error)}") from None
        checkpoints.write(file, lambda handle: handle.write(data.getvalue()))


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a run's NAME.jsonl that tell of a step; one may have been cut off, as by a kill."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for text in (run / f"{name}.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and isinstance(line.get("step"), int):
                    found.append(line)
    return found


def grids(run: Path) -> dict[int, Image.Image]:
    """A run's grids of samples, by their step, the first first.

    Pictures that the run did not write, broken ones and those of another size than the newest are left out.
    """
    found = {}
    for path in (run / "samples").glob("*.png"):
        if path.stem.isdecimal():
            with contextlib.suppress(OSError, Unreadable):
                found[int(path.stem)] = decode(path.read_bytes())
    return {step: found[step] for step in sorted(found) if found[step].size == found[max(found)].size}


def animate(run: Path) -> None:
    """Write a run's grids as samples.webp, four a second; nothing where there is none.

    Raises:
        NoSpace: when it cannot be written.
    """
    pictures, data = [*grids(run).values()], io.BytesIO()
    if pictures:
        options = {"save_all": True, "append_images": pictures[1:], "duration": 250, "loop": 0}
        pictures[0].save(data, "WEBP", quality=80, **options)
        checkpoints.write(run / "samples.webp", lambda handle: handle.write(data.getvalue()))


def holder(run: Path) -> int | None:
    """The process of this machine that works on a run's folder; None when none does."""
    try:
        text = (run / ".owner").read_text(encoding="utf-8")
        lock = FileLock(run / ".lock")
        lock.acquire(timeout=0)
    except Timeout:  # which is an OSError
        told = re.match(OWNER, text)
        return int(told[1]) if told and told[2] == socket.gethostname() else None
    except (OSError, ValueError):
        return None
    lock.release()
    return None


def make_sure_of_space(out: Path, need: int) -> None:
    """Refuse to begin, or warn, when there is no room in out for so many bytes, or hardly any."""
    place = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    amounts = f"{out} has {free / 1e6:,.0f} MB free, and this run will write about {need / 1e6:,.0f} MB"
    if free < need:
        raise NoSpace(f"{amounts}: make room or give another out")
    if free < 2 * need:
        print(f"{amounts}; there is little to spare")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that a run depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> str:
    """What the run computes on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.processor() or platform.machine()}, its GPU"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux; elsewhere the processor's family must do
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    instructions = torch.backends.cpu.get_cpu_capability()
    if torch.cpu._is_avx512_bf16_supported():
        instructions = "AMX" if torch.cpu._is_amx_tile_supported() else "AVX512-BF16"
    return f"{name}, {instructions}, {torch.get_num_threads()} threads"


def timestamp() -> str:
    """The time, with its zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
