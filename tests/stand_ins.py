"""Stand-ins for scoring: a projection in place of a network, and images that are cheap to make."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from fid.extractors import Extractor

D = 12
PROJECTION = torch.randn(3 * 8 * 8, D, generator=torch.Generator().manual_seed(0))


def tiny(network=None, name="tiny") -> Extractor:
    def project(x):
        assert (
            x.dtype == torch.float32
            and x.min() >= 0
            and x.max() <= 1
            and not torch.is_autocast_enabled("cpu")
        )
        assert not torch.is_grad_enabled() and torch.backends.mkldnn.conv.fp32_precision == "ieee"
        return F.interpolate(x, size=(8, 8), mode="bilinear").flatten(1) @ PROJECTION

    classes = torch.eye(4, D), None
    return Extractor(name, "bilinear 8", D, network or project, torch.device("cpu"), classes, batch=3)


def images(n: int, seed: int = 0, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)


def write(folder: Path, pixels: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return folder
