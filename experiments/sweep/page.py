"""The page of a sweep, OUT/sweep.html: the ranking, the map, the layers' importance, the halving's curves."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from experiments.judge import DASH
from experiments.report import data_url
from experiments.sweep import cost
from experiments.sweep.figures import by_split, furthest, importances, ranking, strip, winner
from experiments.sweep.halving import Sweep, feasible
from experiments.sweep.space import LAYER, splits
from experiments.sweep.summary import kid

SHOWN = 12  # rows of the ranking that have pictures; the others are folded away


# ----------------------------------------------------------------------------------------------------------
# What is shown.


@dataclass(frozen=True)
class Map:
    """The map of G against D, as the template draws it: cells (x, y, colour, title, mark), and the labels."""

    cells: list[tuple[int, int, str, str, str]]
    labels: list[str]
    scale: list[tuple[str, str]]


def chart(trials: Sequence[FrozenTrial], step: int, last: int, best: FrozenTrial | None) -> Map | None:
    """The map at a rung; None where the trials have no splits, or only one of them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    found = by_split(trials, step)
    values = sorted(v for t in found.values() if math.isfinite(v := t.intermediate_values[step]))
    if len(values) < 2:
        return None
    low, high = values[0], values[int(0.95 * (len(values) - 1))]  # a few that fail would hide all else

    def colour(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.0
        return to_hex(colormaps["viridis_r"](min(max(share, 0.0), 1.0)))

    names = splits(next(iter(found))[0].layers)
    cells = []
    for (G, D), trial in found.items():
        text = f"{trial.user_attrs['plan']}: {kid(trial.intermediate_values[step])} after {step:,}"
        if furthest(trial) > step:
            text += f", {kid(trial.intermediate_values[furthest(trial)])} after {furthest(trial):,}"
        mark = "best" if best and trial.number == best.number else "last" if furthest(trial) == last else ""
        cells.append((names.index(D), names.index(G), colour(trial.intermediate_values[step]), text, mark))
    stops = [low + (high - low) * part / 4 for part in range(5)]
    return Map(cells, [each.digits for each in names], [(colour(each), kid(each)) for each in stops])


def curves(trials: Sequence[FrozenTrial], best: FrozenTrial | None) -> str:
    """KID against the iteration: a line for each trial, those that were stopped in grey."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    named = [trial for trial in ranking(trials) if trial.state == TrialState.COMPLETE][:6]
    for trial in trials:
        points = [
            (step, 1000 * v) for step, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)
        ]
        if not points:
            continue
        place = next((p for p, each in enumerate(named) if each.number == trial.number), None)
        stopped = {"color": "#bbb", "linewidth": 0.7, "marker": ".", "markersize": 3, "zorder": 1}
        shown = {"label": trial.user_attrs["plan"], "marker": "o", "color": f"C{place}", "zorder": 2}
        if best and trial.number == best.number:
            shown["linewidth"] = 3
        axes.plot(*zip(*points, strict=True), **(stopped if place is None else shown))
    axes.set(xlabel="iteration", ylabel="KID x 1000", xscale="log")
    steps = sorted({step for trial in trials for step in trial.intermediate_values})
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    axes.minorticks_off()
    if named:
        figure.legend(fontsize="small", frameon=False, loc="outside right upper")
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return data_url(file.getvalue(), "svg+xml")


def drawn(out: Path, trial: FrozenTrial, step: int) -> str:
    """The strip as a part of the page; nothing where it is gone."""
    image, held = strip(out, trial, step), io.BytesIO()
    if image is None:
        return ""
    image.save(held, "WEBP", quality=75)
    return data_url(held.getvalue(), "webp")


def row(trial: FrozenTrial) -> list[str]:
    """A trial's cells, see HEAD."""
    step = furthest(trial)
    told = trial.user_attrs[str(step)]
    shares = [
        DASH if (share := told.get(name)) is None else f"{share:.2f}"
        for name in ("density", "coverage", "copies")
    ]
    state = {TrialState.PRUNED: "stopped", TrialState.COMPLETE: "complete"}.get(trial.state, "goes on")
    beyond = [name for name, value in told["constraints"].items() if value > 0]
    state += f", beyond the bound of {' and '.join(beyond)}" if beyond and not feasible(trial, step) else ""
    return [trial.user_attrs["plan"], kid(trial.intermediate_values[step]), f"{step:,}", *shares, state]


HEAD = ("plan", "KID x 1000", "iterations", "density", "coverage", "copies", "")


def verdict(sweep: Sweep, trials: Sequence[FrozenTrial]) -> list[str]:
    """What was found, and what it cost, in sentences."""
    best, order, settings = winner(sweep.study), ranking(trials), sweep.settings
    complete = [t for t in order if t.state == TrialState.COMPLETE and feasible(t, furthest(t))]
    text = []
    if best is None:
        text.append(f"No plan within the bounds has come to {settings.rungs[-1]:,} iterations yet.")
    else:
        behind = [t for t in complete if t.number != best.number]
        lead = f", ahead of {behind[0].user_attrs['plan']} ({kid(behind[0].value)})" if behind else ""
        text.append(
            f"After {furthest(best):,} iterations of {settings.batch_size} images"
            f" {best.user_attrs['plan']} is first of {len(trials)} plans ({kid(best.value)}){lead}."
        )
    stopped = sum(trial.state == TrialState.PRUNED for trial in trials)
    took, whole = cost.saved(trials, settings)
    if stopped:
        text.append(
            f"{stopped} of {len(trials)} plans were stopped early: {took:.1f} hours of one worker, where all"
            f" of them to the end would have taken {whole:.1f}."
        )
    reached = sum(1 for trial in trials if furthest(trial))
    if reached < len(trials):
        text.append(f"{len(trials) - reached} plans have not come to the first rung yet.")
    return [
        *text,
        "Each plan has one run, so that neighbours in the ranking may change places with another seed.",
    ]


def html(sweep: Sweep) -> str:
    """The page, which needs nothing beside itself."""
    import jinja2

    own = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([own, own.parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    trials, settings = sweep.trials(), sweep.settings
    order, best = ranking(trials), winner(sweep.study)
    first, last = settings.rungs[0], settings.rungs[-1]
    shown = [
        (row(t), drawn(settings.out, t, furthest(t)), best is not None and t.number == best.number)
        for t in order[:SHOWN]
    ]
    layers = importances(trials, first)
    return environment.get_template("page.html.jinja").render(
        about=about(sweep, trials),
        verdict=verdict(sweep, trials),
        head=HEAD,
        shown=shown,
        others=[row(trial) for trial in order[SHOWN:]],
        source=drawn(settings.out, order[0], 0) if order else "",
        map=chart(trials, first, last, best),
        first=first,
        last=last,
        layers=sorted(
            layers.items(), key=lambda item: (LAYER.fullmatch(item[0]) is None, item[0][0] == "D", item[0])
        ),
        most=max(layers.values(), default=1.0) or 1.0,
        curves=curves(trials, best) if order else "",
        dashboard=f"optuna-dashboard {storage_name(settings)}",
    )


def about(sweep: Sweep, trials: Sequence[FrozenTrial]) -> str:
    """Of which images, and by whom it is judged."""
    settings = sweep.settings
    told: dict[str, Any] = next((t.user_attrs[str(furthest(t))] for t in trials if furthest(t)), {})
    aside = settings.reference.name if settings.reference else "set aside"
    held_out = f"{told['images']:,} held-out images ({aside})" if told.get("images") else "held-out images"
    return (
        f"KID x 1000 of 1,000 samples against {held_out} by {settings.extractor}: less is better. Trained on"
        f" {settings.images.name}, seed {settings.seed}. Within the bounds are at most {settings.copies:g}"
        f" copies and a density of at least {settings.density:g}."
    )


def storage_name(settings: Any) -> str:
    """The storage as optuna-dashboard is given it, without a password."""
    from sqlalchemy.engine import make_url

    if settings.storage is None:
        return f"sqlite:///{settings.out / 'study.db'}"
    if "://" not in settings.storage:
        return settings.storage
    return make_url(settings.storage).render_as_string(hide_password=True)


def write(sweep: Sweep) -> str:
    """Write the page; returns a sentence on what was found, and where the page is."""
    path = sweep.settings.out / "sweep.html"
    path.write_text(html(sweep), encoding="utf-8")
    best = winner(sweep.study)
    sentences = verdict(sweep, sweep.trials())[:-1]
    if best is not None:
        told = best.user_attrs[str(furthest(best))]
        sentences.append(f"Its run is {sweep.settings.out / told['run']}.")
    return " ".join([*sentences, f"The page is {path}."])
