"""The record: a run's loop, with its log, samples, scores and checkpoints; progress; resuming."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from transfer import Diverged, NoSpace, UserError, checkpoints, state
from transfer.folder import Folder, animate, hardware, make_sure_of_space
from transfer.images import Images, grid, to_uint8
from transfer.settings import command, complete, description_of, flags, limit, plain, run_of
from transfer.shared import Source
from transfer.signals import Signals, Stop
from transfer.weights import Average

if TYPE_CHECKING:
    from fid import Scores

SAMPLES = 64  # the latents of the grids
SCORED = 1000  # the images that are drawn for a score
OFTEN = 60  # seconds of work that can be lost at most
# A warning: a spread below this share of the real images', from this iteration; a loss beyond this.
COLLAPSED, COLLAPSE_FROM, LARGE = 0.05, 200, 1e4
MAY_CHANGE = {
    "iterations",
    "log_every",
    "sample_every",
    "save_every",
    "score_every",
    "reference",
    "extractor",
}
MAY_CHANGE |= {"device", "fast", "out", "resume", "dry_run", "images"}  # of the images the fingerprint counts


class Run:
    """A run and its folder, which nothing else ever writes to.

        settings.json    the settings, versions, hardware and data of the run
        SCRIPT.py        the script as it was run
        reals.png        64 of the real images
        log.jsonl        one line every `log_every` iterations
        scores.jsonl     one line every `score_every` iterations, if any: see fid.Scores
        samples/         STEP.png: the same 64 latents through the averaged generator; 0 is before training
        samples.webp     those grids as an animation, when the run has ended
        checkpoints/     STEP.pt: everything that is needed to go on; see checkpoints.Checkpoints
        .lock, .owner    held while a process works on the run, and which one

    Args:
        settings: the script's settings; `resume` names the folder of an earlier run to go on with, or is
            "latest".
        script: the script's __file__.
        images: what is trained on.
        parts: everything with a state: "G", "average" (a weights.Average), the other networks and optimizers.
        title: is appended to the folder's name.
        draw: latents (n, latent) -> images (n, C, H, W) in [-1, 1]; the average's, unless given.
        score: pixels (n, C, H, W), uint8 -> scores, such as fid.scorer gives; none without.
    """

    def __init__(
        self,
        settings: Any,
        script: str,
        images: Images,
        parts: dict[str, Any],
        title: str = "",
        draw: Callable[[Tensor], Tensor] | None = None,
        score: Callable[[Tensor], Scores] | None = None,
    ) -> None:
        self.settings, self.images, self.parts = settings, images, parts
        self.script, self.device = Path(script), images.pixels.device
        self.draw, self._score = draw or parts["average"].network, score
        generator = torch.Generator().manual_seed(settings.seed)
        latent = parts["G"].arguments["latent"]
        self.latents = torch.randn(SCORED, latent, generator=generator).to(self.device)
        self.step, self._losses, self._last, self._warned = 0, {}, "", set()
        self._began, self._paused = 0.0, 0.0  # when the iterations began; seconds of what came between them
        self._since = 0, 0.0  # the step of the log's last line, and the seconds of iterations until then
        source = getattr(settings, "source", None)
        self._source = None if source is None else Source.read(source).fingerprint
        out = Path(settings.out)
        if settings.resume is not None:
            self._hold(Folder(run_of(Path(settings.resume), out, self.script), self.script))
            self._resume()
            return
        make_sure_of_space(out, self._bytes())
        self._hold(Folder.new(out, "-".join(filter(None, (self.script.stem, title))), self.script))
        print(f"the run is in {self.folder}", flush=True)
        with self.files.begun():
            shutil.copyfile(self.script, self.folder / self.script.name)
            self.files.describe(**self._description())
            self.files.write_picture(grid(images.pixels[:SAMPLES]), "reals.png")
            self.sample()

    def _hold(self, files: Folder) -> None:
        self.files, self.folder, self.checkpoints = files, files.path, files.checkpoints

    def _bytes(self) -> int:
        """What the run will write, roughly."""
        settings = self.settings
        parts = (part.network if isinstance(part, Average) else part for part in self.parts.values())
        kept = checkpoints.KEEP + 2 + settings.iterations // checkpoints.EVERY
        return kept * checkpoints.size_of(parts) + settings.iterations // settings.sample_every * 600_000

    def _description(self) -> dict[str, Any]:
        return {
            "script": self.script.name,
            "settings": plain(self.settings),
            "images": {"count": len(self.images), "fingerprint": self.images.fingerprint},
            "labels": getattr(self.parts.get("G"), "arguments", {}).get("labels", []),
            "source": self._source,
            "unreadable": self.images.unreadable,
            "held_out": list(self.images.held_out.names) if self.images.held_out else [],
            "learning": state.learning(self.parts),
            "hardware": hardware(self.device),
        }

    # -- the loop ------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[int]:
        """The iterations that remain, from 1, with progress; samples and checkpoints come between them.

        A signal to stop (see signals.Signals) lets the iteration end, writes a checkpoint and ends the
        program; during samples and scores it does not wait for them to end, and they are made up for when the
        run goes on.
        """
        settings, began = self.settings, time.monotonic()
        if self.step > settings.iterations:
            self.files.release()
            return
        bar = tqdm(
            total=settings.iterations, initial=self.step, desc=self.folder.name, unit="it", disable=None
        )
        saved = self.step  # what a stop would not lose
        try:
            with bar, Signals() as signals:
                try:
                    signals.at_once = True
                    if self.step:
                        self._between(again=True)
                    self._since, start = (self.step, 0.0), self.step
                    signals.leave = None if self.step else self.files.remove
                    self._began = last = time.monotonic()  # last: when the run was saved
                    for step in range(self.step + 1, settings.iterations + 1):
                        yield step  # the first may compile for minutes, and has nothing to lose
                        signals.at_once, signals.leave = False, None
                        self.step = step
                        bar.update()
                        if self._due(settings.log_every):
                            bar.set_postfix(self._log())
                            if bar.disable:
                                print(self._progress(start), flush=True)
                        pause = time.monotonic()
                        late = time.monotonic() - last >= OFTEN
                        if late or signals.save or self._due(settings.save_every) or self._scores_next():
                            self.save()
                            saved, signals.save, last = step, False, time.monotonic()
                        signals.at_once = True
                        signals.check()
                        if self._between():
                            bar.unpause()  # so that the time left is that of the iterations
                        self._paused += time.monotonic() - pause
                        signals.at_once = False
                        signals.check()
                except Diverged:
                    raise
                except Exception:
                    with suppress(NoSpace):
                        if saved < self.step:
                            self.save()
                    raise
                except Stop as stop:
                    signals.at_once = False
                    if saved < self.step:
                        self.save()
                    if self.step:
                        stop.sentence = f"after iteration {self.step}: go on with {self.files.go_on}"
                    raise
            self._animate()
            print(f"{time.monotonic() - began:.0f} s; samples and checkpoints are in {self.folder}")
        except NoSpace as error:
            raise NoSpace(f"{error}; {self.files.then()}") from None
        finally:
            self.files.release()

    def _due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.settings.iterations)

    def _scores_next(self) -> bool:
        return self._score is not None and self._due(self.settings.score_every)

    def _between(self, again: bool = False) -> bool:
        """Make the sample and the score of this step, and return whether any is due.

        again: only what is missing.
        """
        samples, scores = self._due(self.settings.sample_every), self._scores_next()
        if samples and not (again and (self.folder / self._sample_name()).exists()):
            self.sample()
        if scores:
            scored = {line["step"] for line in self.files.lines("scores")}
            if not (again and self.step in scored):
                self.score()
                best = self._best()
                if best is not None and best["step"] == self.step:
                    self.checkpoints.mark_best(self.step)
        return samples or scores

    def losses(self, **losses: Tensor) -> None:
        """Keep the iteration's losses, on the device, for the log."""
        self._losses = losses

    def _log(self) -> dict[str, str]:
        """Write a line of the log. Raises Diverged when a loss or a network is not finite."""
        losses = {name: loss.item() for name, loss in self._losses.items()}
        if not all(map(math.isfinite, losses.values())):
            self._stop_diverged(f"the losses are {losses}")
        self._check_networks()
        (step, then), now = self._since, self._worked()  # the losses have been read: a GPU has caught up
        batches = getattr(self.settings, "critic_steps", 1)  # an iteration
        images = (self.step - step) * batches * self.settings.batch_size
        speed = images / max(now - then, 1e-9)
        self.files.write_line("log", self.step, {**losses, "images_per_second": speed})
        self._since, self._last = (self.step, now), f"{losses} at iteration {self.step}"
        if max(map(abs, losses.values())) > LARGE:
            self.warn(f"a loss is beyond {LARGE:g}, which no estimate of a distance of images should be")
        return {name: f"{loss:.4g}" for name, loss in losses.items()}

    def _worked(self) -> float:
        """Seconds that this process has spent on iterations: without samples, scores and checkpoints."""
        return time.monotonic() - self._began - self._paused

    def _progress(self, start: int) -> str:
        """A line for where there is no terminal; start: the iteration from which this process has gone on."""
        left = self._worked() / (self.step - start) * (self.settings.iterations - self.step)
        return f"iteration {self.step:,} of {self.settings.iterations:,}, {in_words(left)} left"

    def warn(self, warning: str, once: bool = False) -> None:
        """Write a warning to the log and print it; once: unless this process has done so already."""
        if once and warning in self._warned:
            return
        self._warned.add(warning)
        self.files.write_line("log", self.step, {"warning": warning})
        tqdm.write(f"warning at iteration {self.step}: {warning}")

    def _check_networks(self) -> None:
        """Raise Diverged, naming the network, unless every weight is finite."""
        for name in ("D", "G") if "D" in self.parts else ("G",):
            tensors = [t for t in self.parts[name].state_dict().values() if t.is_floating_point()]
            if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
                self._stop_diverged(f"{name} holds weights that are not finite")

    def _stop_diverged(self, what: str) -> None:
        last = f" (the last that were finite: {self._last})" if self._last else ""
        raise Diverged(
            f"{what} at iteration {self.step}{last}: the run in {self.folder} has diverged; any checkpoint in"
            " it is from before; start again with a smaller learning_rate"
        )

    @torch.no_grad()
    def _draw(self, n: int) -> Tensor:
        """The images (n, C, H, W), uint8, of the run's first n latents."""
        return torch.cat([to_uint8(self.draw(z)) for z in self.latents[:n].split(SAMPLES)])

    def _sample_name(self) -> str:
        return f"samples/{self.step:06d}.png"

    def sample(self) -> None:
        """Write the grid of this step, and warn when all its images are one and the same."""
        images = self._draw(SAMPLES)
        self.files.write_picture(grid(images), self._sample_name())
        spread, real = _spread(images), _spread(self.images.pixels[:SCORED])
        if self.step >= COLLAPSE_FROM and spread < COLLAPSED * real:
            self.warn(
                f"the samples have collapsed: they differ by {spread:.2f} grey levels, reals by {real:.1f}"
            )

    def score(self) -> None:
        """Write the scores of this step; what fails there is a warning, and the training goes on."""
        try:
            scores = self._score(self._draw(SCORED))
        except Exception as error:  # what was there when the run began may be gone, and memory may be short
            reason = limit(error) or str(error).partition("\n")[0] or type(error).__name__
            self.warn(f"not scored, and the training goes on: {reason}", once=True)
            return
        self.files.write_line("scores", self.step, scores.as_dict())
        tqdm.write(f"{self.step}: {scores}")

    def _best(self) -> dict[str, Any] | None:
        """The best of the scores that were measured as the last one was."""
        lines = self.files.lines("scores")
        alike = [line for line in lines if measure(line) == measure(lines[-1])]
        return min(alike, key=merit, default=None)

    def _animate(self) -> None:
        try:
            animate(self.folder)
        except NoSpace as error:
            print(error)
        except Exception as error:  # the run is whole without it
            print(f"{self.folder / 'samples.webp'} cannot be made ({error or type(error).__name__})")

    # -- going on ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint of this step. Raises Diverged rather than save what is not finite."""
        self._check_networks()
        content = {
            "version": checkpoints.VERSION,
            "script": self.script.name,
            "settings": plain(self.settings),
            "arguments": {k: part.arguments for k, part in self.parts.items() if hasattr(part, "arguments")},
            "fingerprint": self.images.fingerprint,
            "source": self._source,
            "step": self.step,
            **state.of(self.parts, self.device),
        }
        self.checkpoints.save(self.step, content)

    def _resume(self) -> None:
        """Take up the state of the newest whole checkpoint."""
        path, found = self.checkpoints.newest()
        self._refuse_others(found)
        self.step, iterations = found["step"], self.settings.iterations
        if self.step >= iterations:
            at = "is beyond that already" if self.step > iterations else "is there"
            longer = command(self.script, "--resume", self.folder, "--iterations", 2 * self.step)
            print(
                f"{self.folder} was to go on to iteration {iterations:,} and {at}: go on longer with {longer}"
            )
        if self.step > iterations:
            return
        state.load(self.parts, found, path, self.device)
        self.files.forget_after(self.step)
        again = description_of(self.folder).get("settings", {}) | {"resume": plain(self.settings)["resume"]}
        if self.step < iterations or again != plain(self.settings):
            self.files.describe_again(self.step, **self._description())
            print(f"going on with {self.folder} after iteration {self.step}")

    def _refuse_others(self, found: dict[str, Any]) -> None:
        """Raise UserError unless the checkpoint is of a run with these settings, images and source."""
        folder, settings = self.folder, self.settings
        if found.get("script") != self.script.name:
            raise UserError(f"{folder} is a run of {found.get('script')}: resume it with that script")
        before, now = complete(type(settings), found.get("settings", {})), plain(settings)
        fixed = now.keys() - MAY_CHANGE - ({"source"} if found.get("source") else set())
        changed = {key: before[key] for key in now if key in fixed and before[key] != now[key]}
        if changed:
            raise UserError(
                f"{folder} was started with {flags(changed)}, and that cannot change: leave it as it was, or"
                " start a new run"
            )
        if found["fingerprint"] != self.images.fingerprint:
            raise UserError(
                f"{folder} was started on other images than {settings.images}: give those with --images"
            )
        if found.get("source") not in (None, self._source):
            raise UserError(
                f"{folder} was started from another model than {settings.source} (it was"
                f" {before['source']}): give that with --source"
            )


def in_words(seconds: float) -> str:
    """A time as a person would say it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _spread(images: Tensor) -> float:
    """How much images (N, 3, H, W), uint8, differ: each number's deviation over the images, on average."""
    return images.float().std(0).mean().item() if len(images) > 1 else 0.0


def measure(scores: dict[str, Any]) -> tuple[Any, ...]:
    """What merit is, against which images, and how it was measured: only equals can be compared.

    It is KID, or the Frechet distance where statistics without images allow no other; against the held-out
    images where they are given.
    """
    side = "held-out" if scores.get("heldout") else "training"
    against = scores.get("heldout") or scores
    kind = "FID" if against.get("kid") is None and against.get("fid") is not None else "KID"
    return kind, side, against.get("n_real"), scores.get("extractor"), scores.get("resize")


def merit(scores: dict[str, Any]) -> float:
    """What the best checkpoint has least of, see measure; infinite when it is no number."""
    value = (scores.get("heldout") or scores).get(measure(scores)[0].lower())
    return math.inf if value is None or math.isnan(value) else value
