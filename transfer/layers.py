"""The layers: a kernel or a batch normalisation under a policy, applied by torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transfer.policies import FINETUNE, Policy


class Kernel(nn.Module):
    """A kernel W under a policy, with the tensors that the policy puts beside it.

    The state is `weight`, in torch's layout, with the policy's tensors (gamma and beta, say) beside it, and
    where asked for a `bias` (C_out,), which learns when the weight does. What does not learn requires no
    gradient, so autograd computes none for it and stops below the lowest layer that learns. Initialised as
    DCGAN is: weight from N(0, 0.02^2) (Radford et al. 2016, section 4).

    Attributes:
        convolve: (x, kernel, shift or None, stride, padding) -> y; the engine may replace it.
        constraint: what the effective kernel is brought into wherever it is computed, such as the clip.
    """

    out_axis: int  # the axis of the weight that counts output channels

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        stride: int,
        padding: int,
        policy: Policy = FINETUNE,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.policy, self.stride, self.padding = policy, stride, padding
        shape = (c_out, c_in, size, size) if self.out_axis == 0 else (c_in, c_out, size, size)
        self.constraint: Callable[[Tensor], Tensor] | None = None
        self.weight = nn.Parameter(torch.randn(shape) * 0.02, requires_grad="weight" in policy.learns)
        for name, own in policy.shapes(shape, self.out_axis).items():
            setattr(self, name, nn.Parameter(torch.empty(own)))
        self.start()
        channels = torch.zeros(shape[self.out_axis])
        self.bias = nn.Parameter(channels, requires_grad=self.weight.requires_grad) if bias else None

    @torch.no_grad()
    def start(self) -> None:
        """Bring the policy's tensors to where the effective kernel is the weight."""
        self.policy.start(self)

    def kernel(self) -> Tensor:
        """The effective kernel, of the weight's shape: what the convolution is done with."""
        kernel = self.policy.kernel(self)
        return kernel if self.constraint is None else self.constraint(kernel)

    def shift(self) -> Tensor | None:
        """What is added to the output, (C_out,), or None: the layer's own bias and what the policy adds."""
        added = self.policy.bias(self)
        return self.bias if added is None else added if self.bias is None else self.bias + added

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.kernel(), self.shift(), self.stride, self.padding)

    def under(self, policy: Policy) -> Kernel:
        """A layer of the same shape under another policy, from random numbers."""
        first, second, size, _ = self.weight.shape
        sizes = (second, first) if self.out_axis == 0 else (first, second)
        return type(self)(*sizes, size, self.stride, self.padding, policy, self.bias is not None)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride {self.stride}, padding {self.padding}, {self.policy.name}"


class Conv(Kernel):
    """x (N, C_in, H, W) -> (N, C_out, H', W'), by a kernel (C_out, C_in, k, k) under a policy.

    With k = 4 on a 4 x 4 map and one output channel this is a fully connected layer, H' = W' = 1.
    """

    out_axis = 0

    def __init__(self, *sizes: Any, **more: Any) -> None:
        super().__init__(*sizes, **more)
        self.convolve, self.convolve_back = F.conv2d, F.conv_transpose2d

    def transposed(self, y: Tensor) -> Tensor:
        """forward's gradient: the output's gradient (N, C_out, H', W') -> the input's (N, C_in, H, W)."""
        return self.convolve_back(y, self.kernel(), None, self.stride, self.padding)


class ConvUp(Kernel):
    """x (N, C_in, H, W) -> (N, C_out, H', W'), transposed, by a kernel (C_in, C_out, k, k) under a policy."""

    out_axis = 1

    def __init__(self, *sizes: Any, **more: Any) -> None:
        super().__init__(*sizes, **more)
        self.convolve = F.conv_transpose2d


class Norm(nn.BatchNorm2d):
    """Batch normalisation of x (N, C, H, W) in a layer under a policy.

    Its scale and shift learn where anything of the layer learns. In a frozen layer they stay, and the
    policy's `norm` decides what x is normalised with: the statistics of the batch, as during pre-training, or
    the source's running statistics, which makes the layer a fixed function. Initialised as DCGAN is: scale
    from N(1, 0.02^2).
    """

    def __init__(self, channels: int, policy: Policy = FINETUNE) -> None:
        super().__init__(channels)
        nn.init.normal_(self.weight, 1.0, 0.02)
        self.requires_grad_(bool(policy.learns))
        self.policy = policy
        self.fixed = not policy.learns and policy.norm == "source"
        self.train()

    def train(self, mode: bool = True) -> Norm:
        return super().train(mode and not self.fixed)
