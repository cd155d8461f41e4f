"""Networks as PyTorch's DCGAN example saves them, and code like it: imported, drawn, and transferred."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import wgan_64_transferlearning
from tests.conftest import pretrained
from tests.runs import tiny
from transfer import UserError, checkpoints, dcgan, drawing, shared
from transfer.__main__ import adapter, apply, import_
from transfer.plan import Split
from transfer.shared import Source


def norm(channels, affine=True):
    return nn.BatchNorm2d(channels, affine=affine)


class Network(nn.Module):
    """Layers in a Sequential called main, as in PyTorch's example."""

    def __init__(self, *layers):
        super().__init__()
        self.main = nn.Sequential(*layers)

    def forward(self, x):
        return self.main(x)


def generator(latent=6, width=4, affine=True, bias=False, channels=3):
    layers, sizes = [], [latent, 8 * width, 4 * width, 2 * width, width]
    for index, (first, second) in enumerate(itertools.pairwise(sizes)):
        step = (4, 2, 1) if index else (4, 1, 0)
        layers += [nn.ConvTranspose2d(first, second, *step, bias=bias), norm(second, affine), nn.ReLU(True)]
    return Network(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False), nn.Tanh())


def discriminator(width=4, normed=True, affine=True, bias=False):
    layers, sizes = [nn.Conv2d(3, width, 4, 2, 1, bias=not normed), nn.LeakyReLU(0.2)], [1, 2, 4, 8]
    for first, second in itertools.pairwise(sizes):
        layers.append(nn.Conv2d(first * width, second * width, 4, 2, 1, bias=bias or not normed))
        layers += [norm(second * width, affine)] * normed + [nn.LeakyReLU(0.2)]
    return Network(*layers, nn.Conv2d(8 * width, 1, 4, 1, 0, bias=bias), nn.Sigmoid())


