"""The report: docs/results.md and report.html, both written from experiments/results.jsonl and nothing else.

python -m experiments.report
"""

from __future__ import annotations

import base64
import io
import statistics
import string
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import lines, scale
from experiments.all import TABLES
from experiments.tables import IGNORED, PICTURES, ROOT, Row, Table, chosen, module
from transfer import record

PAGE, REPORT = ROOT / "docs" / "results.md", ROOT / "report.html"
BUDGET = {"images", "reference", "iterations", "seed", "extractor", "source"}  # a table does not say these
NOTE = (
    "The dissertation's FIDs are of other images and another extractor, after up to 20,000 iterations: only"
    " the order can be compared. A figure without a name is KID x 1000 at a run's end, on held-out images."
    " ± is the standard deviation over a row's seeds; a machine's rounding makes the same seed another run,"
    " though not an independent one, so such runs are averaged first."
    " A longer run stands for a shorter one, as it was then."
)
Lines = list[dict[str, Any]]


def of(row: Row, found: Lines) -> Lines:
    """The lines of a row's runs: those of its script with the settings that it would have today."""
    fields = record.plain(module(row.script).Settings(**chosen(row)))
    unsaid = IGNORED | BUDGET | ({"batch_size"} - row.settings.keys())  # the budget's, or the row's own
    wanted = {key: value for key, value in fields.items() if key not in unsaid}
    return [
        line
        for line in found
        if line["script"] == row.script and all(line["settings"].get(k) == v for k, v in wanted.items())
    ]


def groups(table: Table, found: Lines) -> dict[tuple, dict[str, Lines]]:
    """The lines of a table by what was spent, and by row: only runs of equal budgets stand in one table.

    A budget is (how much, images, held-out images, extractor, source). What has no source, because it was
    trained from scratch, stands beside each of them. A longer run stands for a shorter one with its seed on
    its machine, where there are others to compare it with.
    """
    plans = [(row, line, spent(row, line)) for row in table.rows for line in of(row, found)]
    budgets = {budget for *_, budget in plans}
    there = {which(*plan) for plan in plans}
    for row, line, _ in tuple(plans):
        for stage in stages(line):
            plan = row, stage, spent(row, stage)
            if plan[-1] in budgets and which(*plan) not in there:
                there.add(which(*plan))
                plans.append(plan)
    by_budget: dict[tuple, dict[str, Lines]] = defaultdict(dict)
    for row, line, budget in plans:
        beside = [other for *_, other in plans if other[-1] and other[:-1] == budget[:-1]]
        for home in dict.fromkeys(beside if budget[-1] is None and beside else [budget]):
            by_budget[home].setdefault(row.name, []).append(line)
    return dict(by_budget)


def which(row: Row, line: dict[str, Any], budget: tuple) -> tuple:
    """What no two runs of a table have in common."""
    return row.name, line["settings"]["seed"], line["hardware"], budget


def stages(line: dict[str, Any]) -> Lines:
    """A run as it was at each of its scores: the run of so many iterations, as none knows how many follow."""
    settings = line["settings"]
    return [
        line
        | {
            "settings": settings | {"iterations": scores["step"]},
            "scores": line["scores"][:number],
            "seconds": line["seconds"] * scores["step"] / settings["iterations"],
        }
        for number, scores in enumerate(line["scores"], 1)
    ]


def spent(row: Row, line: dict[str, Any]) -> tuple:
    """A run's budget: its iterations, or the images that it drew where a row has a batch size of its own."""
    settings = line["settings"]
    iterations, batch_size = settings["iterations"], settings["batch_size"]
    much = f"{iterations:,} iterations of {batch_size} images"
    if "batch_size" in row.settings:
        much = f"{iterations * batch_size:,} images"
    return much, *(settings.get(key) for key in ("images", "reference", "extractor", "source"))


def last(line: dict[str, Any]) -> dict[str, Any]:
    """The scores at a run's end, against held-out images where there are any."""
    scores = line["scores"][-1]
    return scores.get("heldout") or scores


