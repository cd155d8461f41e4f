"""The summary of a sweep: the line of results.jsonl that it becomes, and its part of docs/results.md."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from experiments import lines
from experiments.judge import DASH
from experiments.runs import PICTURES, commit, version
from transfer import UserError
from transfer.folder import versions
from transfer.settings import description_of

if TYPE_CHECKING:
    from experiments.sweep.halving import Sweep

SHOWN = 12  # rows of the ranking that are not folded away
STRIPS = 6  # of its picture


def line(sweep: Sweep) -> dict[str, Any]:
    """What a sweep found and what it cost; nothing of its folder is needed to read it.

    Raises:
        UserError: when it has found nothing yet.
    """
    from experiments.sweep import cost
    from experiments.sweep.figures import furthest, importances, ranking, winner
    from experiments.sweep.space import plans_of

    settings, trials, best = sweep.settings, sweep.trials(), winner(sweep.study)
    order = [trial for trial in ranking(trials) if furthest(trial)]
    took, whole = cost.saved(order, settings)
    plans = []
    for trial in order:
        told = trial.user_attrs[str(furthest(trial))]
        plans.append(
            {
                "plan": trial.user_attrs["plan"],
                **{name: list(plan) for name, plan in plans_of(trial.params).items()},
                "kid": {str(step): kid for step, kid in sorted(trial.intermediate_values.items())},
                **{name: told.get(name) for name in ("density", "coverage", "copies")},
                "best": best is not None and trial.number == best.number,
            }
        )
    scored = [told for trial in order if (told := trial.user_attrs[str(furthest(trial))]).get("run")]
    if not scored:
        raise UserError(f"no plan of {settings.out} has been scored yet: keep it later")
    return {
        "table": "sweep",
        "name": sweep.study.study_name,
        "scripts": list(settings.scripts),
        "images": settings.images.name,
        "reference": None if settings.reference is None else version(settings.reference),
        "held_out": scored[0]["images"],
        "judge": settings.extractor,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "rungs": list(settings.rungs),
        "bounds": {"copies": settings.copies, "density": settings.density},
        "plans": plans,
        "importances": importances(order, settings.rungs[0]),
        "hours": took,
        "hours_of_all": whole,
        "hardware": description_of(settings.out / scored[0]["run"]).get("hardware", DASH),
        "versions": versions(),
        "commit": commit(),
    }


def keep(sweep: Sweep) -> str:
    """Keep a sweep as a line of results, and its first plans' strips as a picture; says so."""
    from experiments.sweep.figures import furthest, ranking, strip

    found, out = line(sweep), sweep.settings.out
    lines.append(found)
    order = ranking(sweep.trials())[:STRIPS]
    rows = [(order[0], 0), *((trial, furthest(trial)) for trial in order)]
    strips = [image for trial, step in rows if (image := strip(out, trial, step))]
    if strips:
        whole = Image.new("RGB", (strips[0].width, sum(image.height for image in strips)))
        for place, image in enumerate(strips):
            whole.paste(image, (0, place * image.height))
        picture(found).parent.mkdir(parents=True, exist_ok=True)
        whole.save(picture(found), quality=80)
    return f"{len(found['plans'])} plans are kept as a line of {lines.RESULTS.name}"


def picture(found: dict[str, Any]) -> Path:
    """Where a sweep's picture is kept."""
    return PICTURES.with_name("sweeps") / f"{found['name']}.webp"


# ----------------------------------------------------------------------------------------------------------
# What is shown.


def markdown() -> str:
    """The part of docs/results.md: each sweep as it was last kept."""
    latest = {(each["name"], each["images"]): each for each in lines.read("sweep")}
    head = "## Sweeps\n\nWritten by `python -m experiments.sweep` with `--keep`.\n\n"
    return head + "".join(map(section, latest.values())) if latest else ""


