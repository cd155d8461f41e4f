"""Carry a pre-trained WGAN over to a few images: a GAN of their codes (Mind2Mind, Frégier and Gouray 2021).

    python -m methods.mind2mind --images train_images/target_domain

first makes an autoencoder of the source: the pre-trained generator is its decoder, and the pre-trained
critic, with a code in place of a score, its encoder. Then the few images are coded, and a small GAN of two
fully connected networks learns to generate codes; decoded they are images. Writes samples and checkpoints to
a new folder in target_domain/.

    python -m methods.mind2mind --source None --source-images MNIST --images NOTMNIST --size 32 --channels 1

is the paper's own way: an autoencoder from nothing.
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

    source: Path | None = Path("pretrained_model/wgan_64.safetensors")  # None: an autoencoder from nothing
    source_images: Path | None = (
        None  # what the autoencoder learns on; the source's own samples, unless given
    )
    images: Path = Path("train_images/target_domain")  # the target domain: a folder or a zip
    autoencoder: Count = 500  # iterations of the autoencoder, which come first
    iterations: Count = 2_000  # of both: the autoencoder's, then updates of the generator of codes
    batch_size: Batch = 16  # images a step, real and generated each
    critic_steps: Count = 5  # critic updates before each generator update
    learning_rate: Positive = 1e-4  # of Adam, for all networks
    penalty: Positive = 10.0  # weight of the gradient penalty of the critic of codes
    hidden: Count = 512  # width of the generator and the critic of codes
    latent: Count = 100  # numbers a latent z and a code; this and the next three without a source
    width: Count = 64  # channels of the layer next to the image
    size: Size = 64  # pixels, of an image's side
    channels: Channels = 3  # of an image: 1 is grey
    augment: Augmentation = "flip"  # of the images that are coded
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

import copy
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

import wgan_64
from fid import scorer
from transfer import UserError
from transfer.augment import Augment
from transfer.engine import captured, choose_device, tune
from transfer.images import Images
from transfer.layers import Conv
from transfer.plan import table
from transfer.record import Run
from transfer.shared import Source, carry
from transfer.weights import Average


class Generator(wgan_64.Generator):
    """z (N, latent) -> the decoder's images (N, channels, size, size) of codes (N, latent) made of z."""

    def __init__(self, latent=100, width=64, hidden=512, **shape):
        super().__init__(latent, width, **shape)
        self.arguments["hidden"] = hidden
        self.mapping = perceptron(latent, hidden, hidden, latent)

    decode = wgan_64.Generator.forward

    def forward(self, z):
        return self.decode(self.mapping(z))


class Encoder(wgan_64.Discriminator):
    """x (N, channels, size, size) -> codes (N, latent): the critic with a code in place of its score."""

    def __init__(self, latent=100, width=64, **shape):
        super().__init__(width, **shape)
        self.latent = latent
        self.conv5 = Conv(8 * width, latent, self.arguments["size"] // 16, 1, 0)

    def forward(self, x):
        return super().forward(x).view(len(x), self.latent)


def perceptron(*sizes):
    """Linear layers of these sizes, ReLUs between them."""
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def gradient_penalty(critic, real, fake):
    """mean (|gradient of the critic at c| - 1)^2 over codes c between real and fake, each on its own line."""
    c = torch.lerp(real, fake, torch.rand(len(real), 1, device=real.device)).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(c).sum(), c, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


def main(settings: Settings) -> Path | None:
    """Train, and return the run's folder; None after a dry run."""
    check(settings)
    device = choose_device(settings.device)
    torch.manual_seed(settings.seed)
    source = None if settings.source is None else Source.read(settings.source)
    if source is None and settings.source_images is None:
        raise UserError("without a source an autoencoder has nothing to learn on: give --source-images")
    start = settings if source is None else source
    latent, width = start.latent, start.width
    shape = {"size": settings.size, "channels": settings.channels} if source is None else source.shape
    G = Generator(latent, width, settings.hidden, **shape)
    encoder = Encoder(latent, width, **shape)
    if source is not None:
        carry(G, source, "G")
        carry(encoder, source, "D", anew=["conv5"])  # which stays random: a code is no score
    G, encoder = (network.to(device, memory_format=torch.channels_last) for network in (G, encoder))
    critic = perceptron(latent, settings.hidden, settings.hidden, 1).to(device)
    images = Images.load(settings.images, device, **shape).hold_out(settings.hold_out, settings.seed)
    faces = settings.source_images and Images.load(settings.source_images, device, **shape)
    print(f"{images} in {settings.images}, coded after {settings.autoencoder} iterations, on {device}")
    if settings.dry_run:
        return print(table(G=G, E=encoder))

    augment = Augment(settings.augment)
    average = Average(G, settings.ema_decay)
    original = copy.deepcopy(average.network)
    adam = partial(torch.optim.Adam, lr=settings.learning_rate, capturable=device.type == "cuda")
    decoder = [parameter for name, parameter in G.named_parameters() if not name.startswith("mapping.")]
    optimizer = adam([*encoder.parameters(), *decoder])
    optimizer_G, optimizer_D = (
        adam(network.parameters(), betas=(0.0, 0.9)) for network in (G.mapping, critic)
    )
    parts = {"G": G, "D": critic, "encoder": encoder, "average": average, "optimizer": optimizer}
    parts |= {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    encode, _ = tune(encoder, G, iterations=settings.iterations, fast=settings.fast)
    run = Run(settings, __file__, images, parts, score=scorer(settings, images))

    def latents():
        return torch.randn(settings.batch_size, latent, device=device)

    def autoencoder_step():
        with torch.no_grad():
            x = faces.batch(settings.batch_size) if faces else original.decode(latents())
        loss = F.mse_loss(G.decode(encode(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"reconstruction": loss.detach()}

    def critic_step():
        with torch.no_grad():
            if codes is None:
                real = encode(augment.real(images.batch(settings.batch_size)))
            else:
                real = codes[images.draw(settings.batch_size)]
            fake = G.mapping(latents())
        estimate = critic(real).mean() - critic(fake).mean()
        loss = settings.penalty * gradient_penalty(critic, real, fake) - estimate
        optimizer_D.zero_grad()
        loss.backward()
        optimizer_D.step()
        return estimate.detach()

    def code_step():
        for _ in range(settings.critic_steps):
            wasserstein = critic_step()
        loss = -critic(G.mapping(latents())).mean()
        optimizer_G.zero_grad()
        loss.backward(inputs=list(G.mapping.parameters()))
        optimizer_G.step()
        return {"wasserstein": wasserstein, "generator": loss.detach()}

    @torch.no_grad()
    def coded():
        return torch.cat([encode(images.at(slice(n, n + 64))) for n in range(0, len(images), 64)])

    codes = None  # of all images, where each has one
    first, then = (captured(step, device, settings.fast) for step in (autoencoder_step, code_step))
    for step in run.steps():
        coding = step <= settings.autoencoder
        encoder.train(coding)  # what the codes mean stays, once they are learnt from
        if not coding and codes is None and settings.augment == "none":
            codes = coded()
        losses = first() if coding else then()
        average.update(G, step)
        run.losses(**losses)
    return run.folder


if __name__ == "__main__":
    with user_errors():
        main(settings)
