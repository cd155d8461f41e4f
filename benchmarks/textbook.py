"""The references: a WGAN as the papers and PyTorch's own tutorials write it, eager and in float32, ...

... and the same loop as who knows PyTorch runs it: in bf16 autocast, channels last, compiled.

Fair: the images are decoded and in memory, fakes carry no gradient into the critic's step, the critic's
weights none in the generator's. Random numbers come in the order in which the scripts draw them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from transfer.images import Images


def generator(latent: int = 100, width: int = 64) -> nn.Sequential:
    """z (N, latent, 1, 1) -> images (N, 3, 64, 64) in [-1, 1]."""
    layers = [nn.ConvTranspose2d(latent, 8 * width, 4, bias=False), nn.BatchNorm2d(8 * width), nn.ReLU(True)]
    for c in (4 * width, 2 * width, width):
        layers += [nn.ConvTranspose2d(2 * c, c, 4, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())


def critic(width: int = 64, norm: bool = True) -> nn.Sequential:
    """x (N, 3, 64, 64) -> scores (N, 1, 1, 1); with biases where it has no normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=not norm), nn.LeakyReLU(0.2, True)]
    for c in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(c, 2 * c, 4, 2, 1, bias=not norm)]
        layers += [nn.BatchNorm2d(2 * c)] if norm else []
        layers += [nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, bias=False))


def loop(
    images: Images,
    G: nn.Module,
    D: nn.Module,
    rate: float,
    penalty: float | None,
    batch: int = 64,
    quick: bool = False,
) -> Callable[[], None]:
    """One iteration of WGAN with clipping or, given a penalty, of WGAN-GP: five critic steps, one of G.

    Args:
        quick: in bf16 autocast, channels last and compiled; torch.compile refuses a penalty.
    """
    latent, device = next(G.parameters()).shape[0], images.pixels.device
    if penalty is None:
        optimizer_D, optimizer_G = (torch.optim.RMSprop(each.parameters(), lr=rate) for each in (D, G))
    else:
        adam = {"lr": rate, "betas": (0.0, 0.9)}
        optimizer_D, optimizer_G = (torch.optim.Adam(each.parameters(), **adam) for each in (D, G))

    if quick:
        G, D = (torch.compile(each.to(memory_format=torch.channels_last), dynamic=False) for each in (G, D))
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=quick)

    def gradient_penalty(real: Tensor, fake: Tensor) -> Tensor:
        share = torch.rand(len(real), 1, 1, 1, device=device)
        x = (real + share * (fake - real)).requires_grad_()
        (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def iteration() -> None:
        for parameter in D.parameters():
            parameter.requires_grad_(True)
        for _ in range(5):
            real = images.batch(batch)
            with torch.no_grad(), autocast():
                fake = G(torch.randn(batch, latent, device=device).view(batch, latent, 1, 1))
            optimizer_D.zero_grad()
            with autocast():
                loss = D(fake).mean() - D(real).mean()
            if penalty is not None:
                loss = loss + penalty * gradient_penalty(real, fake)
            loss.backward()
            optimizer_D.step()
            if penalty is None:
                with torch.no_grad():
                    for parameter in D.parameters():
                        parameter.clamp_(-0.01, 0.01)
        for parameter in D.parameters():
            parameter.requires_grad_(False)
        optimizer_G.zero_grad()
        with autocast():
            loss = -D(G(torch.randn(batch, latent, device=device).view(batch, latent, 1, 1))).mean()
        loss.backward()
        optimizer_G.step()

    return iteration
