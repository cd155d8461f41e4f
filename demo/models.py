"""The models that are there: shipped ones, own runs and adapters, each read once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from transfer import UserError
from transfer.adapters import Adapter, applied, fingerprint
from transfer.folder import holder
from transfer.settings import ROOT, description_of
from transfer.shared import Source

KEPT = 16  # models, adapters and pictures that are held in memory, those that were used last
LABEL = " // "  # between a run's name and one of its labels: no path that is typed holds it


@dataclass
class Found:
    """What is there: the names by which Shelf reads it, and what a person is shown for each.

    Attributes:
        models: what can be drawn from.
        adapters: those of them that are drawn on their source.
        targets: what can be mixed with its source: adapters, and runs and models that have one.
        faults: what cannot be used, each with the reason.
    """

    models: dict[str, str] = field(default_factory=dict)
    adapters: set[str] = field(default_factory=set)
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
        self._kept: OrderedDict[tuple[str, str, str | None], tuple[object, Any]] = OrderedDict()
        self._one_at_a_time = threading.RLock()

    def path(self, name: str | Path) -> Path:
        """Where a name of this shelf's, or a path that a person has typed, leads; of a label, to its run.

        Raises:
            UserError: when that is not in a folder that the page may read.
        """
        if not name:
            raise UserError("Nothing is chosen: choose one of the list")
        path = (self.root / Path(str(name).partition(LABEL)[0]).expanduser()).resolve()
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
        found, origins, adapters = Found(), {}, {}
        for file in self._files():
            name, shipped = self.name(file), file.parent == self.root / "pretrained_model"
            try:
                with safe_open(file, "pt") as handle:
                    told = handle.metadata() or {}
            except (SafetensorError, OSError) as error:
                found.faults[name] = f"no whole safetensors file ({error}): fetch or write it again"
                continue
            if "adapter" in told:
                adapters[name] = f"{file.stem} (adapter)"
                continue
            found.models[name] = f"{file.stem} ({'shipped' if shipped else 'file'})"
            origins[name] = found.models[name], _settings(told)
        found.adapters.update(adapters)
        found.models |= adapters
        found.targets |= adapters
        for name in self.runs():
            run, told = self.path(name), description_of(self.path(name))
            if not told and holder(run) is None:
                found.faults[name] = "its settings.json is missing or damaged"
            elif any(run.glob("checkpoints/*.pt")):
                images = Path(str(told["settings"].get("images"))).stem
                for label in told.get("labels") or [None]:
                    own, what = (name, images) if label is None else (f"{name}{LABEL}{label}", label)
                    found.models[own] = f"{run.name} ({what})"
                    origins[own] = f"{what} (run {run.name[:4]})", told["settings"]
        for name, (title, settings) in reversed(origins.items()):
            if settings.get("source") and "G" in settings:
                found.targets[name] = title if title not in found.targets.values() else found.models[name]
        return found

    def runs(self) -> list[str]:
        """The names of every run's folder, with a checkpoint or not, newest first."""
        places = [self.root / "target_domain", self.root / "source_domain", *self.more]
        runs = [run for place in places for run in place.glob("[0-9][0-9][0-9][0-9]-*") if run.is_dir()]
        return [self.name(run) for run in sorted(runs, key=lambda run: run.stat().st_ctime, reverse=True)]

    def images(self) -> dict[str, str]:
        """The folders and zips of images in train_images/ and in further folders, each with its title."""
        places = [self.root / "train_images", *self.more]
        inside = [path for place in places for path in sorted(place.glob("[!.]*"))]
        runs = set(self.runs())
        return {
            self.name(path): path.name
            for path in (*inside, *self.more)
            if (path.suffix == ".zip" or _holds_images(path)) and self.name(path) not in runs
        }

    def _files(self) -> Iterator[Path]:
        for place in (self.root / "pretrained_model", self.root, *self.more):
            yield from sorted(place.glob("*.safetensors"))

    # -- reading -------------------------------------------------------------------------------------------

    def model(self, name: str) -> Source:
        """The model of a name; of an adapter, its source with it. Raises UserError with what is wrong."""

        def read(path: Path) -> Source:
            if name in self.look().adapters:
                return replace(self.mixed([name], [1]), path=path)
            return Source.read(path, label=label_of(name))

        return self._read("model", name, read)

    def adapter(self, name: str) -> Adapter:
        """The generator's part of an adapter, or of what a run or a model adds to its source.

        Raises:
            UserError: when it cannot be read, or has no source that is there.
        """

        def read(path: Path) -> Adapter:
            found = self.look()
            if name in found.models.keys() - found.adapters:
                model = self.model(name)
                return Adapter.between(self._origin(model), model)
            own = Adapter.read(path)
            return replace(own, networks={"ema": own.networks["ema"]})

        return self._read("adapter", name, read)

    def source_of(self, adapter: Adapter) -> Source:
        """The model that an adapter adds to.

        Raises:
            UserError: when it is not there.
        """
        wanted = Path(str(adapter.card["settings"].get("source"))).name
        found = self.look()
        for name in sorted(found.models.keys() - found.adapters, key=lambda name: Path(name).name != wanted):
            with suppress(UserError):  # a broken one is none that was trained from
                if self._fingerprint(name) == adapter.source:
                    return self.model(name)
        raise UserError(f"{wanted}, the source of the target, is not there: put it into pretrained_model/")

    def _fingerprint(self, name: str) -> str:
        return self._read("fingerprint", name, lambda path: fingerprint(self.model(name)))

    def _origin(self, model: Source) -> Source:
        """The model that another was carried over from, by the path or the name that its settings tell."""
        told = str(model.settings.get("source"))
        named = [name for name in self.look().models if Path(name).name == Path(told).name]
        if not named and not (self.root / told).exists():
            raise UserError(
                f"{told}, the source of {model.path}, is not there: put it into pretrained_model/"
            )
        return self.model(told if (self.root / told).exists() else named[0])

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
            key, stamp = (kind, str(path), label_of(name)), _stamp(path)
            if key in self._kept and self._kept[key][0] == stamp:
                self._kept.move_to_end(key)
                return self._kept[key][1]
            self._kept.pop(key, None)  # before it is read again: two are never in memory
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = stamp, read(path)
            return self._kept[key][1]


def label_of(name: str | Path) -> str | None:
    """The label in a name of the shelf's; None where it is not of a run with several."""
    return str(name).partition(LABEL)[2] or None


def _settings(told: dict[str, str]) -> dict[str, Any]:
    """The settings that a file's card tells of; nothing where the card is another project's."""
    with suppress(ValueError, KeyError, TypeError):
        settings = json.loads(told["card"])["settings"]
        return settings if isinstance(settings, dict) else {}
    return {}


def _holds_images(folder: Path) -> bool:
    """Whether a folder, or one in it, has a file with an image's ending: which decides what is offered."""
    endings = Image.registered_extensions()
    return any(file.suffix.lower() in endings for depth in ("*", "*/*") for file in folder.glob(depth))


def _stamp(path: Path) -> object:
    """What changes when a file, or a run's checkpoints, change."""
    files = sorted(path.glob("checkpoints/*.pt")) if path.is_dir() else [path]
    with suppress(OSError):
        return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return None
