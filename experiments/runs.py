"""The runs of tables: each is made once, goes on where it was interrupted, and adds a line of results.

Further judges score a run's end from its folder, right after it or any time later; nothing is trained again.
What they are to score on the way is scored where the run has got to: it is made in stretches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image
from safetensors import safe_open

import fid
from experiments import lines, strip
from experiments.tables import Row, Table
from transfer import UserError, record
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw
from transfer.drawing import script as module
from transfer.engine import choose_device
from transfer.folder import lines as kept_lines
from transfer.folder import versions
from transfer.images import Images
from transfer.settings import LATEST, Extractor, complete, description_of, plain, unsaid
from transfer.shared import Source

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures" / "runs"
# Settings that make no difference to what a run comes to.
IGNORED = {"out", "resume", "dry_run", "device", "log_every", "save_every", "sample_every", "score_every"}
JUDGES: tuple[Extractor, ...] = ("efficientnet_lite0", "efficientnet_lite2")  # the tables show them all
SECONDS = 0.05  # of an iteration for each image, where none has been measured


@dataclass(frozen=True)
class Budget:
    """What is spent on a table, and on which images."""

    images: Path = Path("train_images/target_domain")  # what is trained on, where rows do not say it
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    iterations: int = 2_000
    batch_size: int = 16  # a row with another gets the iterations that make as many images
    seeds: int = 1
    score_every: int = 250
    judges: tuple[Extractor, ...] = JUDGES  # the first scores while it trains, the others score its end
    judge_every: int = 0  # the others score every so many iterations too
    device: str | None = None
    out: Path = Path("target_domain/tables")  # where the runs' folders are made
    dry_run: bool = False  # print what is missing and how long it would take, and stop


PRETRAINING = Budget(
    images=Path("train_images/source_domain"),
    iterations=8_000,
    batch_size=64,
    score_every=1_000,
    out=Path("source_domain/tables"),
)


def chosen(row: Row) -> dict[str, Any]:
    """The settings that a row changes, and those that all tables keep whatever the scripts' defaults are.

    Frozen layers are normalised with the batch's statistics: what PyTorch does with layers that are left out
    of the optimizer, and so most likely what the dissertation did. The table frozen_norm compares.
    """
    fields = module(row.script).Settings.__dataclass_fields__
    return ({"frozen_norm": "batch"} if "frozen_norm" in fields else {}) | row.settings


def settings_of(row: Row, seed: int, budget: Budget) -> Any:
    """The script's settings for a row; its scores come from the first judge that it does not see through."""
    script = module(row.script)
    own = chosen(row)
    looked = seen(script.Settings(**own))
    extractor = next((each for each in budget.judges if each not in looked), budget.judges[0])
    batch_size = row.settings.get("batch_size", budget.batch_size)
    iterations = budget.iterations * budget.batch_size // batch_size
    every = min(budget.score_every * budget.batch_size // batch_size, iterations)
    given = dict(
        images=budget.images,
        reference=budget.reference,
        iterations=iterations,
        batch_size=batch_size,
        score_every=every,
        sample_every=every,
        save_every=50,
        seed=seed,
        extractor=extractor,
        device=budget.device,
    )
    return script.Settings(**given | own)


def seen(settings: Any) -> list[str]:
    """The networks that a run sees through: its own critic, and the critic of its source."""
    found = [getattr(settings, "features", None)]
    source = getattr(settings, "source", None)
    if source is not None:
        found.append((card(source).get("settings") or {}).get("features"))
    return sorted({each for each in found if each is not None})


def described(settings: Any) -> dict[str, Any]:
    """What of a run's settings makes it that run; images, held-out images and source by their version."""
    return _kept(plain(settings)) | versioned(settings)


def versioned(settings: Any) -> dict[str, str]:
    """The images, held-out images and source of a run by their version."""
    keys = ("images", "source_images", "reference", "source")
    paths = {key: getattr(settings, key, None) for key in keys}
    return {key: version(path) for key, path in paths.items() if path is not None}


def _kept(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in IGNORED}


def identity(row: Row, seed: int, budget: Budget) -> str:
    """A run's name: equal for equal plans, whichever table they are in, and for no others."""
    return run_name(row.script, described(settings_of(row, seed, budget)))


def run_name(script: str, settings: dict[str, Any]) -> str:
    """The name of a script's run with these settings.

    It is made of those that differ from what a run that does not tell of them was made with, so that a new
    setting changes no name. Whoever judges it, it is the same run; older names have the first judge in them.
    """
    usual = unsaid(module(script).Settings)
    settings = settings | {"extractor": JUDGES[0]}
    said = {key: value for key, value in settings.items() if key not in usual or value != usual[key]}
    text = json.dumps([script, said], sort_keys=True)
    return f"{script}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def version(path: Path) -> str:
    """Which images or model: the file's or folder's name, and a shared model's iterations from its card."""
    told = card(path)
    return f"{path.name} ({told['iterations']:,} iterations)" if told else path.name


def card(path: Path) -> dict[str, Any]:
    """What a shared model says of itself; of anything else, nothing."""
    if path.suffix != ".safetensors" or not path.exists():
        return {}
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("card", "{}"))


