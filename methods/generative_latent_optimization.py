"""Carry a pre-trained generator over to a few images without a critic (BSA, Noguchi and Harada 2019).

    python -m methods.generative_latent_optimization --images train_images/target_domain

gives each training image a latent of its own and learns it, together with the scale and shift of the
generator's filters, G(0, 5, 0), until the generator draws that image from it: like it in its pixels and in
the features of a network that knows photographs. Latents are kept spread as those that are sampled.
Writes samples and checkpoints to a new folder in target_domain/.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfer.plan import Plan, Split
from transfer.policies import FrozenNorm, Rescale
from transfer.settings import (
    Batch,
    Count,
    Decay,
    Extractor,
    Positive,
    Seed,
    Share,
    Weight,
    Whole,
    check,
    command_line,
    user_errors,
)


@dataclass(frozen=True)
class Settings:
    """Edit these constants, or override any of them on the command line."""

    source: Path = Path("pretrained_model/wgan_64.safetensors")  # the pre-trained generator and discriminator
    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    G: Plan = Split(0, 5, 0)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    rescale: Rescale = "filter_selection"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    iterations: Count = 1_000  # updates of generator and latents; the paper has 10,000
    batch_size: Batch = 25  # images a step
    learning_rate: Positive = 0.03  # of Adam, for the generator; a fifth after every 3,000 iterations
    latent_rate: Positive = 0.05  # ... for the latents
    perceptual: Weight = 0.1  # weight of each map of features, beside 1 for the pixels
    spread: Weight = 0.1  # ... of the latents' distance from a sample of N(0, 1)
    stay: Weight = 0.02  # ... of gamma's and beta's distance from where they start
    noise: Weight = 0.01  # standard deviation of what is added to a latent at each step
    features: Literal["efficientnet_lite0", "vgg16"] = (
        "efficientnet_lite0"  # vgg16 is the paper's: a download
    )
    ema_decay: Decay = 0.999  # of the generator's moving average, which is what is sampled
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels: what suits the device; else plain float32
    out: Path = Path("target_domain")  # where the run's folder is made
    log_every: Count = 50
    sample_every: Count = 100
    save_every: Count = 1000
    score_every: Whole = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    hold_out: Share = 0.0  # share of the images, 0 to 0.5, that is set aside for scores and never trained on
    extractor: Extractor = "inception"  # of the scores; efficientnet_lite0 needs no download
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print the plan, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

import torch
import torch.nn.functional as F
from torch import nn

from fid import load, scorer
from transfer.engine import choose_device, tune
from transfer.images import Images
from transfer.plan import table
from transfer.record import Run
from transfer.regularisers import L2SP
from transfer.shared import Source, carry
from transfer.weights import Average, learning
from wgan_64 import Generator


def distance(z, t):
    """How far latents z (N, latent) are from a sample t (M, latent), both ways.

    The mean over z of the squared distance to the nearest of t, and the mean over t to the nearest of z; of
    one number of a latent, so that it does not grow with their count.
    """
    distances = torch.cdist(z, t).square() / z.shape[1]
    return distances.amin(0).mean() + distances.amin(1).mean()


def relative(loss):
    """loss over its own value, so that terms of any scale weigh the same (FreezeD's supervised training)."""
    return loss / (loss.detach() + 1e-8)


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = Source.read(settings.source)
    policies = settings.G.generator(settings.rescale, settings.frozen_norm)
    G = Generator(source.latent, source.width, policies).to(device, memory_format=torch.channels_last)
    carry(G, source, "G")
    images = Images.load(settings.images, device).hold_out(settings.hold_out, settings.seed)
    print(f"{images} in {settings.images}, G{settings.G}, on {device}")
    if settings.dry_run:
        return print(table(G=G))

    average = Average(G, settings.ema_decay)
    latents = nn.Embedding(len(images), source.latent, device=device)  # from N(0, 1)
    network = load(settings.features, device=str(device))
    l2_sp = L2SP(settings.stay, G)
    groups = [
        {"params": learning(G), "lr": settings.learning_rate},
        {"params": latents.parameters(), "lr": settings.latent_rate},
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3_000, 0.2)
    parts = {"G": G, "average": average, "latents": latents, "optimizer": optimizer}
    parts["schedule"] = schedule
    (generate,) = tune(G, iterations=settings.iterations, fast=settings.fast)
    run = Run(
        settings,
        __file__,
        images,
        parts,
        title=f"G{settings.G.digits}",
        score=scorer(settings, images, seen=(settings.features,)),
    )

    def iteration():
        chosen = images.draw(settings.batch_size)
        real, z = images.at(chosen), latents(chosen)
        fake = generate(z + settings.noise * torch.randn_like(z))
        pixels = F.l1_loss(fake, real)
        with torch.no_grad():
            wanted = network.maps(real)
        likeness = [F.mse_loss(mine, its) for mine, its in zip(network.maps(fake), wanted, strict=True)]
        spread = distance(z, torch.randn(10 * len(z), source.latent, device=device))
        loss = relative(pixels) + settings.perceptual * sum(map(relative, likeness))
        loss = loss + settings.spread * spread + l2_sp()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        return {"pixels": pixels.detach(), "spread": spread.detach()}

    for step in run.steps():
        losses = iteration()
        average.update(G, step)
        run.losses(**losses)
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
