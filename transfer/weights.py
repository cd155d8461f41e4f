"""The weights: what learns and how, the clip, the moving average."""

from __future__ import annotations

import copy
from decimal import ROUND_CEILING, Context
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from transfer import UserError
from transfer.layers import Kernel
from transfer.plan import layers_of
from transfer.settings import Optimizer


def learning(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that the network's plan lets learn; the optimizer gets these and no others."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def check_learning(*networks: nn.Module) -> None:
    """Refuse to train where nothing would learn.

    Raises:
        UserError: naming what to give.
    """
    if not any(map(learning, networks)):
        raise UserError(
            "nothing would learn under these plans: give a G or D with layers that do, as --G 3 0 2"
        )


def optimizer(
    name: Optimizer | Literal["wgan_gp"], network: nn.Module, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer of what learns in a network, with the moments of its loss's paper.

    rmsprop  WGAN's (Arjovsky et al. 2017). Its mean square starts at 0, so its first step is ten times the
             learning rate in every number, whatever the gradient.
    adam     The same with that corrected: Adam without momentum, betas 0 and 0.99 (Kingma and Ba 2015).
    wgan_gp  WGAN-GP's: Adam with betas 0 and 0.9 (Gulrajani et al. 2017).
    """
    groups = [{"params": learning(network)}]
    capturable = next(network.parameters()).is_cuda
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, learning_rate, capturable=capturable)
    betas = (0.0, 0.9 if name == "wgan_gp" else 0.99)
    return torch.optim.Adam(groups, learning_rate, betas=betas, capturable=capturable)


class Clip:
    """What a Wasserstein critic computes with stays in [-bound, bound] (Arjovsky et al. 2017, algorithm 1).

    A kernel that a policy modulates is clamped wherever it is computed. Called, which is after each step of
    the critic, it clamps the tensors that learn and stand for themselves: kernels, biases, normalisation, and
    of what modulates a kernel that which is no factor. NaN stays NaN.

    Args:
        carried: the critic is a source's, whose kernels must fit: frozen ones could never be brought in.

    Raises:
        UserError: when they do not; it names the bound that they fit.
    """

    def __init__(self, critic: nn.Module, bound: float, carried: bool = False) -> None:
        if carried:
            self.check(critic, bound)
        self.bound, self._clamped = bound, []
        for module in critic.modules():
            own, policy = dict(module.named_parameters(recurse=False)), getattr(module, "policy", None)
            if isinstance(module, Kernel) and policy.modulates:
                module.constraint = partial(torch.clamp, min=-bound, max=bound)
                self._clamped += [own[name] for name in policy.clamped]
            else:
                self._clamped += [parameter for parameter in own.values() if parameter.requires_grad]

    @staticmethod
    @torch.no_grad()
    def check(critic: nn.Module, bound: float) -> None:
        """Raise UserError when a kernel that is the source's is beyond the bound."""
        kernels = (layer.kernel for layer in layers_of(critic) if not layer.kernel.policy.fresh)
        largest = max((float(kernel.kernel().abs().max()) for kernel in kernels), default=0.0)
        if largest > bound:
            enough = Context(6, ROUND_CEILING).create_decimal_from_float(largest)
            raise UserError(
                f"clip is {bound}, and the source's critic has kernels up to {enough}: give at least that"
            )

    @torch.no_grad()
    def __call__(self) -> None:
        if self._clamped:
            torch._foreach_clamp_min_(self._clamped, -self.bound)
            torch._foreach_clamp_max_(self._clamped, self.bound)


class Average:
    """The exponential moving average of a generator: what is sampled and scored (Karras et al. 2018).

    After step t of training the decay is min(decay, (1 + t) / (10 + t)), so that the early averages are not
    grey with the random start. Running statistics are averaged like weights.
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(generator).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, generator: nn.Module, step: int) -> None:
        """Move towards the generator as it is after `step` updates, 1 after the first."""
        mine, its = _floats(self.network), _floats(generator)
        torch._foreach_lerp_(mine, its, 1 - min(self.decay, (1 + step) / (10 + step)))


def _floats(network: nn.Module) -> list[Tensor]:
    """Each once, also what several networks in one share."""
    tensors = (*network.parameters(), *network.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point()]
