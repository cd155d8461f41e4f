"""The generator as an ONNX file: it draws what torch draws, and nothing else needs onnx."""

import importlib.util

import pytest
import torch

import wgan_64
from tests.conftest import LATENT, WIDTH, as_source, pretrained
from transfer import UserError, drawing, export, shared
from transfer import __main__ as cli
from transfer.plan import Split
from transfer.shared import Source

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are optional: requirements-export.txt",
)


@pytest.fixture(scope="module", params=[None, "filter_selection"])
def model(request, tmp_path_factory):
    """A generator whose images are not all grey, plain or modulated, as a file."""
    G, D = pretrained()
    with torch.no_grad():
        for name, tensor in G.state_dict().items():
            tensor.mul_(4 if name.startswith("conv") else 1)
    card = {}
    if request.param:
        modulated = wgan_64.Generator(LATENT, WIDTH, Split(0, 5, 0).generator(request.param))
        shared.carry(modulated, as_source(G), "G")
        G, card = modulated, {"settings": {"source": "x", "G": [0, 5, 0], "rescale": request.param}}
        with torch.no_grad():
            for kernel in (G.conv2, G.conv3):
                kernel.gamma.add_(0.3), kernel.beta.add_(0.1)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    shared.share(path, {"ema": G.state_dict(), "D": D.state_dict()}, card)
    return path


@needs_onnx
def test_the_file_draws_what_torch_draws_for_any_number_of_latents(model, tmp_path, capsys):
    import onnxruntime

    cli.export(model, tmp_path / "g.onnx")
    assert "is written; its images are within" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    network = drawing.generator(Source.read(model))
    for count in (1, 3):
        z = torch.randn(count, LATENT)
        (images,) = session.run(["images"], {"z": z.numpy()})
        assert images.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(images), network(z), rtol=1e-3, atol=5e-4)
    with pytest.raises(UserError, match="is there already"):
        cli.export(model, tmp_path / "g.onnx")


@needs_onnx
def test_a_file_that_draws_something_else_is_not_written(source, tmp_path, monkeypatch):
    real = export.generator

    def another(source):
        network = real(source)
        whole = network.forward
        network.forward = lambda z: whole(z) if torch.compiler.is_exporting() else whole(z) + 0.1
        return network

    monkeypatch.setattr(export, "generator", another)
    with pytest.raises(UserError, match="would draw other images than torch"):
        cli.export(source, tmp_path / "g.onnx")
    assert not (tmp_path / "g.onnx").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_without_onnx_one_sentence_says_what_to_install(source, tmp_path, monkeypatch, missing):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(UserError, match=r"pip install -r requirements-export.txt"):
        cli.export(source, tmp_path / "g.onnx")
    assert not (tmp_path / "g.onnx").exists()


@needs_onnx
def test_without_onnxruntime_the_file_is_written_and_that_it_was_not_compared_is_said(
    source, tmp_path, monkeypatch, capsys
):
    real = importlib.util.find_spec

    def without(name, *more):
        return None if name == "onnxruntime" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    cli.export(source, tmp_path / "g.onnx")
    assert "not compared with torch" in capsys.readouterr().out and (tmp_path / "g.onnx").exists()
