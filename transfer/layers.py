"""The layers: a kernel or a batch normalisation under a policy, applied by torch.nn.functional."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from transfer import winograd
from transfer.plan import FINETUNE, LAYERS, Policy


class _Kernel(nn.Module):
    """A kernel W under a policy, with the gamma and beta that the policy asks for.

    The state is `weight`, in torch's layout, with `gamma` and `beta` beside it under a policy that modulates,
    and where asked for a `bias` (C_out,), which learns when the weight does. What does not learn requires no
    gradient, so autograd computes none for it and stops below the lowest layer that learns. Initialised as
    DCGAN is: weight from N(0, 0.02^2) (Radford et al. 2016, section 4).
    """

    out_axis: int  # the axis of the weight that counts output channels

    def __init__(
        self, shape: tuple[int, ...], stride: int, padding: int, policy: Policy, bias: bool = False
    ) -> None:
        super().__init__()
        self.policy, self.stride, self.padding = policy, stride, padding
        self.bound: float | None = None  # of a modulated kernel in a critic; weights.set_clip sets it
        self.constraint: Callable[[Tensor], Tensor] | None = None  # of the effective kernel
        self.few_products = False  # whether transfer.winograd convolves; transfer.engine decides
        self.weight = nn.Parameter(torch.randn(shape) * 0.02, requires_grad="weight" in policy.learns)
        shapes = policy.modulation(shape, self.out_axis) if policy.modulation else (None, None)
        self.gamma, self.beta = (None if s is None else nn.Parameter(torch.empty(s)) for s in shapes)
        self.start()
        channels = torch.zeros(shape[self.out_axis])
        self.bias = nn.Parameter(channels, requires_grad=self.weight.requires_grad) if bias else None

    @torch.no_grad()
    def start(self) -> None:
        """Bring gamma and beta to where the effective kernel is the weight."""
        self.policy.start(self)

    def kernel(self) -> Tensor:
        """The effective kernel, of the weight's shape: what the convolution is done with."""
        kernel = self.policy.kernel(self)
        if self.constraint is not None:
            kernel = self.constraint(kernel)
        return kernel if self.bound is None else kernel.clamp(-self.bound, self.bound)

    def shift(self) -> Tensor | None:
        """What is added to the output, (C_out,), or None: the layer's own bias and what the policy adds."""
        added = self.policy.bias(self)
        return self.bias if added is None else added if self.bias is None else self.bias + added

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, stride {self.stride}, padding {self.padding}, {self.policy.name}"


class Conv(_Kernel):
    """x (N, C_in, H, W) -> (N, C_out, H', W'), by a kernel (C_out, C_in, k, k) under a policy.

    With k = 4 on a 4 x 4 map and one output channel this is a fully connected layer, H' = W' = 1.
    """

    out_axis = 0

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
        super().__init__((c_out, c_in, size, size), stride, padding, policy, bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.few_products:
            return _shifted(winograd.conv2d(x, self.kernel()), self.shift())
        return F.conv2d(x, self.kernel(), self.shift(), self.stride, self.padding)

    def transposed(self, y: Tensor) -> Tensor:
        """forward's gradient: the output's gradient (N, C_out, H', W') -> the input's (N, C_in, H, W)."""
        if self.few_products:
            return winograd.conv_transpose2d(y, self.kernel())
        return F.conv_transpose2d(y, self.kernel(), None, self.stride, self.padding)


class ConvUp(_Kernel):
    """x (N, C_in, H, W) -> (N, C_out, H', W'), transposed, by a kernel (C_in, C_out, k, k) under a policy."""

    out_axis = 1

    def __init__(
        self, c_in: int, c_out: int, size: int, stride: int, padding: int, policy: Policy = FINETUNE
    ) -> None:
        super().__init__((c_in, c_out, size, size), stride, padding, policy)

    def forward(self, x: Tensor) -> Tensor:
        if self.few_products:
            return _shifted(winograd.conv_transpose2d(x, self.kernel()), self.shift())
        return F.conv_transpose2d(x, self.kernel(), self.shift(), self.stride, self.padding)


def _shifted(x: Tensor, shift: Tensor | None) -> Tensor:
    return x if shift is None else x + shift[:, None, None]


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


class _Modules(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def stages(network: nn.Module) -> list[nn.Module]:
    """forward of a generator or a critic as one network for each layer, which share its tensors.

    Each but the first begins with its convolution and ends before the next one: one after the other they are
    forward.
    """
    graphs, copies = [fx.Graph()], {}
    begins = {f"conv{index}" for index in range(2, LAYERS + 1)}
    for node in _Modules().trace(network).nodes:
        if node.target in begins:
            (features,) = node.args
            graphs[-1].output(copies[features])
            graphs.append(fx.Graph())
            copies[features] = graphs[-1].placeholder("features")
        copies[node] = graphs[-1].node_copy(node, copies.__getitem__)
    return [fx.GraphModule(network, graph) for graph in graphs]
