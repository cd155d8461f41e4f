"""The regularisers: terms of a loss, and gradients beside it, that keep a network from going astray."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer.engine import stages
from transfer.images import Images
from transfer.weights import learning

FAR = 1e6  # a feature, or a distance, that is beyond all others
TINY = 1e-4  # a channel that is always the same has a deviation of 0


class Regulariser(nn.Module):
    """A term of a loss, times its weight. With weight 0 it is 0.0 and costs nothing, no random number either.

    To be made after the networks hold the source's tensors and before engine.tune: what a regulariser keeps
    of the source it copies then.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, *inputs: Any) -> Tensor | float:
        return self.weight * self.term(*inputs) if self.weight else 0.0

    def term(self, *inputs: Any) -> Tensor:
        """The term itself, a scalar."""
        raise NotImplementedError


class L2SP(Regulariser):
    """How far a network's learning tensors are from where they started (FreezeD, Mo et al. 2020, L2-SP).

    The sum over the tensors of their mean squared difference, so that a small tensor counts as a large one.
    """

    def __init__(self, weight: float, network: nn.Module) -> None:
        super().__init__(weight)
        if weight:
            self.tensors = learning(network)
            self.start = [tensor.detach().clone() for tensor in self.tensors]

    def term(self) -> Tensor:
        return sum(F.mse_loss(mine, its) for mine, its in zip(self.tensors, self.start, strict=True))


class EWC(Regulariser):
    """Elastic weight consolidation of the generator (Li et al. 2020): sum of F (theta - theta_source)^2.

    F, the Fisher information, is the mean square of each number's gradient of the source critic's score of a
    generated image, over `samples` images. A critic's scores have no scale, so F is divided by its mean.
    """

    def __init__(self, weight: float, G: nn.Module, D: nn.Module, samples: int = 64) -> None:
        super().__init__(weight)
        if weight:
            self.tensors = learning(G)
            self.start = [tensor.detach().clone() for tensor in self.tensors]
            self.fisher = fisher(G, D, samples) if self.tensors else []

    def term(self) -> Tensor:
        each = zip(self.fisher, self.tensors, self.start, strict=True)
        return sum((F * (mine - its).square()).sum() for F, mine, its in each)


def fisher(G: nn.Module, D: nn.Module, samples: int) -> list[Tensor]:
    """The Fisher information of what learns in G, with mean 1 over all of its numbers; see EWC.

    One image at a time, so normalisation uses the running statistics.
    """
    G, D = (copy.deepcopy(network).eval() for network in (G, D))
    tensors = learning(G)
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    for z in torch.randn(samples, 1, G.arguments["latent"], device=tensors[0].device):
        for total, gradient in zip(totals, torch.autograd.grad(D(G(z)).sum(), tensors), strict=True):
            total += gradient.square()
    mean = sum(total.sum() for total in totals) / sum(total.numel() for total in totals)
    return [total / mean for total in totals]


class Distillation(Regulariser):
    """How far the critic's features of real images are from the source critic's (FreezeD, Mo et al. 2020).

    The mean squared difference of what the first `layers` layers make of a batch of its own, not augmented.
    """

    def __init__(self, weight: float, D: nn.Module, images: Images, layers: int = 4) -> None:
        super().__init__(weight)
        if weight:
            self.images = images
            source = copy.deepcopy(D).requires_grad_(False)
            self.mine, self.its = (nn.Sequential(*stages(each)[:layers]) for each in (D, source))

    def term(self, n: int) -> Tensor:
        x = self.images.batch(n)
        return F.mse_loss(self.mine(x), self.its(x))


class DistanceConsistency(Regulariser):
    """How differently the two generators see which latents are alike (CDC, Ojha et al. 2021, equation 2).

    Latents come in fours. Each one's cosine similarities to the other three, of the activations of a layer,
    become a distribution (softmax). The term is p_source log(p_source / p_target), the mean over latents,
    others and hidden layers; the paper draws one layer for each latent.
    """

    GROUP = 4

    def __init__(self, weight: float, G: nn.Module) -> None:
        super().__init__(weight)
        if weight:
            source = copy.deepcopy(G).requires_grad_(False)
            self.mine, self.its = (nn.ModuleList(stages(each)[:-1]) for each in (G, source))

    def term(self, z: Tensor) -> Tensor:
        mine = its = z[: len(z) // self.GROUP * self.GROUP]
        terms = []
        for my_stage, its_stage in zip(self.mine, self.its, strict=True):
            mine, its = my_stage(mine), its_stage(its)
            terms.append(F.kl_div(self._likeness(mine).log(), self._likeness(its), reduction="none").mean())
        return torch.stack(terms).mean()

    def _likeness(self, activations: Tensor) -> Tensor:
        """(N, C, H, W) -> (N / 4, 4, 3): each row a distribution over the other three of its four."""
        x = F.normalize(activations.flatten(1).float(), dim=1).unflatten(0, (-1, self.GROUP))
        cosines, n = (x @ x.mT).flatten(1), self.GROUP
        # All but the diagonal. A mask would have a GPU tell how many that are.
        return cosines[:, 1:].unflatten(1, (n - 1, n + 1))[:, :, :n].reshape(-1, n, n - 1).softmax(2)


class LeCam(Regulariser):
    """The critic's scores held to the other side's moving average (LeCam, Tseng et al. 2021, equation 4).

    mean relu(D(real) - average fake)^2 + mean relu(average real - D(fake))^2. The averages are its state.
    """

    def __init__(self, weight: float, device: torch.device, decay: float = 0.99) -> None:
        super().__init__(weight)
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2, device=device))  # of the scores of real and fake
        self.register_buffer("updates", torch.zeros((), device=device))

    def term(self, real: Tensor, fake: Tensor) -> Tensor:
        now = torch.stack([real.detach().mean(), fake.detach().mean()])
        self.averages.lerp_(now, torch.where(self.updates == 0, 1.0, 1 - self.decay))
        self.updates += 1
        average_real, average_fake = self.averages.clone()
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()


