"""Pre-train a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017): dissertation, 4.3.1.

    python wgan_gp_64.py --images train_images/source_domain --iterations 20000

The critic has no batch normalisation, which would let one image's score depend on the others that the penalty
looks at alone (section 4 of the paper); --critic-norm gives it back, as the dissertation had it. Writes
samples and checkpoints, which hold the generator and the discriminator, to a new folder in source_domain/.
"""

from dataclasses import dataclass
from pathlib import Path

from transfer.settings import (
    Augmentation,
    Batch,
    Channels,
    Count,
    Decay,
    Extractor,
    Positive,
    Seed,
    Share,
    Size,
    Whole,
    check,
    command_line,
    user_errors,
)


@dataclass(frozen=True)
class Settings:
    """Edit these constants, or override any of them on the command line."""

    images: Path = Path("train_images/source_domain")  # the source domain: a folder or a zip
    iterations: Count = 20_000  # generator updates
    batch_size: Batch = 64  # images a step, real and generated each
    critic_steps: Count = 5  # critic updates before each generator update
    learning_rate: Positive = 1e-4  # of Adam with betas 0 and 0.9, for both networks
    penalty: Positive = 10.0  # weight of (|gradient of the critic at x| - 1)^2
    critic_norm: bool = False  # batch normalisation in the critic: the dissertation's variant
    augment: Augmentation = "flip"  # of the real images, or diffaugment of real and generated
    ema_decay: Decay = 0.999  # of the generator's moving average, which is what is sampled
    latent: Count = 100  # numbers a latent z
    width: Count = 64  # channels of the layer next to the image; the others have 2, 4 and 8 times as many
    size: Size = 64  # pixels, of an image's side
    channels: Channels = 3  # of an image: 1 is grey
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels, CUDA graphs: what suits the device; else plain float32
    out: Path = Path("source_domain")  # where the run's folder is made
    log_every: Count = 50
    sample_every: Count = 500
    save_every: Count = 1000
    score_every: Whole = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    hold_out: Share = 0.0  # share of the images, 0 to 0.5, that is set aside for scores and never trained on
    extractor: Extractor = "inception"  # of the scores; efficientnet_lite0 needs no download
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print what would be trained, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fid import scorer
from transfer.augment import Augment
from transfer.engine import captured, choose_device, tune
from transfer.images import Images
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import table
from transfer.policies import FINETUNE
from transfer.record import Run
from transfer.weights import Average, learning, optimizer


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


def score_gradient(D, x):
    """The gradient of each image's score at x, (N, 3, 64, 64), to be differentiated in its turn.

    Without normalisation a score is piecewise linear in the pixels, so the gradient is forward backwards:
    transposed convolutions, and between them the slopes of the LeakyReLUs. A double backward pass would
    compute the same and carry zeros through the whole of forward as well.
    """
    if isinstance(D.norm2, Norm):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(D(x).sum(), x, create_graph=True)[0]
    slopes = []
    with torch.no_grad():
        for conv in (D.conv1, D.conv2, D.conv3, D.conv4):
            x = conv(x)
            slopes.append(torch.where(x > 0, 1.0, 0.2).to(x.dtype))
            x = F.leaky_relu(x, 0.2)
    g = D.conv5.transposed(x.new_ones(len(x), 1, 1, 1))  # N x 512 x 4 x 4
    g = D.conv4.transposed(g * slopes[3])  # N x 256 x 8 x 8
    g = D.conv3.transposed(g * slopes[2])  # N x 128 x 16 x 16
    g = D.conv2.transposed(g * slopes[1])  # N x 64 x 32 x 32
    return D.conv1.transposed(g * slopes[0])  # N x 3 x 64 x 64


def gradient_penalty(gradient, real, fake):
    """mean (|gradient(x)| - 1)^2 over images x between real and fake, each drawn on its own line."""
    x = torch.lerp(real, fake, torch.rand(len(real), 1, 1, 1, device=real.device))
    return (gradient(x).flatten(1).norm(dim=1) - 1).square().mean()


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    shape = {"size": settings.size, "channels": settings.channels}
    G = Generator(settings.latent, settings.width, **shape)
    D = Discriminator(settings.width, norm=settings.critic_norm, **shape)
    G, D = (network.to(device, memory_format=torch.channels_last) for network in (G, D))
    images = Images.load(settings.images, device, **shape).hold_out(settings.hold_out, settings.seed)
    print(f"{images} in {settings.images}, on {device}")
    if settings.dry_run:
        return print(table(G=G, D=D))

    augment = Augment(settings.augment)
    average = Average(G, settings.ema_decay)
    optimizer_G, optimizer_D = (optimizer("wgan_gp", network, settings.learning_rate) for network in (G, D))
    parts = {"G": G, "D": D, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    generate, judge = tune(G, D, iterations=settings.iterations, fast=settings.fast)
    gradient = judge.hasten(partial(score_gradient, D))
    run = Run(settings, __file__, images, parts, score=scorer(settings, images))

    def critic_step():
        real = images.batch(settings.batch_size)
        with torch.no_grad():
            fake = generate(torch.randn(settings.batch_size, settings.latent, device=device))
        real, fake = augment.real(real), augment.fake(fake)
        estimate = judge(real).mean() - judge(fake).mean()
        loss = settings.penalty * gradient_penalty(gradient, real, fake) - estimate
        optimizer_D.zero_grad()
        loss.backward(inputs=learning(D))
        optimizer_D.step()
        return estimate.detach()

    def generator_step():
        z = torch.randn(settings.batch_size, settings.latent, device=device)
        loss = -judge(augment.fake(generate(z))).mean()
        optimizer_G.zero_grad()
        loss.backward(inputs=learning(G))
        optimizer_G.step()
        return loss.detach()

    def iteration():
        for _ in range(settings.critic_steps):
            wasserstein = critic_step()
        return {"wasserstein": wasserstein, "generator": generator_step()}

    train = captured(iteration, device, settings.fast)
    for step in run.steps():
        losses = train()
        average.update(G, step)
        run.losses(**losses)
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
