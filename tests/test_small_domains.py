"""Small domains: idx files, grey images of 32 pixels, the networks with other numbers, Mind2Mind's pairs."""

import gzip
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fid
import wgan_64
import wgan_64_transferlearning
import wgan_gp_64
from experiments import __main__ as commands
from experiments import pairs, runs, selection, tables
from fid import scores
from fid.extractors import Extractor
from methods import mind2mind, minegan
from tests.runs import TINY
from transfer import UserError
from transfer.checkpoints import Checkpoints
from transfer.drawing import draw, keep, untrained
from transfer.images import Images, grid
from transfer.reading import find
from transfer.shared import Source

DIGITS = np.random.default_rng(0).integers(0, 256, (8, 28, 28), np.uint8)
SMALL = {"size": 32, "channels": 1}


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "digits" / "images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(idx(DIGITS)))
    return path.parent


def test_idx_is_read_plain_or_gzipped_alone_in_a_folder_and_in_a_zip(digits, tmp_path):
    (tmp_path / "alone").write_bytes(idx(DIGITS))
    (digits / "labels-idx1-ubyte").write_bytes(idx(np.arange(8, dtype=np.uint8)))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(digits / "images-idx3-ubyte.gz", "a/images-idx3-ubyte.gz")
    for place in (digits, digits / "images-idx3-ubyte.gz", tmp_path / "alone", tmp_path / "all.zip"):
        images = Images.load(place, **SMALL)
        assert images.pixels.shape == (8, 1, 32, 32), place
        assert np.array_equal(images.pixels[:, 0, 2:-2, 2:-2], DIGITS), "in a border, not stretched"
        assert images.pixels[:, :, :2].max() == 0
        assert images.unreadable == ({"labels-idx1-ubyte": "labels, not images"} if place == digits else {})
    assert Images.load(digits).pixels.shape == (8, 3, 64, 64)
    assert Images.load(digits).names[1] == "images-idx3-ubyte.gz/1"


@pytest.mark.parametrize(
    "data, reason",
    [
        (idx(DIGITS)[:-1], "6,271 bytes, where 8 images of 28 x 28 pixels are announced"),
        (idx(DIGITS)[:9], "cut off in its first 16 bytes"),
        (gzip.compress(idx(DIGITS))[:-200], "its gzip is cut off or damaged"),
        (idx(DIGITS[0, 0]), "labels, not images"),
        (b"\0\0\r\3" + idx(DIGITS)[4:], "bytes in three dimensions"),
        (idx(DIGITS[:0]), "0 bytes, where 0 images"),
    ],
)
def test_a_broken_idx_file_is_one_sentence(data, reason, tmp_path):
    (tmp_path / "x-idx3-ubyte").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as an idx file") as refused:
        find(tmp_path / "x-idx3-ubyte")
    assert reason in str(refused.value)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert reason in Images.load(tmp_path).unreadable["x-idx3-ubyte"]


def test_what_is_gzipped_and_no_idx_is_as_before(faces, tmp_path):
    (tmp_path / "0.png.gz").write_bytes(gzip.compress((faces / "0.png").read_bytes()))
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        find(tmp_path / "0.png.gz")
    (tmp_path / "idx.png").write_bytes((faces / "0.png").read_bytes())
    images = Images.load(tmp_path)
    assert images.names == ("idx.png",) and images.unreadable.keys() == {"0.png.gz"}


def test_an_image_of_28_pixels_is_padded_at_32_alone(tmp_path):
    Image.fromarray(DIGITS[0]).save(tmp_path / "a.png")
    assert np.array_equal(Images.load(tmp_path, **SMALL).pixels[0, 0, 2:-2, 2:-2], DIGITS[0])
    assert Images.load(tmp_path, size=64).pixels[0, :, 0].float().mean() > 50, "no border"


# ----------------------------------------------------------------------------------------------------------
# The same networks with other numbers.


def test_other_numbers_make_the_small_networks_and_the_usual_ones_are_what_they_were():
    G, D = wgan_64.Generator(4, 4, **SMALL), wgan_64.Discriminator(4, **SMALL)
    assert D(G(torch.randn(2, 4))).shape == (2,) and G(torch.randn(2, 4)).shape == (2, 1, 32, 32)
    usual = wgan_64.Generator(4, 4), wgan_64.Discriminator(4)
    assert [network.state_dict().keys() for network in usual] == [n.state_dict().keys() for n in (G, D)]
    assert usual[0].conv1.weight.shape[2:] == usual[1].conv5.weight.shape[2:] == (4, 4)
    assert usual[0](torch.randn(2, 4)).shape == (2, 3, 64, 64)


def settings(script, tmp_path, **more):
    fields = script.Settings.__dataclass_fields__
    small = {key: value for key, value in {**TINY, "latent": 4, "width": 4, **SMALL}.items() if key in fields}
    return script.Settings(**{"out": tmp_path / "runs", **small, **more})


