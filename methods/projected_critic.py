"""A critic that sees: heads on a frozen pre-trained network beside WGAN's critic (Sauer et al. 2021).

    python -m methods.projected_critic --images train_images/target_domain

Small critics, the heads, look at the features of a network that knows photographs; the source's own critic,
under its plan, looks at the pixels as in the other scripts. The generator learns from both in equal parts.
With a source (the default) generator and critic are carried over under their plans, and heads that the source
has with them. Without one it pre-trains, with WGAN's own five steps of the critic of pixels:

    python -m methods.projected_critic --source None --images train_images/source_domain --augment flip \\
        --critic-steps 5 --critic-learning-rate 5e-5 --learning-rate 2e-4 --rest 0 --closer 0 --drift 0

Writes samples and checkpoints to a new folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from transfer.plan import Plan, Split
from transfer.policies import FrozenNorm, Rescale
from transfer.settings import (
    Augmentation,
    Batch,
    Before,
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

    source: Path | None = Path("pretrained_model/projected_64.safetensors")  # None: from random numbers
    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    G: Plan = Split(0, 0, 5)  # G(i, j, k): freeze the last i layers, rescale j, fine-tune the first k
    D: Plan = Split(2, 0, 3)  # D(i, j, k): freeze the first i layers, rescale j, fine-tune the last k
    rescale: Rescale = "adafm"  # the policy of the rescaled layers
    frozen_norm: FrozenNorm = "source"  # frozen layers use the source's statistics or the batch's
    features: Extractor | Literal["vgg16"] = "efficientnet_lite1"  # what the heads see through; never a judge
    stretch: Count = 128  # pixels that images are stretched to before that network ...
    closer: Annotated[Whole, Before(0)] = 192  # ... and, after the blur, while heads lose over rest; 0: never
    channels: Count = 128  # of the heads
    iterations: Annotated[Count, Before(2_000)] = 3_000  # generator updates
    batch_size: Batch = 16  # images a step, real and generated each
    critic_steps: Count = 2  # updates of the critic of pixels before each generator update; of the heads one
    learning_rate: Positive = 4e-4  # of Adam, for the generator and the heads
    critic_learning_rate: Positive = 2e-4  # of RMSprop, for the critic of pixels
    clip: Positive = 0.01  # the effective kernels of the critic of pixels stay in [-clip, clip]
    lecam: Weight = 0.3  # weight of: each head's scores held to the other side's average (LeCam)
    blur: Weight = 2.0  # standard deviation in pixels of what the critics see, at the beginning ...
    fade: Count = 300  # ... and the iteration at which it is gone
    drift: Annotated[Weight, Before(0.0)] = 0.3  # pull to real features, in parts of the heads'; at first 1
    rest: Annotated[Weight, Before(0.0)] = 0.6  # heads that lose less rest; who knows nothing loses 1
    pixels: Weight = 1.0  # gradient from the critic of pixels, in parts of that from the heads
    keep_heads: bool = True  # the source's heads go on, where it has them
    spread: bool = False  # heads see how far the images of a batch differ, too
    augment: Augmentation = "diffaugment"  # flip, slight and strong change the real images alone
    ema_decay: Decay = 0.999  # of the generator's moving average, which is what is sampled
    latent: Count = 100  # numbers a latent z, without a source
    width: Count = 64  # channels of the layer next to the image, without a source
    seed: Seed = 0
    device: str | None = None  # cuda or mps where there is such a GPU, else cpu
    fast: bool = True  # bf16, compiled kernels, CUDA graphs: what suits the device; else plain float32
    out: Path = Path("target_domain")  # where the run's folder is made
    log_every: Count = 50
    sample_every: Count = 100
    save_every: Count = 250
    score_every: Whole = 0  # scores every so many iterations and at the end; 0 for none
    reference: Path | None = None  # held-out images, which are scored against and never trained on
    hold_out: Share = 0.0  # share of the images, 0 to 0.5, that is set aside for scores and never trained on
    extractor: Extractor = "efficientnet_lite0"  # of the scores
    resume: Path | None = None  # a run's folder to go on with, or latest
    dry_run: bool = False  # print the plan, and stop


if __name__ == "__main__":
    settings = command_line(Settings)  # before torch is loaded, so that a wrong value is answered at once

import copy
import math
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fid import load, scorer
from transfer import UserError
from transfer.augment import SHARP, Augment, blurred
from transfer.engine import bf16_on, captured, choose_device, tune
from transfer.images import Images
from transfer.layers import Conv
from transfer.plan import table
from transfer.policies import FINETUNE
from transfer.record import Run
from transfer.regularisers import Balance, Drift, LeCam
from transfer.shared import Source, carry
from transfer.weights import Average, Clip, check_learning, learning, optimizer
from wgan_64 import Discriminator, Generator

TINY = 1e-6  # a variance of 0 would have no gradient of its root
FROM_NOTHING = 5  # critic steps that a run without a source takes: WGAN's own
COARSE = 16  # pixels between the places of a map from which on features drift
DECIDE = 50  # iterations after which it is decided anew whether heads look closer
WON = 0.1  # share of what heads lose that know nothing: below it a warning says that they have won


class Spectral(nn.Module):
    """A kernel (C_out, ...) over its largest singular value (Miyato et al. 2018); one iteration a call."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))

    def forward(self, kernel):
        W = kernel.movedim(1, -1).flatten(1)  # in the order of the memory, so that nothing is copied
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