def told(line: dict[str, Any]) -> dict[str, Any]:
    """The settings of a line's run: what it does not tell of reads as what runs did then."""
    return complete(module(line["script"]).Settings, line["settings"])


def wanted(tables: Sequence[Table], budget: Budget) -> dict[str, tuple[Row, int]]:
    """The runs that tables are made of, by their name."""
    return {
        identity(row, seed, budget): (row, seed)
        for seed in range(budget.seeds)  # every plan once before any plan again
        for table in tables
        for row in table.rows
    }


def missing(tables: Sequence[Table], budget: Budget) -> dict[str, tuple[Row, int]]:
    """The runs that no line tells of, by their name."""
    done = made()
    return {name: plan for name, plan in wanted(tables, budget).items() if name not in done}


def made() -> set[str]:
    """The names of the runs that a line tells of: until each of its scores a run is the shorter one."""
    return {
        run_name(line["script"], _kept(told(line)) | {"iterations": scores["step"]})
        for line in lines.read("run")
        for scores in line["scores"]
    }


def verify(tables: Sequence[Table], budget: Budget) -> None:
    """Refuse, before the first of the missing runs, images that are not there.

    Raises:
        UserError: naming them.
    """
    for row, seed in missing(tables, budget).values():
        settings = settings_of(row, seed, budget)
        for path in (settings.images, settings.reference):
            if path is not None and not path.exists():
                raise UserError(f"{path} does not exist: give a folder or a zip of images")


def unjudged(names: Collection[str], budget: Budget) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """The lines of runs that a judge of the budget has not scored and may, each with the judge, by name."""
    judged, found = lines.read("judged"), {}
    for line in lines.read("run"):
        name = run_name(line["script"], _kept(told(line)))
        for each in _open(line, budget, judged) if name in names else ():
            found.setdefault(name, []).append((line, each))
    return found


def _open(line: dict[str, Any], budget: Budget, judged: Sequence[dict[str, Any]]) -> list[str]:
    """The judges of the budget that may score a line's run and have not scored its end."""

    def end(of: dict[str, Any], step: int) -> tuple[str, str, int]:
        return of["run"], of["hardware"], step

    own = end(line, line["settings"]["iterations"])
    known = [judge(each["scores"]) for each in judged if end(each, each["scores"]["step"]) == own]
    return [each for each in budget.judges if each not in (judge(line["scores"][-1]), *known, *seen_by(line))]


def judge(scores: dict[str, Any]) -> str:
    """The extractor that scores are by, as settings name it."""
    return scores["extractor"].partition("-")[0]


def seen_by(line: dict[str, Any]) -> list[str]:
    """The networks that a line's run saw through; a line from before it said so tells of its own settings."""
    if "seen" in line:
        return line["seen"]
    features = told(line).get("features")
    return [] if features is None else [features]


def seconds(rows: Sequence[Row], budget: Budget) -> float:
    """How long the runs would take, from what the same scripts took before, or the others."""
    took = {
        line["script"]: line["seconds"] / line["iterations"] / line["settings"]["batch_size"]
        for line in lines.read("run")
    }
    images = budget.iterations * budget.batch_size
    usual = statistics.median(took.values()) if took else SECONDS
    return sum(took.get(row.script, usual) * images for row in rows)


def make(tables: Sequence[Table], budget: Budget) -> None:
    """Make the runs that are missing, one after the other; add a line for each and for each further judge.

    Several processes may work on the same tables: what one of them is making the others pass over.
    """
    plans, todo = wanted(tables, budget), missing(tables, budget)
    hours = seconds([row for row, _ in todo.values()], budget) / 3600
    print(f"{len(todo)} runs are missing: some {hours:.1f} hours in all")
    open_ = unjudged(plans, budget)
    gone = sum(ending(line, budget) is None for each in open_.values() for line, _ in each)
    for name, (row, seed) in plans.items():
        title = f"{name}: {row.name}, seed {seed}"
        here = [judge for line, judge in open_.get(name, ()) if ending(line, budget)]
        if budget.dry_run and (name in todo or here):
            print(title, *([f"(to be scored by {', '.join(here)})"] if here else []))
        elif name in todo or here:
            budget.out.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(Timeout), FileLock(budget.out / f"{name}.lock", timeout=0):
                print(title, flush=True)
                if name not in made():
                    _make(name, row, seed, budget)
                for line, judge in unjudged({name}, budget).get(name, ()):
                    _score(line, judge, settings_of(row, seed, budget), budget)
    if gone:
        print(
            f"{gone} scores by further judges cannot be added: {budget.out} has no folder of those runs any"
            " more"
        )


