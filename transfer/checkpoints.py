"""The checkpoints of a run: files that are whole or not there, and known to be what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from transfer import NoSpace, UserError

VERSION = 1  # of what is in a checkpoint
KEEP, EVERY = 2, 5000  # the newest so many are kept, and those of every so many iterations
MANIFEST = "manifest.json"
SAFE = (2, 10)  # the first torch whose weights_only loading has no known hole

# ----------------------------------------------------------------------------------------------------------
# One file.


def write(path: Path, fill: Callable[[IO[bytes]], Any]) -> str:
    """Write a file so that path holds either its old or its new content, whatever happens meanwhile.

    The content goes to a temporary file beside it, to the disk, and then under its name; the folder's entry
    goes to the disk last. Returns the SHA-256 of the content.

    Raises:
        NoSpace: when the content cannot be written; path is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as handle:
            hashing = _Hashing(handle)
            fill(hashing)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what a handle raises
        raise NoSpace(_why(path, error)) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return hashing.digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write content as JSON, in the same way."""
    data = json.dumps(content, indent=2).encode() + b"\n"
    write(path, lambda handle: handle.write(data))


class _Hashing:
    """A file that is written once, from its beginning to its end, and hashed on the way."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle, self.digest = handle, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.handle.write(data)

    def flush(self) -> None:
        self.handle.flush()


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return  # folders cannot be opened there
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def _why(path: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    with suppress(OSError):
        reason += f", {shutil.disk_usage(path.parent).free / 1e6:,.0f} MB are free"
    return (
        f"{path} cannot be written ({reason}): {mend(error)} or give another out; what was there is as it was"
    )


def mend(error: Exception) -> str:
    """What to do about something that could not be written."""
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return "put back its folder, which was removed or renamed meanwhile,"
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return "move away what is in its place"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return "look after its permissions"
    return "look after the disk" if number == errno.EIO else "make room"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; no code in the file is run.

    A prefix `module.`, which torch's DataParallel leaves in front of tensors' names, is taken away.

    Raises:
        UserError: when the file is missing, damaged, written by a later version or no checkpoint, or holds
            pickled objects, such as a whole module.
    """
    found = tuple(map(int, re.findall(r"\d+", torch.__version__)[:2]))
    if found < SAFE:
        raise UserError(
            f"torch {torch.__version__} can be made to run code that is in a checkpoint: install"
            f" torch>={'.'.join(map(str, SAFE))}"
        )
    try:
        with open(path, "rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about pickles, which are refused below
            pickled = handle.read(1) == b"\x80"
            handle.seek(0)
            state = torch.load(handle, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a checkpoint that exists") from None
    except Exception as error:
        if "weights_only" in str(error).lower() and zipfile.is_zipfile(path):
            raise UserError(
                f"{path} holds pickled objects, which could run code and are never loaded: save the"
                " networks' state_dict() instead"
            ) from None
        if pickled:
            raise UserError(
                f"{path} is a pickle, which could run code and is never loaded, or it is cut off: save the"
                " networks' state_dict() with torch.save instead"
            ) from None
        raise UserError(f"{path} is no whole checkpoint: give an earlier one, or fetch it again") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint of this project: give one that a script has written")
    if isinstance(state.get("version"), int) and state["version"] > VERSION:
        raise UserError(f"{path} was written by a later version of this project: use that version")
    return {name: _bare(value) if isinstance(value, dict) else value for name, value in state.items()}


def _bare(tensors: dict[str, Any]) -> dict[str, Any]:
    if tensors and all(isinstance(key, str) and key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors


# ----------------------------------------------------------------------------------------------------------
# A run's folder of them.


class Checkpoints:
    """The folder of a run's checkpoints, STEP.pt, with a manifest of each one's SHA-256."""

    def __init__(self, run: Path) -> None:
        self.folder = Path(run) / "checkpoints"

    def save(self, step: int, state: dict[str, Any], best: bool = False) -> None:
        """Write the checkpoint of a step, prove that it can be read back, and only then let older ones go.

        Kept are the newest two, the best and those of every 5,000th iteration. What the manifest does not
        list stays.

        Args:
            best: whether it is the one with the best score so far.
        """
        path = self.folder / f"{step:06d}.pt"
        digest = write(path, lambda handle: torch.save(state, handle))
        if sha256(path) != digest:
            raise NoSpace(
                f"{path} does not hold what was written to it: look after the disk, and resume from the"
                " checkpoint before"
            )
        listed = self.listed()
        listed[path.name] = {"step": step, "sha256": digest, "bytes": path.stat().st_size}
        write_json(self.folder / MANIFEST, listed)
        self._rotate(listed)
        if best:
            self.mark_best(step)

    def mark_best(self, step: int) -> None:
        """Note that the checkpoint of a step is the one with the best score so far, and let the last go."""
        path, listed = self.folder / f"{step:06d}.pt", self.listed()
        for entry in listed.values():
            entry.pop("best", None)
        if path.name not in listed:
            listed[path.name] = {"step": step, "sha256": sha256(path), "bytes": path.stat().st_size}
        listed[path.name]["best"] = True
        write_json(self.folder / MANIFEST, listed)
        self._rotate(listed)

    def _rotate(self, listed: dict[str, dict[str, Any]]) -> None:
        newest = sorted(listed, key=lambda name: listed[name]["step"])[-KEEP:]
        old = [
            name
            for name, entry in listed.items()
            if name not in newest and not entry.get("best") and entry["step"] % EVERY
        ]
        if not old:
            return
        for name in old:
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()
        kept = {name: entry for name, entry in listed.items() if name not in old}
        write_json(self.folder / MANIFEST, kept)

    def listed(self) -> dict[str, dict[str, Any]]:
        """The manifest: for each file's name its step, sha256 and bytes, and whether it is the best.

        Of a manifest that is missing or damaged, nothing.
        """
        with suppress(OSError, ValueError):
            content = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            if isinstance(content, dict):
                return {name: entry for name, entry in content.items() if _is_entry(name, entry)}
        return {}

    def found(self) -> list[Path]:
        """The files that are called like checkpoints, the newest first."""
        return sorted(
            (path for path in self.folder.glob("*.pt") if path.stem.isdigit()),
            key=lambda path: int(path.stem),
            reverse=True,
        )

    def newest(self) -> tuple[Path, dict[str, Any]]:
        """The newest whole checkpoint and what is in it; those that are passed over are named.

        Raises:
            UserError: when there is none.
        """
        found, damaged = self.found(), []
        for path in found:
            try:
                self._verify(path)
                state = load(path)
            except UserError as reason:
                damaged.append(path.name)
                print(f"passed over: {reason}")
                continue
            return path, state
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} is whole ({', '.join(damaged)}): start a new run"
            )
        raise UserError(
            f"{self.folder.parent} holds no checkpoint: give a run's folder, or one of the files in"
            " pretrained_model/"
        )

    def best(self) -> tuple[Path, dict[str, Any]]:
        """The checkpoint with the best score and what is in it.

        Raises:
            UserError: when the run was not scored, or the checkpoint is not whole.
        """
        marked = [self.folder / name for name, entry in self.listed().items() if entry.get("best")]
        if not marked:
            raise UserError(
                f"{self.folder.parent} has no best checkpoint, since no score was made (--score-every): leave"
                " --best out, for the newest"
            )
        try:
            self._verify(marked[0])
            return marked[0], load(marked[0])
        except UserError:
            raise UserError(
                f"{marked[0]}, the best checkpoint, is missing or damaged: leave --best out, for the newest"
            ) from None

    def _verify(self, path: Path) -> None:
        """Raise UserError unless the file is what was written: by the manifest, else by its own checksums."""
        entry = self.listed().get(path.name)
        try:
            if entry is not None:
                whole = sha256(path) == entry["sha256"]
            else:
                with zipfile.ZipFile(path) as archive:  # as torch writes it, with a CRC-32 for each tensor
                    whole = archive.testzip() is None
                if whole:
                    print(f"{path} is not in {MANIFEST}; its own checksums are right")
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): look after its permissions") from None
        except Exception:  # a damaged zip fails in many ways
            whole = False
        if not whole:
            raise UserError(f"{path} is damaged: an earlier one is taken, if there is one")

    def remove_unfinished(self) -> None:
        """Remove what a killed process had begun to write; only for who holds the run's lock."""
        for path in self.folder.glob(".*.*"):
            if re.fullmatch(r"\.(\d+\.pt|manifest\.json)\.\d+", path.name):
                with suppress(OSError):
                    path.unlink()


def find(model: Path, best: bool = False, label: str | None = None) -> tuple[Path, dict[str, Any]]:
    """A run's newest checkpoint, or its best one, or the checkpoint that is given; and what is in it.

    label: of a run with several target domains, see of_label.

    Raises:
        UserError: when there is none, best is asked of a file, or it has not this label.
    """
    if Path(model).is_dir():
        kept = Checkpoints(model)
        path, state = kept.best() if best else kept.newest()
    elif best:
        raise UserError(f"{model} is a file: --best wants a run's folder, to find the best checkpoint in it")
    else:
        path, state = Path(model), load(model)
    return path, of_label(path, state, label)


def of_label(path: Path, state: dict[str, Any], label: str | None = None) -> dict[str, Any]:
    """The checkpoint of one label's networks, from that of a run whose labels are several target domains.

    Args:
        path: where it was read from.
        label: None where there is one, or where the run has no labels.

    Raises:
        UserError: when there is no such label, or none is named of several.
    """
    arguments = state.get("arguments")
    of_G = (arguments.get("G") if isinstance(arguments, dict) else None) or {}
    labels = of_G.get("labels", [])
    if not labels:
        if label is not None:
            raise UserError(f"{path} has one target domain and no labels: leave --label out")
        return state
    if label not in ([None, *labels] if len(labels) == 1 else labels):
        raise UserError(
            f"{path} has the labels {', '.join(labels)}: name one with --label; a transfer starts from the"
            " file that python -m transfer share writes of one"
        )
    label = labels[0] if label is None else label
    at = f"{labels.index(label)}."
    own: dict[str, Any] = {
        name: {key.removeprefix(at): tensor for key, tensor in state[name].items() if key.startswith(at)}
        for name in ("G", "ema", "D", "heads")
        if name in state
    }
    own["arguments"] = {"G": {key: value for key, value in of_G.items() if key != "labels"}}
    return {**state, **own, "label": label}


def of_run(run: Path, best: bool = False, label: str | None = None) -> tuple[Path, dict[str, Any]]:
    """What find finds, where it is a run's checkpoint, which tells of its script, settings and step.

    Raises:
        UserError: when it is something else, such as a model's file.
    """
    if Path(run).suffix == ".safetensors" and not Path(run).is_dir():
        raise UserError(f"{run} is a model's file, and no run: give the run's folder, or a checkpoint in it")
    path, state = find(run, best, label)
    if not {"script", "settings", "step", "ema"} <= state.keys():
        raise UserError(f"{path} is not a run's checkpoint: give a run's folder, or a checkpoint in it")
    return path, state


def _is_entry(name: str, entry: Any) -> bool:
    return (
        re.fullmatch(r"\d+\.pt", name) is not None
        and isinstance(entry, dict)
        and isinstance(entry.get("step"), int)
        and isinstance(entry.get("sha256"), str)
    )


def size_of(parts: Iterable[Any]) -> int:
    """The bytes of everything that a checkpoint of these networks and optimizers will hold, roughly."""
    total = 0
    for part in parts:
        if isinstance(part, torch.optim.Optimizer):
            moments = 2 if isinstance(part, torch.optim.Adam) else 1
            total += moments * sum(p.nbytes for group in part.param_groups for p in group["params"])
        else:
            total += sum(getattr(value, "nbytes", 0) for value in part.state_dict().values())
    return total
