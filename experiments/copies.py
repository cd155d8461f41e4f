"""What the memorisation measure sees: training images that were changed, and new images changed likewise.

    python -m experiments.copies --target TARGET_96 --reference HELD_OUT

Each change is made to the training images, which are copies then, and to 500 held-out images, which are none;
the measure is set by the other held-out images. Appends a line for each change to experiments/results.jsonl;
python -m experiments report writes docs/results.md from the lines.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from experiments import lines
from fid.memorisation import memorisation, thumbnailer
from transfer.folder import hardware, versions
from transfer.images import Images
from transfer.settings import command_line, user_errors

NEW = 500  # held-out images that stand for what a generator makes anew


@dataclass(frozen=True)
class Settings:
    """Which images."""

    target: Path  # the images of the target domain that are trained on
    reference: Path  # held-out images of the target domain


def each(change: Callable[[Image.Image], Image.Image]) -> Callable[[Tensor], Tensor]:
    """A change of one picture as one of pixels (n, 3, H, W), uint8."""

    def all_of(x: Tensor) -> Tensor:
        pictures = (change(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in x)
        return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])

    return all_of


def as_jpeg(picture: Image.Image) -> Image.Image:
    """The picture after JPEG at quality 30."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=30)
    return Image.open(file)


def noisy(x: Tensor) -> Tensor:
    """x with noise of 8 grey levels."""
    return rounded(x + 8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))


def rounded(x: Tensor) -> Tensor:
    """Floats as uint8 pixels."""
    return x.round().clamp(0, 255).to(torch.uint8)


blurred = each(lambda picture: picture.filter(ImageFilter.GaussianBlur(1.2)))
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "noise of 8 grey levels": noisy,
    "blur of 1.2 pixels": blurred,
    "blur of 2.5 pixels": each(lambda picture: picture.filter(ImageFilter.GaussianBlur(2.5))),
    "mirrored": lambda x: x.flip(3),
    "mirrored, blurred and noisy": lambda x: noisy(blurred(x.flip(3))),
    "less contrast, brighter": lambda x: rounded((x.float() - 128) * 0.8 + 148),
    "moved by 3 pixels": lambda x: F.pad(x.float(), (3, 0, 3, 0), "reflect")[:, :, :64, :64].to(torch.uint8),
    "rotated by 5 degrees": each(lambda picture: picture.rotate(5, Image.Resampling.BICUBIC)),
    "JPEG of quality 30": each(as_jpeg),
    "grey": each(lambda picture: picture.convert("L").convert("RGB")),
    "two images, half and half": lambda x: rounded((x.float() + x.roll(1, 0).float()) / 2),
    "enlarged by a quarter": each(lambda picture: picture.crop((7, 7, 57, 57)).resize((64, 64))),
}


def main(settings: Settings) -> None:
    """Measure, and add a line for each change."""
    training, heldout = (Images.load(path).pixels for path in (settings.target, settings.reference))
    order = torch.randperm(len(heldout), generator=torch.Generator().manual_seed(0))
    new, others = heldout[order[:NEW]], heldout[order[NEW:]]
    small = thumbnailer(torch.device("cpu"))
    real, fresh = small(training), small(others)
    for name, change in CHANGES.items():
        line = {"table": "copies", "row": name, "training": len(training), "new": NEW, "others": len(others)}
        for key, images in (("of_training", training), ("of_new", new)):
            made = small(change(images))
            # the measure is of thumbnails alone, so they stand in the place of features
            line[key] = memorisation((made, real, fresh), (made, real, fresh)).copies
        line |= {"images": settings.target.name, "reference": settings.reference.name}
        line |= {"hardware": hardware(torch.device("cpu")), "versions": versions()}
        lines.append(line)
        print(f"{name}: {line['of_training']:.2f} of training images, {line['of_new']:.2f} of new ones")


def markdown() -> str:
    """What experiments.copies has measured."""
    found = lines.read("copies")
    if not found:
        return ""
    shares = [(line["row"], f"{line['of_training']:.2f}", f"{line['of_new']:.2f}") for line in found]
    first = found[0]
    return (
        "## What the memorisation measure sees\n\nWritten by `python -m experiments.copies`: the share that"
        f" `copies` reports of {first['training']} training images that were changed, and of {first['new']}"
        f" new images changed likewise, set by {first['others']:,} held-out images ({first['images']},"
        f" {first['reference']}; {first['hardware']}).\n\n"
        + lines.folded(
            "The shares", lines.markdown(("change", "of training images", "of new images"), shares)
        )
    )


if __name__ == "__main__":
    with user_errors():
        main(command_line(Settings))
