"""Write the measured part of docs/performance.md from results.jsonl: the newest line of each measurement.

python -m benchmarks.page
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.timing import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- written by python -m benchmarks.page -->\n", "<!-- until here -->\n"
KEYS = {
    "step": ("part", "script", "reference", "batch", "plan", "hardware"),
    "scaling": ("images",),
    "start": ("what",),
    "runs": ("script", "hardware"),
    "time_to": ("script", "images", "seed", "hardware"),
    "gpu": ("of", "check", "part", "hardware"),
}


def newest(benchmark: str) -> list[dict]:
    """The newest line of each measurement of a benchmark, in the order of their first."""
    found: dict[tuple, dict] = {}
    for text in RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []:
        line = json.loads(text)
        if line["benchmark"] == benchmark:
            found[tuple(line.get(key) for key in KEYS[benchmark])] = line
    return list(found.values())


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, or nothing when there are no rows."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n\n" if rows else ""


def spread(line: dict) -> str:
    """A ratio with the smallest and the largest of its turns."""
    return f"{line['ratio']:.2f} ({line['min']:.2f} to {line['max']:.2f})"


def where(lines: list[dict]) -> str:
    """What the lines were measured on."""
    machines = {f"{x['hardware']}, torch {x['torch']}, Python {x['python']}" for x in lines}
    return f"Measured on {'; '.join(sorted(machines))}.\n\n" if lines else ""


def measured() -> str:
    """The tables."""
    pretrain = [x for x in newest("step") if x["part"] == "pretrain"]
    transfer = [x for x in newest("step") if x["part"] == "transfer"]
    scaling, start, runs = newest("scaling"), newest("start"), newest("runs")
    text = "\n## Pre-training against the textbook\n\n`python -m benchmarks.step`\n\n" + where(pretrain)
    text += table(
        (
            "script", "on", "textbook, s", "here, s", "times as fast", "iterations a second",
            "GFLOP/s of a product", "share of the counted floor", "the textbook's",
            "gradients apart, float64", "as timed",
        ),
        [
            (
                f"`{x['script']}.py`", x["hardware"], f"{x['textbook_ms'] / 1e3:.2f}",
                f"{x['ours_ms'] / 1e3:.2f}", spread(x), f"{1e3 / x['ours_ms']:.2f}",
                f"{x['gflops']:.0f}", f"{x['floor']:.2f}", f"{x['textbook_floor']:.2f}",
                f"{x['apart_float64']:.0e}", f"{x['apart']:.0e}",
            )
            for x in pretrain
        ],
    )  # fmt: skip
    text += references()
    text += "## Whole short runs\n\n`python -m benchmarks.runs train_images/target_domain`\n\n" + where(runs)
    text += table(
        ("script", "on", "Frechet distance, textbook: mean ± deviation of the seeds", "here", "how"),
        [
            (
                f"`{x['script']}.py`", x["hardware"], f"{x['textbook_mean']:.1f} ± {x['textbook_std']:.1f}",
                f"{x['ours_mean']:.1f} ± {x['ours_std']:.1f}",
                f"{x['seeds']} seeds, {x['iterations']} iterations, width {x['width']}, batch {x['batch']},"
                f" {x['generated']:,} samples against the {x['images']} images, {x['extractor']}",
            )
            for x in runs
        ],
    )  # fmt: skip
    text += "## A transfer, by what it freezes\n\n`python -m benchmarks.step`\n\n" + where(transfer)
    text += table(
        ("plan", "on", "s", "of the first", "counted", "over the count"),
        [
            (
                x["plan"], x["hardware"], f"{x['ms'] / 1e3:.2f}", spread(x), f"{x['counted']:.2f}",
                f"{x['ratio'] / x['counted']:.2f}",
            )
            for x in transfer
        ],
    )  # fmt: skip
    text += "## The first answer, the first iteration, memory\n\n`python -m benchmarks.start`\n\n" + where(
        start
    )
    text += table(
        ("what", "s", "peak of resident memory, MB"),
        [(x["what"], f"{x['seconds']:.2f}", f"{x['peak_mb']:,.0f}" if "peak_mb" in x else "") for x in start],
    )
    text += "## From 96 to 200,000 images\n\n`python -m benchmarks.scaling`\n\n" + where(scaling)
    text += table(
        ("images", "iteration, s", "of the first", "drawing a batch, ms"),
        [(f"{x['images']:,}", f"{x['ms'] / 1e3:.2f}", spread(x), f"{x['draw_ms']:.2f}") for x in scaling],
    )
    return text + time_to() + gpu()


def references() -> str:
    """A script against the textbook's loop and against the same in bf16 and compiled."""
    lines = [x for x in newest("step") if x["part"] == "references"]
    text = "## Against a textbook that is compiled\n\n`python -m benchmarks.step --parts references`\n\n"
    if not lines:
        return text + "Not measured yet.\n\n"
    return (text + where(lines)) + table(
        ("script", "on", "batch", "reference", "its s of a processor", "here, s", "times as fast"),
        [
            (
                f"`{x['script']}.py`", x["hardware"], str(x["batch"]), x["reference"],
                f"{x['reference_ms'] / 1e3:.2f}", f"{x['ours_ms'] / 1e3:.2f}", spread(x),
            )
            for x in lines
        ],
    )  # fmt: skip


