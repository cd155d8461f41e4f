"""Windows: a 4x4 kernel's work on narrow maps as matrix products, where bf16 convolutions are slow."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer.winograd import asked_for

WIDEST = 8  # pixels of a narrow map's side; of wider ones torch's own gradient is as fast
WITH_AMX = 4  # up to this side instructions for matrices make all else faster as products too


def windows(x: Tensor) -> Tensor:
    """x (N, C, 2H, 2W) -> (N H W, 16 C): what a 4x4 kernel of stride 2 and padding 1 sees at each place."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # channels last, so that rows are copied whole
    N, H, W, C = x.shape
    image, line, pixel, channel = x.stride()
    size = (N, H // 2 - 1, W // 2 - 1, 4, 4, C)
    return x.as_strided(size, (image, 2 * line, 2 * pixel, line, pixel, channel)).reshape(-1, 16 * C)


def narrowed(x: Tensor, kernel: Tensor) -> Tensor:
    """x (N, C, 2H, 2W), kernel (K, C, 4, 4) -> (N, K, H, W), as one product."""
    N, _, H, W = x.shape
    y = windows(x) @ kernel.permute(0, 2, 3, 1).flatten(1).T
    return y.view(N, H // 2, W // 2, -1).permute(0, 3, 1, 2)


def widened(x: Tensor, kernel: Tensor) -> Tensor:
    """x (N, K, H, W), kernel (K, C, 4, 4) -> (N, C, 2H, 2W), as one product whose windows are added up."""
    N, _, H, W = x.shape
    seen = x.permute(0, 2, 3, 1).flatten(0, 2) @ kernel.permute(0, 2, 3, 1).flatten(1)
    seen = seen.view(N, H, W, 4, 4, -1)
    y = seen.new_zeros(N, 2 * H + 2, 2 * W + 2, seen.shape[-1])
    for i, j in product(range(4), repeat=2):
        y[:, i : i + 2 * H : 2, j : j + 2 * W : 2] += seen[:, :, :, i, j]
    return y[:, 1:-1, 1:-1].contiguous().permute(0, 3, 1, 2)


def kernel_gradient(wide: Tensor, narrow: Tensor) -> Tensor:
    """wide (N, C, 2H, 2W), narrow (N, K, H, W), one of them a gradient -> the kernel's, (K, C, 4, 4)."""
    sums = narrow.permute(0, 2, 3, 1).flatten(0, 2).T @ windows(wide)
    return sums.view(narrow.shape[1], 4, 4, wide.shape[1]).permute(0, 3, 1, 2)


class Convolution(torch.autograd.Function):
    """A convolution of stride 2 and padding 1, or the transposed one; the kernel's gradient is a product."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, up: bool) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.up = up
        if _multiplies(max(x.shape[2:]) // (1 if up else 2)):
            return (widened if up else narrowed)(x, kernel)
        return (F.conv_transpose2d if up else F.conv2d)(x, kernel, stride=2, padding=1)

    @staticmethod
    def backward(ctx, slope: Tensor):
        x, kernel = ctx.saved_tensors
        to_x, to_kernel = asked_for(ctx)
        wide, narrow = (slope, x) if ctx.up else (x, slope)
        back = Convolution.apply(slope, kernel, not ctx.up) if to_x else None
        return back, kernel_gradient(wide, narrow) if to_kernel else None, None


def _multiplies(side: int) -> bool:
    return side <= WITH_AMX and torch.cpu._is_amx_tile_supported()


def _pays(side: int, weight: Tensor) -> bool:
    learns = weight.requires_grad and torch.is_grad_enabled()
    return weight.shape[2:] == (4, 4) and (_multiplies(side) or (learns and side <= WIDEST))


def _convolved(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    if torch.is_autocast_enabled("cpu"):  # which does not see into a function
        x, weight = (each.to(torch.get_autocast_dtype("cpu")) for each in (x, weight))
    return Convolution.apply(x.view_as(x), weight.view_as(weight), up)  # of leaves asked_for cannot tell


def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C, 2H, 2W), weight (K, C, 4, 4) -> (N, K, H, W): torch's conv2d of stride 2 and padding 1."""
    if not any(side % 2 for side in x.shape[2:]) and _pays(max(x.shape[2:]) // 2, weight):
        return _convolved(x, weight, False)
    return F.conv2d(x, weight, stride=2, padding=1)


def conv_transpose2d(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, K, H, W), weight (K, C, 4, 4) -> (N, C, 2H, 2W): conv_transpose2d of stride 2 and padding 1."""
    if _pays(max(x.shape[2:]), weight):
        return _convolved(x, weight, True)
    return F.conv_transpose2d(x, weight, stride=2, padding=1)
