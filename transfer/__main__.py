"""What to do with a run that has trained: draw from it, and give it to other people.

    python -m transfer draw target_domain/0001-wgan_64_finetune-G005-D005 --count 1000 --to drawn
    python -m transfer draw pretrained_model/wgan_64.safetensors --grid faces.png --walk faces.webp
    python -m transfer share source_domain/0001-wgan_64 pretrained_model/wgan_64.safetensors
    python -m transfer adapter target_domain/0001-wgan_64_scale_shift-G050-D050 cartoon.safetensors
    python -m transfer apply cartoon.safetensors anime.safetensors --shares 0.5 0.5 --to between.safetensors

draw writes images as PNG files to a folder, as one grid, or as an animation that walks from latent to latent.
share writes one safetensors file of the newest checkpoint, with a card and a grid: G and its moving average
in half precision and D in full (a rounded 0.01 would be over the clip). The card, beside it as .md, says what
the run's folder knows: settings, iterations, hardware, time and data; the grid, as .png, is the run's last
one. adapter writes only the tensors that the source has not, and apply adds those of one or more runs to the
source again.
"""

import io
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from tyro.conf import Positional

from transfer import UserError, checkpoints, drawing, shared
from transfer.adapters import Adapter, applied
from transfer.engine import choose_device
from transfer.images import grid as grid_of
from transfer.settings import Bound, user_errors
from transfer.shared import Source

SOURCE = Path("pretrained_model/wgan_64.safetensors")
DRAWN = 64  # images, unless count says otherwise
NOT_TOLD = ("out", "resume", "dry_run")  # settings that say nothing of a model
WALKED, STEPS, PAUSE = 8, 16, 60  # a walk's latents, its images from each to the next, ms for an image


def draw(
    model: Positional[Path],
    to: Path | None = None,
    grid: Path | None = None,
    walk: Path | None = None,
    count: int | None = None,
    seed: int = 0,
    truncate: float = 1.0,
    latents: Path | None = None,
    best: bool = False,
    device: str | None = None,
) -> None:
    """Draw images from a model, to a folder, as a grid, as a walk, or several of these.

    Args:
        model: a run's folder (its newest checkpoint), a checkpoint or a .safetensors file.
        to: a new or empty folder, for count PNG files.
        grid: a picture to write, of all the images side by side.
        walk: an animation to write (.webp, .gif or .png), from each of the first 8 latents to the next.
        count: how many images; 64, or as many as the latents file holds.
        seed: of the latents; the same seed draws the same images.
        truncate: the latents are multiplied by it. Below 1 the images are softer and more alike; far below,
            they fade.
        latents: a .npy or .safetensors file of latents (N, latent), to draw the same ones from several
            models. Where it does not exist yet, this seed's latents are written to it.
        best: the run's checkpoint with the best score, not its newest.
        device: cuda where there is a GPU, else cpu.

    Raises:
        UserError: when there is nothing to draw from, or nowhere to draw to.
    """
    for name, value, bound in (
        ("count", DRAWN if count is None else count, Bound("at least 1", 1)),
        ("seed", seed, Bound("a number from 0 to 2^64 - 1", 0, 2**64)),
        ("truncate", truncate, Bound("a number above 0, such as 0.7", sys.float_info.min)),
    ):
        if not bound.holds(value):
            raise UserError(f"{name} is {value}: give {bound.sentence}")
    if to is None and grid is None and walk is None:
        raise UserError("there is nowhere to draw to: give --to FOLDER, --grid FILE.png or --walk FILE.webp")
    _check_name(grid, ".png", ".jpg", ".webp"), _check_name(walk, ".webp", ".gif", ".png")
    if latents is not None and not latents.exists():
        _check_name(latents, ".npy", ".safetensors")
    source, where = Source.read(model, best), choose_device(device)
    z = _latents(source, latents, count, seed)

    def images(z: torch.Tensor) -> itertools.chain[torch.Tensor]:
        return itertools.chain.from_iterable(drawing.stream(source, z * truncate, where))

    if to is not None:
        drawing.keep(images(z), to, len(z))
        print(f"{len(z):,} images are in {to}")
    if grid is not None:
        _write_picture(grid, [grid_of(torch.stack([*images(z)]), math.ceil(math.sqrt(len(z))))])
    if walk is not None:
        if len(z) < 2:
            raise UserError("a walk needs two latents to go between: give a count of at least 2")
        way = images(drawing.walk(z[:WALKED], STEPS))
        _write_picture(walk, [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in way])


def _latents(source: Source, file: Path | None, count: int | None, seed: int) -> torch.Tensor:
    """The latents (count, latent) of a file, or of a seed, which are then written to the file."""
    if file is None or not file.exists():
        z = drawing.latents(source, count or DRAWN, seed)
        if file is not None:
            _write(file, drawing.latents_as_bytes(z, file.suffix))
            print(f"the {len(z):,} latents are in {file}")
        return z
    z = drawing.read_latents(file)
    if count is not None and count > len(z):
        raise UserError(f"{file} holds {len(z):,} latents: give a count of at most that, or leave it out")
    return z[:count]


