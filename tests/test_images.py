"""Images: what is read and how, what is refused, and what augmentation does to a batch."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fid.sets import Set
from tests.corpus import UNREADABLE, broken_corpus
from tests.runs import ROOT
from transfer import UserError
from transfer.augment import Augment, diff_augment, jitter, mirror, rotate_and_crop
from transfer.decoding import Unreadable, square
from transfer.drawing import keep
from transfer.images import NAMED, Images, grid, to_float, to_uint8
from transfer.reading import find


def test_sub_folders_are_labels(faces, tmp_path):
    names = sorted(path.name for path in faces.iterdir())
    for index, name in enumerate(names):
        folder = tmp_path / "two" / ("cats" if index % 3 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((faces / name).read_bytes())
    images = Images.load(tmp_path / "two")
    assert images.kinds == ("cats", "dogs")
    assert images.labels.tolist() == [name.startswith("dogs") for name in images.names]
    kept, aside = images.apart(3)
    for some in (kept, aside):
        assert some.labels.tolist() == [name.startswith("dogs") for name in some.names]
    assert Images.load(faces).labels is None and Images.load(faces).kinds == ()
    (tmp_path / "two" / "loose.png").write_bytes((faces / names[0]).read_bytes())
    assert Images.load(tmp_path / "two").labels is None, "an image in no sub-folder has no label"


def test_a_folder_and_a_zip_of_it_are_the_same_images(faces, tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in faces.iterdir():
            archive.write(path, path.name)
        archive.writestr("__MACOSX/._0.png", b"")
        archive.writestr("readme.txt", "no image")
    folder, archive = Images.load(faces), Images.load(tmp_path / "faces.zip")
    assert torch.equal(folder.pixels, archive.pixels) and folder.fingerprint == archive.fingerprint
    assert folder.pixels.shape == (8, 3, 64, 64) and folder.pixels.dtype == torch.uint8
    assert folder.names == tuple(f"{index}.png" for index in range(8))
    assert archive.unreadable.keys() == {"__MACOSX/"}


def test_what_is_hidden_is_named_once_and_not_read(faces, tmp_path):
    image = (faces / "0.png").read_bytes()
    for name in ("a/b/x.PNG", "Y", ".hidden.png", "a/.git/b/1.png", "a/.git/2.png", "__MACOSX/._x.PNG"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(image)
    images = Images.load(tmp_path)
    assert images.names == ("Y", "a/b/x.PNG")
    assert images.unreadable == dict.fromkeys((".hidden.png", "__MACOSX/", "a/.git/"), "hidden")


def test_folders_that_links_lead_to_are_read_once(faces, tmp_path):
    image = (faces / "0.png").read_bytes()
    for name in ("here/sub/a.png", "elsewhere/more/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(image)
    here = tmp_path / "here"
    links = {"again": "here/sub", "away": "elsewhere", "away-again": "elsewhere/more", "up": "."}
    for name, target in {**links, "sub/loop": "here"}.items():
        (here / name).symlink_to(tmp_path / target)
    images = Images.load(here)
    assert images.names == ("away/more/b.png", "sub/a.png")
    assert images.unreadable == {
        "again/": "the same folder as 'sub/'",
        "away-again/": "the same folder as 'away/more/'",
        **dict.fromkeys(("up/", "sub/loop/"), "a link to a folder that holds it"),
    }


def test_a_folder_that_may_not_be_listed_is_named_and_one_of_its_own_is_refused(faces, tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "0.png").write_bytes((faces / "0.png").read_bytes())
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images = Images.load(tmp_path)
    assert images.names == ("0.png",) and "Permission denied" in images.unreadable["closed/"]
    with pytest.raises(UserError, match=r"closed cannot be read \(Permission denied\): look after its perm"):
        find(tmp_path / "closed")


def test_names_in_a_zip_may_begin_in_any_way(faces, tmp_path):
    names = ["./a.png", "./b/./c.png", "/d.png", "../e.png", "..f.png", "g\\h.png", "./.hidden.png"]
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for name in names:
            member = zipfile.ZipInfo("x")
            member.filename = name
            archive.writestr(member, (faces / "0.png").read_bytes())
    images = Images.load(tmp_path / "faces.zip")
    assert images.names == ("../e.png", "a.png", "b/c.png", "d.png", "g/h.png")
    assert images.unreadable == {"..f.png": "hidden", ".hidden.png": "hidden"}


def test_an_encrypted_file_of_a_zip_is_named(faces, tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(faces / "0.png", "open.png")
        archive.write(faces / "1.png", "shut.png")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    images = Images.load(path)
    assert images.names == ("open.png",) and "unpack it with its password" in images.unreadable["shut.png"]


@pytest.mark.parametrize("marks", [("settings.json", "checkpoints/manifest.json"), ("log.jsonl",)])
def test_a_runs_grids_are_no_images(marks, faces, tmp_path):
    for name in ("own/0.png", "runs/0001-x/reals.png", "runs/0001-x/samples/000000.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((faces / "0.png").read_bytes())
    run = tmp_path / "runs" / "0001-x"
    for mark in marks:
        (run / mark).parent.mkdir(exist_ok=True)
        (run / mark).write_text("{}")
    images = Images.load(tmp_path)
    assert images.names == ("own/0.png",) and "grids" in images.unreadable["runs/0001-x/"]
    for place in (run, run / "samples"):
        with pytest.raises(UserError, match=f"grids of many images: .*--model {run}"):
            find(place)


@pytest.mark.parametrize(
    "name",
    ["README.md", "Readme", "LICENSE-CC", "licence", "sub/a.txt", "selected.csv", "NOTICE", "a.JSON"],
)
def test_notes_beside_images_are_not_worth_a_line(name, faces, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.png").write_bytes((faces / "0.png").read_bytes())
    (tmp_path / name).write_text("CC BY 4.0")
    images = Images.load(tmp_path)
    assert str(images) == "1 images" and not images.unreadable and not capsys.readouterr().out


def test_a_file_that_should_have_been_an_image_is_named_whatever_it_is_called(faces, tmp_path):
    image = (faces / "0.png").read_bytes()
    for name in ("a.txt", "README"):
        (tmp_path / name).write_bytes(image)
    (tmp_path / "half.txt").write_bytes(image[: len(image) // 2])
    (tmp_path / "license.png").write_text("no image")
    images = Images.load(tmp_path)
    assert images.names == ("README", "a.txt") and images.unreadable.keys() == {"half.txt", "license.png"}


def test_images_that_a_model_drew_are_left_out_of_those_around_them(faces, tmp_path, capsys):
    own, drawn = shutil.copytree(faces, tmp_path / "own"), tmp_path / "own" / "more" / "drawn"
    before = Images.load(own)
    keep(before.pixels, drawn)
    images = Images.load(own)
    assert images.fingerprint == before.fingerprint and images.unreadable.keys() == {"more/drawn/"}
    assert "left out: 'more/drawn/' (images that a model drew, as the .generated" in capsys.readouterr().out
    assert len(Images.load(drawn)) == 8 and not Images.load(drawn).unreadable, "by themselves they are wanted"
    archive = Path(shutil.make_archive(str(tmp_path / "own"), "zip", own))
    assert Images.load(archive).unreadable.keys() == {"more/drawn/"}
    (drawn / ".generated").unlink()
    assert len(Images.load(own)) == 16


def test_of_many_files_that_are_left_out_the_first_are_named(faces, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes((faces / "0.png").read_bytes())
    for index in range(NAMED + 2):
        (tmp_path / f"{index:03}.dat").write_text("a face")
    images = Images.load(tmp_path)
    said = capsys.readouterr().out
    assert said.count("left out: '0") == NAMED and "left out: 2 more" in said
    assert str(images) == f"1 images, {NAMED + 2} other files left out"


def test_a_broken_file_is_named_and_left_out(faces, tmp_path, capsys):
    whole = (faces / "0.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(whole)
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    images = Images.load(tmp_path)
    assert images.names == ("whole.png",)
    assert images.unreadable.keys() == {"cut.png", "empty.png", "text.jpg", "gone.png"}
    assert "left out: 'text.jpg' (not in an image format" in capsys.readouterr().out
    assert str(images) == "1 images, 4 other files left out"


def test_of_broken_images_the_same_count_in_the_scripts_and_in_fid(tmp_path):
    expected = broken_corpus(tmp_path)
    readable = {name for name, value in expected.items() if value != UNREADABLE}
    images, scored = Images.load(tmp_path), Set.of(tmp_path, "corpus", 64)
    assert set(images.names) == readable and images.unreadable.keys() == expected.keys() - readable
    assert set(scored.names) == expected.keys()
    pixels = dict(zip(images.names, images.pixels, strict=True))
    for index, name in enumerate(scored.names):
        try:
            assert torch.equal(scored.pixels(index), pixels[name])
        except Unreadable:
            assert name in images.unreadable


def test_a_damaged_file_in_a_zip_is_named_and_left_out(faces, tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bad.bmp", bytes(10_000))
        archive.write(faces / "0.png", "good.png")
        damaged = archive.getinfo("bad.bmp").header_offset + 30 + len("bad.bmp")
    data = bytearray(path.read_bytes())
    data[damaged : damaged + 4] = b"\xff" * 4
    path.write_bytes(data)
    images = Images.load(path)
    assert images.names == ("good.png",) and "zip" in images.unreadable["bad.bmp"]


def test_a_damaged_zip_is_refused_and_a_pipe_is_left_out(faces, tmp_path):
    path = tmp_path / "faces.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(faces / "0.png", "0.png")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] = 0
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged zip"):
        Images.load(path)
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "0.png").write_bytes((faces / "0.png").read_bytes())
    assert Images.load(folder).unreadable == {"pipe.png": "no regular file"}


@pytest.mark.parametrize("case", ["missing", "empty", "text", "file", "broken", "networks"])
def test_a_place_without_images_is_refused_by_name(case, tmp_path):
    place = tmp_path / "place"
    if case == "file":
        place.write_text("no zip")
    elif case == "networks":
        torch.save({"weight": torch.zeros(3)}, place)
    elif case != "missing":
        place.mkdir()
        if case == "text":
            (place / "notes.txt").write_text("no image")
        if case == "broken":
            (place / "0.png").write_text("no image")
    with pytest.raises(UserError) as refusal:
        Images.load(place)
    assert str(place) in str(refusal.value) and "\n" not in str(refusal.value)
    assert ("holds networks, and no images" in str(refusal.value)) == (case == "networks")


def test_sixteen_bits_are_scaled_and_transparency_lies_on_white(tmp_path):
    Image.fromarray(np.full((64, 64), 0x8080, np.uint16)).save(tmp_path / "grey16.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    images = Images.load(tmp_path)
    pixels = dict(zip(images.names, images.pixels[:, :, 0, 0].tolist(), strict=True))
    assert pixels == {"grey16.png": [128] * 3, "clear.png": [255] * 3}


def test_the_middle_square_is_taken_and_resized_with_antialiasing():
    stripes = np.zeros((128, 256), np.uint8)
    stripes[:, 64:192:2] = 255  # single columns of white, in the middle only
    image = square(Image.fromarray(stripes).convert("RGB"), 64)
    assert image.size == (64, 64)
    assert np.asarray(image)[8:-8, 8:-8].std() < 2  # grey: a resize without antialiasing keeps black or white
    assert abs(np.asarray(image).mean() - 127.5) < 4


def test_pixels_survive_the_way_to_float_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(pixels)), pixels)
    assert to_float(pixels).min() == -1 and to_float(pixels).max() == 1


def test_a_batch_may_be_larger_than_the_folder(faces):
    batch = Images.load(faces).batch(20)
    assert batch.shape == (20, 3, 64, 64) and batch.dtype == torch.float32
    assert batch.min() >= -1 and batch.max() <= 1


@pytest.mark.parametrize("name", ["none", "flip", "slight", "strong", "diffaugment"])
def test_each_image_of_a_batch_has_its_own_augmentation(name, faces):
    torch.manual_seed(0)
    one = to_float(Images.load(faces).pixels[:1])
    batch = one.repeat(32, 1, 1, 1)
    augment = Augment(name)
    real, fake = augment.real(batch), augment.fake(batch)
    assert real.shape == batch.shape
    if name == "none":
        assert torch.equal(real, batch)
    elif name == "flip":
        mirrored = [torch.equal(image, one[0].flip(2)) for image in real]
        assert 0 < sum(mirrored) < 32
        assert all(
            torch.equal(image, one[0]) for image, flipped in zip(real, mirrored, strict=True) if not flipped
        )
    else:
        assert len({tuple(image.flatten().tolist()) for image in real}) == 32
    assert torch.equal(fake, batch) == (name != "diffaugment")


def test_strong_changes_more_than_slight(faces):
    torch.manual_seed(0)
    pixels = to_float(Images.load(faces).pixels).repeat(16, 1, 1, 1)
    symmetric = (pixels + pixels.flip(3)) / 2  # so that mirroring is no change
    slight, strong = (
        float((Augment(n).real(symmetric) - symmetric).abs().mean()) for n in ("slight", "strong")
    )
    assert 0 < slight < strong / 2


def test_no_rotation_and_no_crop_is_no_change(faces):
    x = to_float(Images.load(faces).pixels)
    torch.testing.assert_close(rotate_and_crop(x, 0.0, 1.0), x, atol=1e-5, rtol=0)


def test_a_rotation_turns_and_a_crop_enlarges_within_their_bounds_and_nothing_is_empty():
    """Of an image that holds its own coordinates, the middle tells where each pixel came from."""
    torch.manual_seed(0)
    places = (2 * torch.arange(64) + 1) / 64 - 1
    x = torch.stack([places.expand(64, 64), places.view(64, 1).expand(64, 64), torch.ones(64, 64)])
    y = rotate_and_crop(x.expand(1000, 3, 64, 64), 15.0, 0.8)
    assert (y[:, 2] - 1).abs().max() < 1e-5, "what moves in is reflected"
    middle = y[:, :2, 26:38, 26:38]
    step = 2 / 64 * 11
    by_column = (middle[..., -1] - middle[..., 0]).mean(2) / step  # (cos, sin) times the crop's share
    by_row = (middle[:, :, -1] - middle[:, :, 0]).mean(2) / step  # (-sin, cos) times it
    torch.testing.assert_close(by_row, torch.stack([-by_column[:, 1], by_column[:, 0]], 1), atol=1e-4, rtol=0)
    share, angle = by_column.norm(dim=1), torch.atan2(by_column[:, 1], by_column[:, 0]) * 180 / torch.pi
    assert 0.8 - 1e-4 < share.min() < 0.805 and 0.995 < share.max() < 1 + 1e-4
    assert -15.01 < angle.min() < -14.5 and 14.5 < angle.max() < 15.01
    across = middle.mean((2, 3)).abs() / (1 - share).view(-1, 1)
    away = share < 0.99
    assert 0.98 < across[away].max() < 1 + 1e-3, "a crop lies anywhere in the image and never beyond it"


def test_jitter_changes_brightness_contrast_and_saturation_by_up_to_its_amount():
    torch.manual_seed(0)
    grey, coloured = torch.full((3,), -0.3), torch.tensor([0.3, 0.1, -0.1])
    x = torch.where(torch.arange(64) < 32, grey.view(3, 1, 1), coloured.view(3, 1, 1)).expand(3, 64, 64)
    y = jitter(x.repeat(1000, 1, 1, 1), 0.2)
    left, right = y[:, :, 0, 0], y[:, :, 0, 63]
    brightness = ((left.mean(1) + right.mean(1)) / 2 + 1) / 0.9
    contrast = (right.mean(1) - left.mean(1)) / 0.4 / brightness
    saturation = (right[:, 0] - right[:, 2]) / 0.4 / brightness / contrast
    for factor in (brightness, contrast, saturation):
        assert 0.8 - 1e-4 < factor.min() < 0.81 and 1.19 < factor.max() < 1.2 + 1e-4
    assert jitter(x.sign().repeat(100, 1, 1, 1), 0.2).abs().max() == 1, "it stays in its range"


@pytest.mark.parametrize("name, strength", [("slight", (5, 0.95, 0.05)), ("strong", (15, 0.8, 0.2))])
def test_what_slight_and_strong_are(name, strength, monkeypatch):
    told = []
    monkeypatch.setattr("transfer.augment.rotate_and_crop", lambda x, *by: told.extend(by) or x)
    monkeypatch.setattr("transfer.augment.jitter", lambda x, by: told.append(by) or x)
    torch.manual_seed(0)
    x = torch.randn(100, 3, 4, 4)
    seen = Augment(name).real(x)
    assert tuple(told) == strength
    assert 30 < (seen == x.flip(3)).flatten(1).all(1).sum() < 70, "mirrored"


def test_diffaugment_changes_colours_by_what_its_paper_draws():
    """Left half grey, right half coloured: what becomes of the two tells brightness, saturation, contrast."""
    torch.manual_seed(0)
    grey, coloured = torch.full((3,), -0.4), torch.tensor([0.5, 0.2, -0.1])
    x = torch.where(torch.arange(64) < 32, grey.view(3, 1, 1), coloured.view(3, 1, 1)).expand(3, 64, 64)
    y = diff_augment(x.repeat(2000, 1, 1, 1))
    left, right = y[:, :, 32, 16], y[:, :, 32, 48]  # no translation brings one half's colour to the other's
    whole = (left != 0).all(1) & (right != 0).all(1)  # neither is cut out
    left, right = left[whole], right[whole]
    contrast = (right.mean(1) - left.mean(1)) / 0.6
    saturation = (right[:, 0] - right[:, 2]) / 0.6 / contrast
    brightness = (right.mean(1) + left.mean(1)) / 2 + 0.1
    assert whole.sum() > 300 and torch.equal(left, left[:, :1].expand(-1, 3))
    for drawn, low, high in ((brightness, -0.5, 0.5), (saturation, 0, 2), (contrast, 0.5, 1.5)):
        assert low - 1e-4 < drawn.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < drawn.max() < high + 1e-4
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))


def test_diffaugment_moves_by_an_eighth_and_cuts_out_a_quarter():
    torch.manual_seed(0)
    quarters = 1.0 + (torch.arange(64) >= 32).view(64, 1) + 2 * (torch.arange(64) >= 32)  # 1 to 4, exact
    y = diff_augment(quarters.expand(2000, 1, 64, 64))[:, 0]
    moved, at_the_edges = set(), set()
    for image in y:
        kept = (image != 0).nonzero()  # the cut never spans a whole row or column of what has stayed
        (top, left), (bottom, right) = kept.amin(0).tolist(), kept.amax(0).tolist()
        down, across = top - (63 - bottom), left - (63 - right)
        moved |= {("down", down), ("across", across)}
        for rows in (slice(top, 32 + down), slice(32 + down, bottom + 1)):
            for columns in (slice(left, 32 + across), slice(32 + across, right + 1)):
                assert len(set(image[rows, columns].unique().tolist()) - {0.0}) <= 1, "a quarter, moved"
        cut = (image[top : bottom + 1, left : right + 1] == 0).nonzero()
        (first, _), (last, _) = cut.amin(0).tolist(), cut.amax(0).tolist()
        assert len(cut) == (cut.amax(0) - cut.amin(0) + 1).prod(), "one rectangle"
        if first and top + last < bottom:
            assert last - first == 31
        elif first and down >= 0:
            at_the_edges.add(last - first + 1)
    assert moved == {(way, by) for way in ("down", "across") for by in range(-8, 9)}
    assert at_the_edges >= set(range(16, 32)) and min(at_the_edges) == 16  # a centre at 64 leaves 16 rows


def test_diffaugment_lets_gradients_through():
    x = torch.full((64, 3, 64, 64), 1.0, requires_grad=True)
    diff_augment(x).sum().backward()
    assert (x.grad != 0).float().mean() > 0.5


def test_half_of_the_images_are_mirrored_and_the_others_stay():
    torch.manual_seed(0)
    x = torch.randn(1000, 3, 4, 4)
    seen = mirror(x)
    turned, same = ((seen == y).flatten(1).all(1) for y in (x.flip(3), x))
    assert torch.equal(turned, ~same) and turned.float().mean() == pytest.approx(0.5, abs=0.05)


def test_a_grid_shows_the_images_in_their_order():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 2, 2) * 20
    picture = np.asarray(grid(images, columns=4))
    assert picture.shape == (6, 8, 3)
    assert picture[::2, ::2, 0].tolist() == [[0, 20, 40, 60], [80, 100, 120, 140], [160, 180, 0, 0]]


def test_the_held_out_cartoons_are_none_of_those_that_are_trained_on():
    folder = ROOT / "train_images"
    training, held_out = (
        Images.load(folder / name) for name in ("target_domain", "target_domain_held_out.zip")
    )
    assert len(held_out) == 2000 and not held_out.unreadable and not held_out.copies
    a, b = (F.avg_pool2d(each.pixels.float(), 4).flatten(1) for each in (training, held_out))
    # lossy files of the 96 would be within 2 grey levels of them on average
    assert torch.cdist(a, b, p=1).min() / a.shape[1] > 2
