"""The workers of a sweep: processes that take a trial, bring its run to the next rung, and take another."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.judge import side
from experiments.sweep.halving import Sweep, meanwhile, ranked
from experiments.sweep.space import Settings, run_settings
from transfer import Diverged, UserError
from transfer.checkpoints import Checkpoints
from transfer.drawing import script as module
from transfer.record import merit
from transfer.settings import LATEST, user_errors
from transfer.signals import Signals, Stop

PAUSE = 5.0  # seconds between two looks, while all that is left is others' work
GOES_ON = "and nothing is lost: the same command goes on"


def work(settings: Settings, until: float = math.inf, parent: int | None = None) -> None:
    """Work on the sweep until all trials have ended, or it is time (as time.time tells it).

    A signal to stop lets the iteration end, writes a checkpoint, and puts the trial back.

    parent: the process with which this one ends, where another has started it.
    """
    sweep = Sweep.open(settings)
    with Signals() as signals:
        signals.at_once = True
        try:
            with _watched(until, parent):
                _share(sweep, until, parent)
        except Stop as stop:
            stop.sentence = GOES_ON
            if time.time() < until:
                raise


def _share(sweep: Sweep, until: float, parent: int | None) -> None:
    """Take trials, one after the other, until all have ended or, see work, this process is to end."""
    told = None
    while True:
        sweep.take_back()
        trials = sweep.trials()
        if told:
            print(f"{told}; {progress(trials, sweep.settings)}", flush=True)
        if all(trial.state.is_finished() for trial in trials):
            return
        if time.time() >= until or parent not in (None, os.getppid()):
            return  # the signal came where Python drops what it raises, such as in a finalizer
        trial = sweep.claim(trials)
        told = _turn(sweep, trial) if trial else time.sleep(PAUSE)


def _turn(sweep: Sweep, trial: Trial) -> str | None:
    """Work on a trial; returns what was found. Its run may be held by a worker that was taken for dead."""
    try:
        if _held(run_settings(trial.params, sweep.settings.rungs[0], sweep.settings).out):
            sweep.put_back(trial)
            return time.sleep(PAUSE)
        with sweep.beating(trial):
            return advance(sweep, trial)
    except UpdateFinishedTrialError:
        print("this worker was taken for dead: it leaves its plan to another, and takes the next")
    except BaseException:
        sweep.put_back(trial)
        raise
    return None


def _held(out: Path) -> bool:
    """Whether a process works on a candidate's run."""
    try:
        for lock in out.glob("0*/.lock"):
            with FileLock(lock, timeout=0):
                pass
    except Timeout:
        return True
    return False


def advance(sweep: Sweep, trial: Trial) -> str | None:
    """Bring a trial to its next rung, or to its end. Returns what was found, in words."""
    settings, before = sweep.settings, sweep.storage.get_trial(trial._trial_id)
    reached = len(before.intermediate_values)
    if reached == len(settings.rungs):
        return _end(sweep, trial, TrialState.COMPLETE)
    if reached and trial.should_prune():
        return _end(sweep, trial, TrialState.PRUNED)
    rung = settings.rungs[reached]
    value, figures = run(before.params, rung, settings)
    if str(rung) not in before.user_attrs:
        trial.set_user_attr(str(rung), figures)
    trial.report(value, rung)
    if rung == settings.rungs[-1]:
        _end(sweep, trial, TrialState.COMPLETE)
    else:
        _lighten(run_settings(before.params, rung, settings).out, keep=1)
        sweep.put_back(trial)
    return f"{before.user_attrs['plan']}: {1000 * value:.1f} after {rung:,} iterations"


def _end(sweep: Sweep, trial: Trial, state: TrialState) -> None:
    """Finish a trial, its constraints where Optuna looks for them; what was stopped lets its weights go."""
    told = sweep.storage.get_trial(trial._trial_id)
    for name, value in told.user_attrs[str(told.last_step)]["constraints"].items():
        if name not in told.constraints:
            trial.set_constraint(name, value)
    complete = state == TrialState.COMPLETE
    out = run_settings(told.params, sweep.settings.rungs[0], sweep.settings).out
    _lighten(out, keep=1 if complete else 0)
    sweep.study.tell(trial, told.intermediate_values[told.last_step] if complete else None, state=state)


def _lighten(out: Path, keep: int) -> None:
    """Of a candidate's checkpoints keep the newest ones: hundreds of plans wait at a rung."""
    for folder in out.glob("0*"):
        for path in Checkpoints(folder).found()[keep:]:
            path.unlink(missing_ok=True)