def trained(network, inputs):
    """The network with weights and running statistics of its own, and images or scores that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 4 else 0.5))
        for _ in range(5):
            network(inputs)
    return network.eval()


def pair(latent=6, width=4, **more):
    for_G = {key: more[key] for key in ("affine", "bias") if key in more}
    G = trained(generator(latent, width, **for_G), torch.randn(8, latent, 1, 1))
    return G, trained(discriminator(width, **more), torch.randn(8, 3, 64, 64))


def saved(folder, G, D, way):
    """The networks as people save them: the files that are given to import."""
    folder.mkdir(exist_ok=True)
    one, two = folder / "netG_epoch_24.pth", folder / "netD_epoch_24.pth"
    g, d = G.state_dict(), D.state_dict()
    if way in ("two", "swapped"):
        torch.save(g, one), torch.save(d, two)
        return (one, two) if way == "two" else (two, one)
    if way == "parallel":
        torch.save(nn.DataParallel(G).state_dict(), one), torch.save(nn.DataParallel(D).state_dict(), two)
        return one, two
    if way == "safetensors":
        both = {f"netG.{key}": each for key, each in g.items()} | {
            f"D.{key}": each for key, each in d.items()
        }
        save_file(both, folder / "both.safetensors")
        return (folder / "both.safetensors",)
    if way == "old":  # from before batch normalisation counted its batches, and before zip files
        g, d = ({key: each for key, each in x.items() if "num_batches" not in key} for x in (g, d))
        torch.save({"netG": g, "netD": d}, one, _use_new_zipfile_serialization=False)
        return (one,)
    other = copy.deepcopy(G)
    adam = torch.optim.Adam(other.parameters())  # its state holds tensors of kernels' shapes
    other(torch.randn(2, g["main.0.weight"].shape[0], 1, 1)).sum().backward()
    adam.step()
    content = {"generator": nn.DataParallel(G).state_dict(), "discriminator": d}
    torch.save({"epoch": 3, "loss": torch.ones(1), "state": content, "optimizer": adam.state_dict()}, one)
    return (one,)


@pytest.mark.parametrize("way", ["two", "swapped", "parallel", "one", "old", "safetensors"])
def test_an_imported_generator_draws_what_the_dcgan_draws(way, tmp_path):
    G, D = pair()
    import_(saved(tmp_path, G, D, way), tmp_path / "mine.safetensors")
    source, z, x = Source.read(tmp_path / "mine.safetensors"), torch.randn(5, 6), torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        images, before = G(z[:, :, None, None]), D.main[:-1](x).flatten()
        assert images.std() > 0.1 and torch.equal(drawing.generator(source)(z), images)
        critic = drawing.untrained(source, "D")
        critic.load_state_dict(source.discriminator)
        torch.testing.assert_close(critic.eval()(x), before)
    assert source.loss == "wgan_gp" and (tmp_path / "mine.md").exists() and (tmp_path / "mine.png").exists()


@pytest.mark.parametrize(
    "more", [{"latent": 3, "width": 2}, {"affine": False}, {"normed": False}, {"bias": True}], ids=str
)
def test_other_widths_latents_norms_and_biases_fit(more, tmp_path):
    G, D = pair(**more)
    with torch.no_grad():
        if more.get("bias"):
            assert G.main[0].bias.abs().min() > 0
    networks, card = dcgan.read(saved(tmp_path, G, D, "two"))
    source, z = Source.of(tmp_path, {**networks, **card}), torch.randn(5, more.get("latent", 6))
    x = torch.randn(5, 3, 64, 64)
    critic = drawing.untrained(source, "D")
    critic.load_state_dict(source.discriminator)
    with torch.no_grad():
        torch.testing.assert_close(drawing.generator(source)(z), G(z[:, :, None, None]), rtol=1e-4, atol=1e-5)
        ours, its = critic.eval()(x), D.main[:-1](x).flatten()
    torch.testing.assert_close(ours - ours[0], its - its[0], rtol=1e-3, atol=1e-4)
    assert source.norm == more.get("normed", True)


def test_an_average_beside_the_generator_is_what_is_drawn_from(tmp_path):
    G, D = pair()
    average = generator()
    torch.save({"G": G.state_dict(), "G_ema": average.state_dict(), "D": D.state_dict()}, tmp_path / "all.pt")
    networks, _ = dcgan.read((tmp_path / "all.pt",))
    assert torch.equal(networks["ema"]["conv1.weight"], average.main[0].weight)
    assert torch.equal(networks["G"]["conv1.weight"], G.main[0].weight)


def test_an_import_is_trained_further_and_so_is_what_comes_of_it(faces, tmp_path):
    import_(saved(tmp_path, *pair(), "two"), tmp_path / "mine.safetensors")
    made, plans = tmp_path / "mine.safetensors", {"G": Split(1, 2, 2), "D": Split(1, 2, 2)}
    for rescale in ("adafm", "rank_one"):  # a modulated run's adapter, applied, is a source again
        script, settings = tiny(
            "wgan_64_transferlearning", faces, made, tmp_path / "out", iterations=1, rescale=rescale, **plans
        )
        run = script.main(settings)
        own, mixed = tmp_path / f"{rescale}-own.safetensors", tmp_path / f"{rescale}.safetensors"
        adapter(run, own), apply((own,), mixed, made)
        assert Source.read(mixed).policies("D") == Source.read(run).policies("D")
        torch.testing.assert_close(
            Source.read(mixed).generator, Source.read(run).generator, rtol=1e-3, atol=1e-3
        )
        assert Source.read(mixed).loss == Source.read(run).loss == "wgan_gp", "never clipped"
        made = mixed
    whole = wgan_64_transferlearning.main(
        wgan_64_transferlearning.Settings(
            source=made, images=faces, out=tmp_path / "out", iterations=1, device="cpu", batch_size=4
        )
    )
    assert (whole / "checkpoints").is_dir()


def faults():
    G, D = pair()
    g, d = G.state_dict(), D.state_dict()
    six = generator()
    six.main.insert(3, nn.Conv2d(32, 32, 3, 1, 1))
    stats = {key: each for key, each in g.items() if "running" not in key}
    wide = discriminator(5).state_dict()
    bent = {**g, "main.3.weight": torch.zeros(32, 16, 5, 5)}
    last = nn.Sequential(*generator().main[:-2], nn.ConvTranspose2d(4, 3, 4, 2, 1)).state_dict()
    yield {"G": g}, "there is no discriminator of convolutions in"
    yield {"D": d}, "there is no generator of convolutions in"
    yield {"netG": g, "netG2": g, "D": d}, "there are 2 generators"
    yield {"netG": six.state_dict(), "D": d}, r"has 6 convolutions, and wgan_64.py's has 5 \(64 x 64"
    yield (
        {"netG": stats, "D": d},
        "has 0 batch normalisations with running statistics, and wgan_64.py's has 4",
    )
    yield {"netG": g, "D": wide}, "the generator has 4 channels beside the image, and the discriminator 5"
    yield {"netG": bent, "D": d}, "3.weight is 32 x 16 x 5 x 5, where conv2.weight is 32 x 16 x 4 x 4"
    yield {"netG": generator(channels=1).state_dict(), "D": d}, "is 4 x 1 x 4 x 4, where conv5.weight is"
    yield {"netG": {**g, "main.1.weight": torch.ones(3)}, "D": d}, "1.weight is 3, where norm1.weight is 32"
    yield {"netG": last, "D": d}, r"12.bias \(3\) has no place in it"
    yield {"netG": {**g, "style.weight": torch.ones(4, 4)}, "D": d}, r"style.weight \(4 x 4\) has no place"
    yield {"epoch": 3}, "there is no generator"


@pytest.mark.parametrize("case", range(12))
def test_what_does_not_fit_is_said_in_one_sentence(case, tmp_path):
    content, message = [*faults()][case]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message) as error:
        import_((tmp_path / "a.pth",), tmp_path / "mine.safetensors")
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_pickles_and_whole_modules_are_never_loaded(tmp_path):
    class Touch:
        def __reduce__(self):
            return (tmp_path / "touched").touch, ()

    files = {name: tmp_path / f"{name}.pth" for name in ("module", "legacy", "pickle", "text", "empty")}
    torch.save(generator().main[0], files["module"])
    torch.save(generator().main[0], files["legacy"], _use_new_zipfile_serialization=False)
    files["pickle"].write_bytes(pickle.dumps({"netG": Touch()}, protocol=4))
    files["text"].write_text("<html>404</html>"), files["empty"].write_bytes(b"")
    for name, message in {
        "module": "pickled objects.*never loaded",
        "legacy": "a pickle.*never loaded",
        "pickle": "a pickle.*never loaded",
        "text": "is no whole checkpoint",
        "empty": "is no whole checkpoint",
    }.items():
        for read in (checkpoints.load, Source.read, lambda file: dcgan.read((file,))):
            with pytest.raises(UserError, match=message):
                read(files[name])
    assert not (tmp_path / "touched").exists()


# ----------------------------------------------------------------------------------------------------------
# What a transfer says of files that are not this project's.


def test_a_dcgan_as_source_is_told_of_import(tmp_path):
    G, D = pair()
    for way in ("two", "one", "safetensors"):
        file = saved(tmp_path / way, G, D, way)[0]
        with pytest.raises(UserError, match=rf"none of this project's.*import {file} --to"):
            Source.read(file)
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="holds no networks"):
        Source.read(tmp_path / "none.pt")


def source_with(card, path):
    G, D = (network.state_dict() for network in pretrained())
    networks = {"ema": G, "D": D}
    save_file({f"{n}.{k}": t for n, own in networks.items() for k, t in own.items()}, path, card)
    return path


@pytest.mark.parametrize(
    "text", [None, "[1, 2]", "no JSON", '{"settings": [1]}', '{"arguments": 3}', '{"script": 1}', "null"]
)
def test_a_whole_file_without_this_projects_card_is_read(text, tmp_path, capsys):
    read = Source.read(source_with(None if text is None else {"card": text}, tmp_path / "a.safetensors"))
    assert read.latent == 4 and read.script == "wgan_64" and read.settings == {}
    assert ("counts as none" in capsys.readouterr().out) == (text is not None)


@pytest.mark.parametrize(
    "card",
    [
        {"settings": {"source": "x", "G": 5}},
        {"settings": {"source": "x", "G": [1, 2]}},
        {"settings": {"source": "x", "G": [0, 5, 0], "rescale": "none"}},
        {"arguments": {"G": {"latent": 4}}},
        {"arguments": {"G": {"latent": "4", "width": 4}}},
    ],
    ids=str,
)
def test_a_card_of_ours_that_was_edited_is_refused_in_a_sentence(card, tmp_path):
    with pytest.raises(UserError, match=r"the card of .* cannot be made sense of"):
        Source.read(source_with({"card": json.dumps(card)}, tmp_path / "a.safetensors"))


def test_a_critic_that_its_plan_never_touched_is_carried_over_as_it_is(tmp_path):
    card = {"settings": {"source": "x", "G": [0, 0, 5], "D": [0, 5, 0], "clip": 0.01}}  # one that saw instead
    read = Source.read(source_with({"card": json.dumps(card)}, tmp_path / "a.safetensors"))
    D = drawing.script("wgan_64").Discriminator(4)
    shared.carry(D, read, "D")
    assert torch.equal(D.conv3.weight, pretrained()[1].conv3.weight)


def test_a_file_that_is_cut_off_is_no_whole_one(tmp_path):
    path = source_with(None, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    for read in (shared.Source.read, lambda file: dcgan.read((file,))):
        with pytest.raises(UserError, match=r"no whole safetensors file|give a whole file"):
            read(path)
