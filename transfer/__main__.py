"""What to do with a run that has trained: draw from it, and give it to other people.

    python -m transfer draw target_domain/0001-wgan_64_finetune-G005-D005 --count 1000 --to drawn
    python -m transfer draw pretrained_model/wgan_64.safetensors --grid faces.png --walk faces.webp
    python -m transfer share source_domain/0001-wgan_64 mine.safetensors --licence mit
    python -m transfer adapter target_domain/0001-wgan_64_scale_shift-G050-D050 cartoon.safetensors
    python -m transfer apply cartoon.safetensors anime.safetensors --shares 0.5 0.5 --to between.safetensors
    python -m transfer import netG.pth netD.pth --to mine.safetensors
    python -m transfer export mine.safetensors generator.onnx
    python -m transfer board target_domain

draw writes images as PNG files to a folder, as one grid, or as an animation that walks from latent to latent.
share writes one safetensors file, with a card and a grid: G and its moving average in half precision and D in
full (a rounded 0.01 would be over the clip). The card, beside it as .md, has the front matter that model hubs
read, and says what the run's folder knows: settings, iterations, hardware, time, the images' name and count.
adapter writes only the tensors that the source has not, and apply adds those of one or more runs to the
source again. import reads networks as PyTorch's DCGAN example saves them; export writes the generator as
ONNX. None of them overwrites a file. board shows the curves and grids of runs side by side, in TensorBoard.
"""

import io
import itertools
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from tyro.conf import Positional

from transfer import UserError, board, checkpoints, dcgan, drawing, shared
from transfer.adapters import Adapter, applied
from transfer.card import card_of, page, without_paths
from transfer.engine import choose_device
from transfer.export import as_onnx
from transfer.images import grid as grid_of
from transfer.settings import ROOT, Bound, registry, user_errors
from transfer.shared import Source

DRAWN = 64  # images, unless count says otherwise
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
        device: cuda or mps where there is such a GPU, else cpu.

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


def share(
    run: Positional[Path], file: Positional[Path], licence: str | None = None, best: bool = False
) -> None:
    """Write FILE.safetensors, its card as FILE.md and a grid as FILE.png from a checkpoint.

    Args:
        run: a run's folder (its newest checkpoint), or a checkpoint.
        file: the file to write.
        licence: what the card says of the licence, as model hubs name it, such as mit or cc-by-nc-4.0.
        best: the run's checkpoint with the best score, not its newest.

    Raises:
        UserError: when the run has no checkpoint, or the file's name is taken or has another ending.
    """
    _check_names(file)
    path, state = checkpoints.of_run(run, best)
    _publish(file, state, card_of(path, state), licence)


def _publish(
    file: Path,
    networks: dict[str, Any],
    card: dict[str, Any],
    licence: str | None,
    half: Iterable[str] = ("G", "ema"),
) -> None:
    """Write a model's file, its card and a grid of its images, or nothing; and say so."""
    card = card if licence is None else {**card, "licence": licence}
    source = Source.of(file, {**networks, **card})
    picture = grid_of(drawing.draw(source, DRAWN, source.settings.get("seed", 0)))  # as a run's own samples
    data = io.BytesIO()
    picture.save(data, "PNG")
    _write(file, shared.as_bytes(networks, card, half))
    _write(file.with_suffix(".md"), page(file.name, card).encode())
    _write(file.with_suffix(".png"), data.getvalue())
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB) is written, and beside it its card and a grid")
    if licence is None:
        print("the card names no licence: --licence does, as --licence cc-by-nc-4.0")


def _check_names(file: Path) -> None:
    _check_name(file)
    for beside in (".md", ".png"):
        _check_name(file.with_suffix(beside), beside)


def adapter(
    run: Positional[Path],
    file: Positional[Path],
    best: bool = False,
    source: Path | None = None,
    critic: bool = True,
) -> None:
    """Write the tensors of a checkpoint that its run's source has not to FILE.safetensors.

    Args:
        run: a run's folder (its newest checkpoint), or a checkpoint.
        file: the file to write.
        best: the run's checkpoint with the best score, not its newest.
        source: where the run's source is, if not where it was when the run began.
        critic: without it the file is enough to draw and to mix, and often less than half as large.

    Raises:
        UserError: when the run has no checkpoint or no source, or the file's name has another ending.
    """
    _check_name(file)
    own = Adapter.of(run, best, source)
    if not critic:
        own.networks["D"].clear()
    own.write(file)
    numbers = sum(tensor.numel() for tensors in own.networks.values() for tensor in tensors.values())
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB, {numbers:,} numbers) is written")