def merit(scores: dict[str, Any]) -> float:
    """KID x 1000, by which a run chooses its best checkpoint too: less is better."""
    return 1000 * record.merit(scores)


def by_seed(runs: Lines, figure: Callable[[dict[str, Any]], float]) -> list[float]:
    """A figure of each seed's run; the mean where several machines have made it."""
    found: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        found[run["settings"]["seed"]].append(figure(run))
    return [statistics.mean(each) for each in found.values()]


def final(run: dict[str, Any]) -> float:
    """KID x 1000 at a run's end."""
    return merit(run["scores"][-1])


def best(run: dict[str, Any]) -> dict[str, Any]:
    """The scores of a run's best checkpoint."""
    return min(run["scores"], key=merit)


def mean(numbers: list[float], digits: int = 1) -> str:
    """The mean, with the standard deviation where there are several."""
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


HEAD = (
    "", "dissertation's FID", "FID, held-out", "KID x 1000, held-out", "precision, held-out",
    "FID, training", "best iteration", "KID x 1000 there", "diversity", "near copies",
    "numbers that learn", "minutes of training", "seeds",
)  # fmt: skip


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


def cells(row: Row, runs: Lines, machines: list[str]) -> tuple[str, ...]:
    """A row of a table, whose runs were made on these machines."""

    def over(figure: Callable[[dict[str, Any]], float], digits: int = 1) -> str:
        return mean(by_seed(runs, figure), digits)

    return (
        row.name,
        "" if row.published is None else f"{row.published:g}",
        over(lambda run: last(run)["fid"]),
        over(final),
        over(lambda run: last(run)["precision"], 2),
        over(lambda run: run["scores"][-1]["fid"]),
        over(lambda run: best(run)["step"], 0),
        over(lambda run: merit(best(run))),
        over(lambda run: run["scores"][-1]["diversity"], 2),
        over(lambda run: run["scores"][-1]["memorisation"]["near_copies"], 2),
        f"{runs[0]['learning']:,}",
        minutes(runs, machines),
        str(len(by_seed(runs, final))),
    )


def verdict(rows: list[Row], runs: dict[str, Lines], source: dict[str, Any] | None = None) -> list[str]:
    """What the runs of each row, by its name, say of the dissertation's order, in sentences."""
    ends, ours = ranked(runs)
    text = [f"By KID x 1000 at the end: {'; '.join(f'{name} ({mean(ends[name])})' for name in ours)}."]
    if source:
        better = sum(statistics.mean(each) < merit(source) for each in ends.values())
        text.append(f"{better} of {len(ours)} are better than the source itself ({merit(source):.1f}).")
    text += order(rows, ours)
    if len(ours) > 1:
        text += [f"The first leads {lead(ends, *ours[:2])}.", cost(runs, *ours[:2]), by_precision(runs)]
    return [*text, overfitting([run for row in rows for run in runs[row.name]])]


def ranked(runs: dict[str, Lines]) -> tuple[dict[str, list[float]], list[str]]:
    """KID x 1000 at the end for each row's seeds, and the rows from the best to the worst."""
    ends = {name: by_seed(each, final) for name, each in runs.items()}
    return ends, sorted(ends, key=lambda name: statistics.mean(ends[name]))


def order(rows: list[Row], ours: list[str]) -> list[str]:
    """Whether the dissertation's order is ours, where it has scores to be ordered by."""
    published = {row.name: row.published for row in rows if row.published is not None}
    if len(published) < 2:
        return []
    theirs = sorted(published, key=published.__getitem__)
    same = [name for name in ours if name in published] == theirs
    best = "" if same or ours[0] != theirs[0] else ", with the same best"
    return [f"The dissertation's order is {'the same' if same else 'another: ' + '; '.join(theirs)}{best}."]