@pytest.mark.parametrize("script", [wgan_64, wgan_gp_64])
def test_a_grey_source_is_trained_transferred_drawn_and_scored(script, digits, tmp_path):
    first = script.main(settings(script, tmp_path, images=digits))
    for transfer in (wgan_64_transferlearning, *([minegan] if script is wgan_64 else [])):
        run = transfer.main(settings(transfer, tmp_path, images=digits, source=first))
        source = Source.read(run)
        assert source.shape == SMALL
        untrained(source, "D").load_state_dict(source.discriminator)
        drawn = draw(source, 4, 0)
        assert drawn.shape == (4, 3, 32, 32) and drawn.dtype == torch.uint8
        keep(drawn, tmp_path / f"drawn_{transfer.__name__}")
        found = fid.score(drawn, Images.load(digits, **SMALL), extractor=seen(), size=32, cache=tmp_path)
        assert found.training.fid >= 0
    assert grid(drawn).size == (8 * 32, 32)
    with Image.open(run / "samples" / "000000.png") as sampled:
        assert sampled.size[0] == 8 * 32


def seen(name="mean"):
    return Extractor(f"{name}-0", "none", 3, lambda x: x.float().mean((2, 3)), torch.device("cpu"))


def test_grey_is_scored_as_its_three_equal_channels(tmp_path):
    x, y = torch.from_numpy(DIGITS)[:, None], torch.from_numpy(DIGITS[::-1].copy() // 2)[:, None]
    grey, three = (
        fid.score(a, b, extractor=seen(), cache=tmp_path).training
        for a, b in ((x, y), (x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)))
    )
    assert grey == three and grey.kid > 0


# ----------------------------------------------------------------------------------------------------------
# Mind2Mind's own way.


def mind(tmp_path, digits, **more):
    own = {"source": None, "source_images": digits, "augment": "none", "autoencoder": 2, "hidden": 8}
    return settings(mind2mind, tmp_path, images=digits, **{**own, "iterations": 4, **more})


def test_an_autoencoder_from_nothing_and_then_a_gan_of_its_codes(digits, tmp_path):
    chosen = mind(tmp_path, digits)
    run = mind2mind.main(chosen)
    assert draw(Source.read(run), 2, 0).shape == (2, 3, 32, 32)
    other = mind2mind.main(replace(chosen, iterations=3))
    mind2mind.main(replace(chosen, resume=other))
    ends = [Checkpoints(each).newest()[1] for each in (run, other)]
    assert all(torch.equal(ends[0]["D"][key], ends[1]["D"][key]) for key in ends[0]["D"])
    with pytest.raises(UserError, match="give --source-images"):
        mind2mind.main(replace(chosen, source_images=None))


def test_kept_codes_are_those_that_would_be_made_anew(digits, tmp_path, monkeypatch):
    chosen = mind(tmp_path, digits, fast=False)
    kept = mind2mind.main(chosen)
    monkeypatch.setattr(mind2mind.Augment, "real", lambda self, x: x)
    anew = mind2mind.main(replace(chosen, augment="flip"))  # which flips nothing now, and keeps nothing
    a, b = (Checkpoints(each).newest()[1]["D"] for each in (kept, anew))
    assert all(torch.allclose(a[key], b[key], atol=1e-6) for key in a)


def test_the_pairs_rows_are_of_their_own_images_and_found_again():
    table = pairs.pair("a", "b")
    names = set()
    for row in (*table.rows, *pairs.pair("b", "a").rows):
        chosen = runs.settings_of(row, 0, runs.Budget())
        names.add(runs.identity(row, 0, runs.Budget()))
        line = {"script": row.script, "settings": runs.described(chosen), "scores": [], "seconds": 1}
        found = [each for each in table.rows if selection.lines_of(each, [line])]
        assert found == ([row] if row in table.rows else [])
        assert selection.spent(row, line).much == "the iterations of each row"
    assert len(names) == 4
    assert tables.PAIRS[0].rows[0].settings["hold_out"] == 0.1
    assert not {table.key for table in tables.PAIRS} & {table.key for table in commands.named(("all",))}


def test_a_row_of_its_own_images_is_made_and_judged_once_more(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(runs.lines, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(runs, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(scores, "load", lambda name, *_, **__: seen(name))
    monkeypatch.setattr(fid, "load", lambda name, *_, **__: seen(name), raising=False)
    own = {"images": digits, "source": None, "source_images": digits, "hold_out": 0.25, "autoencoder": 1}
    own |= {**SMALL, "width": 4, "latent": 4, "hidden": 8, "batch_size": 4, "critic_steps": 1, "log_every": 1}
    row = tables.Row("", "mind2mind", own | {"iterations": 2, "score_every": 2})
    budget = runs.Budget(images=tmp_path / "none", out=tmp_path / "out", device="cpu")
    runs.make([tables.Table("", "", "", (row,))], budget)
    (line,), (judged,) = runs.lines.read("run"), runs.lines.read("judged")
    assert (
        line["images"]["name"] == line["settings"]["images"] == line["settings"]["source_images"] == "digits"
    )
    assert judged["scores"]["heldout"]["n_real"] == 2 and judged["scores"]["extractor"].startswith("eff")
