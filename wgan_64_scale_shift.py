"""Carry a pre-trained WGAN over to a few images: scale and shift of every kernel (dissertation, Table 10).

    python wgan_64_scale_shift.py --images train_images/target_domain --rescale adafm

learns one scale and one shift for each two-dimensional slice of each kernel (AdaFM, Zhao et al. 2020), or for
each output filter (--rescale filter_selection, Noguchi and Harada 2019); no kernel itself changes: G(0, 5, 0)
D(0, 5, 0). Writes samples and checkpoints to a new folder in target_domain/.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transfer.plan import FrozenNorm, Plan, Rescale, Split
from transfer.settings import Augmentation, Extractor, check, command_line, user_errors


@dataclass(frozen=True)
class Settings:
    """Edit these constants, or override any of them on the command line."""

    source: Path = Path("pretrained_model/wgan_64.safetensors")  # the pre-trained generator and discriminator
    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    G: Plan = Split(0, 5, 0)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(0, 5, 0)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    iterations: int = 1_000  # generator updates; the dissertation's 20,000 is one flag away
    batch_size: int = 16  # images a step, real and generated each
    critic_steps: int = 5  # critic updates before each generator update
    learning_rate: float = 2e-4  # of RMSprop, for both networks
    clip: float = 0.01  # the critic's effective kernels stay in [-clip, clip]
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    ema_decay: float = 0.999  # of the generator's moving average, which is what is sampled
    seed: int = 0
    device: str | None = None  # cuda where there is a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels, CUDA graphs: what suits the device; else plain float32
    out: Path = Path("target_domain")  # where the run's folder is made
    log_every: int = 50
    sample_every: int = 100
    save_every: int = 1000
    score_every: int = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    extractor: Extractor = "inception"  # of the scores; efficientnet_lite0 needs no download
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print the plan, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

import torch
import torch.nn.functional as F
from torch import nn

from transfer.augment import Augment
from transfer.engine import Reals, captured, choose_device, tune
from transfer.images import Images
from transfer.layers import Conv, ConvUp, Norm
from transfer.plan import FROM_SCRATCH, table
from transfer.record import Run
from transfer.weights import Average, Source, carry, clip_, learning, set_clip


class Generator(nn.Module):
    """z (N, latent) -> images (N, 3, 64, 64) in [-1, 1]; a policy for each of the five layers."""

    def __init__(self, latent=100, width=64, policies=FROM_SCRATCH):
        super().__init__()
        self.latent = latent
        p1, p2, p3, p4, p5 = policies
        self.conv1, self.norm1 = ConvUp(latent, 8 * width, 4, 1, 0, p1), Norm(8 * width, p1)
        self.conv2, self.norm2 = ConvUp(8 * width, 4 * width, 4, 2, 1, p2), Norm(4 * width, p2)
        self.conv3, self.norm3 = ConvUp(4 * width, 2 * width, 4, 2, 1, p3), Norm(2 * width, p3)
        self.conv4, self.norm4 = ConvUp(2 * width, width, 4, 2, 1, p4), Norm(width, p4)
        self.conv5 = ConvUp(width, 3, 4, 2, 1, p5)

    def forward(self, z):
        x = z[:, :, None, None]  # N x 100 x 1 x 1
        x = F.relu(self.norm1(self.conv1(x)))  # N x 512 x 4 x 4
        x = F.relu(self.norm2(self.conv2(x)))  # N x 256 x 8 x 8
        x = F.relu(self.norm3(self.conv3(x)))  # N x 128 x 16 x 16
        x = F.relu(self.norm4(self.conv4(x)))  # N x 64 x 32 x 32
        return torch.tanh(self.conv5(x))  # N x 3 x 64 x 64


class Discriminator(nn.Module):
    """x (N, 3, 64, 64) -> scores (N,), unbounded: WGAN's critic; a policy for each of the five layers."""

    def __init__(self, width=64, policies=FROM_SCRATCH):
        super().__init__()
        p1, p2, p3, p4, p5 = policies
        self.conv1 = Conv(3, width, 4, 2, 1, p1)
        self.conv2, self.norm2 = Conv(width, 2 * width, 4, 2, 1, p2), Norm(2 * width, p2)
        self.conv3, self.norm3 = Conv(2 * width, 4 * width, 4, 2, 1, p3), Norm(4 * width, p3)
        self.conv4, self.norm4 = Conv(4 * width, 8 * width, 4, 2, 1, p4), Norm(8 * width, p4)
        self.conv5 = Conv(8 * width, 1, 4, 1, 0, p5)  # fully connected

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
    G = Generator(source.latent, source.width, policies_G).to(device, memory_format=torch.channels_last)
    D = Discriminator(source.width, policies_D).to(device, memory_format=torch.channels_last)
    carry(G, source.generator, "G")
    carry(D, source.discriminator, "D")
    set_clip(D, settings.clip)
    images = Images.load(settings.images, device)
    print(f"{images} in {settings.images}, G{settings.G} D{settings.D}, on {device}")
    if settings.dry_run:
        return print(table(G=G, D=D))

    augment = Augment(settings.augment)
    average = Average(G, settings.ema_decay)
    rmsprop = partial(torch.optim.RMSprop, lr=settings.learning_rate, capturable=device.type == "cuda")
    optimizer_G, optimizer_D = (rmsprop([{"params": learning(network)}]) for network in (G, D))
    parts = {"G": G, "D": D, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    tune(G, D, iterations=settings.iterations, fast=settings.fast)
    run = Run(settings, __file__, images, parts, title=f"G{settings.G.digits}-D{settings.D.digits}")
    reals = Reals(D, images, augment, settings.fast)  # what frozen layers make of them is kept, where exact

    def critic_step():
        with torch.no_grad():
            fake = G(torch.randn(settings.batch_size, source.latent, device=device))
        estimate = reals.scores(settings.batch_size).mean() - D(augment.fake(fake)).mean()
        optimizer_D.zero_grad()
        (-estimate).backward(inputs=learning(D))
        optimizer_D.step()
        clip_(D, settings.clip)
        return estimate.detach()

    def generator_step():
        z = torch.randn(settings.batch_size, source.latent, device=device)
        loss = -D(augment.fake(G(z))).mean()
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
