"""A real run killed and gone on with, against one that was left alone; what a stop and a checkpoint cost.

    python -m experiments.resume

At full width, on what ships: `wgan_64_transferlearning.py` unbroken; again, killed with SIGKILL between two
checkpoints and resumed; a third time, ended by SIGTERM. Appends a line to experiments/results.jsonl.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import lines
from transfer.checkpoints import Checkpoints
from transfer.folder import hardware, versions
from transfer.settings import command_line, user_errors

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Settings:
    """How long the runs are."""

    iterations: int = 12
    save_every: int = 5
    kill_at: int = 8  # the iteration after which the run is killed
    script: str = "wgan_64_transferlearning.py"


def start(settings: Settings, out: Path, *more: str) -> subprocess.Popen:
    """Start the script; its folder will be the first in out."""
    words = f"--iterations {settings.iterations} --save-every {settings.save_every} --log-every 1"
    words += f" --sample-every {settings.iterations} --out {out}"
    return subprocess.Popen(
        [sys.executable, settings.script, *words.split(), *more], cwd=ROOT, stdout=subprocess.DEVNULL
    )


def wait_for(process: subprocess.Popen, log: Path, step: int) -> None:
    """Wait until the log tells of the step."""
    while process.poll() is None and not (
        log.exists() and f'"step": {step},' in log.read_text(encoding="utf-8")
    ):
        time.sleep(0.05)


def equal(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, but for the settings."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        keys = a.keys() - {"settings"}
        return keys == b.keys() - {"settings"} and all(equal(a[key], b[key]) for key in keys)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def main(settings: Settings) -> None:
    """Run the three, compare, and write a line."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, name) for name in ("unbroken", "killed", "stopped")]
        began = time.monotonic()
        assert start(settings, outs[0]).wait() == 0
        seconds = time.monotonic() - began
        (unbroken,) = outs[0].iterdir()
        killed = outs[1] / unbroken.name
        process = start(settings, outs[1])
        wait_for(process, killed / "log.jsonl", settings.kill_at)
        process.kill()
        process.wait()
        resumed_after = Checkpoints(killed).newest()[1]["step"]
        assert start(settings, outs[1], "--resume", str(killed)).wait() == 0
        a, b = (Checkpoints(run).newest()[1] for run in (unbroken, killed))
        pictures = [(run / "samples" / f"{a['step']:06d}.png").read_bytes() for run in (unbroken, killed)]

        stopped = outs[2] / unbroken.name
        process = start(settings, outs[2])
        wait_for(process, stopped / "log.jsonl", 2)
        time.sleep(1)  # into the third iteration
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status, stop = process.wait(), time.monotonic() - began
        logged = len((stopped / "log.jsonl").read_text(encoding="utf-8").splitlines())
        lost = logged - Checkpoints(stopped).newest()[1]["step"]

        checkpoints, began = Checkpoints(unbroken), time.monotonic()
        for step in range(100, 105):
            checkpoints.save(step, a)
        save = (time.monotonic() - began) / 5
        size = os.path.getsize(checkpoints.found()[0])
    line = {
        "table": "resume",
        "row": f"{settings.script}, {settings.iterations} iterations",
        "killed_at": settings.kill_at,
        "resumed_after": resumed_after,
        "state_equal": equal(a, b),
        "samples_equal": pictures[0] == pictures[1],
        "seconds": round(seconds, 1),
        "sigterm_status": status,
        "sigterm_seconds": round(stop, 2),
        "sigterm_iterations_lost": lost,
        "checkpoint_seconds": round(save, 3),
        "checkpoint_bytes": size,
        "hardware": hardware(a["random"]["cpu"].device),
        "versions": versions(),
    }
    lines.append(line)
    print(json.dumps(line, indent=2))


def markdown() -> str:
    """What experiments.resume has measured, in words."""
    text = ""
    for line in lines.read("resume"):
        outcome = "equal to the bit" if line["state_equal"] and line["samples_equal"] else "NOT equal"
        text += (
            f"- `{line['row']}` at full width ({line['hardware']}, torch {line['versions']['torch']}):"
            f" killed (SIGKILL) after iteration {line['killed_at']}, resumed after {line['resumed_after']};"
            f" networks, average, optimizers, random state and samples are {outcome} to those of the unbroken"
            f" run. SIGTERM in the third iteration: status {line['sigterm_status']},"
            f" {line['sigterm_seconds']:.1f} s, {line['sigterm_iterations_lost']} iterations lost. A"
            f" checkpoint ({line['checkpoint_bytes'] / 1e6:.1f} MB) took {line['checkpoint_seconds']:.2f} s"
            f" to write, sync, read back and list; the run took {line['seconds']:.0f} s."
        )
    head = "## Killed and gone on with\n\nWritten by `python -m experiments.resume`.\n"
    return f"{head}{text}\n" if text else ""


if __name__ == "__main__":
    chosen = command_line(Settings)
    with user_errors():
        main(chosen)
