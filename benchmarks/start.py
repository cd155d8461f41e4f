"""How long a script takes to its first answer and its first iteration, and how much memory it comes to.

    python -m benchmarks.start

Whole processes: `--help`; a wrong setting; wgan_64.py on 256 images of noise up to the end of its first
iteration, compiling with an empty cache (cold) and again with the cache of the first (warm), then ten
iterations further for the peak of its resident memory. Short runs, which do not compile, are timed too: the
README's two commands to their first picture, with the peak of a run of three iterations.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.timing import keep, synthetic
from transfer.engine import PAYS_FROM
from transfer.settings import Count, command_line, user_errors

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "first picture, the combination": ["wgan_64_transferlearning.py"],
    "first picture, a critic that sees": ["-m", "methods.projected_critic"],
}


def answer(*words: str) -> float:
    """Seconds to the end of a command that does not train."""
    began = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "wgan_64.py"), *words], capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


def first_iteration(images: Path, out: Path, cache: Path, iterations: int, after: int) -> dict[str, float]:
    """Seconds to the end of the first iteration, and the peak of resident memory so many after it, in MB."""
    words = f"--images {images} --out {out} --iterations {iterations} --log-every 1 --sample-every 100000"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "wgan_64.py"), *words.split()],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first = None
    while process.poll() is None:
        logs = list(out.glob("*/log.jsonl"))
        lines = logs[0].read_text(encoding="utf-8").count("\n") if logs else 0
        if lines and first is None:
            first = time.perf_counter() - began
        if lines > after:
            peak = _peak(process.pid)
            process.send_signal(signal.SIGTERM)
            process.wait()
            return {"seconds": first, "peak_mb": peak}
        time.sleep(0.02)
    raise SystemExit(f"wgan_64.py ended by itself, with status {process.returncode}")


def first_picture(words: list[str], out: Path) -> dict[str, float]:
    """Seconds to a run's first grid, which is the source's, and the peak of its resident memory, in MB."""
    began, first, peak = time.perf_counter(), None, 0.0
    process = subprocess.Popen(
        [sys.executable, *words, "--out", str(out), "--iterations", "3"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if first is None and list(out.glob("*/samples/000000.png")):
            first = time.perf_counter() - began
        with suppress(OSError, StopIteration):  # it ends just now
            peak = max(peak, _peak(process.pid))
        time.sleep(0.02)
    if process.returncode or first is None:
        raise SystemExit(f"{words[-1]} ended with status {process.returncode}")
    return {"seconds": first, "peak_mb": peak}


def _peak(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():  # not Linux: the largest of all child processes, compilers included
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    return (
        next(
            int(line.split()[1])
            for line in status.read_text(encoding="utf-8").splitlines()
            if "VmHWM" in line
        )
        / 1000
    )


@dataclass(frozen=True)
class Settings:
    """How long to look."""

    after: Count = 10  # iterations after the first, for the memory


def main(chosen: Settings) -> None:
    """Time each start, and keep a line for each."""
    answer("--help")  # the files come from the disk once
    lines = {
        "--help": {"seconds": min(answer("--help") for _ in range(5))},
        "a wrong setting": {"seconds": min(answer("--batch-size", "1") for _ in range(5))},
    }
    with tempfile.TemporaryDirectory() as folder:
        images, cache = Path(folder) / "images", Path(folder) / "cache"
        images.mkdir()
        for index, pixels in enumerate(synthetic(256).pixels):
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / f"{index}.png")
        for what, iterations in (
            ("first iteration, short run", PAYS_FROM - 1),
            ("first iteration, cold", PAYS_FROM),
            ("first iteration, warm", PAYS_FROM),
        ):
            lines[what] = first_iteration(
                images, Path(folder) / f"run{len(lines)}", cache, iterations, chosen.after
            )
        for what, words in COMMANDS.items():
            lines[what] = first_picture(words, Path(folder) / f"run{len(lines)}")
    for what, line in lines.items():
        print(f"{what}: {', '.join(f'{key} {value:.4g}' for key, value in line.items())}", flush=True)
        keep("start", what=what, **line, threads=torch.get_num_threads())


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
