"""The labels of a run of methods.several_targets: what each judge scores each one, and the numbers stored.

    python -m experiments.labels target_domain/0001-several_targets-G032-D203 --references A.zip B.zip C.zip

Each label and judge is one line of experiments/results.jsonl, and is skipped when it is there.
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

import fid
from experiments import lines
from experiments.judge import FIRST, merit, short
from experiments.runs import JUDGES, commit, described, seen
from methods import several_targets
from transfer import UserError, record
from transfer.adapters import Adapter
from transfer.card import seconds
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.images import Images
from transfer.settings import Extractor, command_line, description_of, stored, user_errors
from transfer.shared import Source


@dataclass(frozen=True)
class Settings:
    """Which run, and what its labels are scored against."""

    run: Positional[Path]  # the run's folder
    references: tuple[Path, ...]  # held-out images of each label, in the order of the labels' names
    judges: tuple[Extractor, ...] = JUDGES


def numbers(run: Path, labels: list[str]) -> tuple[int, int]:
    """How many numbers of the averaged generators are not the source's: all labels', and one label's."""
    found = [Adapter.of(run, label=label).networks["ema"] for label in labels]
    first, *others = found
    shared = {k for k, t in first.items() if others and all(k in o and torch.equal(t, o[k]) for o in others)}
    count = sum(first[key].numel() for key in shared)
    return count, sum(tensor.numel() for tensor in first.values()) - count


def main(settings: Settings) -> None:
    """Measure what is missing.

    Raises:
        UserError: when there are more or fewer references than labels, or the images are not the run's.
    """
    run = settings.run
    path, state = Checkpoints(run).newest()
    chosen = stored(several_targets.Settings, run, Path(several_targets.__file__))
    labels = state["arguments"]["G"]["labels"]
    if len(labels) != len(settings.references):
        raise UserError(f"the labels are {', '.join(labels)}: give held-out images of each, in this order")
    images = Images.load(chosen.images)
    if images.fingerprint != state["fingerprint"]:
        raise UserError(f"{chosen.images} holds other images than {run} was trained on: put those back")
    shared, own = numbers(run, labels)
    known = {key: description_of(run).get(key) for key in ("hardware", "versions")}
    line = {"table": "several", "script": state["script"], "step": state["step"], "labels": labels}
    line |= {"settings": described(chosen), "seen": seen(chosen), "shared": shared, "own": own, **known}
    line |= {"seconds": seconds(run, state["step"], state["settings"]), "commit": commit()}
    done = [{k: each[k] for k in ("label", "judge", "step", "settings")} for each in lines.read("several")]
    for judge in settings.judges:
        extractor = fid.load(judge)
        each = zip(labels, several_targets.by_label(images), settings.references, strict=True)
        for label, real, reference in each:
            which = {"label": label, "judge": judge, "step": line["step"], "settings": line["settings"]}
            if which in done:
                continue
            scores = fid.score(
                draw(Source.read(path, label=label), record.SCORED, chosen.seed), real, reference,
                extractor=extractor, size=64, seed=chosen.seed, seen=tuple(line["seen"]),
            )  # fmt: skip
            lines.append(line | which | {"scores": scores.as_dict()})
            print(f"{label}: {scores}")


def markdown() -> str:
    """The part of docs/results.md: a table for each run."""
    text, found = (
        "## Several targets in one model\n\nWritten by `python -m experiments.labels`.\n\n",
        defaultdict(list),
    )
    for line in lines.read("several"):
        found[json.dumps([line["settings"], line["step"]])].append(line)
    for each in found.values():
        first, by = each[0], {(line["label"], line["judge"]): line["scores"] for line in each}
        G, D = (",".join(map(str, first["settings"][key])) for key in "GD")
        rows = [
            (
                label,
                *(f"{merit(by[label, judge]):.1f}" if (label, judge) in by else "–" for judge in JUDGES),
                f"{by[label, FIRST]['heldout']['coverage']:.2f}" if (label, FIRST) in by else "–",
            )
            for label in first["labels"]
        ]
        text += (
            f"G({G}) D({D}), {first['step']:,} iterations, an equal share of them for each label; seed"
            f" {first['settings']['seed']}, {first['seconds'] / 60:.0f} minutes ({first['hardware']}). "
            f" The generators have {first['shared']:,} numbers that their source has not and all labels"
            f" share, and {first['own']:,} for each label.\n\n"
            + lines.markdown(
                ("label", *(f"KID x 1000, {short(judge)}" for judge in JUDGES), "coverage"), rows
            )
            + "\n"
        )
    return text if found else ""


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