def _write_picture(file: Path, pictures: list[Image.Image]) -> None:
    data, (first, *rest) = io.BytesIO(), pictures
    more = {"save_all": True, "append_images": rest, "duration": PAUSE, "loop": 0} if rest else {}
    first.save(data, Image.registered_extensions()[file.suffix], quality=90, **more)
    _write(file, data.getvalue())
    print(f"{file} is written")


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file.parent} cannot be made ({error.strerror}): give another name") from None
    checkpoints.write(file, lambda handle: handle.write(data))


def share(run: Positional[Path], file: Positional[Path], best: bool = False) -> None:
    """Write FILE.safetensors, FILE.md and FILE.png from a checkpoint.

    Args:
        run: a run's folder (its newest checkpoint), or a checkpoint.
        file: the file to write.
        best: the run's checkpoint with the best score, not its newest.

    Raises:
        UserError: when the run has no checkpoint, or the file's name has another ending.
    """
    _check_name(file)
    path, state = checkpoints.of_run(run, best)
    folder = path.parent.parent
    card = {
        "script": state["script"],
        "iterations": state["step"],
        "seconds": round(seconds(folder, state["step"])),
        "arguments": state.get("arguments", {}),
        "settings": {key: value for key, value in state["settings"].items() if key not in NOT_TOLD},
        **_described(folder),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    shared.share(file, state, card, half=("G", "ema"))
    grids = sorted(path for path in (folder / "samples").glob("*.png") if int(path.stem) <= state["step"])
    shutil.copyfile(grids[-1], file.with_suffix(".png"))  # a stopped run's last step may have none
    file.with_suffix(".md").write_text(page(file, card))


def _described(folder: Path) -> dict[str, Any]:
    """What a run's settings.json says beside the settings."""
    description = json.loads((folder / "settings.json").read_text())
    return {key: description[key] for key in ("hardware", "versions", "images")}


def adapter(
    run: Positional[Path], file: Positional[Path], best: bool = False, source: Path | None = None
) -> None:
    """Write the tensors of a checkpoint that its run's source has not to FILE.safetensors.

    Args:
        run: a run's folder (its newest checkpoint), or a checkpoint.
        file: the file to write.
        best: the run's checkpoint with the best score, not its newest.
        source: where the run's source is, if not where it was when the run began.

    Raises:
        UserError: when the run has no checkpoint or no source, or the file's name has another ending.
    """
    _check_name(file)
    own = Adapter.of(run, best, source)
    own.write(file)
    numbers = sum(tensor.numel() for tensors in own.networks.values() for tensor in tensors.values())
    print(f"{numbers:,} numbers, {file.stat().st_size / 1e6:.1f} MB, are in {file}")


def apply(
    adapters: Positional[tuple[Path, ...]], to: Path, source: Path = SOURCE, shares: tuple[float, ...] = ()
) -> None:
    """Write the source with the adapters' differences from it, times their shares, as a shared file.

    Args:
        adapters: the files that python -m transfer adapter has written.
        to: the file to write, which is read where a source or a run is.
        source: what the adapters were carried over from.
        shares: one number for each adapter; equal ones that add up to 1, unless given.

    Raises:
        UserError: when a file is no adapter of the source, or there are more or fewer shares than adapters.
    """
    _check_name(to)
    shares = shares or (1 / len(adapters),) * len(adapters) if adapters else ()
    if not adapters or len(shares) != len(adapters):
        raise UserError(
            f"{len(shares)} shares for {len(adapters)} adapters: give one for each of at least one"
        )
    found = [Adapter.read(file) for file in adapters]
    networks = applied(shared.Source.read(source), found, shares)
    card = {**found[0].card, "mixed": dict(zip(map(str, adapters), shares, strict=True))}
    to.parent.mkdir(parents=True, exist_ok=True)
    shared.share(to, {"G": networks["ema"], **networks}, card, half=("G", "ema"))


def _check_name(file: Path | None, *endings: str) -> None:
    """Refuse a file to be written whose name ends otherwise, or that is there already."""
    endings = endings or (".safetensors",)
    if file is not None and file.suffix not in endings:
        raise UserError(f"{file} does not end in {' or '.join(endings)}: give a name that does")
    if file is not None and file.exists():
        raise UserError(f"{file} is there already, and stays: give another name, or remove it first")


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
        f"# {file.name}\n\nWritten by `python -m transfer share` from the run's folder.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"![64 samples of the averaged generator]({file.stem}.png)\n"
    )


if __name__ == "__main__":
    sys.argv[0] = "python -m transfer"
    with user_errors():
        commands = {"draw": draw, "share": share, "adapter": adapter, "apply": apply}
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__, prog="python -m transfer")
