"""Carry a pre-trained WGAN over to a few images: terms of the loss hold it to its source (chapter 2).

    python -m methods.wgan_64_regularised --lecam 0.3

is wgan_64_transferlearning.py with the terms of five papers, each with a weight that is 0 unless given, and
with an augmentation that adapts itself. --G 0 0 5 --D 0 0 5 leaves the holding to them alone. Writes samples
and checkpoints to a new folder in target_domain/.
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
    Optimizer,
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
    G: Plan = Split(1, 2, 2)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(1, 2, 2)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    iterations: Count = 1_000  # generator updates; the dissertation's 20,000 is one flag away
    batch_size: Batch = 16  # images a step, real and generated each
    critic_steps: Count = 5  # critic updates before each generator update
    optimizer: Optimizer = "rmsprop"  # adam: its first steps corrected
    learning_rate: Positive = 2e-4  # of the optimizer, for both networks
    clip: Positive = 0.01  # the critic's effective kernels stay in [-clip, clip]
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    l2_sp: Weight = 0.0  # weight of: the distance of learning tensors from the source's, both networks
    distillation: Weight = 0.0  # ... the critic's features of real images from the source's (FreezeD)
    ewc: Weight = 0.0  # ... the same distance weighed by Fisher information, the generator (EWC)
    consistency: Weight = 0.0  # ... which latents are alike to the generator and to the source's (CDC)
    lecam: Weight = 0.0  # ... the critic's scores from the other side's average (LeCam)
    adapt: Whole = 0  # images set aside to see overfitting by, which then decides how often to augment
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

import torch

from fid import scorer
from transfer.augment import Adaptive, Augment
from transfer.engine import captured, choose_device, tune
from transfer.images import Images
from transfer.plan import table
from transfer.record import Run
from transfer.regularisers import EWC, L2SP, DistanceConsistency, Distillation, LeCam
from transfer.shared import Source, carry
from transfer.weights import Average, Clip, check_learning, learning, optimizer
from wgan_64 import Discriminator, Generator


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = Source.read(settings.source)
    policies_G = settings.G.generator(settings.rescale, settings.frozen_norm)
    policies_D = settings.D.discriminator(settings.rescale, settings.frozen_norm)
    G = Generator(source.latent, source.width, policies_G, **source.shape)
    D = Discriminator(source.width, policies_D, **source.shape)
    G, D = (network.to(device, memory_format=torch.channels_last) for network in (G, D))
    carry(G, source, "G")
    carry(D, source, "D")
    check_learning(G, D)
    clip = Clip(D, settings.clip, carried=True)
    images = Images.load(settings.images, device, **source.shape).hold_out(settings.hold_out, settings.seed)
    print(f"{images} in {settings.images}, G{settings.G} D{settings.D}, on {device}")
    if settings.dry_run:
        return print(table(G=G, D=D))

    training, aside = images.apart(settings.adapt)
    augment = Augment(settings.augment)
    if settings.adapt:
        augment = Adaptive(augment, aside)
    l2_sp_G, l2_sp_D = (L2SP(settings.l2_sp, network) for network in (G, D))
    ewc = EWC(settings.ewc, G, D)
    distillation = Distillation(settings.distillation, D, training)
    consistency = DistanceConsistency(settings.consistency, G)
    lecam = LeCam(settings.lecam, device)
    average = Average(G, settings.ema_decay)
    optimizer_G, optimizer_D = (
        optimizer(settings.optimizer, network, settings.learning_rate) for network in (G, D)
    )
    parts = {"G": G, "D": D, "average": average, "optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    parts |= {"lecam": lecam, "augment": augment} if settings.adapt else {"lecam": lecam}
    generate, judge = tune(G, D, iterations=settings.iterations, fast=settings.fast)
    plans = f"G{settings.G.digits}-D{settings.D.digits}"
    run = Run(settings, __file__, images, parts, plans, score=scorer(settings, images))

    def critic_step():
        with torch.no_grad():
            fake = generate(torch.randn(settings.batch_size, source.latent, device=device))
        real = judge(augment.real(training.batch(settings.batch_size)))
        fake = judge(augment.fake(fake))
        estimate = real.mean() - fake.mean()
        loss = -estimate + l2_sp_D() + distillation(settings.batch_size) + lecam(real, fake)
        if settings.adapt:
            augment.update(judge, real, fake)  # before the step, so that one critic has scored all three
        optimizer_D.zero_grad()
        loss.backward(inputs=learning(D))
        optimizer_D.step()
        clip()
        return estimate.detach()

    def generator_step():
        z = torch.randn(settings.batch_size, source.latent, device=device)
        loss = -judge(augment.fake(generate(z))).mean() + l2_sp_G() + ewc() + consistency(z)
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
        if settings.adapt:
            losses["augmented"] = augment.p  # the share of images that are
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
