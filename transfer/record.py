"""The record: a run's own folder with its settings, log, samples and checkpoints; progress; resuming."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from transfer import UserError, weights
from transfer.images import Images, frames, grid, to_uint8

SAMPLES = 64  # the latents of the grids
SCORED = 1000  # the images that are drawn for a score
CHECKPOINT_VERSION = 1
MAY_CHANGE = {
    "iterations",
    "log_every",
    "sample_every",
    "save_every",
    "score_every",
    "reference",
    "extractor",
}
MAY_CHANGE |= {"device", "out", "resume", "dry_run"}


class Run:
    """A run and its folder, which nothing else ever writes to.

        settings.json    the settings, versions, hardware and data of the run
        SCRIPT.py        the script as it was run
        reals.png        64 of the real images
        log.jsonl        one line every `log_every` iterations
        scores.jsonl     one line every `score_every` iterations, if any: see fid.Scores
        samples/         STEP.png: the same 64 latents through the averaged generator; 0 is before training
        samples.webp     those grids as an animation, when the run has ended
        checkpoints/     STEP.pt: everything that is needed to go on

    Args:
        settings: the script's settings; `resume` names the folder of an earlier run to go on with.
        script: the script's __file__.
        images: what is trained on.
        title: is appended to the folder's name.
        parts: everything with a state: "G", "D", "average" (a weights.Average) and the optimizers.
    """

    def __init__(
        self, settings: Any, script: str, images: Images, parts: dict[str, Any], title: str = ""
    ) -> None:
        self.settings, self.images, self.parts = settings, images, parts
        self.script = Path(script)
        self.device = images.pixels.device
        generator = torch.Generator().manual_seed(settings.seed)
        self.latents = torch.randn(SCORED, parts["G"].latent, generator=generator).to(self.device)
        self.extractor = None
        if settings.score_every:
            from fid import load  # slow, and not every run is scored

            self.extractor = load(settings.extractor, device=str(self.device))
        self.step, self._losses, self._since = 0, {}, None
        if settings.resume is not None:
            self._resume(Path(settings.resume))
            return
        self.folder = _new_folder(Path(settings.out), "-".join(filter(None, (self.script.stem, title))))
        self._describe()
        grid(images.pixels[:SAMPLES]).save(self.folder / "reals.png")
        self.sample()

    def _describe(self) -> None:
        shutil.copyfile(self.script, self.folder / self.script.name)
        for name in ("samples", "checkpoints"):
            (self.folder / name).mkdir()
        description = {
            "script": self.script.name,
            "settings": plain(self.settings),
            "images": {"count": len(self.images), "fingerprint": self.images.fingerprint},
            "unreadable": self.images.unreadable,
            "hardware": hardware(self.device),
            "versions": versions(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        _write_json(self.folder / "settings.json", description)

    # -- the loop ------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The iterations that remain, from 1, with progress; samples and checkpoints come between them."""
        settings, began = self.settings, time.monotonic()
        bar = tqdm(
            total=settings.iterations, initial=self.step, desc=self.folder.name, unit="it", disable=None
        )
        self._since = (self.step, time.monotonic())
        with bar:
            for step in range(self.step + 1, settings.iterations + 1):
                yield step
                self.step = step
                bar.update()
                last = step == settings.iterations
                if step % settings.log_every == 0 or last:
                    bar.set_postfix(self._log())
                if step % settings.sample_every == 0 or last:
                    self.sample()
                if step % settings.save_every == 0 or last:
                    self.save()
                if settings.score_every and (step % settings.score_every == 0 or last):
                    self.score()
        animate(self.folder)
        print(f"{time.monotonic() - began:.0f} s; samples and checkpoints are in {self.folder}")

    def losses(self, **losses: Tensor) -> None:
        """Keep the iteration's losses, on the device, for the log."""
        self._losses = losses

    def _log(self) -> dict[str, str]:
        """Write a line of the log. Raises UserError when a loss is not finite."""
        losses = {name: loss.item() for name, loss in self._losses.items()}
        if not all(map(math.isfinite, losses.values())):
            raise UserError(
                f"the losses are {losses} at iteration {self.step}: the run in {self.folder} has diverged,"
                " start again with a smaller learning_rate"
            )
        step, then = self._since
        now = time.monotonic()
        images = (self.step - step) * self.settings.batch_size * self.settings.critic_steps
        line = {"step": self.step, **losses, "images_per_second": images / max(now - then, 1e-9)}
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")
        self._since = (self.step, now)
        return {name: f"{loss:.4g}" for name, loss in losses.items()}

    @torch.no_grad()
    def _draw(self, n: int) -> Tensor:
        """The averaged generator's images (n, 3, 64, 64), uint8, of the run's first n latents."""
        network = self.parts["average"].network
        return torch.cat([to_uint8(network(z)) for z in self.latents[:n].split(SAMPLES)])

    def sample(self) -> None:
        """Write the grid of this step."""
        grid(self._draw(SAMPLES)).save(self.folder / "samples" / f"{self.step:06d}.png")

    def score(self) -> None:
        """Write the scores of this step, against the training images and the reference."""
        from fid import score

        scores = score(
            self._draw(SCORED),
            self.images,
            self.settings.reference,
            extractor=self.extractor,
            size=self.images.pixels.shape[-1],
            seed=self.settings.seed,
        )
        with open(self.folder / "scores.jsonl", "a") as file:
            file.write(json.dumps({"step": self.step, **scores.as_dict()}) + "\n")
        tqdm.write(f"{self.step}: {scores}")

    # -- going on ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint of this step."""
        state = {
            "version": CHECKPOINT_VERSION,
            "script": self.script.name,
            "settings": plain(self.settings),
            "fingerprint": self.images.fingerprint,
            "step": self.step,
            "random": {"cpu": torch.get_rng_state()},
            "optimizers": {},
        }
        if self.device.type == "cuda":
            state["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        for name, part in self.parts.items():
            if isinstance(part, weights.Average):
                state["ema"] = part.network.state_dict()
            elif isinstance(part, torch.optim.Optimizer):
                state["optimizers"][name] = part.state_dict()
            else:
                state[name] = part.state_dict()
        weights.save(self.folder / "checkpoints" / f"{self.step:06d}.pt", state)

    def _resume(self, folder: Path) -> None:
        path = weights.newest_checkpoint(folder)
        state = weights.load(path)
        before, now = state.get("settings", {}), plain(self.settings)
        keys = (before.keys() | now.keys()) - MAY_CHANGE
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if state.get("script") != self.script.name:
            raise UserError(f"{folder} is a run of {state.get('script')}: resume it with that script")
        if changed:
            was = ", ".join(f"{key} {before.get(key)}" for key in changed)
            raise UserError(
                f"{folder} was started with other settings ({was}): give those, or start a new run"
            )
        if state["fingerprint"] != self.images.fingerprint:
            raise UserError(
                f"{folder} was started on other images than {self.settings.images}: give those again"
            )
        for name, part in self.parts.items():
            if isinstance(part, weights.Average):
                part.network.load_state_dict(state["ema"])
            elif isinstance(part, torch.optim.Optimizer):
                part.load_state_dict(state["optimizers"][name])
            else:
                part.load_state_dict(state[name])
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        self.folder, self.step = folder, state["step"]
        print(f"going on with {folder} after iteration {self.step}")


def animate(folder: Path) -> None:
    """Write a run's grids as samples.webp, four a second."""
    first, *rest = frames(sorted((folder / "samples").glob("*.png")))
    first.save(folder / "samples.webp", save_all=True, append_images=rest, duration=250, loop=0, quality=80)


def _new_folder(parent: Path, name: str) -> Path:
    """A new numbered folder: mkdir is exclusive, so two runs that start together get two."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name[:4]) for p in parent.iterdir() if p.name[:4].isdigit() and p.name[4:5] == "-"]
        for number in itertools.count(max(taken, default=0) + 1):
            folder = parent / f"{number:04d}-{name}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(
            f"no run's folder can be made in {parent} ({error.strerror}): give another out"
        ) from None
    raise AssertionError("unreachable")


def plain(settings: Any) -> dict[str, Any]:
    """Settings as JSON has them: paths as text, splits as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for name, value in asdict(settings).items()
    }


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
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux; elsewhere the processor's family must do
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
