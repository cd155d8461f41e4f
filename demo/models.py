"""The models that are there: shipped ones, own runs and adapters, each read once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from transfer import UserError
from transfer.adapters import Adapter, applied, fingerprint
from transfer.settings import ROOT, description_of
from transfer.shared import Source

KEPT = 16  # models, adapters and pictures that are held in memory, those that were used last


@dataclass
class Found:
    """What is there: the names by which Shelf reads it, and what a person is shown for each.

    Attributes:
        models: what can be drawn from.
        targets: what can be mixed with its source: adapters, and runs that have one.
        faults: what cannot be used, each with the reason.
    """

    models: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


class Shelf:
    """The models of the project's folder and of further ones; none is in memory twice.

    Args:
        folders: what else may be read.
        root: the project's folder.
    """

    def __init__(self, folders: Sequence[Path] = (), root: Path = ROOT) -> None:
        self.root, self.more = root.resolve(), [folder.resolve() for folder in folders]
        self._kept: OrderedDict[tuple[str, str], tuple[object, Any]] = OrderedDict()
        self._one_at_a_time = threading.RLock()

    def path(self, name: str | Path) -> Path:
        """Where a name of this shelf's, or a path that a person has typed, leads.

        Raises:
            UserError: when that is not in a folder that the page may read.
        """
        path = (self.root / Path(name).expanduser()).resolve()
        if not any(path.is_relative_to(folder) for folder in (self.root, *self.more)):
            raise UserError(
                f"{name} is outside of the project's folder: move it there, or start the page with"
                f" --folders {path if path.is_dir() else path.parent}"
            )
        return path

    def name(self, path: Path) -> str:
        """A path as path() takes it, and as a person reads it."""
        return str(path.relative_to(self.root) if path.is_relative_to(self.root) else path)

    def look(self) -> Found:
        """What is there now. Files are opened as far as it takes to tell what they are."""
        found = Found()
        for file in self._files():
            name = self.name(file)
            try:
                with safe_open(file, "pt") as handle:
                    adapter = "adapter" in (handle.metadata() or {})
            except (SafetensorError, OSError) as error:
                found.faults[name] = f"no whole safetensors file ({error}): fetch or write it again"
                continue
            kind = "adapter" if adapter else "shipped" if file.parent.name == "pretrained_model" else "file"
            (found.targets if adapter else found.models)[name] = f"{file.stem} ({kind})"
        for name in self.runs():
            run, told = self.path(name), description_of(self.path(name))
            if not told:
                found.faults[name] = "its settings.json is missing or damaged"
            elif any(run.glob("checkpoints/*.pt")):
                images = Path(str(told["settings"].get("images"))).stem
                found.models[name] = f"{run.name} ({images})"
                if told["settings"].get("source") and "G" in told["settings"]:
                    found.targets[name] = f"{images} ({run.name})"
        return found

    def runs(self) -> list[str]:
        """The names of every run's folder, with a checkpoint or not, newest first."""
        places = [self.root / "target_domain", self.root / "source_domain", *self.more]
        runs = [run for place in places for run in place.glob("[0-9][0-9][0-9][0-9]-*") if run.is_dir()]
        return [self.name(run) for run in sorted(runs, key=lambda run: run.stat().st_ctime, reverse=True)]

    def images(self) -> dict[str, str]:
        """The folders and zips of images in train_images/ and in further folders, each with its title."""
        places = [self.root / "train_images", *self.more]
        found = {
            self.name(path): path.name
            for place in places
            for path in sorted(place.glob("*"))
            if (path.is_dir() or path.suffix == ".zip") and not path.name.startswith(".")
            if path.suffix == ".zip" or (any(path.glob("[!.R]*")) and not (path / "settings.json").exists())
        }
        return found | {self.name(place): place.name for place in self.more if any(place.glob("*.*"))}

    def _files(self) -> Iterator[Path]:
        for place in (self.root / "pretrained_model", self.root, *self.more):
            yield from sorted(place.glob("*.safetensors"))

    # -- reading -------------------------------------------------------------------------------------------

    def model(self, name: str) -> Source:
        """The model of a name. Raises UserError with what is wrong with it."""
        return self._read("model", name, Source.read)

    def adapter(self, name: str) -> Adapter:
        """The generator's part of an adapter, or of what a run adds to its source. Raises UserError."""

        def read(path: Path) -> Adapter:
            found = Adapter.of(path) if path.is_dir() else Adapter.read(path)
            return replace(found, networks={"ema": found.networks["ema"]})

        return self._read("adapter", name, read)

    def source_of(self, adapter: Adapter) -> Source:
        """The model that an adapter adds to.

        Raises:
            UserError: when it is not there.
        """
        wanted = Path(adapter.card["settings"].get("source") or "").name
        for name in sorted(self.look().models, key=lambda name: Path(name).name != wanted):
            with suppress(UserError):  # a broken one is none that was trained from
                if (
                    self._read("fingerprint", name, lambda path: fingerprint(self.model(path)))
                    == adapter.source
                ):
                    return self.model(name)
        raise UserError(f"the source of the target, {wanted}, is not there: put it into pretrained_model/")

    def mixed(self, names: Sequence[str], shares: Sequence[float]) -> Source:
        """The source of some targets with each one's difference from it, times its share, added.

        Raises:
            UserError: when they are of different sources or plans.
        """
        found = [self.adapter(name) for name in names]
        source = self.source_of(found[0])
        for name, each in zip(names, found, strict=True):
            if each.source != found[0].source:
                raise UserError(
                    f"{names[0]} and {name} come from different sources: mix targets of one source"
                )
        generator = applied(source, found, shares)["ema"]
        return replace(found[0].as_model(source), generator=generator, discriminator=None, heads=None)

    def once(self, what: str, name: str, make: Callable[[], Any]) -> Any:
        """What make returns, kept until the file or the run of this name changes."""
        return self._read(what, name, lambda path: make())

    def _read(self, kind: str, name: str, read: Callable[[Path], Any]) -> Any:
        """What read makes of a name's path, once for as long as the file or the run stays as it is."""
        path = self.path(name)
        with self._one_at_a_time:
            key, stamp = (kind, str(path)), _stamp(path)
            if key in self._kept and self._kept[key][0] == stamp:
                self._kept.move_to_end(key)
                return self._kept[key][1]
            self._kept.pop(key, None)  # before it is read again: two are never in memory
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = stamp, read(path)
            return self._kept[key][1]


def _stamp(path: Path) -> object:
    """What changes when a file, or a run's checkpoints, change."""
    files = sorted(path.glob("checkpoints/*.pt")) if path.is_dir() else [path]
    with suppress(OSError):
        return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return None
