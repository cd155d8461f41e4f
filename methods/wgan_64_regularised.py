"""Carry a pre-trained WGAN over to a few images: terms of the loss hold it to its source (chapter 2).

    python -m methods.wgan_64_regularised --lecam 0.3

is wgan_64_transferlearning.py with the terms of five papers, each with a weight that is 0 unless given, and
with an augmentation that adapts itself. --G 0 0 5 --D 0 0 5 leaves the holding to them alone. Writes samples
and checkpoints to a new folder in target_domain/.
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
    G: Plan = Split(1, 2, 2)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(1, 2, 2)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    iterations: int = 1_000  # generator updates; the dissertation's 20,000 is one flag away
    batch_size: int = 16  # images a step, real and generated each
    critic_steps: int = 5  # critic updates before each generator update
    learning_rate: float = 2e-4  # of RMSprop, for both networks
    clip: float = 0.01  # the critic's effective kernels stay in [-clip, clip]
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    l2_sp: float = 0.0  # weight of: the distance of learning tensors from the source's, both networks
    distillation: float = 0.0  # ... the critic's features of real images from the source's (FreezeD)
    ewc: float = 0.0  # ... the same distance weighed by Fisher information, the generator (EWC)
    consistency: float = 0.0  # ... which latents are alike to the generator and to the source's (CDC)
    lecam: float = 0.0  # ... the critic's scores from the other side's average (LeCam)
    adapt: int = 0  # images set aside to see overfitting by, which then decides how often to augment
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

from transfer.augment import Adaptive, Augment
from transfer.engine import captured, choose_device, tune
from transfer.images import Images
from transfer.plan import table
from transfer.record import Run
from transfer.regularisers import EWC, L2SP, DistanceConsistency, Distillation, LeCam
from transfer.weights import Average, Source, carry, clip_, learning, set_clip
from wgan_64 import Discriminator, Generator


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

    training, aside = images.apart(settings.adapt)
    augment = Augment(settings.augment)
    if settings.adapt:
        augment = Adaptive(augment, aside)
    near_G, near_D = (L2SP(settings.l2_sp, network) for network in (G, D))
    consolidated = EWC(settings.ewc, G, D)
    distilled = Distillation(settings.distillation, D, training)
    consistent = DistanceConsistency(settings.consistency, G)
    lecam = LeCam(settings.lecam, device)
    average = Average(G, settings.ema_decay)
    rmsprop = partial(torch.optim.RMSprop, lr=settings.learning_rate, capturable=device.type == "cuda")
    optimizer_G, optimizer_D = (rmsprop([{"params": learning(network)}]) for network in (G, D))
    parts = {"G": G, "D": D, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    parts |= {"lecam": lecam, "augment": augment} if settings.adapt else {"lecam": lecam}
    tune(G, D, iterations=settings.iterations, fast=settings.fast)
    run = Run(settings, __file__, images, parts, title=f"G{settings.G.digits}-D{settings.D.digits}")

    def critic_step():
        with torch.no_grad():
            fake = G(torch.randn(settings.batch_size, source.latent, device=device))
        real, fake = D(augment.real(training.batch(settings.batch_size))), D(augment.fake(fake))
        estimate = real.mean() - fake.mean()
        loss = -estimate + near_D() + distilled(settings.batch_size) + lecam(real, fake)
        optimizer_D.zero_grad()
        loss.backward(inputs=learning(D))
        optimizer_D.step()
        clip_(D, settings.clip)
        if settings.adapt:
            augment.update(D, real, fake)
        return estimate.detach()

    def generator_step():
        z = torch.randn(settings.batch_size, source.latent, device=device)
        loss = -D(augment.fake(G(z))).mean() + near_G() + consolidated() + consistent(z)
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