def apply(
    adapters: Positional[tuple[Path, ...]],
    to: Path,
    source: Path | None = None,
    shares: tuple[float, ...] = (),
    licence: str | None = None,
) -> None:
    """Write the source with the adapters' differences from it, times their shares, as share does.

    Args:
        adapters: the files that python -m transfer adapter has written.
        to: the file to write, which is read where a source or a run is.
        source: what the adapters were carried over from; what has its name in pretrained_model/ if not given.
        shares: one number for each adapter; equal ones that add up to 1, unless given.
        licence: what the card says of the licence, as model hubs name it, such as mit or cc-by-nc-4.0.

    Raises:
        UserError: when a file is no adapter of the source, or there are more or fewer shares than adapters.
    """
    _check_names(to)
    shares = shares or (1 / len(adapters),) * len(adapters) if adapters else ()
    if not adapters or len(shares) != len(adapters):
        raise UserError(
            f"{len(shares)} shares for {len(adapters)} adapters: give one for each of at least one"
        )
    found = [Adapter.read(file) for file in adapters]
    if source is None:
        source = ROOT / "pretrained_model" / str(found[0].card["settings"]["source"])
        if not source.exists():
            raise UserError(f"{source.name}, the adapters' source, is not in {source.parent}: give --source")
    networks = applied(Source.read(source), found, shares)
    mixed = [
        {"adapter": file.name, "share": share, "images": each.card.get("images", {})}
        for file, share, each in zip(adapters, shares, found, strict=True)
    ]
    own = {key: found[0].card[key] for key in ("script", "arguments", "settings") if key in found[0].card}
    card = {**own, "settings": without_paths(own["settings"]), "mixed": mixed}
    _publish(to, {"G": networks["ema"], **networks}, card, licence)


def import_(files: Positional[tuple[Path, ...]], to: Path, licence: str | None = None) -> None:
    """Write a generator and a discriminator of other code as share does, to be drawn from and transferred.

    Args:
        files: one with both networks, or one of each, as PyTorch's DCGAN example saves them and code like it:
            state dicts for images of 64 x 64 pixels, of any width and latent. No code in them is run.
        to: the file to write, which is read where a source or a run is.
        licence: what the card says of the licence, as model hubs name it, such as mit or cc-by-nc-4.0.

    Raises:
        UserError: naming what does not fit.
    """
    _check_names(to)
    networks, card = dcgan.read(files)
    _publish(to, networks, card, licence, half=())


def export(model: Positional[Path], file: Positional[Path], best: bool = False) -> None:
    """Write the averaged generator as an ONNX file, compared with torch on the same latents.

    Its input z (N, latent) are numbers from N(0, 1), its output images (N, 3, 64, 64) are in [-1, 1].

    Args:
        model: a run's folder (its newest checkpoint), a checkpoint or a .safetensors file.
        file: the .onnx file to write.
        best: the run's checkpoint with the best score, not its newest.

    Raises:
        UserError: when onnx is not installed, or the file would draw other images.
    """
    _check_name(file, ".onnx")
    content, distance = as_onnx(Source.read(model, best))
    _write(file, content)
    compared = (
        "not compared with torch, since onnxruntime is not installed"
        if distance is None
        else f"its images are within {distance:.1g} of torch's, in a range of 2"
    )
    print(f"{file} ({file.stat().st_size / 1e6:.1f} MB) is written; {compared}")


def show(runs: Positional[Path], to: Path | None = None, port: int = 6006) -> None:
    """Show runs in TensorBoard, and what they add while they train, until Ctrl-C.

    Args:
        runs: a run's folder, or one with runs in it.
        to: a new folder to write the event files to, in the place of showing them.
        port: where TensorBoard's page is, on this machine alone.

    Raises:
        UserError: when tensorboard is not installed, or there is no run.
    """
    if to is None:
        return board.show(runs, port)
    if to.exists():
        raise UserError(f"{to} is there already, and stays: give another name, or remove it first")
    print(f"{len(board.write(runs, to))} runs are in {to}: tensorboard --logdir {to}")


def _check_name(file: Path | None, *endings: str) -> None:
    """Refuse a file to be written whose name ends otherwise, or that is there already."""
    endings = endings or (".safetensors",)
    if file is not None and file.suffix not in endings:
        raise UserError(f"{file} does not end in {' or '.join(endings)}: give a name that does")
    if file is not None and file.exists():
        raise UserError(f"{file} is there already, and stays: give another name, or remove it first")


if __name__ == "__main__":
    sys.argv[0] = "python -m transfer"
    with user_errors():
        commands = {"draw": draw, "share": share, "adapter": adapter, "apply": apply}
        commands |= {"import": import_, "export": export, "board": show}
        tyro.extras.subcommand_cli_from_dict(
            commands, description=__doc__, prog="python -m transfer", registry=registry()
        )
