"""The verdict: what the runs of a table say, in sentences."""

from __future__ import annotations

import itertools
import statistics
from typing import TYPE_CHECKING, Any

from experiments.judge import best, by_seed, figure, mean, merit, ranked
from experiments.selection import Lines
from experiments.tables import Row

if TYPE_CHECKING:
    from experiments.page import Part, Section

LEVEL = 0.05  # a test whose p is below it tells two rows apart


def verdict(rows: list[Row], runs: dict[str, Lines], source: dict[str, Any] | None = None) -> list[str]:
    """What the runs of each row, by its name, say of the dissertation's order, in sentences."""
    ends, ours = ranked(runs)
    if not ours:
        return []
    text = []
    if source:
        better = sum(statistics.mean(each) < merit(source) for each in ends.values())
        text.append(f"{better} of {len(ours)} are better than the source itself ({merit(source):.1f}).")
    text += order(rows, ours)
    if len(ours) > 1:
        text += [f"The first leads {lead(ends, *ours[:2])}.", cost(runs, *ours[:2]), by_precision(runs)]
    return [*text, overfitting([run for row in rows for run in runs[row.name]])]


def order(rows: list[Row], ours: list[str]) -> list[str]:
    """Whether the dissertation's order is ours, where it has scores to be ordered by."""
    published = {row.name: row.published for row in rows if row.name in ours and row.published is not None}
    if len(published) < 2:
        return []
    theirs = sorted(published, key=published.__getitem__)
    same = [name for name in ours if name in published] == theirs
    best = "" if same or ours[0] != theirs[0] else ", with the same best"
    return [f"The dissertation's order is {'the same' if same else 'another: ' + '; '.join(theirs)}{best}."]


def lead(ends: dict[str, list[float]], first: str, second: str) -> str:
    """By how much one row is better than another, and what a test of the two says."""
    ahead = statistics.mean(ends[second]) - statistics.mean(ends[first])
    alone = [name for name in (first, second) if len(ends[name]) < 2]
    if alone:
        return f"by {ahead:.1f} (no test is possible: {'both have' if alone[1:] else 'one has'} one seed)"
    found = tested(ends)
    p, pairs = found[frozenset((first, second))], len(found)
    says = "tells them apart" if p < LEVEL else "does not tell them apart"
    of = f", corrected for {pairs} pairs" if pairs > 1 else ""
    return f"by {ahead:.1f} (the test {says}: p = {p:.2g}{of})"


def tested(ends: dict[str, list[float]]) -> dict[frozenset[str], float]:
    """The p of each pair of rows that have two seeds or more: Welch's t-test, with Holm's correction.

    All pairs are counted, since the rows that a sentence is about are chosen by their scores.
    """
    from scipy.stats import ttest_ind  # takes a second to import

    several = [name for name, each in ends.items() if len(each) > 1]
    found = {}
    for pair in itertools.combinations(several, 2):
        a, b = (ends[name] for name in pair)
        if statistics.stdev(a) == statistics.stdev(b) == 0:
            p = 1.0  # a test needs some spread
        else:
            p = float(ttest_ind(a, b, equal_var=False).pvalue)
        found[frozenset(pair)] = p
    corrected, least = {}, 0.0
    for place, pair in enumerate(sorted(found, key=found.__getitem__)):
        least = max(least, min(1.0, (len(found) - place) * found[pair]))
        corrected[pair] = least
    return corrected


def cost(runs: dict[str, Lines], first: str, second: str) -> str:
    """What the first of an order costs beside the second; in minutes too, where one machine made both."""
    counts = [runs[name][0]["learning"] for name in (first, second)]
    took = [statistics.mean(run["seconds"] / 60 for run in runs[name]) for name in (first, second)]
    if len({run["hardware"] for name in (first, second) for run in runs[name]}) > 1:
        return f"It learns {counts[0]:,} numbers, the second {counts[1]:,}."
    return (
        f"It learns {counts[0]:,} numbers and took {took[0]:.0f} minutes, the second {counts[1]:,}"
        f" and {took[1]:.0f}."
    )


def by_precision(runs: dict[str, Lines]) -> str:
    """Which row's samples most often lie among the real images: the other half of what KID sums up."""
    shares = {name: by_seed(each, lambda run: figure(run, "precision")) for name, each in runs.items()}
    shares = {name: each for name, each in shares.items() if each}
    first = max(shares, key=lambda name: statistics.mean(shares[name]))
    return f"By precision {first} is first ({mean(shares[first], 2)})."


def overfitting(runs: Lines) -> str:
    """How many runs were better before their end, and by how much."""
    worse = [merit(run["scores"][-1]) - merit(found) for run in runs if (found := best(run)) is not None]
    early = [each for each in worse if each > 0]
    much = f", by {statistics.median(early):.1f} in the median and {max(early):.1f} at most" if early else ""
    return f"{len(early)} of {len(worse)} runs had a better score before their end{much}."


def sentence(part: Part) -> str:
    """The place of the dissertation's best row in a table, or else which row is first, in one sentence."""
    ends, ours = ranked(part.runs)
    if len(ours) < 2:
        return ""
    published = {row.name: row.published for row in part.plans if row.published and row.name in ours}
    own = min(published, key=published.__getitem__) if len(published) > 1 else ours[0]
    first = ours[0] == own
    other = ours[1] if first else ours[0]
    place = "first" if first else f"number {ours.index(own) + 1}"
    by = lead(ends, own, other) if first else lead(ends, other, own)
    return (
        f"After {part.title} {own} is {place} of {len(ours)} ({mean(ends[own])}),"
        f" {'ahead of' if first else 'behind'} {other} ({mean(ends[other])}) {by}."
    )


def wins(part: Part) -> str:
    """The first of the leaderboard, beside fine-tuning and the best from scratch, in one sentence."""
    ends, ours = ranked(part.runs)
    if not ours:
        return ""
    first, *behind = ours
    scripts = {row.name: row.script for row in part.plans}
    rivals = [
        next((name for name in behind if scripts[name] == script), None)
        for script in ("wgan_64_finetune", "wgan_64")
    ]
    leads = [f"{name} ({mean(ends[name])}) {lead(ends, first, name)}" for name in rivals if name]
    beside = f", ahead of {' and of '.join(leads)}" if leads else ""
    return f"After {part.title} {first} is first of {len(ours)} ({mean(ends[first])}){beside}."


def winners(section: Section) -> list[str]:
    """For each plan of a table the first two of its rows, in the longest budget that has two."""
    said = []
    plans = [(row.settings.get("G"), row.settings.get("D")) for row in section.table.rows]
    for plan in dict.fromkeys(plans):
        rows = [row.name for row, own in zip(section.table.rows, plans, strict=True) if own == plan]
        for part in reversed(section.parts):
            ends, ours = ranked({name: part.runs[name] for name in rows if name in part.runs})
            if len(ours) > 1:
                first, second = (f"{name} ({mean(ends[name])})" for name in ours[:2])
                said.append(f"After {part.title} {first} leads {second} {lead(ends, *ours[:2])}.")
                break
    return said
