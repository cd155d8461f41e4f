"""A critic that sees through a frozen pre-trained network, and the pixels besides (Sauer et al. 2021).

    python -m methods.projected_critic --images train_images/target_domain

Small critics, the heads, look at the maps of features of a network that knows photographs, and one more, a
discriminator as in wgan_64.py without batch normalisation, at the pixels; they share a hinge loss. With a
source (the default) generator and pixel critic are carried over under their plans, and heads that the source
has with them; with --source None it pre-trains. Writes samples and checkpoints to a new folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transfer.plan import Plan, Split
from transfer.policies import FrozenNorm, Rescale
from transfer.settings import (
    Augmentation,
    Batch,
    Count,
    Decay,
    Extractor,
    Positive,
    Weight,
    Whole,
    check,
    command_line,
    user_errors,
)


@dataclass(frozen=True)
class Settings:
    """Edit these constants, or override any of them on the command line."""

    source: Path | None = Path("pretrained_model/wgan_64.safetensors")  # None: from random numbers
    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    G: Plan = Split(0, 0, 5)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(0, 0, 5)  # D(i, j, k): of the pixel critic: freeze the first i, rescale j, fine-tune k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    features: Literal["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "vgg16"] = (
        "efficientnet_lite1"  # the network that the heads see through, which no score may come from
    )
    stretch: Count = 128  # pixels that images are stretched to before that network
    channels: Count = 128  # of the heads
    iterations: Count = 2_000  # generator updates
    batch_size: Batch = 16  # images a step, real and generated each
    learning_rate: Positive = 2e-4  # of Adam with betas 0 and 0.99, for all networks
    lecam: Weight = 0.3  # weight of: each critic's scores from the other side's average (LeCam)
    blur: Weight = 2.0  # standard deviation in pixels of what the critic sees, at the beginning ...
    fade: Count = 300  # ... and the iteration at which it is gone
    keep_heads: bool = True  # the source's heads and pixel critic go on, where it has them
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    ema_decay: Decay = 0.999  # of the generator's moving average, which is what is sampled
    latent: Count = 100  # numbers a latent z, without a source
    width: Count = 64  # channels of the layer next to the image, without a source
    seed: Whole = 0
    device: str | None = None  # cuda where there is a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels: what suits the device; else plain float32
    out: Path = Path("target_domain")  # where the run's folder is made
    log_every: Count = 50
    sample_every: Count = 100
    save_every: Count = 250
    score_every: Whole = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    extractor: Extractor = "efficientnet_lite0"  # of the scores
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print the plan, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from fid import load, scorer
from transfer import UserError
from transfer.augment import Augment
from transfer.engine import bf16_on, choose_device, keep_pages
from transfer.images import Images
from transfer.layers import Conv
from transfer.plan import table
from transfer.policies import FINETUNE
from transfer.record import Run
from transfer.regularisers import LeCam
from transfer.shared import Source, carry
from transfer.weights import Average, check_learning, learning
from wgan_64 import Generator

WON = 0.1  # share of what critics lose that know nothing: below it a warning says that they have won


class Spectral(nn.Module):
    """A kernel (C_out, ...) over its largest singular value (Miyato et al. 2018); one iteration a call."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))

    def forward(self, kernel):
        W = kernel.flatten(1)
        with torch.autocast(W.device.type, enabled=False):
            with torch.no_grad():
                v = F.normalize(W.T @ self.u, dim=0)
                if self.training:
                    self.u.copy_(F.normalize(W @ v, dim=0))
                u = self.u.clone()
            return kernel / torch.dot(u, W @ v)


def normalised(*args, **kwargs):
    """A convolution with a bias, whose kernel is spectrally normalised."""
    conv = Conv(*args, bias=True, **kwargs)
    conv.constraint = Spectral(conv.weight.shape[0])
    return conv


class Discriminator(nn.Module):
    """x (N, 3, 64, 64) -> scores (N, 1), unbounded; a policy for each of the five layers."""

    def __init__(self, width=64, policies=5 * (FINETUNE,)):
        super().__init__()
        self.arguments = {"width": width}
        p1, p2, p3, p4, p5 = policies
        self.conv1 = normalised(3, width, 4, 2, 1, p1)
        self.conv2 = normalised(width, 2 * width, 4, 2, 1, p2)
        self.conv3 = normalised(2 * width, 4 * width, 4, 2, 1, p3)
        self.conv4 = normalised(4 * width, 8 * width, 4, 2, 1, p4)
        self.conv5 = normalised(8 * width, 1, 4, 1, 0, p5)  # fully connected

    def forward(self, x):
        x = F.leaky_relu(self.conv1(x), 0.2)  # N x 64 x 32 x 32
        x = F.leaky_relu(self.conv2(x), 0.2)  # N x 128 x 16 x 16
        x = F.leaky_relu(self.conv3(x), 0.2)  # N x 256 x 8 x 8
        x = F.leaky_relu(self.conv4(x), 0.2)  # N x 512 x 4 x 4
        return self.conv5(x).flatten(1)  # N x 1


class Head(nn.Module):
    """A map of features (N, C, side, side) -> scores (N, 16), one for each place of a 4 x 4 map."""

    def __init__(self, c_in, side, channels):
        super().__init__()
        # A fixed random mixture of the channels, so that no few of them decide (Sauer et al. 2021, 3.2).
        self.register_buffer("mix", torch.randn(channels, c_in, 1, 1) / math.sqrt(c_in))
        halvings = int(math.log2(side / 4))
        self.convs = nn.ModuleList(normalised(channels, channels, 4, 2, 1) for _ in range(halvings))
        self.last = normalised(channels, 1, 3, 1, 1)

    def forward(self, x):
        x = F.conv2d(x, self.mix)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return self.last(x).flatten(1)


