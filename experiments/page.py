"""The page: docs/results.md, written from experiments/results.jsonl and nothing else, and what it shows."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from experiments import copies, figures, labels, lines, pace, resume, scale, sources
from experiments.judge import DASH, FIRST, best, by_seed, figure, final, mean, merit, ranked, short
from experiments.runs import JUDGES, ROOT, judge, seen_by
from experiments.selection import Lines, Spent, at_each_score, groups, lines_of, spent, which
from experiments.selection import runs as found_runs
from experiments.sweep import summary
from experiments.tables import TABLES, Row, Table
from experiments.verdict import sentence, verdict, winners, wins

PAGE = ROOT / "docs" / "results.md"
Figure = Callable[[dict[str, Any]], float | None]  # of a run
Cell = Callable[[Row, Lines], str]
MARKS = "¹²³⁴"
NOTE = (
    "The dissertation's FIDs are of other images and another extractor, after up to 20,000 iterations: only"
    " the order can be compared. A figure without a name is KID x 1000 at a run's end, on held-out images,"
    f" by EfficientNet-{short(FIRST)}, and so is all that has no judge in its head; copies are of thumbnails."
    " ± is the standard deviation over a row's seeds; a machine's rounding makes the same seed another run,"
    " though not an independent one, so such runs are averaged first."
    " The test is Welch's t-test of the seeds' scores, with Holm's correction for all pairs of rows of the"
    " table that have two seeds or more; it tells two rows apart where p is below 0.05."
    " A longer run stands for a shorter one, as it was then."
)


@dataclass(frozen=True)
class Part:
    """A table's rows at one budget.

    Attributes:
        title, about: the budget in words. head, rows: the table's cells; footnotes: of its dashes.
        verdict: sentences.
        budget: what was spent. plans: the rows that have runs. runs: their lines. absent: the other rows.
        untouched: the scores of the source itself.
    """

    title: str
    about: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    footnotes: list[str]
    verdict: list[str]
    budget: Spent
    plans: list[Row]
    runs: dict[str, Lines]
    absent: list[str] = field(default_factory=list)
    untouched: dict[str, Any] | None = None


@dataclass(frozen=True)
class Section:
    """A table, and a part for each budget.

    Attributes:
        alone: parts of one row, where others compare several.
    """

    table: Table
    parts: list[Part]
    alone: list[Part] = field(default_factory=list)


def minutes(runs: Lines, machines: list[str]) -> str:
    """Minutes of training; with the machine's letter where a table's runs were made on several."""
    took = {
        machine: mean([run["seconds"] / 60 for run in runs if run["hardware"] == machine], 0)
        for machine in machines
        if any(run["hardware"] == machine for run in runs)
    }
    if len(machines) == 1:
        return took[machines[0]]
    return ", ".join(f"{each} {letter(machine, machines)}" for machine, each in took.items())


def letter(machine: str, machines: list[str]) -> str:
    """What a machine is called in a table whose runs were made on several."""
    return string.ascii_lowercase[machines.index(machine)]


def judges(runs: Lines) -> tuple[str, ...]:
    """Those who have a column: the two of all tables, and others that have scored one of the runs."""
    others = {judge(scores) for run in runs for scores in (*run["scores"], *run.get("judged", ()))}
    return (*JUDGES, *sorted(others - set(JUDGES)))


def seen(runs: Lines) -> list[str]:
    """The judges that some of the runs saw through: each has a footnote."""
    return [name for name in judges(runs) if any(name in seen_by(run) for run in runs)]


def footnotes(runs: Lines) -> list[str]:
    """What the dashes with a number mean."""
    return [
        f"{MARKS[place]} Trained through `{name}`, which does not judge it."
        for place, name in enumerate(seen(runs))
    ]


def columns(every: Lines, machines: list[str]) -> dict[str, Cell]:
    """The columns of a table: from a row and its runs to the cell.

    Args:
        every: the runs of all rows, whose judges have columns, and footnotes where a run saw through them.
        machines: those that made them.
    """
    marks = dict(zip(seen(every), MARKS, strict=False))

    def by(name: str, key: str, digits: int) -> Cell:
        def cell(row: Row, runs: Lines) -> str:
            found = by_seed(
                runs,
                lambda run: (
                    1000 * value if (value := figure(run, key, name)) is not None and key == "kid" else value
                ),
            )
            if not found and all(name in seen_by(run) for run in runs):
                return DASH + marks[name]
            return mean(found, digits)

        return cell

    def over(number: Figure, digits: int = 1) -> Cell:
        return lambda row, runs: mean(by_seed(runs, number), digits)

    shares = ("precision", "recall", "density", "coverage", "copies")
    return {
        "": lambda row, runs: row.name,
        "dissertation's FID": lambda row, runs: "" if row.published is None else f"{row.published:g}",
        **{f"KID x 1000, {short(name)}": by(name, "kid", 1) for name in judges(every)},
        "FID": by(FIRST, "fid", 1),
        **{key: by(FIRST, key, 2) for key in shares},
        "near copies": by(FIRST, "near_copies", 2),
        "diversity": by(FIRST, "diversity", 2),
        "layouts": by(FIRST, "layouts", 1),
        "best iteration": over(lambda run: (best(run) or {}).get("step"), 0),
        "KID x 1000 there": over(lambda run: None if (found := best(run)) is None else merit(found)),
        "numbers that learn": lambda row, runs: f"{runs[0]['learning']:,}",
        "minutes of training": lambda row, runs: minutes(runs, machines),
        "seeds": lambda row, runs: str(len({run["settings"]["seed"] for run in runs})),
    }


def sections() -> list[Section]:
    """What the page and the report show: for each of the dissertation's tables one of each budget.

    A budget that only one row has been given compares nothing: one such is shown, where no other compares,
    and the others are kept apart.
    """
    found, result = found_runs(), []
    for table in TABLES:
        parts = []
        for budget, runs in groups(table, found).items():
            rows = [row for row in table.rows if row.name in runs]
            if table.first and table.rows[0] not in rows:
                continue
            first = runs[rows[0].name][0]
            counts = first["scores"][-1]
            held_out = (
                f"{counts['heldout']['n_real']:,} held-out images ({budget.reference})"
                if budget.reference
                else "no held-out images"
            )
            about = f"{counts['n_generated']:,} samples; {first['images']['count']:,} training images"
            every = [run for each in runs.values() for run in each]
            machines = sorted({run["hardware"] for run in every})
            shown = columns(every, machines)
            named = [f"{letter(machine, machines)}: {machine}" for machine in machines]
            where = "; ".join(named if len(named) > 1 else machines)
            own = untouched(budget.source, counts)
            beside = (
                f" The source itself: FID {own['fid']:.1f}, KID x 1000 {merit(own):.1f},"
                f" precision {own['precision']:.2f}."
                if own
                else ""
            )
            parts.append(
                Part(
                    title=budget.much,
                    about=f"{about} ({budget.images}), {held_out};"
                    f" {f'from {budget.source} unless a row says otherwise, ' if budget.source else ''}on"
                    f" {where}.{beside}",
                    head=tuple(shown),
                    rows=[tuple(cell(row, runs[row.name]) for cell in shown.values()) for row in rows],
                    footnotes=footnotes(every),
                    verdict=verdict(rows, runs, own),
                    budget=budget,
                    plans=rows,
                    runs={row.name: runs[row.name] for row in rows},
                    absent=[row.name for row in table.rows if row.name not in runs],
                    untouched=own,
                )
            )
        parts.sort(key=lambda part: part.budget.count)
        comparing, alone = ([part for part in parts if (len(part.rows) > 1) == several] for several in (1, 0))
        result.append(Section(table, comparing, alone) if comparing else Section(table, alone[-1:]))
    return result


def untouched(source: str | None, scores: dict[str, Any]) -> dict[str, Any] | None:
    """The source's own scores against as many held-out images, where experiments.scale has measured them."""
    for line in lines.read("scale"):
        if line["row"] == f"{source} against training images" and line["heldout"] and scores["heldout"]:
            counts = [(each["heldout"]["n_real"], each["extractor"]) for each in (line, scores)]
            if counts[0] == counts[1]:
                return line["heldout"]
    return None


