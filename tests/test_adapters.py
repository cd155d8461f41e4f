"""Adapters: what a run adds to its source, applied to it again, and mixed."""

import shutil
import sys

import pytest
import torch

from methods import minegan
from tests.conftest import LATENT
from tests.runs import ROOT, tiny
from transfer import UserError, shared
from transfer.__main__ import adapter, apply, share
from transfer.adapters import Adapter, applied, fingerprint
from transfer.checkpoints import Checkpoints
from transfer.plan import Split, plan
from transfer.shared import Source

PLANS = [
    (Split(1, 2, 2), Split(1, 2, 2)),
    (Split(0, 5, 0), Split(0, 5, 0)),
    (plan("finetune,singular_values,normalised_adafm,rank_one,reinitialise"), Split(5, 0, 0)),
]


def run_of(faces, source, out, **more):
    script, settings = tiny("wgan_64_transferlearning", faces, source, out, **more)
    return script.main(settings)


@pytest.mark.parametrize("G, D", PLANS)
def test_an_adapter_applied_to_its_source_is_the_run(G, D, faces, source, tmp_path):
    run = run_of(faces, source, tmp_path, G=G, D=D)
    file = tmp_path / "own.safetensors"
    adapter(run, file)
    ends, state = applied(Source.read(source), [Adapter.read(file)], [1]), Checkpoints(run).newest()[1]
    for name in ("ema", "D"):
        assert ends[name].keys() == state[name].keys()
        for key, tensor in state[name].items():
            rounded = (
                tensor.half().float()
                if name == "ema" and key in Adapter.read(file).networks["ema"]
                else tensor
            )
            assert torch.equal(ends[name][key], rounded.to(tensor.dtype)), key