class Heads(nn.ModuleList):
    """A head for each map of features."""

    def forward(self, maps):
        return [head(x) for head, x in zip(self, maps, strict=True)]


def blurred(x, sigma):
    """Images x (N, 3, H, W) under a Gaussian blur of sigma pixels."""
    if sigma < 0.1:
        return x
    reach = math.ceil(3 * sigma)
    line = torch.exp(-torch.arange(-reach, reach + 1, device=x.device).square() / (2 * sigma**2))
    line = (line / line.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), "replicate"), line, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), "replicate"), line.mT, groups=3)


class InFloat32(nn.Module):
    """A module of float32 between bf16: for what the CPU's bf16 backward pass is slow at."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x.float()).to(x.dtype)


def rounded(network):
    """A frozen network in bf16, but for what that is slow at: the gradient of depthwise steps of 2."""
    network.bfloat16()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.groups > 1 and child.stride[0] > 1:
                setattr(module, name, InFloat32(child.float()))
    return network


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = None if settings.source is None else Source.read(settings.source)
    latent, width = (settings.latent, settings.width) if source is None else (source.latent, source.width)
    policies_G = policies_D = 5 * (FINETUNE,)
    if source is not None:
        policies_G = settings.G.generator(settings.rescale, settings.frozen_norm)
        policies_D = settings.D.discriminator(settings.rescale, settings.frozen_norm)
    network = load(settings.features, device=str(device))
    bf16 = settings.fast and bf16_on(device)
    if bf16:  # what is frozen is rounded once
        network = replace(network, parts=tuple(rounded(copy.deepcopy(part)) for part in network.parts))
    with torch.no_grad():
        x = torch.zeros(1, 3, 64, 64, device=device, dtype=next(network.parts[0].parameters()).dtype)
        shapes = [each.shape for each in network.maps(x, settings.stretch)][1:]  # from stride 4 on
    G = Generator(latent, width, policies_G)
    D = Discriminator(width, policies_D)
    heads = Heads(Head(shape[1], shape[2], settings.channels) for shape in shapes)
    if source is not None:
        carry(G, source, "G")
    known = source is not None and settings.keep_heads and bool(source.heads)
    if source is not None and not known and set(policies_D) != {FINETUNE}:
        raise UserError(f"D is {settings.D}, and the critic of pixels is new here: give --D 0 0 5")
    if known:
        carry(D, source, "D")
        heads.load_state_dict(source.heads)
    check_learning(G)
    for part in (G, D, heads):
        part.to(device, memory_format=torch.channels_last)
    images = Images.load(settings.images, device)
    print(f"{images} in {settings.images}, on {device}{', bf16' if bf16 else ''}")
    if settings.dry_run:
        return print(table(G=G, D=D))

    if settings.fast and device.type == "cpu":
        keep_pages()
    augment = Augment(settings.augment)
    lecam = nn.ModuleList(LeCam(settings.lecam, device) for _ in range(len(heads) + 1))
    average = Average(G, settings.ema_decay)

    def adam(parameters):
        return torch.optim.Adam(parameters, settings.learning_rate, betas=(0.0, 0.99), fused=True)

    optimizer_G, optimizer_D = adam(learning(G)), adam([*learning(D), *learning(heads)])
    parts = {"G": G, "D": D, "heads": heads, "lecam": lecam, "average": average}
    parts |= {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    digits = "" if source is None else f"G{settings.G.digits}-D{settings.D.digits}"
    score = scorer(settings, images, seen=(settings.features,))
    run = Run(settings, __file__, images, parts, title=digits, score=score)

    def cast():
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    def maps(x):
        return network.maps(x.to(torch.bfloat16) if bf16 else x, settings.stretch)[1:]

    def scores(x, features):
        with cast():
            return [each.float() for each in (D(x), *heads(features))]

    def iteration(step):
        sigma = 0.0 if known else settings.blur * max(0.0, 1 - step / settings.fade)
        n = settings.batch_size
        real = blurred(augment.real(images.batch(n)), sigma)
        with cast():
            fake = G(torch.randn(n, latent, device=device)).float()
        fake = blurred(augment.fake(fake), sigma)
        with torch.no_grad():
            real_maps = maps(real)
        fake_maps = maps(fake)
        pairs = zip([real, *real_maps], [fake, *fake_maps], strict=True)
        x, *features = (torch.cat([a, b.detach()]) for a, b in pairs)
        on_real, on_fake = zip(*(each.chunk(2) for each in scores(x, features)), strict=True)
        hinge = sum(
            F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(on_real, on_fake, strict=True)
        )
        held = sum(term(a, b) for term, a, b in zip(lecam, on_real, on_fake, strict=True))
        optimizer_D.zero_grad()
        (hinge + held).backward()
        optimizer_D.step()
        loss = -sum(each.mean() for each in scores(fake, fake_maps))
        optimizer_G.zero_grad()
        loss.backward(inputs=learning(G))
        optimizer_G.step()
        share = hinge.detach() / (2 * len(on_real))  # of what critics lose that know nothing
        return {"critic": share, "generator": loss.detach()}

    for step in run.steps():
        losses = iteration(step)
        average.update(G, step)
        run.losses(**losses)
        if step % settings.log_every == 0 and losses["critic"] < WON:
            run.warn("the critic has won: the generator learns little from it; give a larger blur or lecam")
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
