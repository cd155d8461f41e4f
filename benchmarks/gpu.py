"""The first minutes on a GPU: whether everything is right there, and how fast it is.

    python -m benchmarks.gpu                                      ten minutes at most
    python -m benchmarks.gpu --device cpu --width 4 --batch 4     rehearses the checks where there is no GPU

Every script computes one iteration as the CPU does, from the same random numbers, and the same again in bf16;
eight iterations as one graph are those of the plain loop; a run that goes on is the run; frozen features,
adapters, drawing and scores are what they are on the CPU. Then come the speeds. What fails names the setting
that leaves it out, and the rest goes on: each check is a process of its own, since a fault on a GPU leaves
its process useless. Each writes lines to benchmarks/results.jsonl, from which python -m benchmarks.page
writes docs/performance.md; a rehearsal writes none.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import textbook
from benchmarks.device import (
    Bench,
    Found,
    as_on_the_cpu,
    as_one_graph,
    frozen,
    in_bf16,
    layout,
    resumed,
    shared,
)
from benchmarks.step import COUNTED
from benchmarks.timing import keep
from fid.extractors import float32
from transfer import UserError
from transfer.compiler import reason
from transfer.engine import bf16_on, choose_device
from transfer.folder import hardware
from transfer.settings import Batch, Count, Positive, Weight, command_line, user_errors

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("wgan_*.py"))
SCRIPTS += [f"methods.{path.stem}" for path in sorted((ROOT / "methods").glob("[!_]*.py"))]
TRANSFER, PROJECTED = "wgan_64_transferlearning", "methods.projected_critic"
TEXTBOOK = {"wgan_64": (5e-5, None), "wgan_gp_64": (1e-4, 10.0)}  # learning rate, weight of the penalty

# ----------------------------------------------------------------------------------------------------------
# How fast it is.


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def card(at: Bench, of: str) -> Iterator[Found]:
    """The card, what drives it, and its rate of products of two square matrices, TFLOP/s."""
    found: Found = {"ok": True, "card": hardware(at.device), "bf16": bf16_on(at.device)}
    if at.device.type == "cuda":
        has = torch.cuda.get_device_properties(at.device)
        found |= {"memory_gb": has.total_memory / 1e9, "capability": f"{has.major}.{has.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": driver()}
    with float32(at.device):
        found["float32_tflops"] = rate(at, torch.float32) / 1e12
    yield found | {"bf16_tflops": rate(at, torch.bfloat16) / 1e12}


def driver() -> str:
    """The version of the GPU's driver, as the driver's own program tells it."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def ticks(at: Bench, taken: list[float], begin: Callable[[], Any] = lambda: None) -> Iterator[int]:
    """Numbers from 1, for each of which a loop does its work; appended to taken are the milliseconds of one.

    Those in which libraries choose and allocate do not count; begin is called after them.
    """
    numbers = itertools.count(1)
    at_once = 10 if at.seconds >= 1 else 1  # iterations before the clock waits for the device
    yield from itertools.islice(numbers, 8 if at.device.type == "cuda" else 1)
    synchronize(at.device)
    begin()
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < at.seconds:
        yield from itertools.islice(numbers, at_once)
        synchronize(at.device)
        count += at_once
    taken.append(1000 * (time.perf_counter() - start) / count)