def run(params: dict[str, str], rung: int, settings: Settings) -> tuple[float, dict[str, Any]]:
    """Bring a candidate's run to a rung: its KID there, and its other figures. It goes on where it was.

    Raises:
        UserError: when there is no score, or the script refuses.
    """
    own, script = run_settings(params, rung, settings), module(params["script"])
    steps = [int(path.stem) for folder in own.out.glob("0*") for path in Checkpoints(folder).found()]
    if steps:
        own = replace(own, resume=Path(LATEST))
    whole = max(steps, default=0) in (0, *settings.rungs) and rung not in steps
    began = time.monotonic()
    try:
        with _log(settings):
            folder = script.main(own)
    except Diverged as error:
        return math.inf, {"diverged": str(error), "constraints": {}, "seconds": None}
    finally:
        gc.collect()  # captured graphs hold memory in circles
    seconds = time.monotonic() - began
    path = folder / "scores.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    scores = [line for line in map(json.loads, lines) if line["step"] == rung]
    if not scores:
        raise UserError(f"{folder} has no score of iteration {rung}: its log.jsonl says why; start again")
    told, copies = side(scores[-1]), (scores[-1].get("memorisation") or {}).get("copies")
    figures = {name: told.get(name) for name in ("fid", "precision", "recall", "density", "coverage")}
    bounds = {} if copies is None else {"copies": copies - settings.copies}
    if figures["density"] is not None and rung == settings.rungs[-1]:
        bounds["density"] = settings.density - figures["density"]  # few samples are like the domain before
    return merit(scores[-1]), figures | {
        "copies": copies,
        "constraints": bounds,  # kept where none is above 0
        "seconds": round(seconds, 2) if whole else None,  # of the whole rung, its score included
        "run": str(folder.relative_to(settings.out)),
        "images": told.get("n_real"),
    }


@contextlib.contextmanager
def _log(settings: Settings) -> Iterator[None]:
    """What the scripts print goes to a file of each worker."""
    folder = settings.out / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(folder / f"{socket.gethostname()}-{os.getpid()}.txt", "a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


def progress(trials: list[FrozenTrial], settings: Settings) -> str:
    """How far the sweep is, and the best so far, in words."""
    counts = {step: sum(step in t.intermediate_values for t in trials) for step in settings.rungs}
    furthest = max(step for step, count in counts.items() if count)
    best = ranked(trials, furthest)[0]
    return (
        f"best so far {best.user_attrs['plan']} ({1000 * best.intermediate_values[furthest]:.1f} after"
        f" {furthest:,}); of {len(trials)} plans"
        f" {', '.join(f'{count} at {step:,}' for step, count in counts.items() if count)}"
    )


# ----------------------------------------------------------------------------------------------------------
# Processes.


@contextlib.contextmanager
def _watched(until: float, parent: int | None) -> Iterator[None]:
    """SIGTERM to this process when it is time, or when the one that started it is gone."""

    def watch(over: threading.Event) -> None:
        while not over.wait(min(1.0, max(0.0, until - time.time()))):
            if time.time() >= until or parent not in (None, os.getppid()):
                os.kill(os.getpid(), signal.SIGTERM)
                over.wait(60)  # a second signal would not wait for the checkpoint

    with meanwhile(watch):
        yield


def processes(settings: Settings) -> int:
    """As many as there are GPUs; without one, as there are cores that nobody else is using."""
    import torch

    if settings.workers:
        return settings.workers
    if settings.device != "cpu" and torch.cuda.is_available():
        return torch.cuda.device_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    return max(1, (os.cpu_count() or 1) - round(load))


def start(settings: Settings, until: float = math.inf) -> None:
    """Work on the sweep in as many processes as the settings say; with one, in this one."""
    import torch

    count = processes(settings)
    if count == 1:
        return work(settings, until)
    gpus = torch.cuda.device_count() if settings.device in (None, "cuda") and torch.cuda.is_available() else 0
    context, started = multiprocessing.get_context("spawn"), []  # CUDA does not live through a fork
    threads = str(max(1, (os.cpu_count() or 1) // count))
    with Signals() as signals:
        signals.at_once = True
        try:
            for number in range(count):
                own = {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus else {"OMP_NUM_THREADS": threads}
                with _environment(own):
                    started.append(context.Process(target=_child, args=(settings, until, os.getpid())))
                    started[-1].start()
            for process in started:
                process.join()
        except Stop as stop:
            stop.sentence = GOES_ON
            raise
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join()
    for process in started:
        if process.exitcode:
            print(f"a worker has ended with status {process.exitcode}: the others take up its plan")


def _child(settings: Settings, until: float, parent: int) -> None:
    with contextlib.suppress(Stop), user_errors():
        work(settings, until, parent)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that a process which is started meanwhile has."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
