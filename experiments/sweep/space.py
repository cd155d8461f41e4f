"""The space of a sweep: its settings, and the candidates that they span, in the order of their turn."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
import random
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.runs import seen
from transfer import UserError
from transfer.drawing import script as module
from transfer.plan import Named, Plan, Split
from transfer.policies import Rescale
from transfer.settings import (
    Batch,
    Bound,
    Count,
    Extractor,
    Seed,
    Share,
    Weight,
    at_home,
    check,
    registry,
)

Candidate = dict[str, str]  # a trial's params: the script, a policy for each layer ("G1"), what --set names
ASIDE = 0.2  # share of the images that is scored against where there are no others
Ratio = Annotated[float, Bound("a share from 0 to 1", 0, math.nextafter(1, 2))]


@dataclass(frozen=True)
class Settings:
    """What is swept, on which images, and what may be spent on it."""

    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    hold_out: Share = 0.0  # share of the images for that, where there is no reference; a fifth, unless given
    scripts: tuple[str, ...] = ("wgan_64_transferlearning",)  # or methods, such as projected_critic
    policies: tuple[Rescale, ...] = ("adafm",)  # of the rescaled layers
    plans: tuple[str, ...] = ()  # such as G122-D203; all splits of G with all of D, unless given
    set: tuple[str, ...] = ()  # of the scripts' settings, such as learning_rate=1e-4,2e-4
    rungs: tuple[int, ...] = (100, 300, 900)  # iterations after which plans are compared
    reduction: Annotated[int, Bound("at least 2", 2)] = 3  # one plan of so many goes on to the next rung
    batch_size: Batch = 16
    copies: Ratio = 0.1  # a plan with more copies of its training images does not win
    density: Weight = 0.01  # nor one with less at the last rung: its samples are like no image of these
    extractor: Extractor = "efficientnet_lite0"  # the judge
    seed: Seed = 0  # of the runs, and of the order in which plans are tried
    trials: Annotated[int | None, Bound("at least 1", 1)] = None  # plans to try; all, unless given
    hours: Annotated[float | None, Bound("a number above 0", 1e-9)] = None  # stop then; and so many plans
    workers: Annotated[int | None, Bound("at least 1", 1)] = None  # processes: GPUs, or cores to spare
    out: Path = Path("target_domain/sweep")  # the runs' folder; several machines need one that all see
    storage: str | None = None  # postgresql://... or a journal's file; SQLite in out, unless given
    study: str | None = None  # its name in a storage that holds several; out's name, unless given
    heartbeat: Count = 20  # seconds; a worker that is silent for three of them is taken for dead
    save_every: Count = 20  # iterations that a killed worker loses at most
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    dry_run: bool = False  # print what it would cost, and stop
    page: bool = False  # write the page of what there is, and stop
    keep: bool = False  # keep what there is for docs/results.md, and stop


def verify(settings: Settings) -> None:
    """Refuse settings that no sweep can have.

    Raises:
        UserError: naming the setting, its value and what it can be.
    """
    check(settings)
    rungs = settings.rungs
    if not rungs or min(rungs) < 1 or list(rungs) != sorted(set(rungs)):
        raise UserError(f"rungs {' '.join(map(str, rungs))}: give rising iterations, such as 100 300 900")


# ----------------------------------------------------------------------------------------------------------
# The candidates.

LAYER = re.compile(r"([GD])(\d+)")
GIVEN = {"images", "reference", "hold_out", "iterations", "extractor", "seed", "device", "out", "resume"}
GIVEN |= {"G", "D", "rescale", "score_every", "sample_every", "save_every", "dry_run"}  # --set has no say


def candidates(settings: Settings) -> list[Candidate]:
    """All that the settings span, each once: the scripts' own plans, then the others in a seeded order.

    A list of plans keeps its order.

    Raises:
        UserError: when a script, a plan or a setting is not known, or a run would be judged by what it saw
            through.
    """
    choices = _choices(settings)
    found, own = {}, []
    for script in settings.scripts:
        fields = module(script).Settings.__dataclass_fields__
        usual = {network: fields[network].default for network in "GD" if network in fields}
        firsts = {name: values[0] for name, values in choices.items()}
        own.append({"script": script, **_layers(usual, settings.policies[0]), **firsts})
        for plans, policy, given in itertools.product(
            _plans(usual, settings), settings.policies, itertools.product(*choices.values())
        ):
            chosen = dict(zip(choices, given, strict=True))
            candidate = {"script": script, **_layers(plans, policy), **chosen}
            found.setdefault(key(candidate), candidate)
    every = list(found.values())
    if not settings.plans:
        random.Random(settings.seed).shuffle(every)
        every.sort(key=lambda candidate: candidate not in own)
    for candidate in {key(without_layers(each)): each for each in every}.values():
        if settings.extractor in seen(run_settings(candidate, settings.rungs[0], settings)):
            raise UserError(
                f"{candidate['script']} sees through {settings.extractor}, which therefore cannot judge it:"
                " give another --extractor"
            )
    return every


def key(candidate: Candidate) -> tuple[tuple[str, str], ...]:
    """What no two candidates have in common."""
    return tuple(sorted(candidate.items()))


def without_layers(candidate: Candidate) -> Candidate:
    """The script, and the settings that are swept."""
    return {name: value for name, value in candidate.items() if not LAYER.fullmatch(name)}


def splits(layers: int) -> list[Split]:
    """All splits of so many layers, from those that freeze most."""
    return [Split(i, j, layers - i - j) for i in range(layers, -1, -1) for j in range(layers - i, -1, -1)]


def _plans(usual: dict[str, Plan], settings: Settings) -> list[dict[str, Plan]]:
    """The plans to try for each network that a script has a plan for."""
    if not settings.plans:
        every = itertools.product(*(splits(plan.layers) for plan in usual.values()))
        return [dict(zip(usual, each, strict=True)) for each in every]
    return [_read(text, usual) for text in settings.plans]


def _read(text: str, usual: dict[str, Plan]) -> dict[str, Plan]:
    """G122-D203 as a split for each network."""
    pattern = "-".join(rf"{network}(\d)(\d)(\d)" for network in usual)
    match = re.fullmatch(pattern, text)
    found = {}
    if match:
        digits = [match.groups()[place : place + 3] for place in range(0, 3 * len(usual), 3)]
        found = {network: Split(*each) for network, each in zip(usual, digits, strict=True)}
    if not found or any(found[network].layers != usual[network].layers for network in usual):
        such = "-".join(f"{network}{plan.digits}" for network, plan in usual.items())
        raise UserError(
            f"{text} is not a plan of these networks: give plans such as {such}, with as many layers"
            if usual
            else f"{text} cannot be tried, since the script has no plan: leave --plans out"
        )
    return found


def _layers(plans: dict[str, Plan], policy: Rescale) -> dict[str, str]:
    """Each layer's policy by its network and number, counted from the input: G1 to G5, D1 to D5."""
    found = {}
    for network, plan in plans.items():
        under = plan.generator(policy) if network == "G" else plan.discriminator(policy)
        found |= {f"{network}{number}": each.name for number, each in enumerate(under, 1)}
    return found


