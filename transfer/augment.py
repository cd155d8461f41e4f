"""The augmentation: what the critic is shown of an image, drawn for each image anew, on the device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer.images import Images
from transfer.settings import Augmentation

SHARP = 0.1  # pixels; a blur of less is none
STRENGTH = {  # rotation in degrees, smallest crop as a share of the side, change of colour
    "slight": (5.0, 0.95, 0.05),
    "strong": (15.0, 0.8, 0.2),
}


class Augment:
    """Augmentation of the batches that the critic sees.

    none         nothing.
    flip         real images are mirrored, each with probability 1/2.
    slight       real images are mirrored, rotated, cropped and changed in colour, a little ...
    strong       ... or more (the dissertation's Table 2).
    diffaugment  real images are mirrored; colour, translation and cutout of real and generated images alike,
                 through which gradients flow (DiffAugment, Zhao et al. 2020).
    """

    def __init__(self, name: Augmentation) -> None:
        self.name = name

    def real(self, x: Tensor) -> Tensor:
        """Real images x (N, 3, H, W) in [-1, 1] as the critic is to see them."""
        if self.name == "none":
            return x
        x = mirror(x)
        if self.name in STRENGTH:
            rotation, crop, colour = STRENGTH[self.name]
            return jitter(rotate_and_crop(x, rotation, crop), colour)
        return self.fake(x)

    def fake(self, x: Tensor) -> Tensor:
        """Generated images x (N, 3, H, W) as the critic is to see them; differentiable."""
        return diff_augment(x) if self.name == "diffaugment" else x


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """One draw an image, (N, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def mirrored(x: Tensor) -> Tensor:
    """Which images of a batch are to be left to right, each with probability 1/2: (N, 1, 1, 1)."""
    return _uniform(x, 0, 1) >= 0.5


def mirror(x: Tensor) -> Tensor:
    """Each image left to right with probability 1/2."""
    return torch.where(mirrored(x), x.flip(3), x)


def rotate_and_crop(x: Tensor, degrees: float, smallest: float) -> Tensor:
    """Each image rotated by up to +-degrees, and a crop of `smallest` to 1 of its side made the whole."""
    angle = _uniform(x, -degrees, degrees).flatten() * (math.pi / 180)
    side = _uniform(x, smallest, 1).flatten()
    across, down = (_uniform(x, -1, 1).flatten() * (1 - side) for _ in range(2))
    cos, sin = side * angle.cos(), side * angle.sin()
    affine = torch.stack([torch.stack([cos, -sin, across], 1), torch.stack([sin, cos, down], 1)], 1)
    where = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, where, padding_mode="reflection", align_corners=False)


def jitter(x: Tensor, amount: float) -> Tensor:
    """Brightness, contrast and saturation of each image changed by factors of 1 - amount to 1 + amount."""
    x = (x + 1) * _uniform(x, 1 - amount, 1 + amount) - 1
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * _uniform(x, 1 - amount, 1 + amount) + mean
    grey = x.mean(1, keepdim=True)
    return ((x - grey) * _uniform(x, 1 - amount, 1 + amount) + grey).clamp(-1, 1)


def diff_augment(x: Tensor) -> Tensor:
    """DiffAugment's policy color,translation,cutout, in that order, with its paper's strengths."""
    n, _, height, width = x.shape
    # Colour: brightness +-0.5, saturation x 0..2 about each pixel's grey, contrast x 0.5..1.5 about the mean.
    x = x + _uniform(x, -0.5, 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * _uniform(x, 0, 2) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * _uniform(x, 0.5, 1.5) + mean
    # Translation: by up to an eighth of each side, zeros (mid-grey) moving in.
    rows = torch.arange(height, device=x.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, 1, -1)
    reach = [int(side / 8 + 0.5) for side in (height, width)]
    down, across = (torch.randint(-r, r + 1, (n, 1, 1, 1), device=x.device) for r in reach)
    from_row, from_column = rows - down, columns - across
    inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    x = x.gather(2, from_row.clamp(0, height - 1).expand(-1, x.shape[1], -1, width))
    x = x.gather(3, from_column.clamp(0, width - 1).expand(-1, x.shape[1], height, -1)) * inside
    # Cutout: a square of half the side set to zero, its centre anywhere; of an even one on the far edge too.
    middle_row, middle_column = (
        torch.randint(side + 1 - side // 2 % 2, (n, 1, 1, 1), device=x.device) for side in (height, width)
    )
    cut = ((rows - middle_row + height // 4) // (height // 2) == 0) & (
        (columns - middle_column + width // 4) // (width // 2) == 0
    )
    return x * ~cut


class Adaptive(nn.Module):
    """An augmentation whose probability follows the critic's overfitting (ADA, Karras et al. 2020).

    r_v = (E D(real) - E D(set aside)) / (E D(real) - E D(generated)) is 0 when images that the critic never
    trained on score as those that it did, and 1 when they score as generated ones. After each critic step the
    probability takes a STEP towards where r_v is TARGET, so 200 iterations of five can take it from 0 to 1.
    ADA's other measure, the sign of the scores, says nothing of a Wasserstein critic, whose scores have no
    zero. Probability and averages are its state.
    """

    TARGET, STEP, DECAY = 0.5, 1e-3, 0.9

    def __init__(self, augment: Augment, aside: Images) -> None:
        super().__init__()
        self.augment, self.aside = augment, aside
        self.register_buffer("p", torch.zeros((), device=aside.pixels.device))
        self.register_buffer("scores", torch.zeros(3, device=aside.pixels.device))

    def real(self, x: Tensor) -> Tensor:
        """Real images x (N, 3, H, W), each augmented with probability p."""
        return self._some(x, self.augment.real(x))

    def fake(self, x: Tensor) -> Tensor:
        """Generated images x (N, 3, H, W) likewise; differentiable."""
        return self._some(x, self.augment.fake(x))

    def _some(self, x: Tensor, augmented: Tensor) -> Tensor:
        return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < self.p, augmented, x)

    @torch.no_grad()
    def update(self, D: nn.Module, real: Tensor, fake: Tensor) -> None:
        """Move p by what the critic scores (N,) its real and generated images, and those set aside."""
        aside = D(self.real(self.aside.batch(len(real))))
        means = torch.stack([real.mean(), aside.mean(), fake.mean()])
        self.scores.lerp_(means, 1 - self.DECAY)
        real, aside, fake = self.scores.clone()
        self.p.add_(((real - aside) - self.TARGET * (real - fake)).sign() * self.STEP).clamp_(0, 1)


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Images x (N, C, H, W) under a Gaussian blur of sigma pixels; below SHARP they are as they were."""
    if sigma < SHARP:
        return x
    reach, channels = math.ceil(3 * sigma), x.shape[1]
    line = torch.exp(-torch.arange(-reach, reach + 1, device=x.device).square() / (2 * sigma**2))
    line = (line / line.sum()).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), "replicate"), line, groups=channels)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), "replicate"), line.mT, groups=channels)
