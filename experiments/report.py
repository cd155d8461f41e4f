"""The report: report.html, the page with curves and pictures; it needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import statistics
from pathlib import Path

from PIL import Image

from experiments.figures import AUGMENTED, figures
from experiments.judge import FIRST, merit
from experiments.page import NOTE, PAGE, Part, headline, leaderboard, narrow, page, said, sections
from experiments.runs import PICTURES, ROOT
from experiments.selection import Lines, scores_by
from experiments.verdict import wins

REPORT = ROOT / "report.html"


def data_url(data: bytes, kind: str) -> str:
    """A picture as a part of the page that shows it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def curves(runs: dict[str, Lines]) -> str:
    """KID against the iteration, a curve for each row, over its runs."""
    from matplotlib.figure import Figure

    # a legend beside the axes, and as much height as its rows need
    figure, highest = Figure(figsize=(9, max(3.2, 0.5 + 0.2 * len(runs))), layout="constrained"), 0.0
    axes = figure.subplots()
    runs = {name: [scores_by(run, FIRST) for run in each] for name, each in runs.items()}
    for place, (name, each) in enumerate(runs.items()):
        marker = "osv^"[place // 10 % 4]  # there are ten colours
        steps = sorted({scores["step"] for run in each for scores in run})
        if not steps:
            continue  # it saw through the judge
        values = [[merit(s) for run in each for s in run if s["step"] == step] for step in steps]
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


def strips(parts: list[Part]) -> dict[tuple[str, str], str]:
    """The name of each row's picture, by the part's title and the row; and under ("", name) the picture.

    It is the row's first run at the part's budget: eight latents, the same for all rows.
    """
    found: dict[tuple[str, str], str] = {}
    for part in parts:
        for row, each in part.runs.items():
            run = min(each, key=lambda run: run["settings"]["seed"])
            file, place = PICTURES / f"{run['run']}.webp", len(run["scores"])
            if file.exists():
                name = f"{run['run']}-{place}"
                found[part.title, row] = name
                if ("", name) not in found:
                    found["", name] = data_url(strip_of(file, place), "webp")
    return found


def strip_of(file: Path, place: int, columns: int = 8, tile: int = 64) -> bytes:
    """A row of a kept picture: the same latents at one of its iterations."""
    with Image.open(file) as image:
        top = min(place * tile, image.height - tile)
        row = image.convert("RGB").crop((0, top, columns * tile, top + tile))
    held = io.BytesIO()
    row.save(held, "WEBP", quality=75)
    return held.getvalue()


def html() -> str:
    """report.html, which needs nothing beside itself."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    league, others = leaderboard(sections())
    shown = []
    for section in (league, *others):
        board = section is league
        top = headline(section.parts) if section.parts else None
        table = narrow(top, *(["minutes of training"] if board else []), "seeds") if top else []
        verdict = (wins(top) if board else said(section, top)) if top else ""
        drawn = [(each, data_url(each.file.read_bytes(), "webp")) for each in figures(section)]
        augmented = data_url(AUGMENTED.read_bytes(), "webp") if section.table.caption else ""
        curve = curves(top.runs) if top and board else ""
        shown.append((section, top, table, verdict, curve, drawn, augmented))
    pictures = strips([top for _, top, *_ in shown if top])
    return environment.get_template("report.html.jinja").render(note=NOTE, shown=shown, pictures=pictures)


def write() -> None:
    """Write the page and the report."""
    PAGE.write_text(page(), encoding="utf-8")
    REPORT.write_text(html(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} and {REPORT.name} are written")