def plans_of(candidate: Candidate) -> dict[str, Plan]:
    """The plan of each network that the candidate's script has one for: a split where it is one."""
    found: dict[str, Plan] = {}
    for network in "GD":
        names = [candidate[name] for name in _sorted(candidate, network)]
        if names:
            frozen, tuned = names.count("freeze"), names.count("finetune")
            split = Split(frozen, len(names) - frozen - tuned, tuned)
            same = _layers({network: split}, policy_of(candidate) or "adafm")
            found[network] = split if list(same.values()) == names else Named(names)
    return found


def _sorted(candidate: Candidate, network: str) -> list[str]:
    """The names of a network's layers, from its input on."""
    layers = [match for match in map(LAYER.fullmatch, candidate) if match and match[1] == network]
    return [match[0] for match in sorted(layers, key=lambda match: int(match[2]))]


def policy_of(candidate: Candidate) -> str | None:
    """The policy of the layers in the middle, where there are any."""
    under = (value for name, value in candidate.items() if LAYER.fullmatch(name))
    return next((value for value in under if value not in ("freeze", "finetune")), None)


def title(candidate: Candidate) -> str:
    """What a candidate is called: G(1,2,2) D(2,0,3), and what differs from the usual script and policy."""
    words = [f"{name}({','.join(map(str, plan))})" for name, plan in plans_of(candidate).items()]
    more = [policy_of(candidate)] if policy_of(candidate) not in (None, "adafm") else []
    for name, value in without_layers(candidate).items():
        if name != "script":
            more.append(f"{name} {value}")
        elif value != Settings.scripts[0] or not words:
            more.append(value)
    return ", ".join(filter(None, (" ".join(words), *more)))


