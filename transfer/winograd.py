"""Winograd: 4x4 convolutions of stride 2 with fewer products, for processors that have few to give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer.compiler import compiled

POINTS = {4: (0, 1, -1, 2), 2: (0, 1)}  # by tile: where polynomials are evaluated, beside infinity
FEWEST_TILES = 32  # below, small ones do: a kernel at 25 points would be more work than its products
FEWEST_CHANNELS = 32  # channels below which adding costs more than the products that it saves
COMPILED_FROM = 1 << 16  # numbers below which a map is not worth compiling

Matrix = tuple[tuple[float, ...], ...]
Map = Callable[[Tensor, int], Tensor]


def toom_cook(points: Sequence[int]) -> tuple[Matrix, Matrix, Matrix]:
    """A (m+1, m), B (m+1, m+1), G (m+1, 2) for m points: A' (Bx * Gw) is w (2,) slid over x (m+1,).

    The product of polynomials of m and 2 coefficients is interpolated from its values at the points and at
    infinity (Toom-Cook); transposed, that is a filter of m outputs for m+1 products (Winograd; Lavin & Gray
    2016, arXiv:1509.09308). It is exact; float32 rounds to 4e-6 of the output's size with four points, 1e-6
    with two, and 1e-4 with eight, which would be too much.
    """

    def times(polynomial: list[Fraction], root: Fraction) -> list[Fraction]:
        return [a - root * b for a, b in zip([0, *polynomial], [*polynomial, 0], strict=True)]

    A, B, G, everywhere = [], [], [], [Fraction(1)]
    for p in map(Fraction, points):
        lagrange, scale = [Fraction(1)], Fraction(1)
        for q in points:
            if q != p:
                lagrange, scale = times(lagrange, q), scale * (p - q)
        A.append([p**i for i in range(len(points))])
        B.append([*lagrange, 0])
        G.append([1 / scale, p / scale])
        everywhere = times(everywhere, p)
    A.append([0] * (len(points) - 1) + [1])
    B.append(everywhere)
    G.append([0, 1])
    return tuple(tuple(tuple(map(float, row)) for row in matrix) for matrix in (A, B, G))


def _transpose(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


A, B, G = ({len(p): toom_cook(p)[i] for p in POINTS.values()} for i in range(3))
At, Bt, Gt = ({m: _transpose(matrix) for m, matrix in table.items()} for table in (A, B, G))


def _combine(matrix: Matrix, terms: Sequence[Tensor]) -> list[Tensor]:
    """matrix @ terms, written out as the few additions that it is, which the compiler fuses."""
    return [sum(a * term for a, term in zip(row, terms, strict=True) if a) for row in matrix]


def _into(matrix: Matrix, grid: Tensor, row: int, column: int) -> Tensor:
    """matrix @ grid @ matrix' over two axes of the grid -> (points, the other axes)."""
    rows = (r.unbind(column - 1) for r in _combine(matrix, grid.unbind(row)))
    return torch.stack([point for r in rows for point in _combine(matrix, r)])


# y = w * x is A'(Bx . Gw): three linear maps to (m+1)^2 points, and a matrix product at each. The gradients
# are made of the same maps and their transposes, to any order. The wide image x (N, H, W, C), with its border
# of zeros, is four phases of the narrow one's size, and the kernel is as many 2x2 kernels: w[2a + p] meets
# x[2(o + a) + p]. So a tile of m x m outputs takes (m+1)^2 products for 4m^2 (25 for 64) of each pair of
# channels, and phases sum as channels do. Channels come last, so that vectors are whole; an image has T x S
# tiles.