def narrow(part: Part, *more: str) -> list[tuple[str, ...]]:
    """The head and the rows of a part, with few columns: plan, KID by each judge, coverage, and some more."""
    wanted = [name for name in part.head if name == "" or name.startswith("KID x 1000, ")]
    places = [part.head.index(name) for name in (*wanted, "coverage", *more)]
    head, *rows = (tuple(row[place] for place in places) for row in (part.head, *part.rows))
    return [("plan", *head[1:]), *rows]


def headline(parts: list[Part]) -> Part:
    """The part that is not folded away: most rows, of the longest budget with three, else of the longest."""
    several = [part for part in parts if len(part.rows) > 2] or parts
    alike = [part for part in several if part.budget.much == several[-1].budget.much]
    return max(alike, key=lambda part: len(part.rows))


def leaderboard(found: list[Section]) -> tuple[Section, list[Section]]:
    """The league, its rows from the best to the worst, and the other sections."""
    league = next((each for each in found if each.table.key == "league"), Section(TABLES[-1], []))
    parts = []
    for part in league.parts:
        places = {name: place for place, name in enumerate(ranked(part.runs)[1])}
        rows = sorted(part.rows, key=lambda row: places.get(row[0], len(places)))
        parts.append(replace(part, rows=rows))
    return replace(league, parts=parts), [each for each in found if each.table.key != "league"]


