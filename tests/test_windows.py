"""The windows: what torch's own convolutions compute, forwards, backwards and backwards again."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from transfer import windows

TORCH = {name: partial(getattr(F, name), stride=2, padding=1) for name in ("conv2d", "conv_transpose2d")}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("narrow", [(4, 4), (2, 6), (8, 8)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("amx", [False, True])
def test_values_and_both_orders_of_gradients_are_torchs(monkeypatch, name, narrow, memory_format, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    torch.manual_seed(0)
    x = (
        torch.randn(3, 5, *narrow)
        if name == "conv_transpose2d"
        else torch.randn(3, 6, *(2 * s for s in narrow))
    )
    x = x.double().contiguous(memory_format=memory_format).requires_grad_()
    w = torch.randn(5, 6, 4, 4).double().contiguous(memory_format=memory_format).requires_grad_()
    direction = torch.randn(TORCH[name](x, w).shape).double()

    def everything(convolution):
        y = convolution(x, w)
        first = torch.autograd.grad(y, (x, w), direction, create_graph=True)
        penalty = first[0].square().sum() + first[1].pow(3).sum()
        return y, *first, *torch.autograd.grad(penalty, (x, w))

    ours, theirs = (everything(each) for each in (getattr(windows, name), TORCH[name]))
    assert "Convolution" in type(ours[0].grad_fn).__name__, "torch's own convolution was used"
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("amx", [False, True])
def test_in_bf16_the_gradients_are_torchs_up_to_rounding(monkeypatch, name, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    torch.manual_seed(0)
    x = torch.randn(4, 16, 8, 8).requires_grad_()
    w = torch.randn(*((16, 32) if name == "conv_transpose2d" else (32, 16)), 4, 4).requires_grad_()
    both = []
    for convolution in (getattr(windows, name), TORCH[name]):
        with torch.autocast("cpu", torch.bfloat16):
            y = convolution(x, w)
        assert y.dtype == torch.bfloat16
        both.append(torch.autograd.grad(y.float().sin().sum(), (x, w)))
    for mine, its in zip(*both, strict=True):
        assert mine.dtype == torch.float32 and (mine - its).norm() < 0.01 * its.norm()


def test_a_pass_that_does_not_ask_for_the_kernels_gradient_does_not_pay_for_it(monkeypatch):
    asked, gradient = [], windows.kernel_gradient
    monkeypatch.setattr(windows, "kernel_gradient", lambda *both: asked.append(both) or gradient(*both))
    x, w = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(5, 6, 4, 4, requires_grad=True)
    torch.autograd.grad(windows.conv2d(x, w).sum(), x)
    assert not asked
    torch.autograd.grad(windows.conv2d(x, w).sum(), w)
    assert len(asked) == 1
    with torch.no_grad():
        assert windows.conv2d(x, w).shape == (2, 5, 4, 4)


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("narrow, ours", [(4, True), (8, False)])
def test_with_instructions_for_matrices_narrow_maps_are_products_throughout(monkeypatch, name, narrow, ours):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    side = narrow if name == "conv_transpose2d" else 2 * narrow
    x = torch.randn(2, 5 if name == "conv_transpose2d" else 6, side, side)
    used = []
    monkeypatch.setattr(F, name, lambda *args, **more: used.append(args) or TORCH[name](*args[:2]))
    with torch.no_grad():
        getattr(windows, name)(x, torch.randn(5, 6, 4, 4))
    assert bool(used) != ours