def lead(ends: dict[str, list[float]], first: str, second: str) -> str:
    """By how much one row is better than another, and whether chance alone could do that."""
    ahead = statistics.mean(ends[second]) - statistics.mean(ends[first])
    # their own seeds' spread; what the others' seeds do says less, but more than nothing
    rows = [ends[first], ends[second]]
    spreads = [statistics.stdev(each) for each in rows if len(each) > 1]
    spreads = spreads or [statistics.stdev(each) for each in ends.values() if len(each) > 1]
    if not spreads:
        return f"by {ahead:.1f}; with one seed of each that cannot be told from chance"
    more = "more" if ahead > max(spreads) else "no more"
    return f"by {ahead:.1f}, {more} than the seeds' spread ({max(spreads):.1f})"


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
    shares = {name: by_seed(each, lambda run: last(run)["precision"]) for name, each in runs.items()}
    first = max(shares, key=lambda name: statistics.mean(shares[name]))
    return f"By precision {first} is first ({mean(shares[first], 2)})."


def overfitting(runs: Lines) -> str:
    """How many runs were better before their end, and by how much."""
    worse = [final(run) - merit(best(run)) for run in runs]
    early = [each for each in worse if each > 0]
    much = f", by {statistics.median(early):.1f} in the median and {max(early):.1f} at most" if early else ""
    return f"{len(early)} of {len(runs)} runs had a better score before their end{much}."


def sections() -> list[dict[str, Any]]:
    """What the page and the report show: for each of the dissertation's tables one of each budget.

    A budget that only one row has been given compares nothing: one such is shown, where no other compares.
    """
    found, result = lines.read("run"), []
    for table in TABLES:
        parts = []
        for budget, runs in groups(table, found).items():
            much, images, reference, _, source = budget
            rows = [row for row in table.rows if row.name in runs]
            first = runs[rows[0].name][0]
            counts = first["scores"][-1]
            held_out = (
                f"{counts['heldout']['n_real']:,} held-out images ({reference})"
                if reference
                else "no held-out images"
            )
            about = f"{counts['n_generated']:,} samples; {first['images']['count']:,} training images"
            machines = sorted({run["hardware"] for each in runs.values() for run in each})
            named = [f"{letter(machine, machines)}: {machine}" for machine in machines]
            where = "; ".join(named if len(named) > 1 else machines)
            own = untouched(source, counts)
            beside = (
                f" The source itself: FID {own['fid']:.1f}, KID x 1000 {merit(own):.1f},"
                f" precision {own['precision']:.2f}."
                if own
                else ""
            )
            parts.append(
                {
                    "title": much,
                    "about": f"{about} ({images}), {held_out}; {counts['extractor']};"
                    f" {f'from {source}' if source else 'from scratch'}, on {where}.{beside}",
                    "head": HEAD,
                    "rows": [cells(row, runs[row.name], machines) for row in rows],
                    "verdict": verdict(rows, runs, own),
                    "budget": budget,
                    "plans": rows,
                    "runs": {row.name: runs[row.name] for row in rows},
                    "absent": [row.name for row in table.rows if row.name not in runs],
                }
            )
        comparing = [part for part in parts if len(part["rows"]) > 1]
        comparing.sort(key=lambda part: int(part["title"].split()[0].replace(",", "")))
        result.append({"table": table, "parts": comparing or parts[-1:]})
    return result


def untouched(source: str | None, scores: dict[str, Any]) -> dict[str, Any] | None:
    """The source's own scores against as many held-out images, where experiments.scale has measured them."""
    for line in lines.read("scale"):
        if line["row"] == f"{source} against training images" and line["heldout"] and scores["heldout"]:
            counts = [(each["heldout"]["n_real"], each["extractor"]) for each in (line, scores)]
            if counts[0] == counts[1]:
                return line["heldout"]
    return None


