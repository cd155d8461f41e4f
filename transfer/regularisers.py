"""The regularisers: terms of a loss that hold a network to its source or a critic back from overfitting."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer.engine import stages
from transfer.images import Images
from transfer.weights import learning


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
