"""The card: what a model's file says of itself, without a path of the machine that it was made on."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from transfer.folder import lines
from transfer.settings import description_of

NOT_TOLD = ("out", "resume", "dry_run")  # settings that say nothing of a model


def card_of(checkpoint: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The card of a run's checkpoint: what is in it, and what the run's folder knows, where it lies in one.

    Paths are told by their last part alone: the rest would be the user's own.
    """
    run, settings = checkpoint.parent.parent, without_paths(state["settings"])
    known = description_of(run) if checkpoint.parent.name == "checkpoints" else {}
    images = known.get("images") if isinstance(known.get("images"), dict) else {}
    card = {
        "script": state["script"],
        "iterations": state["step"],
        "arguments": state.get("arguments", {}),
        "settings": settings,
        "label": state.get("label"),
        "images": {"name": settings.get("images"), "fingerprint": state.get("fingerprint"), **images},
        "seconds": seconds(run, state["step"], settings) if known else None,
        **{key: known.get(key) for key in ("hardware", "versions")},
    }
    return {key: value for key, value in card.items() if value is not None}


def without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that say something of the model, with the last part of each path."""
    return {
        key: PureWindowsPath(value).name if isinstance(value, str) else value  # it knows / and \\ alike
        for key, value in settings.items()
        if key not in NOT_TOLD
    }


def seconds(run: Path, step: int, settings: dict[str, Any]) -> float | None:
    """How long a run computed for its first `step` iterations (repeated ones count once); None: unknown."""
    rates = {}
    with suppress(OSError):
        for line in lines(run, "log"):
            if line["step"] <= step and line.get("images_per_second", 0) > 0:
                rates[line["step"]] = line["images_per_second"]
    if not rates or "batch_size" not in settings:
        return None
    images, total, before = settings["batch_size"] * settings.get("critic_steps", 1), 0.0, 0
    for at in sorted(rates):
        total += (at - before) * images / rates[at]
        before = at
    return round(total, 1)


def base_of(card: dict[str, Any]) -> str | None:
    """The name of what a model started from, without its ending."""
    source = card.get("settings", {}).get("source")
    return None if source is None else PureWindowsPath(source).stem


def page(name: str, card: dict[str, Any]) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    name: of the model's file, such as mine.safetensors; its grid lies beside it as mine.png.
    """
    base, licence = base_of(card), card.get("licence")
    front = {
        "license": licence,  # the hubs' spelling
        "base_model": base,
        "library_name": "pytorch",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["gan", "dcgan" if "imported" in card else "wgan", *(["transfer-learning"] if base else [])],
    }
    # JSON is YAML, and quotes what a name may hold.
    head = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None]
    table = "".join(f"| {key} | {_cell(value)} |\n" for key, value in _rows(card).items())
    made = f"\n## How it was made\n\n| | |\n|---|---|\n{table}" if table else ""
    stem, side = name.removesuffix(".safetensors"), _side(card)
    return (
        "---\n" + "\n".join(head) + f"\n---\n\n# {stem}\n\n{_opening(card)}\n\n"
        f"![64 images of the averaged generator]({stem}.png)\n\n"
        "## Draw from it\n\nIn the folder of the project that it was made with:\n\n"
        "```python\n"
        "from transfer.drawing import draw\n"
        "from transfer.shared import Source\n"
        f'images = draw(Source.read("{name}"), count=16, seed=0)  # uint8 (16, 3, {side}, {side})\n'
        "```\n\n"
        f"or `python -m transfer draw {name} --count 16 --to drawn`. Nothing in the file can run.\n{made}"
    )


def _opening(card: dict[str, Any]) -> str:
    """What it is, what it was trained on by name and count, and from what it started."""
    if "imported" in card:
        names = " and ".join(f"`{name}`" for name in card["imported"])
        return f"A generator and a discriminator of {names}, for images of 64 x 64 pixels."
    if "mixed" in card:
        parts = ", ".join(
            f"{part['share']:g} of `{part['adapter']}` ({_images(part.get('images', {}))})"
            for part in card["mixed"]
        )
        return f"A generator and a critic: `{base_of(card)}` with {parts} added."
    began = f", from `{base_of(card)}`" if base_of(card) else ""
    updates = f" for {card['iterations']:,} generator updates" if "iterations" in card else ""
    label = f", for its label `{card['label']}`" if "label" in card else ""
    return (
        f"A generator and a critic, trained by `{card['script']}`{began}, on"
        f" {_images(card.get('images', {}))}{label}{updates}. Images of {_side(card)} x {_side(card)} pixels."
    )


def _side(card: dict[str, Any]) -> int:
    return ((card.get("arguments") or {}).get("G") or {}).get("size", 64)


def _images(images: dict[str, Any]) -> str:
    count = f"{images['count']:,} images" if isinstance(images.get("count"), int) else "images"
    return f"{count} (`{images['name']}`)" if images.get("name") else count


def _rows(card: dict[str, Any]) -> dict[str, str]:
    if "imported" in card:
        return {}  # how it was made nobody has told
    rows = {
        "fingerprint of the images": (card.get("images", {}).get("fingerprint") or "")[:16],
        "hardware": card.get("hardware"),
        "time": f"{card['seconds'] / 3600:.1f} hours" if "seconds" in card else None,
        "versions": ", ".join(f"{name} {number}" for name, number in card.get("versions", {}).items()),
        "settings": ", ".join(f"{k} {v}" for k, v in card.get("settings", {}).items() if v is not None),
    }
    return {key: value for key, value in rows.items() if value}


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