def wide_in(x: Tensor, m: int) -> Tensor:
    """B: x (N, H, W, C) -> (points, N, T, S, 4C); a tile is 2m+2 pixels wide and overlaps the next by two."""
    N, H, W, C = x.shape
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    image, line, pixel, _ = x.stride()
    size = (N, H // (2 * m), W // (2 * m), m + 1, 2, m + 1, 2, C)
    # Not unfold: as_strided makes the compiler store the border, where it would test for it at every load.
    tiles = x.as_strided(size, (image, 2 * m * line, 2 * m * pixel, 2 * line, line, 2 * pixel, pixel, 1))
    return _into(B[m], tiles, 3, 5).flatten(4)


def wide_out(V: Tensor, m: int) -> Tensor:
    """B': (points, N, T, S, 4C) -> x (N, H, W, C), where the tiles overlap their sum."""
    _, N, T, S, C = V.shape
    V = V.view(m + 1, m + 1, N, T, S, 2, 2, C // 4)
    V = _wide_line(V, m, tiles=2)  # points, N, T, 2m, S, 2, C
    return _wide_line(V, m, tiles=3).view(N, 2 * m * T, 2 * m * S, C // 4)


def _wide_line(V: Tensor, m: int, tiles: int) -> Tensor:
    """B' along one dimension: V (points, ..., tiles, ...), axis 5 its phases -> (..., tiles, 2m, ...)."""
    before, *pixels, after = (phase for t in _combine(Bt[m], V.unbind()) for phase in t.unbind(4))
    count, pad = before.shape[tiles] - 1, (0, 0) * (before.dim() - 1 - tiles)
    # a tile's outermost pixels are its neighbours' first and last
    pixels[0] = pixels[0] + F.pad(after.narrow(tiles, 0, count), (*pad, 1, 0))
    pixels[-1] = pixels[-1] + F.pad(before.narrow(tiles, 1, count), (*pad, 0, 1))
    return torch.stack(pixels, tiles + 1)


def narrow_in(y: Tensor, m: int) -> Tensor:
    """A: y (N, H, W, K) -> (points, N, T, S, K)."""
    N, H, W, K = y.shape
    return _into(A[m], y.view(N, H // m, m, W // m, m, K), 2, 4)


def narrow_out(Y: Tensor, m: int) -> Tensor:
    """A': (points, N, T, S, K) -> y (N, H, W, K)."""
    _, N, T, S, K = Y.shape
    Y = torch.stack(_combine(At[m], Y.view(m + 1, m + 1, N, T, S, K).unbind()), 3)
    return torch.stack(_combine(At[m], Y.unbind()), 4).view(N, m * T, m * S, K)


def kernel_in(w: Tensor, m: int) -> Tensor:
    """G: w (K, 4, 4, C) -> (points, K, 4C)."""
    return _into(G[m], w.unflatten(2, (2, 2)).unflatten(1, (2, 2)), 1, 3).flatten(2)


def kernel_out(U: Tensor, m: int) -> Tensor:
    """G': (points, K, 4C) -> w (K, 4, 4, C)."""
    _, K, C = U.shape
    U = U.view(m + 1, m + 1, K, 2, 2, C // 4)
    U = torch.stack(_combine(Gt[m], U.unbind()), 2)  # points, K, 2, 2, 2, C
    return torch.stack(_combine(Gt[m], U.unbind()), 3).view(K, 4, 4, C // 4)


_compiled = cache(compiled)


BATCH = {wide_in: 0, wide_out: 1, narrow_in: 0, narrow_out: 1}  # the axis whose length is not compiled in


class Linear(torch.autograd.Function):
    """A linear map whose gradient is its transpose, whose gradient is the map, and so to any order."""

    @staticmethod
    def forward(ctx, t: Tensor, m: int, there: Map, back: Map) -> Tensor:
        ctx.maps = m, back, there
        t = t.detach().contiguous()
        if torch.compiler.is_compiling() or t.numel() < COMPILED_FROM:
            return there(t, m)
        if there in BATCH:
            torch._dynamo.maybe_mark_dynamic(t, BATCH[there])
        return _compiled(there)(t, m)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return Linear.apply(grad, *ctx.maps), None, None, None


def _tile(size: tuple[int, int], x: Tensor, weight: Tensor) -> int | None:
    """The tile for narrow images of this size; None where torch does better, or must do."""
    if weight.shape[2:] != (4, 4) or min(weight.shape[:2]) < FEWEST_CHANNELS or min(size) == 0:
        return None
    if x.device.type != "cpu" or x.dtype != weight.dtype or x.dtype not in (torch.float32, torch.float64):
        return None
    height, width = size
    if height % 2 or width % 2:
        return None
    whole = not (height % 4 or width % 4)
    return 4 if whole and len(x) * height * width // 16 >= FEWEST_TILES else 2


def asked_for(ctx) -> Sequence[bool]:
    """Which inputs' gradients this very pass leads to: ctx only knows which inputs require one at all.

    Without it the generator's step, which passes through the critic, would pay for the critic's kernels.
    """
    if torch.compiler.is_compiling():
        return ctx.needs_input_grad
    return [node is not None and torch._C._will_engine_execute_node(node) for node, _ in ctx.next_functions]


class Product(torch.autograd.Function):
    """V (points, tiles, 4C), U (points, K, 4C) -> V U', as torch.bmm(V, U.mT) but for the gradient of U.

    Autograd would hand that one back transposed, and straightening it costs as much as the product.
    """

    @staticmethod
    def forward(ctx, V: Tensor, U: Tensor) -> Tensor:
        ctx.save_for_backward(V, U)
        return torch.bmm(V, U.mT)

    @staticmethod
    def backward(ctx, grad: Tensor):
        V, U = ctx.saved_tensors
        to_V, to_U = asked_for(ctx)
        return torch.bmm(grad, U) if to_V else None, torch.bmm(grad.mT, V) if to_U else None


def conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, C, H, W), weight (K, C, 4, 4) -> (N, K, H/2, W/2): torch's conv2d of stride 2 and padding 1."""
    H, W = x.shape[2:]
    m = None if H % 2 or W % 2 else _tile((H // 2, W // 2), x, weight)
    if m is None:
        return F.conv2d(x, weight, stride=2, padding=1)
    V = Linear.apply(x.permute(0, 2, 3, 1), m, wide_in, wide_out)
    U = Linear.apply(weight.permute(0, 2, 3, 1), m, kernel_in, kernel_out)
    Y = Product.apply(V.flatten(1, 3), U).unflatten(1, V.shape[1:4])
    return Linear.apply(Y, m, narrow_out, narrow_in).permute(0, 3, 1, 2)


def conv_transpose2d(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, K, H, W), weight (K, C, 4, 4) -> (N, C, 2H, 2W): conv_transpose2d of stride 2 and padding 1."""
    m = _tile(tuple(x.shape[2:]), x, weight)
    if m is None:
        return F.conv_transpose2d(x, weight, stride=2, padding=1)
    Y = Linear.apply(x.permute(0, 2, 3, 1), m, narrow_in, narrow_out)
    U = Linear.apply(weight.permute(0, 2, 3, 1), m, kernel_in, kernel_out)
    V = torch.bmm(Y.flatten(1, 3), U).unflatten(1, Y.shape[1:4])
    return Linear.apply(V, m, wide_out, wide_in).permute(0, 3, 1, 2)