def section(found: dict[str, Any]) -> str:
    """A sweep: what won and what it cost, the ranking, the map, the layers' importance."""
    plans, rungs = found["plans"], found["rungs"]
    ahead = [each for each in plans if str(rungs[-1]) in each["kid"]]
    scripts = " and ".join(f"`{name}`" for name in found["scripts"])
    text = (
        f"### {len(plans)} plans on {found['images']}\n\n{scripts}, seed {found['seed']}, batches of"
        f" {found['batch_size']}, one run a plan; KID x 1000 of 1,000 samples against"
        f" {found['held_out']:,} held-out images by {found['judge']} ({found['hardware']}).\n\n"
    )
    if ahead:
        text += (
            f"{len(plans) - len(ahead)} of {len(plans)} plans were stopped before iteration {rungs[-1]:,}:"
            f" {found['hours']:.1f} hours of one worker, where all of them to the end would have taken"
            f" {found['hours_of_all']:.1f}. {agreement(found)}\n\n"
        )
    shares = ("density", "coverage", "copies")
    head = ("plan", *(f"{step:,} iterations" for step in rungs), *shares)
    body = [
        (
            f"**{name(each, found)}**" if each["best"] else name(each, found),
            *(kid(each["kid"].get(str(step))) for step in rungs),
            *(DASH if each[key] is None else f"{each[key]:.2f}" for key in shares),
        )
        for each in plans
    ]
    text += f"{lines.markdown(head, body[:SHOWN])}\n"
    if body[SHOWN:]:
        rest = lines.markdown(head, body[SHOWN:])
        text += lines.folded(f"The other {len(body) - SHOWN} plans", rest)
    if picture(found).exists():
        text += (
            f"![Samples of the first plans](pictures/sweeps/{picture(found).name})\n\n"
            f"The source, and below it the first {min(STRIPS, len(plans))} plans of the ranking: the same"
            " latents.\n\n"
        )
    text += chart(found)
    layers = sorted(found["importances"].items(), key=lambda item: -item[1])
    if layers:
        told = ", ".join(f"{name} {share:.2f}" for name, share in layers)
        text += (
            f"How much each layer's policy decides which plans are the best tenth after {rungs[0]:,}"
            f" iterations, by Optuna: {told}.\n\n"
        )
    return text


def name(plan: dict[str, Any], found: dict[str, Any]) -> str:
    """A plan's name, without the script where there is only one."""
    return (
        plan["plan"].removesuffix(f", {found['scripts'][0]}") if len(found["scripts"]) == 1 else plan["plan"]
    )


def kid(value: float | None) -> str:
    """KID x 1000 as all pages show it, of a KID: infinite where a run diverged, None where none is."""
    if value is None:
        return DASH
    return f"{1000 * value:.1f}" if math.isfinite(value) else "diverged"


def agreement(found: dict[str, Any]) -> str:
    """How well a rung's order foretold the next one's, among those that went on."""
    from scipy.stats import spearmanr

    told = []
    for before, after in itertools.pairwise(map(str, found["rungs"])):
        both = [(own[before], own[after]) for each in found["plans"] if after in (own := each["kid"])]
        if len(both) > 3:
            rho = spearmanr(*zip(*both, strict=True)).statistic
            told.append(f"{rho:.2f} from {int(before):,} to {int(after):,} iterations ({len(both)} plans)")
    return f"Spearman's rank correlation of those that went on: {', '.join(told)}." if told else ""


def chart(found: dict[str, Any]) -> str:
    """The map: a row for each split of G, a column for each of D, KID x 1000 at the first rung."""
    first, last = (str(found["rungs"][place]) for place in (0, -1))
    cells: dict[tuple[str, str], str] = {}
    for each in found["plans"]:
        if all(isinstance(each.get(name), list) and len(each[name]) == 3 for name in "GD"):
            G, D = (",".join(map(str, each[name])) for name in "GD")
            value = kid(each["kid"].get(first))
            cells.setdefault((G, D), f"**{value}**" if last in each["kid"] else value)
    if not cells:
        return ""
    down, across = (sorted({pair[place] for pair in cells}) for place in (0, 1))
    body = [(f"G({G})", *(cells.get((G, D), "") for D in across)) for G in down]
    return (
        f"KID x 1000 after {int(first):,} iterations; **bold** went on to {int(last):,}.\n\n"
        + lines.markdown(("", *(f"D({D})" for D in across)), body)
        + "\n"
    )