def rate(at: Bench, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two large matrices: what the card can do."""
    n, taken = 8192 if at.device.type == "cuda" else 512, []
    a, b = torch.randn(2, n, n, device=at.device).to(dtype)
    for _ in ticks(at, taken):
        a @ b
    return 2 * n**3 / taken[0] * 1000


def speed(at: Bench, of: str) -> Iterator[Found]:
    """Milliseconds an iteration at two batch sizes: the textbook's, ours without a graph and with it."""
    products = rate(at, torch.bfloat16 if bf16_on(at.device) else torch.float32)
    for batch in (16, 64) if at.device.type == "cuda" else (at.batch,):
        here, taken = replace(at, batch=batch), []
        found: Found = {"ok": True, "part": f"batch {batch}", "batch": batch}
        if of in TEXTBOOK:
            iteration = textbook_iteration(here, of)
            for _ in ticks(here, taken):
                iteration()
            found["textbook_ms"] = taken.pop()
        for name, graph in (("plain_ms", False), ("ms", True)):
            if at.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(at.device)
            here.train(of, ticks(here, taken), graph, iterations=1_000_000)
            found[name] = taken.pop()
        if at.device.type == "cuda":
            found["peak_mb"] = torch.cuda.max_memory_allocated(at.device) / 1e6
        if of in COUNTED:
            found["share"] = COUNTED[of] * batch / 64 / products / found["ms"] * 1000
        yield found | {"seconds_20000": 20 * found["ms"]}


def textbook_iteration(at: Bench, of: str) -> Callable[[], None]:
    """The iteration of benchmarks/textbook.py."""
    rate_, penalty = TEXTBOOK[of]
    G, D = textbook.generator(width=at.width), textbook.critic(at.width, norm=penalty is None)
    return textbook.loop(at.images(), G.to(at.device), D.to(at.device), rate_, penalty, at.batch)


def together(at: Bench, of: str) -> Iterator[Found]:
    """Iterations a second of several runs on one card at once."""
    context = multiprocessing.get_context("spawn")
    for runs in (1, 2, 4):
        start, taken = context.Barrier(runs), context.Queue()
        for _ in range(runs):
            context.Process(target=one_of_several, args=(at, of, start, taken), daemon=True).start()
        each = [taken.get(timeout=180) for _ in range(runs)]
        yield {"ok": True, "part": f"{runs} at once", "runs": runs, "a_second": sum(1000 / ms for ms in each)}


def one_of_several(at: Bench, of: str, start: Any, taken: Any) -> None:
    """Put into taken the milliseconds of an iteration, once all have come to the start."""
    found: list[float] = []
    at.train(of, ticks(at, found, partial(start.wait, 120)), graph=True, iterations=1_000_000)
    taken.put(found[0])


# ----------------------------------------------------------------------------------------------------------
# The processes.

CHECKS = (
    card, layout, frozen, as_on_the_cpu, in_bf16, as_one_graph, resumed, shared, speed, together,
)  # fmt: skip
AVOID = {layout: "--device cpu", frozen: "--no-fast", as_on_the_cpu: "--device cpu", in_bf16: "--no-fast"}
AVOID |= {as_one_graph: "--no-fast", resumed: "--no-fast", shared: "--device cpu"}
ALL = "all scripts"  # in the place of a script: what they share


def checks_of(of: str) -> tuple[Callable[[Bench, str], Iterator[Found]], ...]:
    """The checks of a script, or of what all share."""
    if of == ALL:
        return card, layout, frozen
    more = {"wgan_64": (speed, together), "wgan_gp_64": (speed,), TRANSFER: (resumed, shared, speed)}
    return as_on_the_cpu, in_bf16, as_one_graph, *({PROJECTED: (resumed, speed)} | more).get(of, ())


def lines_of(at: Bench, of: str, check: Callable[[Bench, str], Iterator[Found]]) -> tuple[list[Found], bool]:
    """What a check found, and whether it came to its end: if not, the device may be of no more use."""
    lines: list[Found] = []
    try:
        with redirect_stdout(sys.stderr):
            lines.extend(check(at, of))  # those before an exception stay
    except Exception as error:
        return [*lines, {"ok": False, "why": reason(error)}], False
    return lines, True


def answer(command: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The lines of JSON that a process writes, and why it ended before its end, if it did."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            written, errors = process.communicate(timeout=seconds)
            last = (errors.strip().splitlines() or ["it said nothing"])[-1]
            why = f"its process ended with status {process.returncode}: {last}" if process.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started
            (written, _), why = process.communicate(), "the minutes are over"
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")], why


def found(command: Sequence[str], names: Sequence[str], until: float) -> Iterator[tuple[str, list[Found]]]:
    """What each of some checks found, in as many processes as they need."""
    while names:
        told, why = answer([*command, "--checks", *names], max(until - time.monotonic(), 1))
        for each in told:
            yield each["check"], each["lines"]
        names = names[len(told) :]
        if names and (why or not told):
            yield names[0], [{"ok": None if why == "the minutes are over" else False, "why": why}]
            names = names[1:]


@dataclass(frozen=True)
class Settings:
    """How long, and where."""

    minutes: Positive = 10.0  # at most
    device: str | None = None  # cuda; cpu rehearses
    width: Count = 64  # of the networks; what is of another width is not kept
    batch: Batch = 16  # images a step, but for the speeds, which have 16 and 64
    seconds: Weight = 3.0  # that each speed is taken over
    of: str | None = None  # one script, or "all scripts" for what all share; all of it unless given
    checks: tuple[str, ...] = ()  # of that script, in this process, as lines of JSON


def main(chosen: Settings) -> None:
    """Check, say what was found, and keep it.

    Raises:
        UserError: when there is no GPU and no device is given.
    """
    device = choose_device(chosen.device)
    if device.type == "cpu" and chosen.device is None:
        raise UserError("no CUDA GPU was found: give --device cpu to rehearse the checks without one")
    at = Bench(device, chosen.width, chosen.batch, chosen.seconds)
    until = time.monotonic() + 60 * chosen.minutes
    if chosen.checks:
        for check in (check for check in CHECKS if check.__name__ in chosen.checks):
            lines, whole = lines_of(at, chosen.of, check)
            print(json.dumps({"check": check.__name__, "lines": lines}), flush=True)
            if not whole:
                return
        return
    for of in [ALL, *SCRIPTS] if chosen.of is None else [chosen.of]:
        names = {check.__name__: check for check in checks_of(of)}
        command = [sys.executable, "-m", "benchmarks.gpu", "--of", of, "--device", str(device)]
        for name in ("width", "batch", "seconds"):
            command += [f"--{name}", str(getattr(chosen, name))]
        for name, lines in found(command, list(names), until):
            for line in lines:
                if line["ok"] is False and names[name] in AVOID:
                    line["avoid"] = AVOID[names[name]]
                print(sentence(of, name, line), flush=True)
                if device.type == "cuda" and chosen.width == 64:
                    keep("gpu", device, of=of, check=name, **line)


def sentence(of: str, name: str, line: Found) -> str:
    """A line in words."""
    told = {key: value for key, value in line.items() if key not in ("ok", "part", "avoid", "why", "batch")}
    numbers = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in told.items())
    ends = {True: "right", False: "WRONG", None: "not looked at"}[line["ok"]]
    more = [line["why"]] if line.get("why") else []
    more += [f"{line['avoid']} leaves it out"] if "avoid" in line else []
    subject = f"{of}, {name.replace('_', ' ')}" + (f", {line['part']}" if "part" in line else "")
    return f"{subject}: {', '.join([ends, *numbers])}" + "".join(f"; {each}" for each in more)


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