class Head(nn.Module):
    """A map of features (N, C, side, side) -> scores, one for each place of a map of some 4 x 4.

    With spread a place's score also depends on how far the N images differ there: the standard deviation of
    each channel over the batch, times a number that is learnt. It starts at 0, where it changes nothing.
    (Karras et al. 2018, section 3, add one mean of all deviations as a further channel instead.)
    """

    def __init__(self, c_in, side, channels, spread=False):
        super().__init__()
        # A fixed random mixture of the channels, so that no few of them decide (Sauer et al. 2021, 3.2).
        self.register_buffer("mix", torch.randn(channels, c_in, 1, 1) / math.sqrt(c_in))
        halvings = int(math.log2(side / 4))
        self.convs = nn.ModuleList(normalised(channels, channels, 4, 2, 1) for _ in range(halvings))
        self.last = normalised(channels, 1, 3, 1, 1)
        self.register_parameter("spread", nn.Parameter(torch.zeros(channels)) if spread else None)

    def forward(self, x):
        x = F.conv2d(x, self.mix)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        scores = self.last(x).flatten(1)
        if self.spread is None:
            return scores
        return scores + self.spread @ (x.float().var(0, unbiased=False) + TINY).sqrt().flatten(1)


def coarse(maps, stretch):
    """Of maps (N, C, side, side), from fine to coarse, the last of each side from a stride of 4 on."""
    last = {each.shape[-1]: each for each in maps}
    return [each for side, each in last.items() if 4 * side <= stretch]


class Heads(nn.ModuleList):
    """A head for each map of features."""

    def forward(self, maps):
        return [head(x) for head, x in zip(self, maps, strict=True)]

    def carry(self, tensors):
        """Go on from another run's heads, whether they had a spread or not; without one it starts anew."""
        own = {key: tensor for key, tensor in self.state_dict().items() if key.endswith(".spread")}
        others = {key: tensor for key, tensor in tensors.items() if not key.endswith(".spread") or key in own}
        self.load_state_dict(own | others)


def step_unless(rests, optimizer):
    """A step of a fused optimizer, which changes nothing where rests, a tensor (), is true."""
    optimizer.found_inf = rests.float()  # by which a gradient scaler keeps infinite gradients out
    optimizer.step()


class Sight:
    """What the heads look at: images x (N, 3, H, W) -> the frozen network's maps (N, C, side, side).

    Attributes:
        shapes: those of one image's maps.
        bf16: the network is rounded, and the heads compute in bf16.
    """

    def __init__(self, settings, device):
        network = load(settings.features, device=str(device))
        self.bf16 = settings.fast and bf16_on(device)
        if self.bf16:  # what is frozen is rounded once
            network = replace(network, parts=tuple(copy.deepcopy(part).bfloat16() for part in network.parts))
        self.network, self.stretch = network, settings.stretch
        with torch.no_grad():
            self.shapes = [each.shape for each in self(torch.zeros(1, 3, 64, 64, device=device))]

    def __call__(self, x, size=None):
        size = size or self.stretch
        return coarse(self.network.maps(x, size), size)