def said(section: Section, part: Part) -> str:
    """The verdict on a table: of settings, one for each plan that they were compared under."""
    if section.table.claim.startswith("Not stated"):
        return " ".join(winners(section))
    return sentence(part)


def whole(part: Part) -> str:
    """Everything that there is to say of a part."""
    text = f"{part.about}\n\n" + lines.markdown(part.head, part.rows) + "\n"
    text += " ".join(part.verdict) + "\n\n"
    return text + (f"Not run yet: {'; '.join(part.absent)}.\n" if part.absent else "")


def page() -> str:
    """docs/results.md."""
    league, found = leaderboard(sections())
    text = (
        "# Results\n\nWritten by `python -m experiments report` from `experiments/results.jsonl`; nothing"
        " is typed by hand here. KID x 1000: less is better. [scores.md](scores.md) says what each score"
        f" means.\n\n{lines.folded('How to read the figures', NOTE)}## Leaderboard\n\n"
    )
    for section in (league, *found):
        table, board = section.table, section is league
        if not board:
            text += f"## {table.title}\n\nThe dissertation: {table.claim}\n\n"
        if not section.parts:
            text += f"Not run yet: `python -m experiments {table.key}`.\n\n"
            continue
        top = headline(section.parts)
        head, *rows = narrow(top, *(["minutes of training"] if board else []), "seeds")
        text += f"{top.title[:1].upper()}{top.title[1:]}.\n\n{lines.markdown(head, rows)}\n"
        text += "".join(f"{note}\n\n" for note in top.footnotes)
        text += f"{wins(top) if board else said(section, top)}\n\n{figures.markdown(section)}"
        for part in section.parts:
            text += lines.folded(f"All scores after {part.title}", whole(part))
        text += pace.markdown(top) + longer(section) if board else ""
    return (
        text
        + summary.markdown()
        + labels.markdown()
        + sources.markdown()
        + clips()
        + scale.markdown()
        + copies.markdown()
        + resume.markdown()
    )


def longer(section: Section) -> str:
    """The runs that went on for longer than any that they can be compared with."""
    longest: dict[str | None, int] = {}
    for part in section.parts:
        longest[part.budget.images] = max(part.budget.count, longest.get(part.budget.images, 0))
    parts = [part for part in section.alone if part.budget.count > longest.get(part.budget.images, 0)]
    if not parts:
        return ""
    body, keys = [], ("FID", "precision", "recall", "density", "copies", "diversity", "seeds")
    for part in parts:
        head, *rows = narrow(part, *keys, "minutes of training")
        body += [(row[0], str(part.budget.images), f"{part.budget.count:,}", *row[1:]) for row in rows]
    machines = sorted({run["hardware"] for part in parts for runs in part.runs.values() for run in runs})
    return (
        "### Longer runs\n\nNo other plan has gone so far on the same images"
        f" ({'; '.join(machines)}).\n\n{lines.markdown(('plan', 'images', 'iterations', *head[1:]), body)}\n"
    )


def clips() -> str:
    """The runs with the clip's earlier rules for a modulated kernel, beside those with today's."""
    old = [line for line in lines.read("superseded") if "clip" in line]
    today = lines.read("run")
    rules, body, shown = list(dict.fromkeys(line["clip"] for line in old)), [], []
    for title, row in [(table.title, row) for table in TABLES for row in table.rows]:
        budgets = sorted((spent(row, line).count, spent(row, line).much) for line in lines_of(row, old))
        for much in dict.fromkeys(much for _, much in budgets):
            before = [line for line in lines_of(row, old) if spent(row, line).much == much]
            if before in shown:
                continue
            shown.append(before)
            now = {
                which(row, stage, spent(row, stage)): stage
                for line in lines_of(row, today)
                for stage in (*at_each_score(line), line)
                if spent(row, stage).much == much
            }
            by_rule = [[line for line in before if line["clip"] == rule] for rule in rules]
            kids = [by_seed(runs, final) for runs in (*by_rule, list(now.values()))]
            cells = [f"{mean(kid)} ({len(kid)})" if kid else "" for kid in kids]
            body.append((f"{title}: {row.name}", much, *cells))
    if not body:
        return ""
    return (
        "## The clip of a modulated critic\n\nThe critic's effective kernel must stay in the clip, and three"
        " rules have kept it there ([decisions.md](decisions.md)). Runs with the earlier ones stand in no"
        " other table. KID x 1000 at the end, with the number of seeds.\n\n"
        + lines.folded(
            "The scores",
            lines.markdown(("", "", *rules, "clamped where it is computed (today)"), body),
        )
    )
