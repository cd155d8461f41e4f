"""Share what a run has trained: its newest checkpoint as one safetensors file, with a card and a grid.

    python -m transfer source_domain/0001-wgan_64 pretrained_model/wgan_64.safetensors

The file holds G and its moving average in half precision and D in full (a rounded 0.01 would be over the
clip). The card, beside it as .md, says what the run's folder knows: settings, iterations, hardware, time and
data; the grid, as .png, is the run's last one.
"""

import json
import shutil
from pathlib import Path

from transfer import UserError
from transfer.settings import user_errors


def share(run: Path, file: Path) -> None:
    """Write FILE.safetensors, FILE.md and FILE.png from the run's newest checkpoint.

    Raises:
        UserError: when the run has no checkpoint, or the file's name has another ending.
    """
    from transfer import weights
    from transfer.checkpoints import Checkpoints

    if file.suffix != ".safetensors":
        raise UserError(f"{file} does not end in .safetensors: give a name that does")
    _, state = Checkpoints(run).newest()
    description = json.loads((run / "settings.json").read_text())
    card = {
        "script": state["script"],
        "iterations": state["step"],
        "seconds": round(seconds(run, state["step"])),
        **{key: description[key] for key in ("hardware", "versions", "images", "settings")},
    }
    for key in ("out", "resume", "dry_run"):
        del card["settings"][key]
    file.parent.mkdir(parents=True, exist_ok=True)
    weights.share(file, state, card, half=("G", "ema"))
    grids = sorted(path for path in (run / "samples").glob("*.png") if int(path.stem) <= state["step"])
    shutil.copyfile(grids[-1], file.with_suffix(".png"))  # a stopped run's last step may have none
    file.with_suffix(".md").write_text(page(file, card))


def seconds(run: Path, step: int) -> float:
    """How long the run computed for its first `step` iterations (repeated ones count once)."""
    settings = json.loads((run / "settings.json").read_text())["settings"]
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    rates = {line["step"]: line["images_per_second"] for line in lines if "warning" not in line}
    rates = {at: rate for at, rate in rates.items() if at <= step}
    images, total, before = settings["batch_size"] * settings.get("critic_steps", 1), 0.0, 0
    for at in sorted(rates):
        total += (at - before) * images / rates[at]
        before = at
    return total


def page(file: Path, card: dict) -> str:
    """The card as Markdown."""
    rows = {
        "trained by": f"`{card['script']}`",
        "generator updates": f"{card['iterations']:,}",
        "images": f"{card['images']['count']:,} (fingerprint {card['images']['fingerprint'][:16]})",
        "hardware": card["hardware"],
        "time": f"{card['seconds'] / 3600:.1f} hours",
        "versions": ", ".join(f"{name} {number}" for name, number in card["versions"].items()),
        "settings": ", ".join(f"{name} {value}" for name, value in card["settings"].items()),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {file.name}\n\nWritten by `python -m transfer` from the run's folder.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"![64 samples of the averaged generator]({file.stem}.png)\n"
    )


if __name__ == "__main__":
    import tyro

    with user_errors():
        tyro.cli(share, description=__doc__, prog="python -m transfer", config=(tyro.conf.Positional,))