class Look(nn.Module):
    """How large the heads look at images, in pixels: closer while they are behind the generator.

    That is while they lose more than rest: a running average decides, every DECIDE iterations. Heads that are
    ahead would get further ahead.
    """

    def __init__(self, settings, device):
        super().__init__()
        if 0 < settings.closer <= settings.stretch:
            raise UserError(
                f"--closer {settings.closer} is not larger than --stretch {settings.stretch}: give more, or 0"
            )
        self.rest, self.sizes = settings.rest, (settings.stretch, settings.closer or settings.stretch)
        self.register_buffer("share", torch.ones((), device=device))  # what heads lose
        self.register_buffer("behind", torch.zeros((), dtype=torch.bool))  # on the CPU, which reads it

    def forward(self, step, sigma):
        """The size in iteration step, from 1 on, under a blur of sigma pixels."""
        if step % DECIDE == 1 and len(set(self.sizes)) > 1:  # which a GPU waits for
            self.behind.copy_(self.share > self.rest)
        return self.sizes[bool(self.behind) and sigma < SHARP]

    def update(self, share):
        """Take up what heads lost in an iteration: (), where 1 is the loss of heads that know nothing."""
        self.share.lerp_(share, 1 / DECIDE)


def networks(settings, source, shapes, device):
    """The generator, the critic of pixels, and a head for each shape, with what the source has of each."""
    latent, width, norm = (
        (settings.latent, settings.width, True)
        if source is None
        else (source.latent, source.width, source.norm)
    )
    policies_G = policies_D = 5 * (FINETUNE,)
    if source is not None:
        policies_G = settings.G.generator(settings.rescale, settings.frozen_norm)
        policies_D = settings.D.discriminator(settings.rescale, settings.frozen_norm)
    G = Generator(latent, width, policies_G)
    D = Discriminator(width, policies_D, norm)
    heads = Heads(Head(shape[1], shape[2], settings.channels, settings.spread) for shape in shapes)
    if source is not None:
        carry(G, source, "G")
        carry(D, source, "D")
        if settings.keep_heads and source.heads:
            heads.carry(source.heads)
    check_learning(G)
    return [part.to(device, memory_format=torch.channels_last) for part in (G, D, heads)]


def optimizers(settings, G, D, heads, device):
    """One for each of these: Adam without momentum, RMSprop for the critic of pixels."""
    moments = {"betas": (0.0, 0.99), "capturable": device.type == "cuda"}
    optimizer_G, optimizer_heads = (
        torch.optim.Adam(learning(each), settings.learning_rate, fused=True, **moments) for each in (G, heads)
    )
    optimizer_D = optimizer("rmsprop", D, settings.critic_learning_rate)
    return {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D, "optimizer_heads": optimizer_heads}


