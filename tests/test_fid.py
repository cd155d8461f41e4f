"""Scoring from images to numbers with a projection for a network: sources, cache, statistics, messages."""

import json
import math
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fid
from fid import metrics, statistics
from fid.extractors import Extractor
from fid.sets import Set
from tests.stand_ins import PROJECTION, D, images, tiny, write
from transfer import UserError
from transfer.images import Images


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(a: fid.Scores, b: fid.Scores) -> bool:
    return json.dumps(a.as_dict()) == json.dumps(b.as_dict())


def test_a_folder_a_zip_a_tensor_and_loaded_images_score_the_same(folders, tmp_path):
    made, real = folders
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        for path in sorted(real.iterdir()):
            archive.write(path, path.name)
    expected = fid.score(made, real, extractor=tiny())
    for source in (
        tmp_path / "real.zip",
        str(real),
        Images.load(real),
        images(7, 2),
        images(7, 2) / 127.5 - 1,
    ):
        assert same(fid.score(made, source, extractor=tiny()), expected)
    assert same(fid.score(images(9, 1) / 127.5 - 1, real, extractor=tiny()), expected)


def test_the_dictionary_is_a_line_of_json_with_all_that_a_score_needs(folders):
    made, real = folders
    found = json.loads(json.dumps(fid.score(made, real, images(20, 3), extractor=tiny(), seed=5).as_dict()))
    keys = "fid kid_mean kid_std precision recall density coverage extractor resize n_real n_generated seed"
    assert not set(keys.split()) - found.keys()
    assert (found["n_generated"], found["n_real"], found["heldout"]["n_real"]) == (9, 7, 20)
    assert (found["extractor"], found["resize"], found["seed"]) == ("tiny", "bilinear 8", 5)
    keys = "generated training heldout near_copies nearer_than_heldout copies"
    assert list(found["memorisation"]) == keys.split(), "and no number of a single image"
    assert found["inception_score"] >= 1 and found["diversity"] > 0


def test_training_and_held_out_scores_stand_side_by_side(folders):
    made, real = folders
    both = fid.score(made, real, images(20, 3), extractor=tiny())
    assert both.heldout == fid.score(made, images(20, 3), extractor=tiny()).training
    line, table = str(both), both.table()
    assert "\n" not in line
    for text in (line, table):
        assert f"{both.training.fid:.4g}" in text and f"{both.heldout.fid:.4g}" in text
        assert "tiny" in text and "bilinear 8" in text and "seed" in text
        assert "KID is the number to compare" in text


def test_faces_in_other_colours_are_one_layout():
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(2, 1, 64, 64, generator=generator)
    colours = 0.5 + torch.rand(8, 3, 1, 1, generator=generator)
    repeated = (faces.repeat(4, 1, 1, 1) * colours * 170).to(torch.uint8)
    real = images(12, 2)
    scores = fid.score(repeated, real, images(40, 3), extractor=tiny())
    assert scores.layouts < 2.1 < 5 < scores.layouts_real <= 8, "as many of them as are generated"
    alike = fid.score(real, real, extractor=tiny())
    assert alike.layouts == alike.layouts_real, "without held-out images beside those of the training set"


def test_scores_carry_intervals_when_asked(folders):
    scores = fid.score(*folders, extractor=tiny(), bootstrap=20)
    low, high = scores.training.fid_interval
    assert low < scores.training.fid < high and "to" in scores.table()
    assert fid.score(*folders, extractor=tiny()).training.fid_interval is None


def test_many_images_need_no_warning():
    x = images(1).expand(fid.scores.COMPARABLE, 3, 64, 64)
    assert fid.score(x, x, extractor=tiny(lambda x: x[:, :, ::32, ::32].flatten(1))).notes == ()


def test_scoring_leaves_the_random_state_and_the_precision_alone(folders):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    torch.backends.mkldnn.conv.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fid.score(*folders, extractor=tiny(), bootstrap=2)
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch.backends.mkldnn.conv.fp32_precision = "none"
    assert torch.equal(torch.get_rng_state(), before)


# Sets that are small, degenerate or broken: a finite number, or one sentence.


def finite(scores: fid.Scores) -> bool:
    numbers = [v for v in scores.as_dict().values() if isinstance(v, float)]
    return len(numbers) > 10 and all(map(math.isfinite, numbers))


def test_constant_images():
    black, white = (
        torch.zeros(5, 3, 64, 64, dtype=torch.uint8),
        torch.full((3, 3, 64, 64), 255, dtype=torch.uint8),
    )
    for a, b in ((black, white), (black, black), (black, images(6)), (images(6), black)):
        assert finite(fid.score(a, b, images(4, 1), extractor=tiny(), bootstrap=3))
    assert fid.score(black, black, extractor=tiny()).training.fid == 0


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 30), (30, 2), (5, 40)])
def test_sets_of_different_sizes_smaller_than_a_subset(n, m):
    assert finite(fid.score(images(n), images(m, 1), extractor=tiny()))