def test_an_adapter_holds_what_the_source_has_not_and_nothing_else(faces, source, tmp_path):
    run = run_of(faces, source, tmp_path, G=Split(0, 5, 0), D=Split(1, 4, 0))
    own, origin = Adapter.of(run), Source.read(source)
    assert not any(key.startswith("conv") and key.endswith("weight") for key in own.networks["ema"])
    assert {"conv1.gamma", "conv5.beta", "norm2.weight"} < own.networks["ema"].keys()
    assert not any(key.startswith("conv1") for key in own.networks["D"]), "frozen"
    for key, tensor in own.networks["D"].items():
        assert key not in origin.discriminator or not torch.equal(tensor, origin.discriminator[key])
    adapter(run, tmp_path / "own.safetensors"), share(run, tmp_path / "whole.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("own", "whole")]
    assert sizes[0] < sizes[1]


def test_shares_go_from_the_source_to_the_target_and_between_targets(faces, source, tmp_path):
    runs = [run_of(faces, source, tmp_path, seed=seed, G=Split(0, 5, 0)) for seed in (0, 1)]
    a, b = map(Adapter.of, runs)
    origin, (first, second) = Source.read(source), (Checkpoints(run).newest()[1]["ema"] for run in runs)
    none = applied(origin, [a], [0])["ema"]
    assert all(
        torch.equal(none[key], tensor)
        for key, tensor in origin.generator.items()
        if tensor.is_floating_point()
    )
    assert (none["conv2.gamma"] == 1).all() and (none["conv2.beta"] == 0).all()
    between = applied(origin, [a, b], [0.25, 0.75])["ema"]
    assert not torch.equal(first["conv2.gamma"], second["conv2.gamma"])
    for key in ("conv2.gamma", "conv5.beta", "norm1.weight", "norm1.running_mean"):
        torch.testing.assert_close(between[key], 0.25 * first[key] + 0.75 * second[key], rtol=1e-4, atol=1e-5)


def test_what_does_not_belong_together_is_refused(faces, source, networks, tmp_path):
    a = Adapter.of(run_of(faces, source, tmp_path, iterations=1))
    b = Adapter.of(run_of(faces, source, tmp_path, iterations=1, G=Split(2, 1, 2)))
    G, D = networks
    with torch.no_grad():
        G.conv1.weight += 1
    other = tmp_path / "other.safetensors"
    shared.share(other, {"G": G.state_dict(), "ema": G.state_dict(), "D": D.state_dict()}, {})
    with pytest.raises(UserError, match="different plans"):
        applied(Source.read(source), [a, b], [0.5, 0.5])
    with pytest.raises(UserError, match="another source"):
        applied(Source.read(other), [a], [1])
    (tmp_path / "text.safetensors").write_text("none")
    for file, why in (("text", "Error.*"), ("other", "its header tells of none"), ("no", "No such file.*")):
        with pytest.raises(UserError, match=rf"is no adapter \({why}\): write one with"):
            Adapter.read(tmp_path / f"{file}.safetensors")
    script, settings = tiny("wgan_64", faces, None, tmp_path, iterations=1)
    with pytest.raises(UserError, match="not carried over"):
        Adapter.of(script.main(settings))
    with pytest.raises(UserError, match="2 shares for 1"):
        apply((other,), tmp_path / "mixed.safetensors", source, (0.5, 0.5))


def test_without_its_critic_an_adapter_draws_the_same(faces, source, tmp_path):
    run, whole, half = run_of(faces, source, tmp_path), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    adapter(run, whole), adapter(run, half, critic=False)
    assert half.stat().st_size < whole.stat().st_size
    origin = Source.read(source)
    ends, other = applied(origin, [Adapter.read(half)], [1]), applied(origin, [Adapter.read(whole)], [1])
    torch.testing.assert_close(ends["ema"], other["ema"], rtol=0, atol=0)
    assert all(torch.equal(ends["D"][key], tensor) for key, tensor in origin.discriminator.items())
    with pytest.raises(UserError, match=r"is an adapter.*transfer apply"):
        Source.read(half)


def test_the_shipped_adapter_is_of_the_shipped_source():
    own = Adapter.read(ROOT / "pretrained_model" / "cartoon_64.safetensors")
    origin = Source.read(ROOT / "pretrained_model" / own.card["settings"]["source"])
    assert own.source == fingerprint(origin), "make it anew: it is of another source"
    half, whole = (applied(origin, [own], [share])["ema"]["conv5.weight"] for share in (0.5, 1))
    torch.testing.assert_close(half, (origin.generator["conv5.weight"] + whole) / 2)


def test_the_source_of_an_adapter_is_looked_for_by_its_name(faces, source, tmp_path, monkeypatch):
    own, place = tmp_path / "own.safetensors", tmp_path / "pretrained_model"
    adapter(run_of(faces, source, tmp_path), own)
    monkeypatch.setattr("transfer.__main__.ROOT", tmp_path)
    with pytest.raises(UserError, match=f"{source.name}, the adapters' source, is not in"):
        apply((own,), tmp_path / "mixed.safetensors")
    place.mkdir()
    shutil.copy(source, place)
    apply((own,), tmp_path / "mixed.safetensors")
    assert Source.read(tmp_path / "mixed.safetensors").latent == LATENT


def test_a_miner_is_an_adapter_too(faces, source, tmp_path):
    _, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path)
    fields = minegan.Settings.__dataclass_fields__
    run = minegan.main(
        minegan.Settings(**{k: v for k, v in vars(settings).items() if k in fields} | {"G": Split(5, 0, 0)})
    )
    own = Adapter.of(run)
    ends = applied(Source.read(source), [own, own], [0.5, 0.5])["ema"]
    state = Checkpoints(run).newest()[1]["ema"]
    torch.testing.assert_close(ends["mapping.0.weight"], state["mapping.0.weight"])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_lines(program, faces, source, tmp_path):
    run = run_of(faces, source, tmp_path, iterations=1)

    def transfer(*words):
        return program(f"{sys.executable} -m transfer", *words)

    files = {name: tmp_path / f"{name}.safetensors" for name in ("own", "mixed", "whole")}
    status, out = transfer("adapter", run, files["own"])
    assert status == 0 and "numbers" in out
    status, out = transfer("apply", files["own"], files["own"], "--to", files["mixed"], "--source", source)
    assert status == 0, out
    mixed, whole = Source.read(files["mixed"]), Source.read(run)
    assert mixed.latent == LATENT and mixed.policies("G") == whole.policies("G")
    torch.testing.assert_close(mixed.generator, whole.generator, rtol=1e-3, atol=1e-5)
    assert transfer("share", run, files["whole"])[0] == 0 and files["whole"].exists()
    status, out = transfer("apply", files["own"], "--to", tmp_path / "new.safetensors")
    assert status == 2 and "give --source" in out and out.count("\n") == 1