class Balance(nn.Module):
    """Two gradients (N, ...) added as equals: the second is brought to the first one's size.

    By the running ratio of their norms, which is its state; so a critic that is unsure still counts less.
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("norms", torch.zeros(2))

    @torch.no_grad()
    def forward(self, one: Tensor, other: Tensor, weight: float) -> Tensor:
        now = torch.stack([one.norm(), other.norm()]).float()
        self.norms.lerp_(now, torch.where(self.norms == 0, 1.0, 1 - self.decay))
        return one + weight * self.norms[0] / self.norms[1].clamp(min=1e-12) * other


class Drift(nn.Module):
    """Features of generated images drawn to those of real ones, and pushed off each other (Deng et al. 2026).

    The drifting field of algorithm 2 there, beside a critic's gradient: what is nearest counts most, by a
    softmax over the others and one over the images of the batch, so that each real image draws some. Where
    both kinds are alike all of it cancels out. Features are maps (N, C, H, W) of `side` x `side` places, each
    channel over its deviation among real images. The newest `size` images of each kind take part: its state.
    """

    def __init__(self, channels: int, side: int = 4, size: int = 256, temperature: float = 0.02) -> None:
        super().__init__()
        self.balance, self.side, self.size = Balance(), side, size
        self.temperature = temperature  # of distances, in parts of their mean to real images
        places = (size, channels, side, side)
        self.register_buffer("real", torch.zeros(places))
        self.register_buffer("fake", torch.full(places, FAR))
        self.register_buffer("new", torch.ones((), dtype=torch.bool))

    def forward(self, real: Tensor, fake: Tensor, gradient: Tensor, weight: float) -> Tensor:
        """Maps of real and of generated images, and a critic's gradient at those of the generated ones.

        Returns:
            That gradient, with the field's added, which is brought to weight times its size. To be descended.
        """
        fake = fake.detach().float().requires_grad_()
        with torch.enable_grad():
            pooled = F.adaptive_avg_pool2d(fake, self.side)
        self._take_up(F.adaptive_avg_pool2d(real.float(), self.side), pooled.detach())
        (own,) = torch.autograd.grad(pooled, fake, -self.field(len(fake)))
        return self.balance(gradient, own.to(gradient.dtype), weight).to(gradient.dtype)

    @torch.no_grad()
    def _take_up(self, real: Tensor, fake: Tensor) -> None:
        """Keep a batch of each, (N, C, side, side); at first the real ones several times."""
        repeated = real.repeat(-(-self.size // len(real)), 1, 1, 1)[: self.size]
        self.real.copy_(torch.cat([real, torch.where(self.new, repeated, self.real)])[: self.size])
        self.fake.copy_(torch.cat([fake, self.fake])[: self.size])
        self.new.zero_()

    @torch.no_grad()
    def field(self, n: int) -> Tensor:
        """Which way the newest n generated images are to go: (n, C, side, side)."""
        # The deviation in steps: std takes five times as long.
        mean = self.real.mean(0, keepdim=True).mean((2, 3), keepdim=True)
        variance = (self.real - mean).square().mean(0, keepdim=True).mean((2, 3), keepdim=True)
        deviation = variance.sqrt() + TINY
        real, fake = ((each / deviation).flatten(1) for each in (self.real, self.fake))
        to_real, to_fake = torch.cdist(fake[:n], real), torch.cdist(fake[:n], fake)
        near = torch.cat([to_real, to_fake.fill_diagonal_(FAR)], 1) / -(self.temperature * to_real.mean())
        near_real, near_fake = (near.softmax(1) * near.softmax(0)).sqrt().split(self.size, 1)
        drawn = near_real * near_fake.sum(1, keepdim=True) @ real
        pushed = near_fake * near_real.sum(1, keepdim=True) @ fake
        return (drawn - pushed).view_as(self.fake[:n]) / deviation