def test_one_image_is_refused():
    with pytest.raises(UserError, match=r"the generated images: 1 readable.*at least 2"):
        fid.score(images(1), images(5), extractor=tiny())
    with pytest.raises(UserError, match="the real images: 1 readable"):
        fid.score(images(5), images(1), extractor=tiny())


def test_an_empty_folder_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        fid.score(tmp_path / "empty", folders[1], extractor=tiny())


def test_unreadable_files_are_left_out_and_named(folders, tmp_path):
    made, real = folders
    expected = fid.score(made, real, extractor=tiny())
    (real / "002a.png").write_bytes(b"no image")
    (real / "003a.png").write_bytes(b"")
    for _ in range(2):  # measured, and from the cache
        scores = fid.score(made, real, extractor=tiny())
        assert scores.training == expected.training
        assert set(scores.left_out) == {f"{real}: 002a.png", f"{real}: 003a.png"}
    broken = write(tmp_path / "broken", images(1))
    (broken / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 readable \('a.png': not in an image format"):
        fid.score(broken, real, extractor=tiny())


def test_features_that_are_not_finite_are_refused(folders):
    with pytest.raises(UserError, match="tiny gives NaN or infinity"):
        fid.score(*folders, extractor=tiny(lambda x: torch.full((len(x), D), torch.nan)))


def test_a_diverged_generator_is_refused(folders):
    broken = images(4).float() / 127.5 - 1
    broken[2, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"hold NaN or infinity.*diverged"):
        fid.score(broken, folders[1], extractor=tiny())


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (3, 8, 8), (4, 8, 8, 3)])
def test_a_tensor_of_another_shape_is_refused(shape, folders):
    with pytest.raises(UserError, match=r"\(N, 3, H, W\)"):
        fid.score(torch.zeros(shape, dtype=torch.uint8), folders[1], extractor=tiny())


def test_images_of_other_sizes_are_noted_and_can_be_brought_to_one(folders, tmp_path):
    made, _ = folders
    mixed = write(tmp_path / "mixed", images(4, 2, side=96))
    Image.fromarray(images(1, 5, side=40)[0].permute(1, 2, 0).numpy()).save(mixed / "small.png")
    scores = fid.score(made, mixed, extractor=tiny())
    assert finite(scores) and any("64x64 and 96x96" in note for note in scores.notes)
    scores = fid.score(made, mixed, extractor=tiny(), size=64)
    assert (
        not any("sizes" in note for note in scores.notes) and scores.resize == "centre square 64, bilinear 8"
    )
    assert same(scores, fid.score(images(9, 1), Images.load(mixed), extractor=tiny(), size=64))


def test_the_note_on_sizes_looks_at_every_image(folders, tmp_path):
    made, _ = folders
    mixed = write(tmp_path / "mixed", images(4, 2))
    for side in (30, 40, 50):
        Image.fromarray(images(1, 5, side)[0].permute(1, 2, 0).numpy()).save(mixed / f"x{side}.png")
    for _ in range(2):  # measured, and from the cache
        notes = fid.score(made, mixed, extractor=tiny()).notes
        assert any("different sizes, 4 from 30x30 to 64x64" in note for note in notes)


# The cache.


RAN = []


class Payload:
    """A pickle that tells when it is loaded."""

    def __reduce__(self):
        return payload, ()


def payload() -> None:
    RAN.append("code from a file")


