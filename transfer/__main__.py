"""What a run has trained, for other people: whole, or what a target domain adds to its source.

    python -m transfer share source_domain/0001-wgan_64 pretrained_model/wgan_64.safetensors
    python -m transfer adapter target_domain/0001-wgan_64_scale_shift-G050-D050 cartoon.safetensors
    python -m transfer apply cartoon.safetensors anime.safetensors --shares 0.5 0.5 --to between.safetensors

share writes one safetensors file of the newest checkpoint, with a card and a grid: G and its moving average
in half precision and D in full (a rounded 0.01 would be over the clip). The card, beside it as .md, says what
the run's folder knows: settings, iterations, hardware, time and data; the grid, as .png, is the run's last
one. adapter writes only the tensors that the source has not, and apply adds those of one or more runs to the
source again.
"""

import json
import shutil
from pathlib import Path

import tyro
from tyro.conf import Positional

from transfer import UserError, shared
from transfer.adapters import Adapter, applied
from transfer.checkpoints import Checkpoints
from transfer.settings import user_errors

SOURCE = Path("pretrained_model/wgan_64.safetensors")


def share(run: Positional[Path], file: Positional[Path]) -> None:
    """Write FILE.safetensors, FILE.md and FILE.png from the run's newest checkpoint.

    Raises:
        UserError: when the run has no checkpoint, or the file's name has another ending.
    """
    _check_name(file)
    _, state = Checkpoints(run).newest()
    description = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    card = {
        "script": state["script"],
        "iterations": state["step"],
        "seconds": round(seconds(run, state["step"])),
        "arguments": state.get("arguments", {}),
        **{key: description[key] for key in ("hardware", "versions", "images", "settings")},
    }
    for key in ("out", "resume", "dry_run"):
        del card["settings"][key]
    file.parent.mkdir(parents=True, exist_ok=True)
    shared.share(file, state, card, half=("G", "ema"))
    grids = sorted(path for path in (run / "samples").glob("*.png") if int(path.stem) <= state["step"])
    shutil.copyfile(grids[-1], file.with_suffix(".png"))  # a stopped run's last step may have none
    file.with_suffix(".md").write_text(page(file, card), encoding="utf-8")


def adapter(run: Positional[Path], file: Positional[Path]) -> None:
    """Write the tensors of RUN's newest checkpoint that its source has not to FILE.safetensors.

    Raises:
        UserError: when the run has no checkpoint or no source, or the file's name has another ending.
    """
    _check_name(file)
    own = Adapter.of(run)
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


def _check_name(file: Path) -> None:
    if file.suffix != ".safetensors":
        raise UserError(f"{file} does not end in .safetensors: give a name that does")


def seconds(run: Path, step: int) -> float:
    """How long the run computed for its first `step` iterations (repeated ones count once)."""
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))["settings"]
    lines = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
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
    with user_errors():
        commands = {"share": share, "adapter": adapter, "apply": apply}
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__, prog="python -m transfer")