def folder_of(candidate: Candidate) -> str:
    """The name of the folder in which a candidate's run is made."""
    digest = hashlib.sha256(repr(key(candidate)).encode()).hexdigest()[:8]
    return "-".join((*(f"{name}{plan.digits}" for name, plan in plans_of(candidate).items()), digest))


# ----------------------------------------------------------------------------------------------------------
# A candidate's run.


def run_settings(candidate: Candidate, iterations: int, settings: Settings) -> Any:
    """The settings of a candidate's script for a run to so many iterations, which are scored at the end."""
    script = module(candidate["script"]).Settings
    swept = {name: text for name, text in without_layers(candidate).items() if name != "script"}
    given = dict(
        images=settings.images,
        reference=settings.reference,
        hold_out=0.0 if settings.reference else settings.hold_out or ASIDE,
        iterations=iterations,
        batch_size=settings.batch_size,
        score_every=iterations,
        sample_every=iterations,
        save_every=settings.save_every,
        extractor=settings.extractor,
        seed=settings.seed,
        device=settings.device,
        out=settings.out / folder_of(candidate),
        rescale=policy_of(candidate) or "adafm",
        **plans_of(candidate),
    )
    given |= {name: value_of(candidate["script"], name, text) for name, text in swept.items()}
    fields = script.__dataclass_fields__
    run = replace(at_home(script()), **{name: value for name, value in given.items() if name in fields})
    check(run)
    return run


def _choices(settings: Settings) -> dict[str, list[str]]:
    """The values, as text, of each setting that is swept."""
    found = {}
    for text in settings.set:
        name, equals, values = text.partition("=")
        name = name.replace("-", "_")
        if not equals or not all(values.split(",")):
            raise UserError(f"--set {text}: give a setting and its values, such as learning_rate=1e-4,2e-4")
        if name in GIVEN:
            raise UserError(f"--set {text}: the sweep gives the runs their {name}; leave it out")
        found[name] = list(dict.fromkeys(values.split(",")))
        for script, value in itertools.product(settings.scripts, found[name]):
            value_of(script, name, value)
    return found


@cache
def value_of(script: str, name: str, text: str) -> Any:
    """A setting's value as the script's own command line reads it.

    Raises:
        UserError: when the script does not have it, or cannot read it.
    """
    kind = module(script).Settings
    if name not in kind.__dataclass_fields__:
        raise UserError(f"--set {name}={text}: {script} has no such setting; leave it out")
    words = [f"--{name.replace('_', '-')}", *text.split()]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            read = tyro.cli(kind, args=words, registry=registry(), config=(tyro.conf.FlagConversionOff,))
    except SystemExit:
        raise UserError(f"--set {name}={text}: {script} cannot read that value; give another") from None
    return getattr(read, name)