class Counting:
    """How many images went through the network."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.count += len(x)
        return F.interpolate(x, size=(8, 8), mode="bilinear").flatten(1) @ PROJECTION


def test_real_features_are_computed_once(folders):
    network = Counting()
    first = fid.score(*folders, extractor=tiny(network))
    assert network.count == 9 + 7
    assert same(fid.score(*folders, extractor=tiny(network)), first) and network.count == 16 + 9


def test_the_cache_knows_content_extractor_and_size(folders, tmp_path):
    real, network = folders[1], Counting()

    def used(extractor: Extractor, size: int | None = None) -> int:
        before = network.count
        statistics.cached(Set.of(real, "real", size), extractor)
        return network.count - before

    assert used(tiny(network)) == 7 and used(tiny(network)) == 0
    assert used(tiny(network, "tiny-weights-12345678")) == 7
    assert used(tiny(network), size=32) == 7
    Image.fromarray(images(1, 9)[0].permute(1, 2, 0).numpy()).save(real / "003.png")
    assert used(tiny(network)) == 7
    write(tmp_path / "elsewhere", images(1))
    (real / "004.png").unlink()
    assert used(tiny(network)) == 6 and used(tiny(network)) == 0


def test_a_damaged_cache_file_is_computed_anew(folders, cache):
    made, real = folders
    expected = fid.score(made, real, extractor=tiny())
    path, _ = sorted(cache.iterdir(), key=lambda path: path.stat().st_size)  # features, and thumbnails
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [b"", whole[:10], whole[: len(whole) // 2], whole[:-1]]
    for position in generator.integers(len(whole), size=60):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(generator.integers(8))
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        assert same(fid.score(made, real, extractor=tiny()), expected)
    values = {
        "rows": np.arange(7),
        "shapes": [(64, 64)],
        "names": np.array([], str),
        "reasons": np.array([], str),
    }
    for wrong in (np.zeros((7, D + 1), np.float32), np.full((7, D), np.nan, np.float32), np.zeros((7, D))):
        np.savez(path, values=wrong, **values)
        assert same(fid.score(made, real, extractor=tiny()), expected)
    np.savez(path, **values | {"values": np.array([Payload()], dtype=object)})
    assert same(fid.score(made, real, extractor=tiny()), expected) and not RAN


def test_scores_need_no_cache(folders, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert finite(fid.score(*folders, extractor=tiny(), cache=tmp_path / "file" / "cache"))


# Statistics, as pytorch-fid has them.


def test_statistics_give_the_same_distance(folders, tmp_path):
    made, real = folders
    expected = fid.score(made, real, extractor=tiny())
    features = statistics.extract(Set.of(real, "real"), tiny())
    path = tmp_path / "real.npz"
    statistics.save(path, metrics.Gaussian.of(features.values), tiny())
    scores = fid.score(made, path, extractor=tiny())
    assert scores.training.fid == pytest.approx(expected.training.fid, rel=1e-6)
    assert scores.training.n_real == 7 and scores.training.kid is None and scores.memorisation is None
    assert "KID -" in str(scores) and "kid" not in scores.table().partition("KID")[0]
    json.dumps(scores.as_dict())
    assert fid.score(path, path, extractor=tiny()).training.fid == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match="exists already"):
        statistics.save(path, metrics.Gaussian.of(features.values), tiny())
    with np.load(path) as file:  # what pytorch-fid reads
        np.testing.assert_allclose(file["mu"][:], features.values.double().mean(0))
        np.testing.assert_allclose(file["sigma"][:], np.cov(features.values.double().numpy(), rowvar=False))


def saved(path: Path, source: Path, size: int | None) -> Path:
    found = statistics.extract(Set.of(source, "real", size), tiny())
    statistics.save(path, metrics.Gaussian.of(found.values), tiny(), size)
    return path


def test_statistics_are_compared_at_the_size_that_their_images_were_brought_to(folders, tmp_path):
    made, real = write(tmp_path / "m", images(9, 1, 96)), write(tmp_path / "r", images(7, 2, 96))
    plain, small = saved(tmp_path / "plain.npz", real, None), saved(tmp_path / "small.npz", real, 32)
    assert (statistics.brought_to(plain), statistics.brought_to(small)) == (0, 32)
    expected = [fid.score(made, real, extractor=tiny(), size=size) for size in (None, 32)]
    for path, like in zip((plain, small), expected, strict=True):
        scores = fid.score(made, path, extractor=tiny())
        assert scores.training.fid == pytest.approx(like.training.fid, rel=1e-6)
        assert scores.resize == like.resize
    assert abs(expected[0].training.fid - expected[1].training.fid) > 1e-3
    assert fid.score(real, small, extractor=tiny(), size=32).training.fid == pytest.approx(0, abs=1e-6)
    for sets, size in (((made, small), 64), ((made, plain), 32), ((made, plain, small), None)):
        with pytest.raises(UserError, match=r"npz is of images .*: write it again with --save"):
            fid.score(*sets, extractor=tiny(), size=size)


def test_statistics_are_known_by_their_content(folders, tmp_path):
    made, real = folders
    path = saved(tmp_path / "stats", real, None)
    assert statistics.is_statistics(path) and fid.score(made, path, extractor=tiny()).training.n_real == 7
    for other in (real, tmp_path / "nowhere", made / "000.png"):
        assert not statistics.is_statistics(other)
    with zipfile.ZipFile(tmp_path / "real.zip", "w") as archive:
        archive.write(real / "000.png", "000.png")
    assert not statistics.is_statistics(tmp_path / "real.zip")


def test_statistics_that_may_not_be_read_are_said_to_be_that(folders, tmp_path, monkeypatch):
    path = saved(tmp_path / "real.npz", folders[1], None)

    def closed(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", closed)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        statistics.read(path, tiny())


def test_statistics_of_pytorch_fid_are_read(folders, tmp_path):
    values = statistics.extract(Set.of(folders[1], "real"), tiny()).values.double().numpy()
    np.savez_compressed(tmp_path / "theirs.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    scores = fid.score(folders[0], tmp_path / "theirs.npz", extractor=tiny())
    assert scores.training.fid == pytest.approx(fid.score(*folders, extractor=tiny()).training.fid, rel=1e-6)
    assert scores.training.n_real is None and "does not say what size" in " ".join(scores.notes)
    str(scores), scores.table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"mu": np.zeros(D), "sigma": np.eye(D), "extractor": "inception"},
            "statistics of inception, not of tiny",
        ),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, "statistics of 5 features"),
        ({"mu": np.zeros(D), "sigma": np.zeros(D)}, "statistics of 12 features"),
        ({"mu": np.full(D, np.nan), "sigma": np.eye(D)}, "holds NaN"),
        ({"mu": np.zeros(D)}, "holds no mu and sigma"),
        (None, "holds no mu and sigma"),
    ],
)
def test_other_statistics_are_refused(content, message, tmp_path, folders):
    path = tmp_path / "wrong.npz"
    path.write_bytes(b"damaged") if content is None else np.savez(path, **content)
    with pytest.raises(UserError, match=message):
        fid.score(folders[0], path, extractor=tiny())


def test_statistics_run_no_code(tmp_path, folders):
    np.savez(tmp_path / "pickle.npz", mu=np.array([Payload()], dtype=object), sigma=np.eye(D))
    with pytest.raises(UserError, match="holds no mu and sigma"):
        fid.score(folders[0], tmp_path / "pickle.npz", extractor=tiny())
    assert not RAN


def test_missing_statistics_are_refused(folders, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        fid.score(folders[0], tmp_path / "none.npz", extractor=tiny())


# The contact sheet.


def test_the_closest_pairs_are_drawn_and_listed(folders, tmp_path):
    made, real = folders
    (real / "000a.png").write_bytes(b"no image")  # shifts the indices of those after it
    Image.open(real / "005.png").save(made / "copy.png")
    scores = fid.score(made, real, extractor=tiny(), nearest=tmp_path / "near.png")
    lines = (tmp_path / "near.csv").read_text().splitlines()
    assert lines[0] == "generated,training,ratio" and len(lines) == 1 + 10
    name, training, ratio = lines[1].split(",")
    assert (name, training) == ("copy.png", "005.png") and float(ratio) < 1e-2
    assert f"the closest pairs are in {tmp_path / 'near.png'}" in scores.notes
    assert len(scores.memorisation.nearest) == 10
    sheet = np.asarray(Image.open(tmp_path / "near.png"))
    assert sheet.shape == (3 * 64, 8 * 64, 3)  # ten pairs, four a row
    assert (sheet[:64, :64] == sheet[:64, 64:128]).all()
    before = (tmp_path / "near.png").read_bytes()
    again = fid.score(made, real, extractor=tiny(), nearest=tmp_path / "near.png")
    assert (tmp_path / "near.png").read_bytes() == before
    assert f"the closest pairs are in {tmp_path / 'near_2.png'}" in again.notes
    nowhere = fid.score(made, real, extractor=tiny(), nearest=tmp_path / "none" / "near.png")
    assert any("cannot be written" in note for note in nowhere.notes), "which costs no scores"


# What a run scores itself with, and what its critic saw through.


def test_a_score_by_what_the_critic_saw_through_says_so(folders):
    def noted(*seen: str | None) -> bool:
        scores = fid.score(*folders, extractor=tiny(name="tiny-12-bilinear-8"), seen=seen)
        found = "critic saw through tiny" in " ".join(scores.as_dict()["notes"])
        assert found == ("critic saw through tiny" in str(scores))
        return found

    assert noted("other", "tiny")
    assert not noted() and not noted("other", "tin", None)


def test_a_run_is_scored_against_its_images_and_its_reference(folders, monkeypatch):
    given, loaded = SimpleNamespace(score_every=0, extractor="tiny", reference=folders[0], seed=3), []
    real = Images.load(folders[1], size=32)

    def load(name: str, device: str) -> Extractor:
        loaded.append((name, device))
        return tiny(name="tiny-12-bilinear-8")

    monkeypatch.setattr("fid.scores.load", load)
    assert fid.scorer(given, real) is None and not loaded
    given.score_every = 1
    scorer = fid.scorer(given, real, seen=("tiny",))
    assert loaded == [("tiny", "cpu")], "before the first score, so that a missing one ends no run"
    made, options = images(9, 1, side=32), {"extractor": tiny(name="tiny-12-bilinear-8"), "size": 32}
    expected = fid.score(made, real, folders[0], seed=3, seen=("tiny",), **options)
    assert same(scorer(made), expected)
    assert expected.heldout.n_real == 9 and expected.seed == 3 and "critic saw" in expected.notes[0]