def _make(name: str, row: Row, seed: int, budget: Budget) -> None:
    settings = replace(settings_of(row, seed, budget), out=budget.out / name)
    for end in stretches(settings, budget):
        line, folder = _run(name, row.script, replace(settings, iterations=end), budget)
        if end < settings.iterations:
            for each in _open(line, budget, lines.read("judged")):
                _score(line, each, settings, budget)
    lines.append(line)
    try:
        picture(folder, PICTURES / f"{name}.webp")
    except UserError as error:
        print(f"no picture is kept: {error}")


def stretches(settings: Any, budget: Budget) -> list[int]:
    """The iterations at which a run stops for further judges, and its last; without those that it is past."""
    every, at = budget.judge_every or settings.iterations, _newest(settings.out)
    ends = [*range(every, settings.iterations, every), settings.iterations]
    return [end for end in ends if end >= at] or ends[-1:]


def _newest(out: Path) -> int:
    """The newest checkpoint's iteration among the runs in a folder; 0 where there is none."""
    found = [Checkpoints(folder).found() for folder in out.glob("0*")]
    return max((int(each[0].stem) for each in found if each), default=0)


def _run(name: str, script: str, settings: Any, budget: Budget) -> tuple[dict[str, Any], Path]:
    """Train, or go on, until settings.iterations: the line that tells of it, and the run's folder."""
    if _newest(settings.out):
        settings = replace(settings, resume=Path(LATEST))
    folder = module(script).main(settings)
    description = description_of(folder)
    log = [each for each in kept_lines(folder, "log") if "warning" not in each]
    scores = kept_lines(folder, "scores")
    if not log or not scores or not description:
        raise UserError(
            f"{folder} lacks its settings, its log or its scores: remove it, and it is made again"
        )
    line = {
        "table": "run",
        "run": name,
        "script": script,
        "seed": settings.seed,
        "iterations": settings.iterations,
        "settings": described(settings),
        "seen": seen(settings),
        "images": {**description["images"], "name": settings.images.name},
        "scores": scores,
        "losses": log[-1],
        "learning": sum(description["learning"].values()),
        "seconds": round(trained(settings, log), 3),
        "hardware": description["hardware"],
        "versions": versions(),
        "commit": commit(),
    }
    return line, folder


def ending(line: dict[str, Any], budget: Budget) -> Path | None:
    """The folder that a line's run ended in, where it is still there with its last checkpoint."""
    for folder in (budget.out / line["run"]).glob("0*"):
        found = Checkpoints(folder).found()
        if not found or int(found[0].stem) != line["settings"]["iterations"]:
            continue
        if description_of(folder).get("hardware") == line["hardware"]:
            return folder
    return None


def _score(line: dict[str, Any], judge: str, settings: Any, budget: Budget) -> None:
    """Add what a further judge says of a run's end, of the images that its own scores are of."""
    folder = ending(line, budget)
    if folder is None:
        return
    device, seed, source = choose_device(budget.device), line["settings"]["seed"], Source.read(folder)
    images = Images.load(settings.images, device, **source.shape)
    images = images.hold_out(told(line).get("hold_out", 0.0), seed)
    if images.fingerprint != line["images"]["fingerprint"]:
        raise UserError(f"{settings.images} holds other images than {folder} was trained on: give those")
    scores = fid.score(
        draw(source, record.SCORED, seed, device),
        images,
        budget.reference if images.held_out is None else images.held_out,
        extractor=fid.load(judge, device=str(device)),
        size=images.pixels.shape[-1],
        seed=seed,
        seen=tuple(seen_by(line)),
    )
    found = {"step": int(source.path.stem), **scores.as_dict()}
    of = {key: line[key] for key in ("run", "hardware")}
    lines.append({"table": "judged", **of, "scores": found, "versions": versions(), "commit": commit()})
    print(f"{found['step']}: {scores}")


def trained(settings: Any, log: Sequence[dict[str, Any]]) -> float:
    """Seconds of training at the run's usual speed: without scores, or what else the machine was doing."""
    images = settings.iterations * settings.batch_size * getattr(settings, "critic_steps", 1)
    return images / statistics.median(each["images_per_second"] for each in log)


def picture(folder: Path, file: Path, columns: int = 16) -> None:
    """Keep the first latents of a run's grids, one row for each, oldest first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = file.with_suffix(".png")
    strip.main(strip.Settings(folder, whole, columns=columns))
    with Image.open(whole) as image:
        image.save(file, quality=80)
    whole.unlink()


def commit() -> str:
    """The commit of the code, with a + when files have been changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "*.py"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changed.stdout.strip())