def answers(found: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """What the dissertation makes one ask, and what the tables answer, budget by budget."""
    parts = {section["table"].key: section["parts"] for section in found}
    alone, league, scratch = (parts.get(key, []) for key in ("table_11", "league", "from_scratch"))
    defaults = ("table_2", "frozen_norm", "learning_rate", "batch_size", "moving_average")
    result = {
        "Does D(1,2,2), G(1,2,2) win, as in the dissertation?": stands(alone, "wgan_64_transferlearning"),
        "Does scale and shift everywhere lose, as in the dissertation?": stands(alone, "wgan_64_scale_shift"),
        "What wins, and is it ahead of fine-tuning and of training from scratch?": wins(league, scratch),
        "Where is the best iteration, and does every method overfit after it?": peaks(league, scratch),
        "What do the scripts' defaults rest on?": [
            said for section in found if section["table"].key in defaults for said in winners(section)
        ],
    }
    return [(question, said) for question, said in result.items() if said]


def stands(parts: list[dict[str, Any]], script: str) -> list[str]:
    """The place of a script's row in the table of each budget."""
    said = []
    for part in parts:
        ends, ours = ranked(part["runs"])
        for own in rows_of(part, script) if len(ours) > 1 else ():
            first = ours[0] == own
            other = ours[1] if first else ours[0]
            place = "first" if first else f"number {ours.index(own) + 1}"
            by = lead(ends, own, other) if first else lead(ends, other, own)
            said.append(
                f"After {part['title']} it is {place} of {len(ours)} ({mean(ends[own])}),"
                f" {'ahead of' if first else 'behind'} {other} ({mean(ends[other])}) {by}."
            )
    return said


def wins(league: list[dict[str, Any]], scratch: list[dict[str, Any]]) -> list[str]:
    """The first of each budget, beside fine-tuning and the best training from scratch."""
    said = []
    for part in league:
        runs = part["runs"] | from_scratch(part, scratch)
        ends, ours = ranked(runs)
        first, *behind = ours
        without_source = [name for name in behind if name not in part["runs"]]
        rivals = [name for name in rows_of(part, "wgan_64_finetune") if name != first] + without_source[:1]
        leads = [f"{name} ({mean(ends[name])}) {lead(ends, first, name)}" for name in rivals]
        if leads:
            said.append(
                f"After {part['title']} {first} is first of {len(ours)} ({mean(ends[first])}), ahead of"
                f" {'; and of '.join(leads)}. {by_precision(runs)}"
            )
    return said


def peaks(league: list[dict[str, Any]], scratch: list[dict[str, Any]]) -> list[str]:
    """Where the rows of the longest budget have their best score, and what is lost after it."""
    if not league:
        return []
    runs = league[-1]["runs"] | from_scratch(league[-1], scratch)
    steps = [
        f"{mean(by_seed(each, lambda run: best(run)['step']), 0)} ({name})" for name, each in runs.items()
    ]
    every = [run for each in runs.values() for run in each]
    return [
        f"Within {league[-1]['title']} the best score came at iteration {'; '.join(steps)}."
        f" {overfitting(every)}"
    ]


def winners(section: dict[str, Any]) -> list[str]:
    """For each plan of a table the first two of its rows, in the longest budget that has two."""
    said = []
    plans = [(row.settings.get("G"), row.settings.get("D")) for row in section["table"].rows]
    for plan in dict.fromkeys(plans):
        rows = [row.name for row, own in zip(section["table"].rows, plans, strict=True) if own == plan]
        for part in reversed(section["parts"]):
            ends, ours = ranked({name: part["runs"][name] for name in rows if name in part["runs"]})
            if len(ours) > 1:
                first, second = (f"{name} ({mean(ends[name])})" for name in ours[:2])
                said.append(
                    f"{section['table'].title}: after {part['title']} {first} leads {second}"
                    f" {lead(ends, *ours[:2])}."
                )
                break
    return said


def rows_of(part: dict[str, Any], script: str) -> list[str]:
    """The rows of a table that are a script's."""
    return [row.name for row in part["plans"] if row.script == script]


def from_scratch(part: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Lines]:
    """The runs without a source that had a table's budget."""
    return {
        name: other["runs"][name]
        for other in others
        if other["budget"] == part["budget"]
        for name in rows_of(other, "wgan_64")
    }


def page() -> str:
    """docs/results.md."""
    found = sections()
    text = (
        "# Results\n\nWritten by `python -m experiments.report` from `experiments/results.jsonl`; nothing"
        f" is typed by hand here. [scores.md](scores.md) says what each score means. {NOTE}\n\n"
    )
    for question, said in answers(found):
        text += f"**{question}**\n\n" + "".join(f"- {each}\n" for each in said) + "\n"
    for section in found:
        table = section["table"]
        text += f"## {table.title}\n\nThe dissertation: {table.claim}\n\n"
        if not section["parts"]:
            text += f"Not run yet: `python -m experiments.{table.key}`.\n\n"
        for part in section["parts"]:
            text += f"### {part['title']}\n\n{part['about']}\n\n"
            text += lines.markdown(part["head"], part["rows"]) + "\n"
            text += " ".join(part["verdict"]) + "\n\n"
            if part["absent"]:
                text += f"Not run yet: {'; '.join(part['absent'])}.\n\n"
    return text + clips() + scale.section() + going_on()


def clips() -> str:
    """The runs with the clip's earlier rules for a modulated kernel, beside those with today's."""
    old, today = lines.read("superseded"), lines.read("run")
    rules, body, shown = list(dict.fromkeys(line["clip"] for line in old)), [], []
    for title, row in [(table.title, row) for table in TABLES for row in table.rows]:
        for much in dict.fromkeys(spent(row, line)[0] for line in of(row, old)):
            before = [line for line in of(row, old) if spent(row, line)[0] == much]
            if before in shown:
                continue
            shown.append(before)
            now = {
                which(row, stage, spent(row, stage)): stage
                for line in of(row, today)
                for stage in (*stages(line), line)
                if spent(row, stage)[0] == much
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
        + lines.markdown(("", "", *rules, "clamped where it is computed (today)"), body)
        + "\n"
    )


def going_on() -> str:
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


def data_url(data: bytes, kind: str) -> str:
    """A picture as a part of the page that shows it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def curves(runs: dict[str, Lines]) -> str:
    """KID against the iteration, a curve for each row, over its runs."""
    from matplotlib.figure import Figure

    # a legend beside the axes, and as much height as its rows need
    figure, highest = Figure(figsize=(9, max(3.2, 0.5 + 0.2 * len(runs))), layout="constrained"), 0.0
    axes = figure.subplots()
    for place, (name, each) in enumerate(runs.items()):
        marker = "osv^"[place // 10 % 4]  # there are ten colours
        steps = sorted({scores["step"] for run in each for scores in run["scores"]})
        values = [[merit(s) for run in each for s in run["scores"] if s["step"] == step] for step in steps]
        (line,) = axes.plot(steps, [statistics.mean(v) for v in values], marker=marker, label=name)
        highest = max(highest, *(max(v) for v in values), 0.0)
        axes.fill_between(
            steps, [min(v) for v in values], [max(v) for v in values], color=line.get_color(), alpha=0.2
        )
    axes.set(xlabel="iteration", ylabel="KID x 1000", ylim=(0, 1.05 * highest or None))
    figure.legend(fontsize="small", frameon=False, loc="outside right upper")
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    return data_url(file.getvalue(), "svg+xml")


def strips(runs: dict[str, Lines]) -> dict[str, str]:
    """The kept grids of each row's first run."""
    files = {name: PICTURES / f"{each[0]['run']}.webp" for name, each in runs.items()}
    return {name: data_url(file.read_bytes(), "webp") for name, file in files.items() if file.exists()}


def html() -> str:
    """report.html, which needs nothing beside itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = sections()
    return environment.get_template("report.html.jinja").render(
        note=NOTE, sections=found, answers=answers(found), curves=curves, strips=strips
    )


def write() -> None:
    """Write both."""
    PAGE.write_text(page())
    REPORT.write_text(html())
    print(f"{PAGE.relative_to(ROOT)} and {REPORT.name} are written")


if __name__ == "__main__":
    write()
