"""The engine: which device, and which convolutions."""

import pytest
import torch

import wgan_64
from tests.conftest import LATENT, WIDTH
from transfer import UserError, engine, kernels
from transfer.engine import PAYS_FROM, choose_device, tune


def test_the_device_is_found_without_being_told():
    assert choose_device() == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_sentence(name):
    with pytest.raises(UserError, match="cannot be used here") as refusal:
        choose_device(name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "amx, iterations, few", [(False, PAYS_FROM, 3), (False, PAYS_FROM - 1, 0), (True, PAYS_FROM, 0)]
)
def test_the_wide_convolutions_use_few_products_where_that_pays(monkeypatch, amx, iterations, few):
    monkeypatch.setattr(engine, "_compiles", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    G, D = wgan_64.Generator(LATENT, WIDTH), wgan_64.Discriminator(WIDTH)
    tune(G, D, iterations=iterations)
    used = []
    monkeypatch.setattr(
        kernels, "conv2d", lambda x, w: used.append(w) or torch.nn.functional.conv2d(x, w, None, 2, 1)
    )
    D(torch.rand(2, 3, 64, 64))
    assert len([w for w in used if w.shape[1] > 3]) == few


def test_without_a_compiler_it_goes_on_with_torchs_convolutions(monkeypatch, capsys):
    def fails(function):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    D = wgan_64.Discriminator(WIDTH)
    tune(D, iterations=PAYS_FROM)
    assert not D.conv2.few_products
    assert "compiler" in capsys.readouterr().out