def lesson(
    settings, images, sight, generate, judge, clip,
    *, G, D, heads, lecam, balance, optimizer_G, optimizer_D, optimizer_heads, drifts=(),
):  # fmt: skip
    """An iteration, blur in pixels -> losses: critic and heads learn from images, G from both of them."""
    device, augment = images.pixels.device, Augment(settings.augment)

    def shown(sigma):
        """A batch of real and one of generated images as the critics are to see them."""
        real = augment.real(images.batch(settings.batch_size))
        fake = augment.fake(generate(torch.randn(settings.batch_size, G.arguments["latent"], device=device)))
        return blurred(real, sigma), blurred(fake, sigma)

    def scores(features):
        with torch.autocast(device.type, torch.bfloat16, enabled=sight.bf16):
            return [each.float() for each in heads(features)]

    def critic_step(real, fake):
        estimate = judge(real).mean() - judge(fake).mean()
        optimizer_D.zero_grad()
        (-estimate).backward(inputs=learning(D))
        optimizer_D.step()
        clip()
        return estimate.detach()

    def heads_step(real_maps, fake_maps):
        """Hinge loss, as a share of what heads lose that know nothing; then their scores of the fakes."""
        on_real, on_fake = scores(real_maps), scores(fake_maps)
        hinge = sum(
            F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(on_real, on_fake, strict=True)
        )
        held = sum(term(a, b) for term, a, b in zip(lecam, on_real, on_fake, strict=True))
        share = hinge.detach() / (2 * len(on_real))
        rests = share <= settings.rest  # so that they do not run away from the generator
        if device.type == "cpu" and rests:  # elsewhere reading it would cost more than the backward pass
            return share, on_fake
        optimizer_heads.zero_grad()
        (hinge + held).backward(inputs=learning(heads))
        step_unless(rests, optimizer_heads)
        return share, scores(fake_maps)

    def iteration(sigma, size=None):
        if learning(D):
            for _ in range(settings.critic_steps - 1):
                with torch.no_grad():
                    real, fake = shown(sigma)
                critic_step(real, fake)
        real, fake = shown(sigma)
        seen = fake.detach().requires_grad_()
        wasserstein = critic_step(real, seen.detach()) if learning(D) else torch.zeros((), device=device)
        with torch.no_grad():
            real_maps = sight(real, size)
        maps = sight(seen, size)
        leaves = [each.detach().requires_grad_() for each in maps]
        share, on_fake = heads_step(real_maps, leaves)
        loss = -sum(each.mean() for each in on_fake)
        slopes = list(torch.autograd.grad(loss, leaves))
        for at, drift in enumerate(drifts, start=-len(drifts)):  # the coarsest maps come last
            weight = settings.drift if sigma < SHARP else max(1.0, settings.drift)
            slopes[at] = drift(real_maps[at], leaves[at], slopes[at], weight)
        (from_heads,) = torch.autograd.grad(maps, seen, slopes)
        (from_pixels,) = torch.autograd.grad(-judge(seen).mean(), seen)
        optimizer_G.zero_grad()
        fake.backward(balance(from_heads, from_pixels, settings.pixels), inputs=learning(G))
        optimizer_G.step()
        return {"heads": share, "wasserstein": wasserstein, "generator": loss.detach()}

    return iteration


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = None if settings.source is None else Source.read(settings.source)
    sight, look = Sight(settings, device), Look(settings, device)
    G, D, heads = networks(settings, source, sight.shapes, device)
    clip = Clip(D, settings.clip, carried=source is not None)
    images = Images.load(settings.images, device).hold_out(settings.hold_out, settings.seed)
    print(f"{images} in {settings.images}, G{settings.G} D{settings.D}, on {device}")
    if source is None and settings.critic_steps < FROM_NOTHING:
        print(f"from nothing, fewer than {FROM_NOTHING} critic steps once made one image of all latents")
    if settings.dry_run:
        return print(table(G=G, D=D))

    lecam = nn.ModuleList(LeCam(settings.lecam, device) for _ in heads)
    balance = Balance().to(device)
    coarsest = [shape for shape in sight.shapes if settings.drift and COARSE * shape[2] <= settings.stretch]
    drifts = nn.ModuleList(Drift(shape[1]) for shape in coarsest).to(device)
    average = Average(G, settings.ema_decay)
    learners = {"G": G, "D": D, "heads": heads, "lecam": lecam, "balance": balance}
    learners |= {"drifts": drifts} if settings.drift else {}
    learners |= optimizers(settings, G, D, heads, device)
    generate, judge = tune(G, D, iterations=settings.iterations, fast=settings.fast)
    digits = "" if source is None else f"G{settings.G.digits}-D{settings.D.digits}"
    score = scorer(settings, images, seen=(settings.features,))
    parts = learners | {"average": average} | ({"look": look} if settings.closer else {})
    run = Run(settings, __file__, images, parts, title=digits, score=score)
    iteration = lesson(settings, images, sight, generate, judge, clip, **learners)
    # One graph has one blur, and one size.
    sharp = {size: captured(partial(iteration, 0.0, size), device, settings.fast) for size in look.sizes}
    for step in run.steps():
        sigma = settings.blur * max(0.0, 1 - step / settings.fade)
        size = look(step, sigma)
        losses = sharp[size]() if sigma < SHARP else iteration(sigma, size)
        look.update(losses["heads"])
        average.update(G, step)
        run.losses(**losses)
        if step % settings.log_every == 0 and losses["heads"] < WON:
            run.warn("the heads have won: the generator learns little from them; give a larger blur or lecam")
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