def beyond(line: dict) -> str:
    """Where a run ended that did not come to a KID."""
    return f"beyond {line['readings'][-1]['step']:,}"


def time_to() -> str:
    """Minutes to a KID."""
    lines = newest("time_to")
    text = "## Minutes to a KID\n\n`python -m benchmarks.time_to IMAGES HELD_OUT`\n\n" + where(lines)
    if not lines:
        return text + "Not measured yet.\n\n"
    return text + table(
        ("script", "images", "on", "judge", "KID x 1000", "minutes", "of the processor", "iterations"),
        [
            (
                x["script"], f"{x['images']}, against {x['reference']}", x["hardware"], judge, target,
                *("" if m is None else f"{m:.1f}" for m in each),
                next((f"{r['step']:,}" for r in x["readings"] if r[judge] <= float(target)), beyond(x)),
            )
            for x in lines for judge, targets in x["minutes"].items() for target, each in targets.items()
        ],
    )  # fmt: skip


def outcome(line: dict) -> str:
    """What a check of a GPU came to, in words."""
    if line["ok"] is None:
        return f"not looked at: {line['why']}"
    avoid = f" (`{line['avoid']}` leaves it out)" if "avoid" in line else ""
    return "right" if line["ok"] else f"wrong: {line.get('why', 'too far apart')}{avoid}"


def gpu() -> str:
    """What is known of GPUs: the cards, what is right on them, how fast they are."""
    lines = newest("gpu")
    text = "## On a GPU\n\n`python -m benchmarks.gpu`\n\n"
    if not lines:
        return text + (
            "This has not run on a GPU yet: none has been measured. It takes ten minutes and checks every"
            " script first.\n\n"
        )
    cards, speeds = ([x for x in lines if x["check"] == check and x["ok"]] for check in ("card", "speed"))
    several = [x for x in lines if x["check"] == "together" and x["ok"]]
    checks = [x for x in lines if x not in cards + speeds + several]
    text += where(lines) + table(
        ("card", "memory, GB", "driver", "CUDA", "cuDNN", "TFLOP/s in float32", "in bf16"),
        [
            (
                x["card"], f"{x['memory_gb']:.0f}", x["driver"], x["cuda"], str(x["cudnn"]),
                f"{x['float32_tflops']:.0f}", f"{x['bf16_tflops']:.0f}",
            )
            for x in cards
        ],
    )  # fmt: skip
    text += table(
        ("what", "on", "check", "found", "apart", "allowed"),
        [
            (
                x["of"], x["hardware"], " ".join([x["check"].replace("_", " "), x.get("part", "")]).strip(),
                outcome(x),
                f"{x['apart']:.0e}" if "apart" in x else "", f"{x['bound']:g}" if "bound" in x else "",
            )
            for x in checks
        ],
    )  # fmt: skip
    text += table(
        (
            "script", "on", "batch", "textbook, ms", "here without a graph", "here", "times as fast",
            "share of a bf16 product's rate", "peak, MB", "20,000 iterations, s",
        ),
        [
            (
                x["of"], x["hardware"], str(x["batch"]),
                f"{x['textbook_ms']:.2f}" if "textbook_ms" in x else "",
                f"{x['plain_ms']:.2f}", f"{x['ms']:.2f}",
                f"{x['textbook_ms'] / x['ms']:.1f}" if "textbook_ms" in x else "",
                f"{x['share']:.2f}" if "share" in x else "",
                f"{x['peak_mb']:,.0f}", f"{x['seconds_20000']:.0f}",
            )
            for x in speeds
        ],
    )  # fmt: skip
    return text + table(
        ("runs on one card at once", "on", "iterations a second of all"),
        [(str(x["runs"]), x["hardware"], f"{x['a_second']:.0f}") for x in several],
    )


def page() -> str:
    """docs/performance.md with the measured part written anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}{measured()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
