"""The kernels: what torch's own convolutions compute, forwards, backwards and backwards again."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from transfer import winograd

CONV = (winograd.conv2d, lambda x, w: F.conv2d(x, w, stride=2, padding=1))
CONV_UP = (winograd.conv_transpose2d, lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1))
CLOSE = 1e-5  # of the largest value


@pytest.fixture(autouse=True)
def thin(monkeypatch):
    """Few channels, and few tiles, take the same way as many."""
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)


def tensors(pair, narrow, batch=3, wide_channels=8, narrow_channels=12, dtype=torch.float32):
    """An input and a weight that both require gradients, for a narrow image of this size."""
    torch.manual_seed(sum(narrow))
    H, W = narrow
    x = (batch, wide_channels, 2 * H, 2 * W) if pair is CONV else (batch, narrow_channels, H, W)
    w = (narrow_channels, wide_channels, 4, 4)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (x, w))


def apart(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("narrow", [(2, 2), (2, 4), (4, 4), (6, 6), (8, 4), (8, 8), (16, 12)], ids=str)
def test_values_and_both_orders_of_gradients_are_torchs(pair, narrow):
    x, w = tensors(pair, narrow)
    direction = torch.randn(pair[1](x, w).shape)

    def everything(convolution):
        y = convolution(x, w)
        first = torch.autograd.grad(y, (x, w), direction, create_graph=True)
        penalty = first[0].square().sum() + first[1].pow(3).sum()  # as a gradient penalty asks, and more
        return y, *first, *torch.autograd.grad(penalty, (x, w))

    ours, theirs = (everything(convolution) for convolution in pair)
    assert ours[0].shape == theirs[0].shape
    assert apart(ours, theirs) < CLOSE
    assert not torch.equal(ours[0], theirs[0]), "torch's own convolution was used"


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("narrow", [(2, 2), (4, 4)], ids=str)
def test_gradients_are_those_of_finite_differences(pair, narrow):
    x, w = tensors(pair, narrow, batch=1, wide_channels=1, narrow_channels=2, dtype=torch.float64)
    small = narrow == (2, 2)  # element by element; else along one random direction, which is faster
    assert gradcheck(pair[0], (x, w), fast_mode=not small)
    assert gradgradcheck(pair[0], (x, w), fast_mode=not small)


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
def test_the_memory_format_does_not_matter(pair):
    x, w = tensors(pair, (4, 8))
    expected = pair[1](x, w)
    for x_format in (torch.contiguous_format, torch.channels_last):
        for w_format in (torch.contiguous_format, torch.channels_last):
            y = pair[0](x.contiguous(memory_format=x_format), w.contiguous(memory_format=w_format))
            assert apart([y], [expected]) < CLOSE
            assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
def test_no_gradient_is_computed_that_nobody_asks_for(pair, monkeypatch):
    made = []
    for name in ("wide_in", "wide_out", "kernel_out", "narrow_in", "narrow_out"):
        original = getattr(winograd, name)

        def spy(t, m, name=name, original=original):
            made.append(name)
            return original(t, m)

        monkeypatch.setattr(winograd, name, spy)
    x, w = tensors(pair, (4, 4))

    y = pair[0](x, w.detach())
    made.clear()
    y.sum().backward()
    assert "kernel_out" not in made and len(made) == 2  # a frozen kernel

    y = pair[0](x.detach(), w)
    made.clear()
    y.sum().backward()
    assert "kernel_out" in made and len(made) == 2  # an image

    with torch.no_grad():
        assert not pair[0](x, w).requires_grad


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_pass_to_one_input_pays_for_one_product(pair, create_graph, monkeypatch):
    x, w = tensors(pair, (4, 4))
    original, products = torch.bmm, []
    monkeypatch.setattr(torch, "bmm", lambda a, b: products.append(0) or original(a, b))
    for inputs in ((x,), (w,)):
        y, theirs = pair[0](x, w), pair[1](x, w)
        products.clear()
        ours = torch.autograd.grad(y.sum(), inputs, create_graph=create_graph)
        assert apart(ours, torch.autograd.grad(theirs.sum(), inputs)) < CLOSE
        assert len(products) == (pair is CONV)  # autograd's own products are not seen: it prunes them itself


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("narrow", [(1, 1), (3, 4), (5, 5)], ids=str)
def test_odd_sizes_are_torchs_own(pair, narrow):
    x, w = tensors(pair, narrow)
    assert torch.equal(pair[0](x, w), pair[1](x, w))


def test_other_shapes_and_types_are_torchs_own(monkeypatch):
    x, w = tensors(CONV, (4, 4))
    odd = x[:, :, :-1]
    assert torch.equal(winograd.conv2d(odd, w), CONV[1](odd, w))
    six = torch.randn(12, 8, 6, 6)
    assert torch.equal(winograd.conv2d(x, six), F.conv2d(x, six, stride=2, padding=1))
    half = winograd.conv2d(x.bfloat16(), w.bfloat16())
    assert torch.equal(half, CONV[1](x.bfloat16(), w.bfloat16()))
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 9)
    assert torch.equal(winograd.conv2d(x, w), CONV[1](x, w))


@pytest.mark.parametrize("pair", [CONV, CONV_UP], ids=["conv2d", "conv_transpose2d"])
def test_few_tiles_are_small_ones(pair, monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_TILES", 3)
    original, points = torch.bmm, []
    monkeypatch.setattr(torch, "bmm", lambda a, b: points.append(len(a)) or original(a, b))
    for batch in (2, 3):
        x, w = tensors(pair, (4, 4), batch)
        assert apart([pair[0](x, w)], [pair[1](x, w)]) < CLOSE
    assert points == [9, 25]


def test_the_filter_is_exact():
    for m, points in ((len(points), points) for points in winograd.POINTS.values()):
        A, B, G = (torch.tensor(table, dtype=torch.float64) for table in winograd.toom_cook(points))
        x, w = torch.randn(m + 1, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
        torch.testing.assert_close(A.T @ ((B @ x) * (G @ w)), w[0] * x[:-1] + w[1] * x[1:])
