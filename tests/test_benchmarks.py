"""The benchmarks compare what is equal, and see what is not."""

import pytest
import torch

import wgan_64
import wgan_64_finetune
from benchmarks import page, step
from benchmarks.timing import gradients, iteration_of, ratios, synthetic, turns
from transfer import engine, winograd
from transfer.engine import PAYS_FROM
from transfer.shared import share
from transfer.weights import Clip


@pytest.fixture(autouse=True)
def few_products_uncompiled(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(engine, "_compiles", lambda: True)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)


@pytest.mark.parametrize("name", step.SCRIPTS)
def test_the_scripts_iteration_is_the_textbooks(name):
    found = step.gate(name, synthetic(8), width=4, batch=4)
    assert found["apart_float64"] < 1e-9


@pytest.mark.parametrize("name", step.SCRIPTS)
def test_another_iteration_is_not_timed(monkeypatch, name):
    right = step.textbook.critic

    def wrong(*args, **kwargs):
        network = right(*args, **kwargs)
        network[1].negative_slope = 0.1
        return network

    monkeypatch.setattr(step.textbook, "critic", wrong)
    with pytest.raises(SystemExit, match="was not timed"):
        step.gate(name, synthetic(8), width=4, batch=4)


class Same(step.Doubles):
    """Images whose batches are always the same, so that the order of random numbers does not matter."""

    def draw(self, n):
        return torch.arange(n)


@pytest.mark.parametrize("penalty", [None, 10.0], ids=["wgan", "wgan_gp"])
def test_a_transfer_that_fine_tunes_every_layer_is_the_textbooks_iteration_too(penalty, tmp_path):
    """The other transfers have the same loop, and the regularised one the same results."""
    noise = synthetic(8)
    images, path = Same(noise.pixels, noise.names, {}, ""), tmp_path / "source.safetensors"
    torch.manual_seed(0)
    G, D = wgan_64.Generator(4, 4), wgan_64.Discriminator(4, norm=penalty is None)
    Clip(D, 0.01)()
    if penalty is None:
        torch.nn.init.ones_(D.norm2.weight)  # for the clip to bring in
    share(path, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {})
    torch.set_default_dtype(torch.float64)
    try:
        settings = wgan_64_finetune.Settings(
            source=path, batch_size=4, augment="none", learning_rate=1e-30, iterations=PAYS_FROM, device="cpu"
        )
        ours, parts = iteration_of(wgan_64_finetune, settings, images)
        theirs = {"G": step.textbook.generator(4, 4), "D": step.textbook.critic(4, norm=penalty is None)}
        for network, own in ((theirs["G"], G), (theirs["D"], D)):
            network.load_state_dict(dict(zip(network.state_dict(), own.state_dict().values(), strict=True)))
        for iteration in (ours, step.textbook.loop(images, *theirs.values(), 1e-30, penalty, 4)):
            torch.manual_seed(1)
            iteration()
    finally:
        torch.set_default_dtype(torch.float32)
    for name, network in theirs.items():
        mine, its = gradients(parts[name]), gradients(network)
        assert (mine - its).norm() < 1e-9 * its.norm()


def test_the_sides_take_turns_and_the_first_turn_does_not_count():
    order, clock = [], iter(range(100))
    times = turns([lambda: order.append("a"), lambda: order.append("b")], 2, lambda: next(clock))
    assert order == list("ababab") and times == [[1000, 1000], [1000, 1000]]
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"ratio": 2.0, "min": 1.0, "max": 3.0}


def test_the_performance_page_is_what_the_results_say():
    assert page.PAGE.read_text() == page.page()
    assert "| `wgan_64.py` |" in page.measured() and "| 200,000 |" in page.measured()
