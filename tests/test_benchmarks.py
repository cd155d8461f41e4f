"""The benchmarks compare what is equal, and see what is not."""

import pytest
import torch

from benchmarks import page, step
from benchmarks.timing import ratios, synthetic, turns
from transfer import engine, winograd


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


def test_the_sides_take_turns_and_the_first_turn_does_not_count():
    order, clock = [], iter(range(100))
    times = turns([lambda: order.append("a"), lambda: order.append("b")], 2, lambda: next(clock))
    assert order == list("ababab") and times == [[1000, 1000], [1000, 1000]]
    assert ratios([2.0, 6.0, 4.0], [1.0, 2.0, 4.0]) == {"ratio": 2.0, "min": 1.0, "max": 3.0}


def test_the_performance_page_is_what_the_results_say():
    assert page.PAGE.read_text() == page.page()
    assert "| `wgan_64.py` |" in page.measured() and "| 200,000 |" in page.measured()
