"""Images drawn from a run: the scripts' generator under every policy, and the folder they are kept in."""

import copy
import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

import wgan_64
from tests.conftest import LATENT, WIDTH, as_source, pretrained
from tests.runs import ROOT
from transfer import UserError, drawing, shared
from transfer.__main__ import draw
from transfer.images import grid, to_uint8
from transfer.plan import Split, layers_of
from transfer.policies import Rescale
from transfer.shared import Source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lively() -> wgan_64.Generator:
    """A generator whose images are not all grey."""
    G, _ = pretrained()
    for name, tensor in G.state_dict().items():
        tensor.mul_(15 if name.startswith("conv") else 1)
    return G


@pytest.fixture(scope="module")
def run(lively, tmp_path_factory) -> Path:
    """A file whose moving average is the lively generator, and whose G is another."""
    path = tmp_path_factory.mktemp("run") / "run.safetensors"
    G, D = pretrained()
    tensors = {"G": G.state_dict(), "ema": lively.state_dict(), "D": D.state_dict()}
    shared.share(path, tensors, {})
    return path


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """gamma and beta moved off the identity."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith(("gamma", "beta", ".u", ".v")):
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
    return network.eval()


@pytest.mark.parametrize("rescale", get_args(Rescale))
@pytest.mark.parametrize("split", [(0, 0, 5), (0, 5, 0), (1, 2, 2), (5, 0, 0)])
def test_the_images_are_the_scripts_generators(lively, split, rescale):
    policies = Split(*split).generator(rescale)
    G = wgan_64.Generator(LATENT, WIDTH, policies)
    shared.carry(G, as_source(lively), "G")
    G = randomised(G)
    z = torch.randn(3, LATENT, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = G(z)
        assert expected.std() > 0.1
        settings = {"source": "tiny", "G": split, "rescale": rescale}
        drawn = drawing.generator(as_source(G, settings=settings))(z)
        assert torch.equal(drawn, expected)


def test_drawing_is_seeded_and_leaves_the_random_state_alone(run):
    read, before = Source.read(run), torch.get_rng_state()
    images = drawing.draw(read, 5, 0, CPU)
    assert images.shape == (5, 3, 64, 64) and images.dtype == torch.uint8
    assert torch.equal(images, drawing.draw(read, 5, 0, CPU, batch=2))
    assert not torch.equal(images, drawing.draw(read, 5, 1, CPU))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_moving_average_is_drawn_from(lively, run):
    z = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = to_uint8(copy.deepcopy(lively).eval()(z))
    assert (drawing.draw(Source.read(run), 2, 0, CPU).int() - expected.int()).abs().max() <= 1


def test_a_diverged_generator_is_refused(run):
    read = Source.read(run)
    read.generator["conv3.weight"].fill_(torch.nan)
    with pytest.raises(UserError, match="diverged"):
        drawing.draw(read, 2, 0, CPU)


def test_kept_images_are_the_drawn_ones_and_listed(run, tmp_path):
    images = drawing.draw(Source.read(run), 3, 0, CPU)
    folder = tmp_path / "generated_image"
    drawing.keep(images, folder)
    names = json.loads((folder / ".generated").read_text())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for name, image in zip(names, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / name)), image.permute(1, 2, 0).numpy())
    keep_again(images, folder)


def keep_again(images, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="holds files already"):
        drawing.keep(images, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_modulated_generator_that_does_not_say_its_policies_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    G, D = (network.state_dict() for network in pretrained())
    modulated = wgan_64.Generator(LATENT, WIDTH, Split(0, 5, 0).generator()).state_dict()
    shared.share(path, {"G": G, "ema": modulated, "D": D}, {})
    with pytest.raises(UserError, match="does not fit the Generator of wgan_64"):
        drawing.generator(Source.read(path))
    card = {"settings": {"source": "tiny", "G": [0, 5, 0], "rescale": "adafm"}}
    shared.share(path, {"G": G, "ema": modulated, "D": D}, card)
    assert [layer.kernel.policy.name for layer in layers_of(drawing.generator(Source.read(path)))] == [
        "adafm"
    ] * 5


# ----------------------------------------------------------------------------------------------------------
# The command.


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_the_command_draws_the_seeds_images_and_refuses_a_folder_with_files(program, run, tmp_path):
    folder, command = tmp_path / "new" / "drawn", f"{sys.executable} -m transfer draw"
    done = program(command, run, "--count", 3, "--to", folder, "--seed", 5)
    assert done == (0, f"3 images are in {folder}\n")
    for path, image in zip(sorted(folder.glob("*.png")), drawing.draw(Source.read(run), 3, 5), strict=True):
        assert np.array_equal(pixels(path), image.permute(1, 2, 0).numpy())
    status, out = program(command, run, "--to", folder)
    assert status == 2 and out.startswith(f"python -m transfer: {folder} holds files")
    assert out.count("\n") == 1


def test_a_grid_shows_every_image_and_truncation_brings_them_nearer_to_the_average(tmp_path):
    shipped, spreads = ROOT / "pretrained_model" / "wgan_64.safetensors", []
    z = drawing.latents(Source.read(shipped), 9, 0)
    for truncate in (1.0, 0.7, 0.3):
        draw(shipped, grid=tmp_path / f"{truncate}.png", count=9, truncate=truncate)
        expected = torch.cat([*drawing.stream(Source.read(shipped), z * truncate)])
        assert np.array_equal(pixels(tmp_path / f"{truncate}.png"), np.asarray(grid(expected, 3)))
        spreads.append(expected.float().std(0).mean())
    assert spreads[0] > spreads[1] > spreads[2]


@pytest.mark.parametrize("ending", [".webp", ".gif", ".png"])
def test_a_walk_goes_from_latent_to_latent_and_back_to_the_first(run, tmp_path, ending):
    draw(run, walk=tmp_path / f"walk{ending}", count=3)
    with Image.open(tmp_path / f"walk{ending}") as film:
        assert film.n_frames == 3 * 16 and film.size == (64, 64)


def test_the_steps_of_a_walk_are_an_arc_through_its_latents():
    z = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    way = drawing.walk(z, 4).view(3, 4, 100)
    torch.testing.assert_close(way[:, 0], z)
    lengths, ends = way.norm(dim=2), z.norm(dim=1)
    assert lengths.min() > 0.98 * ends.min() and lengths.max() < 1.02 * ends.max()
    assert ((z[0] + z[1]) / 2).norm() < 0.9 * ends.min(), "where a straight line would pass"
    angles = torch.cosine_similarity(way[0, :-1], way[0, 1:]).acos()
    assert angles.max() < 1.3 * angles.min(), "steps of nearly the same angle"
    for same in (torch.ones(2, 5), torch.tensor([[1.0], [-1.0]])):
        assert drawing.walk(same, 4).abs().max() < 1.01


@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_the_same_latents_are_drawn_from_several_models(run, source, tmp_path, ending):
    file, folder = tmp_path / f"z{ending}", tmp_path / "drawn"
    draw(run, grid=tmp_path / "a.png", count=4, seed=3, latents=file)
    torch.testing.assert_close(drawing.read_latents(file), drawing.latents(Source.read(run), 4, 3))
    draw(run, grid=tmp_path / "b.png", seed=9, latents=file)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw(source, to=folder, count=2, latents=file)
    expected = drawing.draw(Source.read(source), 4, 3)
    for index in range(2):
        assert np.array_equal(pixels(folder / f"{index:06d}.png"), expected[index].permute(1, 2, 0).numpy())
    assert len([*folder.glob("*.png")]) == 2
    with pytest.raises(UserError, match="holds 4 latents"):
        draw(run, to=tmp_path / "more", count=5, latents=file)


def test_latents_of_dcgans_shape_are_read_and_others_refused(run, tmp_path):
    np.save(tmp_path / "four.npy", np.zeros((2, LATENT, 1, 1), np.float64))
    assert drawing.read_latents(tmp_path / "four.npy").shape == (2, LATENT)
    for name, array in {
        "nan": np.full((2, 4), np.nan),
        "flat": np.zeros(3),
        "none": np.zeros((0, 4)),
        "object": np.array([{}]),
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(UserError, match=rf"{name}.npy holds .*: give"):
            drawing.read_latents(tmp_path / f"{name}.npy")
    (tmp_path / "text.npy").write_text("0 1 2")
    for name in ("text.npy", "text.safetensors"):
        with pytest.raises(UserError, match="holds no latents"):
            drawing.read_latents(tmp_path / name)
    np.save(tmp_path / "wide.npy", np.zeros((2, LATENT + 1)))
    with pytest.raises(UserError, match="have 5 numbers each"):
        draw(run, to=tmp_path / "drawn", latents=tmp_path / "wide.npy")
    assert not (tmp_path / "drawn").exists(), "nothing half made"


def test_images_are_drawn_a_batch_at_a_time(run, monkeypatch, tmp_path):
    sizes, whole = [], wgan_64.Generator.forward
    monkeypatch.setattr(wgan_64.Generator, "forward", lambda G, z: (sizes.append(len(z)), whole(G, z))[1])
    images = drawing.stream(Source.read(run), torch.zeros(1000, LATENT))
    assert next(images).shape == (64, 3, 64, 64) and sizes == [64]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "nowhere to draw to: give --to"),
        ({"count": 0, "to": Path("x")}, "count is 0: give at least 1"),
        ({"seed": 2**64, "to": Path("x")}, "seed is 18446744073709551616: give"),
        ({"truncate": float("nan"), "to": Path("x")}, "truncate is nan: give"),
        ({"walk": Path("x.mp4")}, "x.mp4 does not end in .webp or .gif or .png"),
        ({"grid": Path("x")}, "x does not end in"),
        ({"grid": Path("README.md").absolute()}, "does not end in"),
        ({"to": Path("x"), "latents": Path("x.pt")}, "x.pt does not end in .npy or .safetensors"),
        ({"walk": Path("x.webp"), "count": 1}, "needs two latents"),
    ],
)
def test_mistakes_are_one_sentence(run, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        draw(run, **options)
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(UserError, match=r"there.png is there already"):
        draw(run, grid=tmp_path / "there.png")
