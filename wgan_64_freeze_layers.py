"""Carry a pre-trained WGAN over to a few images: layers frozen, the rest fine-tuned (dissertation, Table 9).

    python wgan_64_freeze_layers.py --images train_images/target_domain --G 3 0 2 --D 3 0 2

freezes the three layers next to the pixels in both networks (in the critic that is FreezeD, Mo et al. 2020).
With --G 0 0 5 --D 2 0 3 the generator learns throughout and two layers of the critic are frozen: the plan
that we would take (docs/decisions.md says why).
Writes samples and checkpoints to a new folder in target_domain/.
"""

from dataclasses import dataclass
from pathlib import Path

from transfer.plan import Plan, Split
from transfer.policies import FrozenNorm, Rescale
from transfer.settings import (
    Augmentation,
    Batch,
    Count,
    Decay,
    Extractor,
    Loss,
    Optimizer,
    Positive,
    Seed,
    Share,
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
    G: Plan = Split(3, 0, 2)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(3, 0, 2)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    iterations: Count = 1_000  # generator updates; the dissertation's 20,000 is one flag away
    batch_size: Batch = 16  # images a step, real and generated each
    critic_steps: Count = 5  # critic updates before each generator update
    optimizer: Optimizer = "rmsprop"  # adam: its first steps corrected
    learning_rate: Positive = 2e-4  # of the optimizer, for both networks
    loss: Loss = "source"  # wgan or wgan_gp: weight clipping or a gradient penalty; the source's unless given
    clip: Positive = 0.01  # wgan: the critic's effective kernels stay in [-clip, clip]
    penalty: Positive = 10.0  # wgan_gp: weight of (|gradient of the critic at x| - 1)^2
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    ema_decay: Decay = 0.999  # of the generator's moving average, which is what is sampled
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels, CUDA graphs: what suits the device; else plain float32
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

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fid import scorer
from transfer.augment import Augment
from transfer.engine import Reals, captured, choose_device, tune
from transfer.images import Images
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import table
from transfer.policies import FINETUNE
from transfer.record import Run
from transfer.shared import Source, carry
from transfer.weights import Average, Clip, check_learning, learning, optimizer
from wgan_gp_64 import gradient_penalty, score_gradient


class Generator(nn.Module):
    """z (N, latent) -> images (N, channels, size, size) in [-1, 1]; a policy for each of the five layers.

    size is a multiple of 16: four layers double what the first one makes.
    """

    def __init__(self, latent=100, width=64, policies=5 * (FINETUNE,), size=64, channels=3):
        super().__init__()
        self.arguments = {"latent": latent, "width": width, "size": size, "channels": channels}
        p1, p2, p3, p4, p5 = policies
        self.conv1, self.norm1 = ConvUp(latent, 8 * width, size // 16, 1, 0, p1), Norm(8 * width, p1)
        self.conv2, self.norm2 = ConvUp(8 * width, 4 * width, 4, 2, 1, p2), Norm(4 * width, p2)
        self.conv3, self.norm3 = ConvUp(4 * width, 2 * width, 4, 2, 1, p3), Norm(2 * width, p3)
        self.conv4, self.norm4 = ConvUp(2 * width, width, 4, 2, 1, p4), Norm(width, p4)
        self.conv5 = ConvUp(width, channels, 4, 2, 1, p5)

    def forward(self, z):
        x = z[:, :, None, None]  # N x 100 x 1 x 1
        x = F.relu(self.norm1(self.conv1(x)))  # N x 512 x 4 x 4
        x = F.relu(self.norm2(self.conv2(x)))  # N x 256 x 8 x 8
        x = F.relu(self.norm3(self.conv3(x)))  # N x 128 x 16 x 16
        x = F.relu(self.norm4(self.conv4(x)))  # N x 64 x 32 x 32
        return torch.tanh(self.conv5(x))  # N x 3 x 64 x 64


class Discriminator(nn.Module):
    """x (N, channels, size, size) -> scores (N,), unbounded: WGAN's critic; a policy for each of five layers.

    Without norm it has no batch normalisation, and biases in the place of its shifts: WGAN-GP's critic.
    """

    def __init__(self, width=64, policies=5 * (FINETUNE,), norm=True, size=64, channels=3):
        super().__init__()
        self.arguments = {"width": width, "norm": norm, "size": size, "channels": channels}
        bias, Norm_ = not norm, Norm if norm else nn.Identity
        p1, p2, p3, p4, p5 = policies
        self.conv1 = Conv(channels, width, 4, 2, 1, p1, bias)
        self.conv2, self.norm2 = Conv(width, 2 * width, 4, 2, 1, p2, bias), Norm_(2 * width, p2)
        self.conv3, self.norm3 = Conv(2 * width, 4 * width, 4, 2, 1, p3, bias), Norm_(4 * width, p3)
        self.conv4, self.norm4 = Conv(4 * width, 8 * width, 4, 2, 1, p4, bias), Norm_(8 * width, p4)
        self.conv5 = Conv(8 * width, 1, size // 16, 1, 0, p5)  # fully connected

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)  # N x 64 x 32 x 32
        x = F.leaky_relu(self.norm2(self.conv2(x)), 0.2)  # N x 128 x 16 x 16
        x = F.leaky_relu(self.norm3(self.conv3(x)), 0.2)  # N x 256 x 8 x 8
        x = F.leaky_relu(self.norm4(self.conv4(x)), 0.2)  # N x 512 x 4 x 4
        return self.conv5(x).flatten()  # N


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = Source.read(settings.source)
    policies_G = settings.G.generator(settings.rescale, settings.frozen_norm)
    policies_D = settings.D.discriminator(settings.rescale, settings.frozen_norm)
    G = Generator(source.latent, source.width, policies_G, **source.shape)
    D = Discriminator(source.width, policies_D, source.norm, **source.shape)
    G, D = (network.to(device, memory_format=torch.channels_last) for network in (G, D))
    carry(G, source, "G")
    carry(D, source, "D")
    check_learning(G, D)
    gp = (source.loss if settings.loss == "source" else settings.loss) == "wgan_gp"
    clip = None if gp else Clip(D, settings.clip, carried=True)
    images = Images.load(settings.images, device, **source.shape).hold_out(settings.hold_out, settings.seed)
    print(f"{images} in {settings.images}, G{settings.G} D{settings.D}, WGAN{'-GP' * gp}, on {device}")
    if settings.dry_run:
        return print(table(G=G, D=D))

    augment = Augment(settings.augment)
    average = Average(G, settings.ema_decay)
    name = "wgan_gp" if gp else settings.optimizer
    optimizer_G, optimizer_D = (optimizer(name, network, settings.learning_rate) for network in (G, D))
    parts = {"G": G, "D": D, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    generate, judge = tune(G, D, iterations=settings.iterations, fast=settings.fast)
    gradient = judge.hasten(partial(score_gradient, D))
    plans = f"G{settings.G.digits}-D{settings.D.digits}"
    run = Run(settings, __file__, images, parts, plans, score=scorer(settings, images))
    reals = Reals(judge, images, augment, settings.fast)  # keeps what frozen layers make of them, where exact

    def critic_step():
        with torch.no_grad():
            fake = generate(torch.randn(settings.batch_size, source.latent, device=device))
        if gp:
            real, fake = augment.real(images.batch(settings.batch_size)), augment.fake(fake)
            estimate = judge(real).mean() - judge(fake).mean()
            loss = settings.penalty * gradient_penalty(gradient, real, fake) - estimate
        else:
            estimate = reals.scores(settings.batch_size).mean() - judge(augment.fake(fake)).mean()
            loss = -estimate
        optimizer_D.zero_grad()
        loss.backward(inputs=learning(D))
        optimizer_D.step()
        if clip is not None:
            clip()
        return estimate.detach()

    def generator_step():
        z = torch.randn(settings.batch_size, source.latent, device=device)
        loss = -judge(augment.fake(generate(z))).mean()
        if learning(G):
            optimizer_G.zero_grad()
            loss.backward(inputs=learning(G))
            optimizer_G.step()
        return loss.detach()

    def iteration():
        losses = {}
        if learning(D):
            for _ in range(settings.critic_steps):
                losses["wasserstein"] = critic_step()
        losses["generator"] = generator_step()
        return losses

    train = captured(iteration, device, settings.fast)
    for step in run.steps():
        losses = train()
        average.update(G, step)
        run.losses(**losses)
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
