"""The experiments: strips of a run's grids, and the page that is written from what was measured."""

import dataclasses
import json
import multiprocessing
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.stats import ttest_ind

import fid
import fid.scores
import wgan_64
import wgan_64_transferlearning
from experiments import __main__ as commands
from experiments import judge, lines, pace, report, scale, selection, strip, tables, verdict
from experiments import page as pages
from experiments import runs as runs_
from experiments.runs import Budget
from experiments.selection import Spent
from experiments.tables import Row, Table
from tests.stand_ins import tiny as projection
from transfer import UserError, record
from transfer.settings import Before
from transfer.settings import plain as plain_settings


def test_a_strip_shows_the_same_latents_row_by_row(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (0, 100, 200):
        tiles = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(64, 0).repeat(64, 1) + np.uint8(step // 2)
        Image.fromarray(tiles).convert("RGB").save(tmp_path / "samples" / f"{step:06d}.png")
    strip.main(strip.Settings(tmp_path, tmp_path / "new" / "strip.png", steps=(0, 200), columns=10))
    picture = np.asarray(Image.open(tmp_path / "new" / "strip.png"))
    assert picture.shape == (128, 640, 3)
    assert picture[::64, ::64, 0].tolist() == [list(range(10)), list(range(100, 110))]
    with pytest.raises(UserError, match="no grid of iteration 50"):
        strip.main(strip.Settings(tmp_path, tmp_path / "strip.png", steps=(50,)))


def test_the_results_page_is_what_the_results_say():
    assert pages.PAGE.read_text() == pages.page()


def test_the_page_shows_every_number_with_what_it_was_measured_with(tmp_path, monkeypatch):
    side = {"fid": 12.34, "kid": 0.0056, "precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.75}
    line = {"table": "scale", "row": "A against B", "n_generated": 1000, "n_real": 96, **side}
    line |= {"heldout": {**side, "fid": 56.78, "n_real": 5000}, "memorisation": {"near_copies": 0.05}}
    line |= {"extractor": "some-network", "resize": "some resize", "seed": 3, "hardware": "some CPU"}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results.jsonl")
    page = scale.markdown()
    assert "| A against B | 1,000 | 96 | 12.3 | 5.6 | 0.50 | 0.25 | 1.00 | 0.75 | 0.05 |" in page
    assert "| 1,000 | 5,000 | 56.8 | 5.6 |" in page
    assert "some-network, some resize, seed 3" in page and "some CPU" in page


def test_the_scale_names_what_the_source_shows(faces):
    given = scale.Settings(faces=faces, target=faces, reference=faces)
    of_faces, of_avatars = scale.rows(given), scale.rows(replace(given, kind="avatars"))
    assert {name.replace("avatars", "faces") for name in of_avatars} == of_faces.keys()
    assert len(of_avatars.keys() - of_faces.keys()) == 3


def test_the_scale_has_the_training_images_in_augmented_versions(faces):
    found = scale.rows(scale.Settings(faces=faces, target=faces, reference=faces))
    away = []
    for name in ("slight", "strong"):
        versions, target, held_out = found[f"training images in {name} augmentation"]()
        assert versions.dtype == torch.uint8 and len(versions) == scale.DRAWN and len(held_out) == 8
        again, *_ = found[f"training images in {name} augmentation"]()
        assert torch.equal(versions, again)
        distances = torch.cdist(*(each.flatten(1).float() for each in (versions, target)))
        away.append(distances.amin(1).mean())
    assert 0 < away[0] < away[1]


def test_the_readme_tells_what_was_measured():
    readme = pages.PAGE.parents[1].joinpath("README.md").read_text()
    text = " ".join(readme.split())
    parts = {each.table.key: pages.headline(each.parts) for each in pages.sections() if each.parts}
    league, scratch = parts["league"].runs, parts["from_scratch"].runs
    names = {
        "a critic that sees": "G(0,0,5) D(2,0,3), a critic that sees, from projected_64",
        "G(0,0,5) D(2,0,3)": "G(0,0,5) D(2,0,3), source's statistics",
        "fine-tune every layer": "G(0,0,5) D(0,0,5)",
        "the combination, G(1,2,2) D(1,2,2)": "G(1,2,2) D(1,2,2)",
        "from scratch": "from scratch, DiffAugment",
    }
    plans = {name: league.get(own, scratch.get(own)) for name, own in names.items()}
    for name, found in plans.items():
        kids = [
            judge.mean(judge.by_seed(found, lambda run, by=by: judge.final(run, by)), 0)
            for by in runs_.JUDGES
        ]
        coverage = judge.mean(judge.by_seed(found, lambda run: judge.figure(run, "coverage")), 2)
        core = "AMX" if name == "a critic that sees" else "AVX512-BF16"
        minutes = statistics.mean(run["seconds"] / 60 for run in found if core in run["hardware"])
        seeds = len(judge.by_seed(found, judge.final))
        figures = " | ".join((*kids, coverage, f"{minutes:.0f}", str(seeds)))
        assert re.search(rf"\| {re.escape(name)} \| [^|]+ \| {re.escape(figures)} \|", readme), (
            name,
            figures,
        )
    _, reached = pace.rows(parts["league"], selection.runs())
    plain, *others = names.values()
    *after, last = (judge.mean(reached[own][-1], 0) for own in (f"{plain}, no drift", *others))
    assert pace.MINUTES[-1] == 20
    assert f"without its drift, {', '.join(after)} and {last} (KID" in text

    run = plans["G(0,0,5) D(2,0,3)"][0]
    much = run["scores"][-1]
    assert (
        f"after {run['settings']['iterations']:,} iterations of {run['settings']['batch_size']} images"
        in text
    )
    assert f"{much['n_generated']:,} samples against {much['heldout']['n_real']:,} held-out images" in text
    assert run["hardware"] == "AMD EPYC, AVX512-BF16, 1 threads"


def test_the_page_on_the_pictures_and_the_readme_tell_what_the_critic_that_sees_comes_to():
    root, found = pages.PAGE.parents[1], selection.runs()
    page = root.joinpath("docs", "quality.md").read_text()
    readme = " ".join(root.joinpath("README.md").read_text().split())
    league = pages.headline(next(each.parts for each in pages.sections() if each.table.key == "league")).runs
    default, drift, plain, tuned = tables.SEES[0], *tables.VARIED[:2], tables.LEAGUE.rows[0]
    assert tuned.name == "G(0,0,5) D(0,0,5)"

    def of(row, images, iterations):
        """The lines of a row on these images, of this length."""
        every = selection.lines_of(row, found)
        return [
            each for each in every if (each["images"]["name"], each["iterations"]) == (images, iterations)
        ]

    def kid(runs, by):
        return judge.mean(judge.by_seed(runs, lambda run: judge.final(run, by)), 0)

    def kids(runs):
        """KID x 1000 by both judges."""
        return f"{kid(runs, LITE0)} ({kid(runs, LITE2)})"

    def told(runs, key, digits=0):
        return judge.mean(judge.by_seed(runs, lambda run: judge.figure(run, key)), digits)

    def seeds(runs):
        return len({run["settings"]["seed"] for run in runs})

    anime, cartoons = "target_anime_96.zip", "target_domain"
    for name, iterations, runs in (
        ("defaults", 2000, league[default.name]),
        ("`--drift 0`", 2000, league[drift.name]),
        ("`--closer 0 --drift 0`", 2000, league[plain.name]),
        ("defaults", 3000, of(default, anime, 3000)),
        ("`--closer 0 --drift 0`", 3000, of(plain, anime, 3000)),
    ):
        figures = told(runs, "fid"), kids(runs), told(runs, "coverage", 2), str(seeds(runs))
        assert f"| {name} | {iterations:,} | {' | '.join(figures)} |" in page
    for name, how, iterations, row, images in (
        ("cartoons", "defaults", 3000, default, cartoons),
        ("cartoons", "`--closer 0 --drift 0`", 3000, plain, cartoons),
        ("cartoons", "fine-tuning every layer", 1000, tuned, cartoons),
        ("adventurers", "defaults", 2000, default, "adventurers_100"),
        ("other adventurers", "`--closer 0 --drift 0`", 3000, plain, "adventurer_100.zip"),
        ("other adventurers", "fine-tuning every layer", 1000, tuned, "adventurer_100.zip"),
        ("loreleis", "`--closer 0 --drift 0`", 3000, plain, "lorelei_100.zip"),
    ):
        runs = of(row, images, iterations)
        assert f"| {name} | {how} | {iterations:,} | {kids(runs)} | {seeds(runs)} |" in page
    longer, drawn = of(default, anime, 3000), of(default, cartoons, 3000)
    assert seeds(longer) == 3 and seeds(drawn) == 2
    scales = {line["row"]: line for line in lines.read("scale")}
    new = scales["held-out, as many as samples, against the others"]
    heart = scales["training images in slight augmentation"]["heldout"]
    for name, key, digits in (
        ("Frechet distance, Lite0", "fid", 0),
        ("density", "density", 1),
        ("coverage", "coverage", 2),
        ("recall", "recall", 2),
    ):
        figures = told(longer, key, digits), f"{new[key]:.{digits}f}", f"{heart[key]:.{digits}f}"
        assert f"| {name} | {' | '.join(figures)} |" in page
    known = f"{1000 * new['kid']:.0f} | {1000 * heart['kid']:.0f}"
    assert f"| KID x 1000, Lite0 | {kid(longer, LITE0)} | {known} |" in page
    assert f"| KID x 1000, Lite2 | {kid(longer, LITE2)} | | |" in page
    assert f"is {kid(longer, LITE0)} by Lite0 and {kid(longer, LITE2)} by Lite2 (three seeds)" in readme
    assert f"KID x 1000 is {kid(drawn, LITE0)} after 3,000 iterations ({kid(drawn, LITE2)} by" in readme
    assert f"a shorter distance ({told(drawn, 'fid')} for {told(of(plain, cartoons, 3000), 'fid')})" in page


def test_the_page_of_the_models_tells_what_the_three_of_faces_come_to():
    page = pages.PAGE.parents[1].joinpath("pretrained_model", "README.md").read_text()
    scales = {line["row"]: line for line in lines.read("scale")}
    for name, iterations in (("wgan_64", 8000), ("projected_64", 3506), ("wgan_gp_64", 2777)):
        found = scales[f"{name}.safetensors ({iterations:,} iterations) against unseen faces"]
        figures = f"{found['fid']:.1f} | {1000 * found['kid']:.1f} | {found['coverage']:.2f}"
        assert f"| `{name}.safetensors` | {figures} |" in page


def test_the_pages_tell_what_the_source_of_free_drawings_comes_to():
    root, found = pages.PAGE.parents[1], selection.runs()
    readme, of_models = (
        " ".join(root.joinpath(folder, "README.md").read_text().split())
        for folder in ("", "pretrained_model")
    )
    scales = {line["row"]: line for line in lines.read("scale")}
    own, others = (
        scales["avatars_64.safetensors (3,000 iterations) against unseen avatars"],
        scales["source avatars against unseen avatars"],
    )
    assert (
        f"a Frechet distance of {own['fid']:.0f} and a KID x 1000 of {1000 * own['kid']:.0f} against"
        f" {own['n_real']:,} unseen avatars, where as many others have {others['fid']:.0f} and"
        f" {1000 * abs(others['kid']):.0f}." in of_models
    )

    def after_500(row, images):
        """KID x 1000 of each seed of a row on these images."""
        stages = [
            stage
            for line in selection.lines_of(row, found)
            if line["images"]["name"] == images
            for stage in selection.at_each_score(line)
            if stage["settings"]["iterations"] == 500
        ]
        return judge.mean(judge.by_seed(stages, judge.final), 0)

    faces, drawings = tables.SEES[0], tables.SEES[-1]
    anime, style = "target_anime_96.zip", "adventurers_100"
    assert f"KID x 1000 (Lite0) is {after_500(drawings, anime)} on the anime faces" in readme
    assert f"where it is {after_500(faces, anime)} from the faces" in readme
    assert (
        f"and {after_500(drawings, style)} on a hundred drawings of another style, where it is"
        f" {after_500(faces, style)} (one seed" in readme
    )


def test_the_part_that_is_shown_is_of_the_longest_budget_that_compares_three_rows():
    def part(iterations, rows):
        return SimpleNamespace(rows=range(rows), budget=SimpleNamespace(much=f"{iterations} iterations"))

    short, shown, fewer, longest = parts = [part(500, 9), part(2000, 4), part(2000, 3), part(3000, 2)]
    assert pages.headline(parts) is shown
    assert pages.headline([fewer, short]) is short
    assert pages.headline([longest]) is longest


def test_the_plan_that_the_readme_names_is_ahead_and_quicker():
    readme = pages.PAGE.parents[1].joinpath("README.md").read_text()
    assert "python wgan_64_freeze_layers.py --G 0 0 5 --D 2 0 3" in readme
    parts = {each.table.key: pages.headline(each.parts) for each in pages.sections() if each.parts}
    league = parts["league"].runs
    own = league["G(0,0,5) D(2,0,3), source's statistics"]
    for other in (league["G(0,0,5) D(0,0,5)"], parts["from_scratch"].runs["from scratch, DiffAugment"]):
        ends = {"own": judge.by_seed(own, judge.final), "other": judge.by_seed(other, judge.final)}
        assert min(map(len, ends.values())) > 1
        assert statistics.mean(ends["own"]) < statistics.mean(ends["other"])
        minutes = [statistics.mean(run["seconds"] for run in runs) for runs in (own, other)]
        assert minutes[0] < minutes[1]


def test_a_row_with_a_source_of_its_own_has_the_runs_from_it_and_stands_beside_the_others():
    found = selection.runs()
    ours, first, *_ = tables.SEES
    mine = selection.lines_of(ours, found)
    assert mine and all(line["settings"]["source"].startswith("projected_64") for line in mine)
    assert not any(line in mine for line in selection.lines_of(first, found))
    groups = selection.groups(tables.LEAGUE, found)
    beside = {
        (budget.images, budget.count)
        for budget, rows in groups.items()
        if budget.source and ours.name in rows
    }
    assert beside >= {("target_anime_96.zip", 2000), ("target_domain", 500)}, "a run of 1,000 had 500 too"


# ----------------------------------------------------------------------------------------------------------
# Tables.

LITE0, LITE2 = runs_.JUDGES
BY = "{}-1280-bicubic"  # how an extractor is called in scores


@pytest.fixture
def table(tmp_path, monkeypatch, faces, source):
    """A table of two plans that takes a blink, and its budget; results and pictures go to a folder."""
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results.jsonl")
    for module in (runs_, report):
        monkeypatch.setattr(module, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(record, "SCORED", 16)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    tiny = {"source": source, "critic_steps": 1, "fast": False}
    rows = (
        Row("fine-tuned", "wgan_64_finetune", tiny, 209),
        Row("frozen", "wgan_64_freeze_layers", tiny, 225),
    )
    budget = Budget(
        faces,
        faces,
        iterations=2,
        batch_size=4,
        score_every=1,
        judges=(LITE0,),
        device="cpu",
        out=tmp_path / "out",
    )
    table = Table("table_0", "Table 0: two plans", "The first is better.", rows)
    monkeypatch.setattr(pages, "TABLES", (table,))
    return table, budget


@pytest.fixture
def quick_judges(monkeypatch):
    """Projections in the place of the networks that judge."""
    for module in (fid, fid.scores):
        monkeypatch.setattr(module, "load", _projected)


def _projected(name, **_):
    return projection(name=f"{name}-12")


def test_a_table_makes_each_run_once_and_the_report_shows_it(quick_judges, table, capsys):
    table, budget = table
    assert "Not run yet" in pages.page() and "Not run yet" in report.html()
    with pytest.raises(UserError, match="gone does not exist"):
        runs_.verify([table], replace(budget, reference=Path("gone")))
    with pytest.raises(UserError, match="gone does not exist"):
        commands.main(commands.Settings(tables=("table_7",), images=Path("gone"), dry_run=True))
    runs_.verify([table], budget)
    runs_.make([table, table], replace(budget, dry_run=True))
    assert "2 runs are missing" in capsys.readouterr().out and not lines.read("run")
    runs_.make([table, table], budget)
    found = lines.read("run")
    assert [line["script"] for line in found] == ["wgan_64_finetune", "wgan_64_freeze_layers"]
    for line in found:
        assert [scores["step"] for scores in line["scores"]] == [1, 2]
        assert line["iterations"] == 2 and line["images"]["count"] == 8 and line["seconds"] > 0
        assert line["scores"][0]["heldout"]["n_real"] == 8 and line["commit"] and line["hardware"]
    runs_.make([table], budget)
    assert len(lines.read("run")) == 2, "what has been made is not made again"
    assert not runs_.missing([table], replace(budget, iterations=1)), "a shorter run is part of a longer one"
    assert len(runs_.missing([table], replace(budget, iterations=3))) == 2
    page, html = pages.page(), report.html()
    for row in table.rows:
        value = judge.mean([judge.final(next(iter(selection.lines_of(row, found))))])
        assert (
            f"| {row.name} | {value} | – |" in page and f"| {row.name} | {row.published} | {value} |" in page
        )
        assert f'data-head="KID x 1000, Lite0">{value}</td>' in html
    assert html.count("data:image/webp") == 2 and "http" not in html


def test_what_another_process_is_making_is_passed_over(quick_judges, table, monkeypatch):
    """Two processes at the same tables make each run once between them."""
    table, budget = table
    script = runs_.module(table.rows[0].script)
    main, other = script.main, []

    def while_the_other_works(settings):
        if not other:
            other.append(
                multiprocessing.get_context("spawn").Process(
                    target=_work, args=(lines.RESULTS, table, budget)
                )
            )
            other[0].start()
            other[0].join()
        return main(settings)

    monkeypatch.setattr(script, "main", while_the_other_works)
    runs_.make([table], budget)
    assert other[0].exitcode == 0
    assert [line["script"] for line in lines.read("run")] == ["wgan_64_freeze_layers", "wgan_64_finetune"]


def _work(results, table, budget):
    lines.RESULTS, runs_.PICTURES, record.SCORED = results, results.with_name("pictures"), 16
    fid.load = fid.scores.load = _projected
    runs_.make([table], budget)


def test_a_further_judge_scores_a_finished_run_without_training_again(quick_judges, table, monkeypatch):
    table, budget = table
    runs_.make([table], budget)
    for row in table.rows:
        monkeypatch.setattr(runs_.module(row.script), "main", None)
    monkeypatch.setattr(runs_, "judge", lambda scores: "another")  # so that its own judge comes again
    runs_.make([table], budget)
    for line, again in zip(lines.read("run"), lines.read("judged"), strict=True):
        own, again = line["scores"][-1], again["scores"]
        assert again["step"] == 2 and again["kid"] == pytest.approx(own["kid"], rel=1e-6)
        assert again["heldout"]["n_real"] == 8
    monkeypatch.undo()


def test_a_further_judge_scores_against_what_a_run_has_held_out(quick_judges, table, monkeypatch):
    table, budget = table
    row = replace(table.rows[0], settings=table.rows[0].settings | {"hold_out": 0.25})
    table, budget = replace(table, rows=(row,)), replace(budget, reference=None, seeds=2)
    runs_.make([table], budget)
    monkeypatch.setattr(runs_, "judge", lambda scores: "another")  # so that its own judge comes again
    runs_.make([table], budget)
    found = {line["run"]: line["scores"] for line in lines.read("judged")}
    for line in lines.read("run"):
        own, again = line["scores"][-1], found[line["run"]]
        assert (again["n_real"], again["heldout"]["n_real"]) == (6, 2)
        for one, other in ((own, again), (own["heldout"], again["heldout"])):
            assert one["kid"] == pytest.approx(other["kid"], rel=1e-6)
    first, second = (scores["heldout"]["kid"] for scores in found.values())
    assert first != pytest.approx(second, rel=1e-2), "each seed sets other images aside"


def test_each_run_has_each_judge_once_and_the_page_shows_them_side_by_side(table, capsys):
    table, budget = table
    both = replace(budget, judges=(LITE2, LITE0))
    assert runs_.wanted([table], both) == runs_.wanted([table], budget), "whoever judges, it is the same run"
    runs_.make([table], budget)
    capsys.readouterr()
    runs_.make([table], replace(both, dry_run=True))
    told = capsys.readouterr().out
    assert "0 runs are missing" in told and told.count(f"(to be scored by {LITE2})") == 2
    for _ in range(2):
        runs_.make([table], both)
    assert len(lines.read("run")) == len(lines.read("judged")) == 2
    page = pages.page()
    for row, line in zip(table.rows, selection.runs(), strict=True):
        first, second = (judge.mean([judge.final(line, name)]) for name in (LITE0, LITE2))
        assert line["judged"][0]["extractor"].startswith(LITE2) and first != second
        assert f"| {row.name} | {row.published} | {first} | {second} |" in page
    short, *_ = selection.at_each_score(line)
    assert judge.final(short, LITE2) is None and judge.final(short) is not None
    shutil.rmtree(budget.out)
    lines.RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines.read("run")))
    capsys.readouterr()
    runs_.make([table], both)
    assert "2 scores by further judges cannot be added" in capsys.readouterr().out


def test_further_judges_score_the_way_and_an_interrupted_stretch_goes_on(table, monkeypatch):
    table, budget = table
    (row, _), both = table.rows, replace(budget, judges=(LITE0, LITE2), judge_every=1)
    alone, script = Table("", "", "", (row,)), runs_.module(row.script)
    main, asked = script.main, []

    def stops(settings):
        asked.append(settings.iterations)
        folder = main(settings)
        if len(asked) == 1:
            raise KeyboardInterrupt  # before the other judge came
        return folder

    monkeypatch.setattr(script, "main", stops)
    with pytest.raises(KeyboardInterrupt):
        runs_.make([alone], both)
    runs_.make([alone], both)
    assert asked == [1, 1, 2]
    (line,) = selection.runs()
    for name in both.judges:
        assert [scores["step"] for scores in selection.scores_by(line, name)] == [1, 2]
    first, *_ = selection.at_each_score(line)
    assert judge.final(first, LITE2) is not None, "the page shows it for the shorter budget"
    runs_.make([alone], both)
    assert len(asked) == 3 and len(lines.read("judged")) == 2
    assert runs_.stretches(replace(runs_.settings_of(row, 0, both), out=budget.out / line["run"]), both) == [
        2
    ]


def test_a_run_is_not_judged_by_what_it_saw_through(monkeypatch, tmp_path):
    saw = Row("it sees", "projected_critic", {"features": LITE0})
    budget = Budget(judges=(LITE0, LITE2))
    assert runs_.settings_of(saw, 0, budget).extractor == LITE2
    assert runs_.settings_of(Row("", "wgan_64_finetune"), 0, budget).extractor == LITE0
    share({"settings": {"features": LITE2}}, tmp_path / "source.safetensors")
    after = Row("", "wgan_64_finetune", {"source": tmp_path / "source.safetensors"})
    assert runs_.seen(runs_.settings_of(after, 0, budget)) == [LITE2]

    old = run_of("projected_critic", "any", features=LITE0)
    assert runs_.seen_by(old) == [LITE0] and runs_.seen_by(old | {"seen": [LITE2]}) == [LITE2]
    also = {"hardware": "", "run": "a", "seconds": 1, "learning": 1, "images": {"count": 9}}
    scores = {"step": 300, "fid": 1.0, "kid": 0.001, "heldout": None, "precision": 0.5, "coverage": 0.25}
    scores |= {"diversity": 1.0, "memorisation": {"copies": 0.125}, "n_generated": 9}
    old |= also | {"scores": [scores | {"extractor": BY.format(LITE0)}]}
    fair = run_of("wgan_64_finetune", "any") | also | {"run": "b"}
    fair |= {"scores": [scores | {"kid": 0.002, "extractor": BY.format(LITE0)}]}
    for line in (old, fair):
        line["settings"]["reference"] = None
    twos = [{"run": run, "hardware": "", "scores": scores | {"extractor": BY.format(LITE2)}} for run in "ab"]
    found = {"run": [old, fair], "judged": twos}
    monkeypatch.setattr(lines, "read", lambda kind: found.get(kind, []))
    monkeypatch.setattr(pages, "TABLES", (Table("", "", "", (saw, Row("fair", "wgan_64_finetune"))),))
    (part,) = pages.sections()[0].parts
    for row, kids in zip(part.rows, (["–¹", "1.0"], ["2.0", "1.0"]), strict=True):
        named = dict(zip(part.head, row, strict=True))
        assert [named["KID x 1000, Lite0"], named["KID x 1000, Lite2"]] == kids
        assert (named["coverage"], named["copies"]) == (("–¹", "–¹") if kids[0] == "–¹" else ("0.25", "0.12"))
    assert part.footnotes == [f"¹ Trained through `{LITE0}`, which does not judge it."]
    assert judge.ranked(part.runs)[1] == ["fair"] and len(judge.ranked(part.runs, LITE2)[1]) == 2
    assert judge.best(old) is None and "it sees" not in " ".join(part.verdict)


def share(card, path):
    """A model's file of nothing but its card."""
    save_file({"G.x": torch.zeros(1)}, path, {"card": json.dumps({"iterations": 1, **card})})


def test_seeds_and_budgets_are_runs_of_their_own(table):
    table, budget = table
    row = table.rows[0]
    names = {
        runs_.identity(row, seed, replace(budget, iterations=iterations))
        for seed in (0, 1)
        for iterations in (2, 3)
    }
    assert len(names) == 4
    assert runs_.identity(row, 0, budget) == runs_.identity(
        row, 0, replace(budget, out="elsewhere", device=None)
    )


def test_batches_of_another_size_draw_as_many_images_and_stand_in_one_table():
    rows = [Row(str(size), "wgan_64_finetune", {"batch_size": size}) for size in (4, 2)]
    budget = Budget(iterations=6, batch_size=4, score_every=3)
    settings = [runs_.settings_of(row, 0, budget) for row in rows]
    assert [(each.iterations, each.batch_size, each.score_every) for each in settings] == [
        (6, 4, 3),
        (12, 2, 6),
    ]
    found = [run_of("wgan_64_finetune", "any", batch_size=size, iterations=24 // size) for size in (4, 2)]
    four, two = found
    assert list(selection.groups(Table("", "", "", tuple(rows)), found).values()) == [
        {"4": [four], "2": [two]}
    ]
    silent = Table("", "", "", (Row("fine-tuned", "wgan_64_finetune"),))
    assert {key.much: runs for key, runs in selection.groups(silent, found).items()} == {
        "6 iterations of 4 images": {"fine-tuned": [four]},
        "12 iterations of 2 images": {"fine-tuned": [two]},
    }


def test_a_run_that_was_interrupted_goes_on(table, monkeypatch):
    table, budget = table
    row = table.rows[0]

    class Interrupted(Exception):
        pass

    script = runs_.module(row.script)
    main = script.main

    def stops(settings):
        main(replace(settings, iterations=1))
        raise Interrupted

    monkeypatch.setattr(script, "main", stops)
    with pytest.raises(Interrupted):
        runs_.make([table], budget)
    monkeypatch.setattr(script, "main", main)
    runs_.make([table], budget)
    folders = list((budget.out / runs_.identity(row, 0, budget)).iterdir())
    assert len(folders) == 1 and "resumed" in json.loads((folders[0] / "settings.json").read_text())


def test_a_pause_is_not_training():
    log = [{"images_per_second": rate} for rate in (0.1, 50.0, 50.0)]
    assert runs_.trained(wgan_64.Settings(iterations=100, batch_size=10), log) == 100 * 10 * 5 / 50


def test_every_table_of_the_dissertation_can_be_run():
    found = {table.key: table for table in tables.TABLES}
    assert len(found) == 14 + len(tables.PAIRS)
    tables_of_it = [table for key, table in found.items() if key != "league"]
    published = sorted(row.published for table in tables_of_it for row in table.rows if row.published)
    assert published == [195, 195, 204, 209, 220, 223, 225, 236]
    for table in found.values():
        budget = runs_.PRETRAINING if table.pretraining else Budget()
        names = [runs_.identity(row, 0, budget) for row in table.rows]
        assert len(set(names)) == len(names)


def line_of(name, ends, published=None, seed=0):
    scores = [
        {
            "step": 10 * (i + 1),
            "kid": end / 1000,
            "heldout": None,
            "precision": end / 10,
            "extractor": BY.format(LITE0),
        }
        for i, end in enumerate(ends)
    ]
    return Row(name, "wgan_64", {}, published), [
        {
            "script": "wgan_64",
            "scores": scores,
            "learning": 1234,
            "seconds": 120,
            "hardware": "one",
            "settings": {"seed": seed, "iterations": 10 * len(ends)},
        }
    ]


@pytest.mark.parametrize(
    "ends, said", [((1.0, 2.0), "is the same"), ((2.0, 1.0), "is another: first; second")]
)
def test_the_verdict_follows_from_the_figures(ends, said):
    rows, runs = zip(
        line_of("first", [9.0, ends[0]], 195), line_of("second", [0.5, ends[1]], 225), strict=True
    )
    text = " ".join(verdict.verdict(rows, {"first": runs[0], "second": runs[1]}, {"kid": 0.0015}))
    assert said in text and "1 of 2 runs had a better score before" in text and "both have one seed" in text
    assert f"By precision {'second' if ends[1] > ends[0] else 'first'} is first (0.20)" in text
    assert "1 of 2 are better than the source itself (1.5)." in text
    assert "leads by 1.0" in text and "learns 1,234 numbers and took 2 minutes" in text


def test_minutes_are_of_a_machine():
    runs = [{"hardware": machine, "seconds": 60 * m} for machine, m in (("new", 8), ("old", 14), ("old", 16))]
    assert pages.minutes(runs[:1], ["new"]) == "8"
    assert pages.minutes(runs, ["new", "old"]) == "8 a, 15 ± 1 b"
    assert pages.minutes(runs[1:], ["new", "old"]) == "15 ± 1 b"
    (first, quick), (second, slow) = line_of("first", [1.0]), line_of("second", [2.0])
    slow[0]["hardware"] = "other"
    text = " ".join(verdict.verdict((first, second), {"first": quick, "second": slow}))
    assert "learns 1,234 numbers, the second 1,234." in text and "minutes" not in text


def section_of(key, **scripts):
    """A table of one budget: a row for each script, with what its seeds ended at."""
    rows, runs = [], {}
    for script, ends in scripts.items():
        rows.append(Row(f"row of {script}", script))
        runs[rows[-1].name] = [
            run for seed, end in enumerate(ends) for run in line_of("", [end + 9, end, end + 1], seed=seed)[1]
        ]
    budget = Spent(3, 16, "96", None, None)
    part = pages.Part("3 iterations", "", (), [], [], [], budget, rows, runs)
    return pages.Section(Table(key, key, "", tuple(rows)), [part])


def test_the_pace_is_of_the_last_score_by_then_and_of_none_that_came_later():
    scores = [
        {"step": step, "kid": kid, "extractor": f"{judge.FIRST}-1280"}
        for step, kid in ((100, 0.3), (200, 0.2), (400, 0.1))
    ]
    run = {"script": "wgan_64_finetune", "scores": scores, "seen": [], "seconds": 1200.0}
    run["settings"] = {"iterations": 400}
    kids = [pace.after(run, minutes) for minutes in (4, 5, 9, 10, 19, 20, 21)]
    assert kids == [None, 300, 300, 200, 200, 100, None]


def test_the_verdicts_say_which_row_is_where():
    finetune, combination = "row of wgan_64_finetune", "row of wgan_64_transferlearning"
    ends = dict(wgan_64_finetune=[2.0, 4.0], wgan_64_transferlearning=[1.0], wgan_64=[8.0])
    (part,) = section_of("league", **ends).parts
    assert f"{combination} is first of 3 (2.0), ahead of {finetune} (4.0 ± 1.4) by 2.0 (no" in verdict.wins(
        part
    )
    assert "and of row of wgan_64 (9.0) by 7.0 (no test" in verdict.wins(part)
    assert f"{combination} is first of 3 (2.0), ahead of {finetune} (4.0" in verdict.sentence(part)
    section = section_of("learning_rate", wgan_64_transferlearning=[5.0], wgan_64=[3.0, 4.0])
    (text,) = verdict.winners(section)
    assert f"After 3 iterations row of wgan_64 (4.5 ± 0.7) leads {combination} (6.0)" in text
    assert verdict.sentence(section_of("table_11", wgan_64_finetune=[2.0]).parts[0]) == ""


def test_a_lead_is_what_a_test_says():
    ends = {
        "a": [1.0, 2.0, 3.0],
        "b": [4.0, 5.0, 9.0],
        "c": [20.0, 21.0, 22.0],
        "alone": [0.0],
        "other": [7.0],
    }
    plain = {
        pair: ttest_ind(ends[pair[0]], ends[pair[1]], equal_var=False).pvalue for pair in ("ab", "ac", "bc")
    }
    assert plain["ac"] < plain["bc"] < plain["ab"]
    found = verdict.tested(ends)
    holm = {"ac": 3 * plain["ac"], "bc": 2 * plain["bc"], "ab": plain["ab"]}
    assert found == {frozenset(pair): pytest.approx(p) for pair, p in holm.items()}
    assert verdict.lead(ends, "a", "c").startswith("by 19.0 (the test tells them apart: p = 6.1e-05")
    assert verdict.lead(ends, "a", "c").endswith(", corrected for 3 pairs)")
    assert "by 4.0 (the test does not tell them apart: p = 0.1" in verdict.lead(ends, "a", "b")
    assert verdict.lead(ends, "alone", "a") == "by 2.0 (no test is possible: one has one seed)"
    assert verdict.lead(ends, "alone", "other") == "by 7.0 (no test is possible: both have one seed)"
    assert verdict.tested({"a": [1.0, 1.0], "b": [2.0, 2.0]}) == {frozenset("ab"): 1.0}


def test_correction_never_turns_an_order_round():
    ends = {"a": [0.0, 1.0, 2.0], "b": [3.0, 4.0, 5.0], "c": [3.1, 4.1, 5.1]}
    found = verdict.tested(ends)
    assert found[frozenset("ab")] >= found[frozenset("ac")] and max(found.values()) <= 1


def test_seeds_are_compared_not_machines():
    row, runs = line_of("first", [1.0])
    runs += line_of("first", [2.0], seed=1)[1]
    other, others = line_of("second", [6.0])
    others += line_of("second", [5.0])[1] + line_of("second", [7.0])[1]  # its seed on other machines
    text = " ".join(verdict.verdict((row, other), {"first": runs, "second": others}))
    assert "leads by 4.5 (no test is possible: one has one seed)" in text


def run_of(script, source, seed=0, **settings):
    """A line as runs_.make writes it, with what groups look at."""
    own = {"images": "96", "reference": "held", "extractor": LITE0, "seed": seed}
    size = {"iterations": 300, "batch_size": 16}
    given = runs_.chosen(Row("", script, size | settings))
    plain = plain_settings(runs_.module(script).Settings(**given))
    return {
        "script": script,
        "settings": {**plain, **own, "source": source},
        "scores": [],
        "hardware": "",
    }


def test_runs_from_different_sources_are_not_averaged_and_those_without_stand_beside_each():
    rows = (Row("transfer", "wgan_64_finetune"), Row("scratch", "wgan_64", {"augment": "none"}))
    young, old = run_of("wgan_64_finetune", "young"), run_of("wgan_64_finetune", "old")
    scratch = run_of("wgan_64", None, augment="none")
    found = selection.groups(Table("", "", "", rows), [young, old, scratch])
    assert list(found.values()) == [
        {"transfer": [young], "scratch": [scratch]},
        {"transfer": [old], "scratch": [scratch]},
    ]
    alone = selection.groups(Table("", "", "", rows), [scratch])
    assert list(alone.values()) == [{"scratch": [scratch]}]


def test_a_run_from_the_source_that_a_row_names_is_no_other_rows():
    own = "projected_64.safetensors"
    rows = (Row("usual", "wgan_64_finetune"), Row("named", "wgan_64_finetune", {"source": Path(own)}))
    usual, named = run_of("wgan_64_finetune", "old"), run_of("wgan_64_finetune", own)
    found = selection.groups(Table("", "", "", rows), [usual, named])
    assert list(found.values()) == [{"usual": [usual], "named": [named]}]


def test_budgets_that_compare_nothing_are_left_out_where_another_compares(monkeypatch):
    rows = tuple(Row(script, script) for script in ("wgan_64_finetune", "wgan_64_freeze_layers"))
    monkeypatch.setattr(pages, "TABLES", (Table("", "", "", rows),))
    scores = [{"step": 1, "fid": 1.0, "kid": 1.0, "n_generated": 9, "diversity": 1.0}]
    scores[0] |= {"heldout": None, "precision": 0.5, "memorisation": {"near_copies": 0.0}}
    scores[0] |= {"extractor": BY.format(LITE0)}
    also = {
        "scores": scores,
        "hardware": "",
        "seconds": 1,
        "learning": 1,
        "images": {"count": 9},
        "seed": 0,
        "run": "",
    }
    found = [run_of(row.script, "any", iterations=10) | also for row in rows]
    found.append(run_of("wgan_64_finetune", "any", iterations=20) | also)
    found = [{**line, "settings": {**line["settings"], "reference": None}} for line in found]
    monkeypatch.setattr(lines, "read", lambda kind: found * (kind == "run"))
    (section,) = pages.sections()
    assert [part.title for part in section.parts] == ["10 iterations of 16 images"]
    assert [part.title for part in section.alone] == ["20 iterations of 16 images"]
    assert "| 20 |" in pages.longer(section)
    shorter = replace(section.alone[0], budget=replace(section.alone[0].budget, count=5))
    assert pages.longer(replace(section, alone=[shorter])) == ""
    monkeypatch.setattr(lines, "read", lambda kind: found[2:] * (kind == "run"))
    (section,) = pages.sections()
    assert [part.title for part in section.parts] == ["20 iterations of 16 images"]


def test_a_longer_run_stands_for_a_shorter_one_with_its_seed_where_others_are():
    rows = (Row("fine-tuned", "wgan_64_finetune"), Row("frozen", "wgan_64_freeze_layers"))
    scores = [{"step": step} for step in (100, 200, 400)]

    def run(script, seed, count):
        line = run_of(script, "any", seed, iterations=scores[count - 1]["step"])
        return line | {"scores": scores[:count], "seconds": 80.0}

    short, same, longer, elsewhere = (
        run("wgan_64_finetune", *each) for each in ((0, 2), (0, 3), (1, 3), (0, 3))
    )
    elsewhere["hardware"] = "another machine"
    other = run("wgan_64_freeze_layers", 0, 3)
    found = selection.groups(Table("", "", "", rows), [short, same, longer, elsewhere, other])
    assert [key.much.split()[0] for key in found] == ["200", "400"], (
        "no table of 100: no run was made with it"
    )
    (own, stage, another), (beside,) = found[next(iter(found))].values()
    assert own is short, "the run that was made with the budget, though a longer one with the seed is there"
    for each, line in ((stage, longer), (another, elsewhere), (beside, other)):
        assert each["scores"] == scores[:2] and each["seconds"] == 40.0
        assert each["settings"] == line["settings"] | {"iterations": 200}
    assert list(found.values())[1] == {
        "fine-tuned": [same, longer, elsewhere],
        "frozen": [other],
    }


def test_the_tables_freeze_as_the_dissertation_did_whatever_the_scripts_do():
    assert wgan_64_transferlearning.Settings().frozen_norm == "source"
    assert {runs_.settings_of(row, 0, Budget()).frozen_norm for row in tables.TABLE_7.rows} == {"batch"}
    assert {runs_.settings_of(row, 0, Budget()).frozen_norm for row in tables.FROZEN_NORM.rows} == {
        "batch", "source",
    }  # fmt: skip


def test_runs_with_an_earlier_clip_stand_beside_todays_and_in_no_table(monkeypatch):
    rows = (Row("fine-tuned", "wgan_64_finetune"), Row("frozen", "wgan_64_freeze_layers"))
    monkeypatch.setattr(pages, "TABLES", (Table("", "One", "", rows), Table("", "Two", "", rows)))

    def run(kid, seed=0, steps=(300,), **more):
        scores = {"kid": kid / 1000, "heldout": None, "extractor": BY.format(LITE0)}
        scores = [{"step": step, **scores} for step in steps]
        line = run_of("wgan_64_finetune", "any", seed, iterations=steps[-1])
        return line | {"scores": scores, "seconds": 1.0} | more

    found = {"run": [run(3.0), run(5.0, 1, (300, 600))], "superseded": [run(9.0, clip="scaled", run="a")]}
    monkeypatch.setattr(lines, "read", lambda kind: found.get(kind, []))
    assert "| One: fine-tuned | 300 iterations of 16 images | 9.0 (1) | 4.0 ± 1.4 (2) |" in pages.clips()
    assert "Two" not in pages.clips() and "frozen" not in pages.clips()
    found["superseded"] = []
    assert not pages.clips()


def test_the_source_itself_stands_beside_its_transfers(monkeypatch):
    held_out = {"fid": 229.0, "n_real": 5000}
    line = {"row": "young against training images", "extractor": "lite", "heldout": held_out}
    monkeypatch.setattr(lines, "read", lambda kind: [line] * (kind == "scale"))
    assert pages.untouched("young", line) == held_out
    assert not pages.untouched("old", line)
    assert not pages.untouched("young", {"extractor": "lite", "heldout": {"n_real": 50}})
    assert not pages.untouched("young", {"extractor": "lite", "heldout": None})


def test_every_method_is_in_the_league_once_and_any_other_row_of_it_is_shared():
    rows = {row.name: row for row in tables.TABLES[-1].rows}
    settings = [runs_.settings_of(row, 0, Budget()) for row in rows.values()]
    policies = {getattr(each, "rescale", None) for each, row in zip(settings, rows.values(), strict=True)}
    assert policies >= {"adafm", "normalised_adafm", "filter_selection", "singular_values", "rank_one"}
    terms = {"l2_sp", "distillation", "ewc", "consistency", "lecam", "adapt"}
    used = [
        {term for term in terms if getattr(each, term, 0)}
        for each, row in zip(settings, rows.values(), strict=True)
        if row.script == "wgan_64_regularised"
    ]
    assert sorted(term for each in used for term in each) == sorted(terms)
    scripts = {row.script for row in rows.values()}
    assert scripts >= {"generative_latent_optimization", "mind2mind", "minegan", "projected_critic"}
    assert len({runs_.identity(row, 0, Budget()) for row in rows.values()}) == len(tables.TABLES[-1].rows)
    best = next(row for row in rows.values() if row.published == 195)
    (same,) = (
        row for table in tables.TABLES if table.key == "table_7" for row in table.rows if row.published == 195
    )
    assert runs_.identity(best, 0, Budget()) == runs_.identity(same, 0, Budget())


def wider(script, default, before=None):
    """A script's Settings with a setting more; before is what runs from before it did, if not its default."""
    kind = Annotated[type(default), Before(before)] if before is not None else type(default)
    return dataclasses.make_dataclass(
        "Settings", [("added", kind, default)], bases=(script.Settings,), frozen=True
    )


@pytest.mark.parametrize("default, before", [(False, None), (True, False)])
def test_a_new_setting_orphans_no_result(monkeypatch, default, before):
    rows = {row.script for table in tables.TABLES for row in table.rows}

    def found():
        return [
            [len(selection.lines_of(row, lines.read("run"))) for row in table.rows] for table in tables.TABLES
        ], runs_.made()

    as_it_is = found()
    assert sum(map(sum, as_it_is[0])) > 100
    row = tables.TABLES[1].rows[0]
    name = runs_.identity(row, 0, Budget())
    for script in map(runs_.module, rows):
        monkeypatch.setattr(script, "Settings", wider(script, default, before))
    with_more = found()
    assert with_more[1] == as_it_is[1]
    if before is None:
        assert with_more == as_it_is and runs_.identity(row, 0, Budget()) == name
    else:  # today's runs do what the old ones did not
        assert not any(map(sum, with_more[0])) and runs_.identity(row, 0, Budget()) != name
        as_before = dataclasses.replace(row, settings={**row.settings, "added": before})
        assert len(selection.lines_of(as_before, lines.read("run"))) == as_it_is[0][1][0] > 0


def test_every_setting_that_a_line_tells_of_is_there_today():
    """One that is gone or renamed would be passed over, and its lines taken for the new default's."""
    for line in lines.read("run") + lines.read("superseded"):
        assert line["settings"].keys() <= runs_.module(line["script"]).Settings.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "nothing is not a table"),
        (("table_3",), "table_3"),
        (("table_1", "table_7"), "alone"),
        (("all", "table_7"), "alone"),
    ],
)
def test_tables_are_called_by_name(words, said):
    assert [table.key for table in commands.named(("table_7", "league"))] == ["table_7", "league"]
    assert "table_1" not in {table.key for table in commands.named(("all",))}
    with pytest.raises(UserError, match=said):
        commands.named(words)
