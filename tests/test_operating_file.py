"""operating_file.py: what select draws, what inspect says, and above all what clear leaves alone."""

import csv
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import operating_file
from tests.corpus import TOLERANCE, UNREADABLE, broken_corpus
from transfer import UserError
from transfer.images import Images


def run(*words) -> int:
    """The exit code of the command line."""
    try:
        operating_file.main(list(map(str, words)))
    except SystemExit as end:
        return end.code or 0
    return 0


def snapshot(folder: Path) -> dict[str, tuple]:
    """All that is below a folder: the kind, mode and content of each entry, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        link = os.readlink(path) if path.is_symlink() else None
        content = path.read_bytes() if link is None and path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mode, link, content)
    return found


def refused(capsys, *words) -> str:
    """The one sentence with which the command line is refused."""
    capsys.readouterr()
    assert run(*words) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1 and "Traceback" not in sentence
    return sentence


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "selected.csv", newline="", encoding="utf-8", errors="surrogateescape") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, broken_corpus(folder)


@pytest.fixture
def numbered(tmp_path) -> Path:
    """Twenty readable images, each of its own colour, and five broken ones between them."""
    folder = tmp_path / "numbered"
    folder.mkdir()
    for index in range(20):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    for index in range(5):
        (folder / f"{index}x.png").write_bytes(b"")
    return folder


# ----------------------------------------------------------------------------------------------------------
# select


def test_every_readable_image_is_written_as_it_should_look_and_every_other_is_named(corpus, tmp_path, capsys):
    source, expected = corpus
    assert run("select", source, tmp_path / "new" / "target") == 0
    said = capsys.readouterr().out
    rows = table(tmp_path / "new" / "target")
    readable = {name for name, value in expected.items() if value != UNREADABLE}
    assert {row["original"] for row in rows} == readable and len(rows) == len(readable)
    for name in expected.keys() - readable:
        assert f"skipped {name!r}: " in said
    for row in rows:
        image = Image.open(tmp_path / "new" / "target" / row["file"])
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
        assert not image.info  # no colour profile, which is not that of the pixels written
        difference = np.subtract(image.getpixel((8, 8)), expected[row["original"]])
        assert abs(difference).max() <= TOLERANCE, row
        assert row["sha256"] == hashlib.sha256((source / row["original"]).read_bytes()).hexdigest()
    assert sorted(os.listdir(tmp_path / "new" / "target")) == sorted(
        [row["file"] for row in rows] + ["selected.csv"]
    )
    assert os.listdir(tmp_path / "new") == ["target"]


def test_a_draw_is_seeded_without_replacement_and_the_same_from_a_zip(numbered, tmp_path):
    with zipfile.ZipFile(tmp_path / "numbered.zip", "w") as archive:
        for path in sorted(numbered.iterdir(), reverse=True):
            archive.write(path, path.name)
    for target, source, seed in (("a", numbered, 1), ("b", tmp_path / "numbered.zip", 1), ("c", numbered, 2)):
        assert run("select", source, tmp_path / target, "--count", 12, "--seed", seed) == 0
    a, b, c = (snapshot(tmp_path / name) for name in "abc")
    assert a == b != c
    assert len({row["original"] for row in table(tmp_path / "a")}) == 12
    assert sorted(name for name in a if name != "selected.csv") == [f"{index:02d}.png" for index in range(12)]


def test_unreadable_draws_are_replaced_until_none_are_left(numbered, tmp_path, capsys):
    assert run("select", numbered, tmp_path / "all", "--count", 20) == 0
    capsys.readouterr()
    before = snapshot(tmp_path)
    assert "20 of the 25 files" in refused(capsys, "select", numbered, tmp_path / "more", "--count", 21)
    assert snapshot(tmp_path) == before


def test_without_a_count_all_are_taken_in_the_order_of_their_names(numbered, tmp_path):
    (tmp_path / "target").mkdir()  # an empty folder will do
    assert run("select", numbered, tmp_path / "target") == 0
    originals = [row["original"] for row in table(tmp_path / "target")]
    assert originals == sorted(originals) and len(originals) == 20


def test_a_box_is_cut_out_before_the_square_and_images_that_do_not_hold_it_are_skipped(tmp_path, capsys):
    (tmp_path / "source").mkdir()
    picture = Image.new("RGB", (178, 218), "white")
    picture.paste((200, 0, 0), (15, 40, 163, 188))
    picture.save(tmp_path / "source" / "face.png")
    Image.new("RGB", (100, 218)).save(tmp_path / "source" / "narrow.png")
    box = ("--box", 15, 40, 163, 188)
    assert run("select", tmp_path / "source", tmp_path / "target", *box, "--size", 16) == 0
    assert "skipped 'narrow.png': 100 x 218" in capsys.readouterr().out
    image = Image.open(tmp_path / "target" / "0.png")
    assert image.size == (16, 16) and image.getcolors() == [(256, (200, 0, 0))]


@pytest.mark.parametrize(
    ("words", "mended"),
    [
        (("numbered", "full"), "give a new or an empty folder"),
        (("numbered", "full/file"), "give a new or an empty folder"),
        (("numbered", "numbered"), "give a new or an empty folder"),
        (("numbered", "full/file/below"), "give another folder"),
        (("nowhere", "target"), "nowhere"),
        (("full", "target"), "0 of the 1 files in full"),
        (("empty", "target"), "holds no image"),
        (("full/file", "target"), "neither a folder nor a zip"),
        (("numbered", "target", "--count", 0), "at least 1"),
        (("numbered", "target", "--count", 26), "holds 25 files"),
        (("numbered", "target", "--size", 0), "at least 1"),
        (("numbered", "target", "--seed", -1), "at least 0"),
        (("numbered", "target", "--box", 5, 5, 5, 9), "give left, upper"),
        (("numbered", "target", "--box", -1, 0, 5, 9), "give left, upper"),
        (("numbered", "target", "--box", 0, 0, 9, 9), "0 of the 25"),  # larger than the images
    ],
)
def test_select_refuses_in_one_sentence_and_writes_nothing(
    words, mended, numbered, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("here already")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    assert mended in refused(capsys, "select", *words)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(errno.ENOSPC, "No space left"), 2), (KeyboardInterrupt(), 130)]
)
def test_a_selection_that_fails_half_way_leaves_nothing(error, code, numbered, tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def fail(image, path, *rest):
        if len(saved) == 3:
            raise error
        saved.append(path)
        save(image, path, *rest)

    monkeypatch.setattr(Image.Image, "save", fail)
    before = snapshot(tmp_path)
    assert run("select", numbered, tmp_path / "target") == code
    assert snapshot(tmp_path) == before and len(saved) == 3


def test_a_target_that_is_filled_meanwhile_is_not_overwritten(numbered, tmp_path, monkeypatch, capsys):
    (tmp_path / "target").mkdir()
    write = operating_file._write

    def meddle(*arguments):
        (tmp_path / "target" / "mine").write_text("mine")
        return write(*arguments)

    monkeypatch.setattr(operating_file, "_write", meddle)
    assert "cannot be written" in refused(capsys, "select", numbered, tmp_path / "target")
    assert snapshot(tmp_path / "target").keys() == {"mine"}


# ----------------------------------------------------------------------------------------------------------
# inspect


def test_inspect_counts_names_what_is_unreadable_and_groups_duplicates(corpus, capsys):
    folder, expected = corpus
    before = snapshot(folder)
    assert run("inspect", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    broken = {name for name, value in expected.items() if value == UNREADABLE}
    readable = len(expected) - len(broken)
    assert lines[0] == f"{folder}: {len(expected)} files, {readable} of them readable images"
    assert f"unreadable: {len(broken)}" in lines
    for name in broken:
        assert any(line.startswith(f"  {name!r}: ") for line in lines)
    assert {"  CMYK: 2", "  I;16: 2", "  LA: 1", "  WEBP: 4", "  200 x 90: 1", "  64 x 96: 10"} <= set(lines)
    assert any("'link.png' = 'rgb.png'" in line for line in lines)
    assert snapshot(folder) == before


def test_duplicates_are_those_of_pixels_not_of_files(tmp_path, capsys):
    image = Image.new("RGB", (8, 8), "red")
    for name in ("a.png", "b.bmp", "c.tif"):
        image.save(tmp_path / name)
    image.resize((4, 16)).save(tmp_path / "other-shape.png")
    assert run("inspect", tmp_path) == 0
    same = capsys.readouterr().out.partition("exact duplicates: ")[2]
    assert same.startswith("2\n  'a.png' = 'b.bmp' = 'c.tif'") and "other-shape" not in same


def test_inspect_of_nothing_is_refused(tmp_path, capsys):
    assert "holds no image" in refused(capsys, "inspect", tmp_path)


# ----------------------------------------------------------------------------------------------------------
# preview


def test_a_preview_shows_rows_of_images_and_columns_of_draws(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("preview", faces, "--augment", "flip", "--images", 3, "--draws", 5) == 0
    assert "3 images, each with 5 draws of flip" in capsys.readouterr().out
    picture = np.asarray(Image.open("preview-flip.png"))
    assert picture.shape == (3 * 64, 6 * 64, 3)
    first, *draws = np.split(picture.reshape(3, 64, 6, 64, 3).swapaxes(1, 2), 6, axis=1)
    shown = {first[row].tobytes() for row in range(3)}
    assert len(shown) == 3 and shown <= {Image.open(path).tobytes() for path in faces.iterdir()}
    mirrored = [(draw[row] == first[row, :, :, ::-1]).all() for draw in draws for row in range(3)]
    same = [(draw[row] == first[row]).all() for draw in draws for row in range(3)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 0 < sum(mirrored) < 15
    assert run("preview", faces, "--augment", "flip", "--images", 3, "--draws", 5, "--to", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("preview-flip.png").read_bytes(), "the seed's"


def test_a_preview_refuses_in_one_sentence(faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("preview-diffaugment.png").write_text("mine")
    assert "nothing is overwritten" in refused(capsys, "preview", faces)
    assert Path("preview-diffaugment.png").read_text() == "mine"
    assert "--draws is 0: give at least 1" in refused(capsys, "preview", faces, "--draws", 0)
    assert "--seed is 18446744073709551616: give at most" in refused(
        capsys, "preview", faces, "--seed", 2**64
    )
    assert "cannot be written" in refused(capsys, "preview", faces, "--to", "nowhere/a.png")


def test_a_name_that_is_too_long_is_refused(numbered, tmp_path, capsys):
    name = "x" * 300
    for words in (("select", numbered, tmp_path / name), ("select", tmp_path / name, tmp_path / "target")):
        assert "long" in refused(capsys, *words)
    assert "long" in refused(capsys, "inspect", tmp_path / name)


# ----------------------------------------------------------------------------------------------------------
# fetch


def test_celeba_is_fetched_and_its_faces_selected(tmp_path, monkeypatch, capsys):
    def fetch(root, split, download):
        assert split == "all" and download
        (folder := Path(root) / "celeba" / "img_align_celeba").mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (178, 218), (50 * index, 0, 0)).save(folder / f"00000{index}.jpg")

    fake = types.SimpleNamespace(CelebA=fetch)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    words = ("fetch", "celeba", "--downloads", tmp_path / "data")
    assert run(*words, tmp_path / "target", "--count", 2) == 0
    assert [row["file"] for row in table(tmp_path / "target")] == ["0.png", "1.png"]
    assert Image.open(tmp_path / "target" / "0.png").size == (64, 64)

    def fail(*_, **__):
        raise RuntimeError("The daily quota\nis exceeded.")

    fake.CelebA = fail
    sentence = refused(capsys, *words, tmp_path / "other")
    assert "The daily quota is exceeded." in sentence and "--box 15 40 163 188" in sentence
    assert "often refuses" in sentence
    fake.CelebA = None  # is not reached
    assert "give a new" in refused(capsys, *words, tmp_path / "target")


def idx(path: Path, data: bytes, *sizes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes((0, 0, 8, len(sizes))) + b"".join(n.to_bytes(4, "big") for n in sizes) + data)


def test_small_images_that_are_there_are_read_by_torchvision_and_put_where_scripts_read(tmp_path, capsys):
    pytest.importorskip("torchvision")
    raw, random = tmp_path / "data" / "KMNIST" / "raw", np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 28, 28), np.uint8)
    for part, some in (("train", pixels), ("t10k", pixels[:2])):
        idx(raw / f"{part}-images-idx3-ubyte", some.tobytes(), *some.shape)
        idx(raw / f"{part}-labels-idx1-ubyte", bytes((3, 1, 3, 0, 1, 3)[: len(some)]), len(some))
    words = ("fetch", "kmnist", "--downloads", tmp_path / "data")
    assert run(*words, tmp_path / "target") == 0
    images, aside = (
        Images.load(tmp_path / name, size=32, channels=1) for name in ("target", "target_held_out")
    )
    assert images.kinds == ("0", "1", "3") and images.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert np.array_equal(images.pixels[:, 0, 2:-2, 2:-2].numpy(), pixels[[3, 1, 4, 0, 2, 5]])
    assert len(aside) == 2
    assert run(*words, tmp_path / "some", "--count", 4, "--seed", 1) == 0
    assert len(Images.load(tmp_path / "some")) == 4
    assert "at most" in refused(capsys, *words, tmp_path / "more", "--count", 7)


def test_what_torchvision_cannot_fetch_is_told_with_what_to_put_where(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no\nnet")

    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(MNIST=fail))
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    words = ("fetch", "mnist", tmp_path / "target", "--downloads", tmp_path / "data")
    sentence = refused(capsys, *words)
    assert "(no net)" in sentence and f"into {tmp_path / 'data' / 'MNIST' / 'raw'}" in sentence
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert "torchvision cannot fetch MNIST" in refused(capsys, *words)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------
# clear

WRITTEN = (
    "log.jsonl", "scores.jsonl", "reals.png", "samples.webp", "wgan_64.py",
    "samples/000000.png", "samples/000500.png",
    "checkpoints/000500.pt", "checkpoints/001000.pt", "checkpoints/.001500.pt.4711", ".settings.json.4711",
    "checkpoints/manifest.json", ".owner",
)  # fmt: skip


def fill_run(folder: Path, *more: str) -> Path:
    for name in (*WRITTEN, *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "settings.json").write_text(json.dumps({"script": "wgan_64.py", "settings": {}}))
    return folder


@pytest.fixture
def repo(tmp_path, monkeypatch) -> Path:
    """A repository in which clear is at home, with everything that it may and may not touch."""
    repo = (tmp_path / "repo").resolve()
    for name in ("train_images/target_domain/00.png", "pretrained_model/wgan_64.safetensors", "README.md"):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(name)
    for name in ("0001-wgan_64", "0002-wgan_64"):
        fill_run(repo / "source_domain" / name)
    fill_run(repo / "target_domain" / "0001-wgan_64")
    (repo / "generated_image").mkdir()
    names = [f"{index:06d}.png" for index in range(5)]
    for name in names:
        (repo / "generated_image" / name).write_text(name)
    (repo / "generated_image" / ".generated").write_text(json.dumps(names))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(operating_file, "ROOT", repo)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(repo)
    return repo


NOW = ("--yes", "--permanent")


def test_without_yes_clear_only_tells(repo, capsys):
    before = snapshot(repo)
    for permanent in ((), ("--permanent",)):
        assert run("clear", "source_domain", *permanent) == 0
        said = capsys.readouterr().out
        assert "28 files" in said and "'0001-wgan_64/log.jsonl'" in said and "add --yes" in said
    assert snapshot(repo) == before


def test_runs_go_whole_and_nothing_else_does(repo, capsys):
    before = snapshot(repo)
    assert run("clear", "source_domain", *NOW) == 0
    assert "28 files" in capsys.readouterr().out
    after = {name: entry for name, entry in before.items() if not name.startswith("source_domain/")}
    assert snapshot(repo) == after and "source_domain" in after
    assert run("clear", repo / "target_domain" / "0001-wgan_64", *NOW) == 0
    assert os.listdir(repo / "target_domain") == []
    assert run("clear", "target_domain", *NOW) == 0  # nothing to do is no mistake


def test_generated_images_go_with_their_list_and_others_stay(repo, capsys):
    folder = repo / "generated_image"
    listed = [
        *json.loads((folder / ".generated").read_text()),
        "link.png",
        "../README.md",
        "notes.txt",
        7,
        None,
    ]
    (folder / ".generated").write_text(json.dumps([*listed, "gone.png", "folder.png", [1]]))
    (folder / "mine.png").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to(repo / "README.md")
    assert run("clear", "generated_image", *NOW) == 0
    assert "6 files" in capsys.readouterr().out
    assert snapshot(folder).keys() == {"mine.png", "notes.txt", "folder.png", "link.png"}
    assert (repo / "README.md").read_text() == "README.md"


@pytest.mark.parametrize("marker", [None, "", "{}", '"000000.png"', "[", "link"])
def test_without_its_list_no_generated_image_goes(marker, repo):
    path = repo / "generated_image" / ".generated"
    listed = path.read_text()
    path.unlink()
    if marker == "link":
        (repo / "list").write_text(listed)
        path.symlink_to(repo / "list")
    elif marker is not None:
        path.write_text(marker)
    before = snapshot(repo)
    assert run("clear", "generated_image", *NOW) == 0
    assert snapshot(repo) == before


FOREIGN = {  # what makes of a run's folder one that stays, whole
    "a file": lambda run: (run / "notes.txt").write_text("mine"),
    "a script that it was not made with": lambda run: (run / "mine.py").write_text("mine"),
    "a picture among the samples": lambda run: (run / "samples" / "best.png").write_text("mine"),
    "a file among the checkpoints": lambda run: (run / "checkpoints" / "mine.safetensors").write_text("mine"),
    "a folder": lambda run: (run / "samples" / "more").mkdir(),
    "an odd name": lambda run: (run / "-rf\n*.png").write_text("mine"),
    "a name of other bytes": lambda run: (run / os.fsdecode(b"\xff.png")).write_text("mine"),
    "a hidden file": lambda run: (run / ".git").mkdir(),
    "a link to a file": lambda run: (run / "samples" / "000002.png").symlink_to(run / "reals.png"),
    "a dangling link": lambda run: (run / "samples" / "000002.png").symlink_to("nowhere"),
    "a link for a folder": lambda run: (
        (run / "samples").rename(run.parent.parent / "moved"),
        (run / "samples").symlink_to(run.parent.parent / "moved"),
    ),
    "a pipe": lambda run: os.mkfifo(run / "samples" / "000003.png"),
    "no settings": lambda run: (run / "settings.json").unlink(),
    "settings of something else": lambda run: (run / "settings.json").write_text('{"script": "x.py"}'),
    "settings that are no JSON": lambda run: (run / "settings.json").write_bytes(b"\xff{"),
    "settings that are a list": lambda run: (run / "settings.json").write_text('["script", "settings"]'),
    "settings that are a link": lambda run: (
        (run / "settings.json").rename(run.parent.parent / "settings.json"),
        (run / "settings.json").symlink_to(run.parent.parent / "settings.json"),
    ),
}


@pytest.mark.parametrize("change", FOREIGN)
@pytest.mark.parametrize("place", ["target_domain", "target_domain/0001-wgan_64"])
def test_a_run_with_anything_foreign_stays_whole(change, place, repo, capsys):
    FOREIGN[change](repo / "target_domain" / "0001-wgan_64")
    before = snapshot(repo)
    assert run("clear", place, *NOW) == 0
    said = capsys.readouterr().out
    assert "stay, not known to be ours: 1\n  '0001-wgan_64': " in said and "\n\n" not in said
    assert snapshot(repo) == before


def test_a_run_that_a_process_works_on_stays(repo, capsys):
    from filelock import FileLock

    run_folder = repo / "target_domain" / "0001-wgan_64"
    with FileLock(run_folder / ".lock"):
        before = snapshot(repo)
        assert run("clear", "target_domain", *NOW) == 0
        assert "a process is working on it" in capsys.readouterr().out
        assert snapshot(repo) == before
    assert run("clear", "target_domain", *NOW) == 0
    assert os.listdir(repo / "target_domain") == []


def test_what_lies_beside_runs_stays(repo, capsys):
    folder = repo / "source_domain"
    (folder / "notes.txt").write_text("mine")
    (folder / "mine").mkdir()
    (folder / "0003-link").symlink_to(repo / "target_domain" / "0001-wgan_64")
    before = snapshot(repo)
    assert run("clear", "source_domain", *NOW) == 0
    gone = [name for name in before if name.startswith(("source_domain/0001", "source_domain/0002"))]
    assert snapshot(repo) == {name: entry for name, entry in before.items() if name not in gone}
    assert "ours: 3" in capsys.readouterr().out


REFUSED = [
    "", ".", "..", "/", "./", "//", "~", "*", "-source_domain", "Source_Domain", "source_domain\n", "nowhere",
    "train_images", "train_images/target_domain", "pretrained_model", "transfer", "README.md",
    "target_domain/missing", "target_domain/..", "target_domain/../train_images", "../repo/source_domain/..",
    "target_domain/../source_domain", "target_domain/0001-wgan_64/samples", "generated_image/000000.png",
    "source_domain/0001-wgan_64/reals.png", "generated_image/sub", "linked", "linked/0001-wgan_64",
    "loop/source_domain", "target_domain/loop", "target_domain/loop/source_domain", "target_domain/0009-link",
    "{repo}", "{repo}/..", "{repo}/train_images", "{home}", "{home}/source_domain",
]  # fmt: skip


@pytest.mark.parametrize("place", REFUSED)
def test_clear_refuses_every_other_place(place, repo, tmp_path, capsys):
    fill_run(tmp_path / "home" / "source_domain" / "0001-wgan_64")
    fill_run(repo / "train_images" / "0001-wgan_64")
    (repo / "linked").symlink_to(repo / "source_domain")
    (repo / "loop").symlink_to(repo)
    (repo / "target_domain" / "loop").symlink_to(repo)
    (repo / "target_domain" / "0009-link").symlink_to(repo / "source_domain" / "0001-wgan_64")
    before = snapshot(tmp_path)
    refused(capsys, "clear", *NOW, "--", place.format(repo=repo, home=tmp_path / "home"))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("output", ["source_domain", "generated_image"])
def test_an_output_folder_that_is_a_link_is_refused(output, repo, tmp_path, capsys):
    (repo / output).rename(tmp_path / "elsewhere")
    (repo / output).symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path)
    for place in (output, f"{output}/0001-wgan_64", tmp_path / "elsewhere"):
        refused(capsys, "clear", place, *NOW)
    assert snapshot(tmp_path) == before


def test_a_mount_point_is_refused_and_one_inside_a_run_keeps_the_run(repo, monkeypatch, capsys):
    before = snapshot(repo)
    mounts = {str(repo / "source_domain"), str(repo / "target_domain/0001-wgan_64/samples")}
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounts)
    assert "mount point" in refused(capsys, "clear", "source_domain", *NOW)
    assert run("clear", "target_domain", *NOW) == 0
    assert snapshot(repo) == before


def test_home_and_the_current_folder_are_refused_wherever_they_are(repo, monkeypatch, capsys):
    before = snapshot(repo)
    monkeypatch.setenv("HOME", str(repo / "source_domain"))
    refused(capsys, "clear", "source_domain", *NOW)
    monkeypatch.chdir(repo / "target_domain" / "0001-wgan_64")
    refused(capsys, "clear", repo / "target_domain", *NOW)
    refused(capsys, "clear", repo / "target_domain" / "0001-wgan_64", *NOW)
    for place in ("", ".", "..", "./."):
        assert "never cleared" in refused(capsys, "clear", place, *NOW)
    assert snapshot(repo) == before


def test_the_repository_may_itself_be_reached_through_a_link(repo, tmp_path):
    (tmp_path / "way").symlink_to(repo)
    assert run("clear", tmp_path / "way" / "source_domain", *NOW) == 0
    assert os.listdir(repo / "source_domain") == []


PIECES = st.sampled_from(
    ["", ".", "..", "repo", "source_domain", "target_domain", "0001-wgan_64", "/", "loop", "x"]
)


@given(pieces=st.lists(PIECES, min_size=1, max_size=6))
def test_only_output_folders_and_runs_are_ever_let_through(pieces, root_with_a_loop):
    repo = operating_file.ROOT
    operating_file.ROOT = root_with_a_loop
    try:
        folder = operating_file._own(Path(root_with_a_loop, *pieces))
    except UserError:
        return
    finally:
        operating_file.ROOT = repo
    parts = folder.relative_to(root_with_a_loop).parts
    assert parts[0] in ("source_domain", "target_domain") and len(parts) <= 2 and ".." not in parts
    assert folder.resolve() == folder


@pytest.fixture(scope="module")
def root_with_a_loop(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root").resolve() / "repo"
    for name in ("source_domain/0001-wgan_64", "target_domain/0001-wgan_64"):
        (root / name).mkdir(parents=True)
    (root / "loop").symlink_to(root)
    (root / "target_domain" / "loop").symlink_to(root)
    return root


def test_more_files_than_expected_are_refused(repo, capsys):
    before = snapshot(repo)
    assert "--most 28" in refused(capsys, "clear", "source_domain", *NOW, "--most", 27)
    assert snapshot(repo) == before
    assert run("clear", "source_domain", *NOW, "--most", 28) == 0


def test_files_that_vanish_meanwhile_are_no_failure(repo, monkeypatch):
    unlink, others = os.unlink, list((repo / "target_domain" / "0001-wgan_64").rglob("*0500.*"))

    def race(path):
        while others:
            thread = threading.Thread(target=unlink, args=(others.pop(),))
            thread.start()
            thread.join()
        unlink(path)

    assert len(others) == 2
    monkeypatch.setattr(os, "unlink", race)
    assert run("clear", "target_domain", *NOW) == 0
    assert os.listdir(repo / "target_domain") == []


def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(repo, tmp_path, monkeypatch, capsys):
    unlink, samples = os.unlink, repo / "target_domain" / "0001-wgan_64" / "samples"

    def swap(path):
        if not samples.is_symlink():
            samples.rename(tmp_path / "moved")
            samples.symlink_to(tmp_path / "moved")
        unlink(path)

    monkeypatch.setattr(os, "unlink", swap)
    assert run("clear", "target_domain", *NOW) == 1
    assert "reached through a link" in capsys.readouterr().out
    assert len(os.listdir(tmp_path / "moved")) >= 1 and samples.is_symlink()


def test_what_cannot_be_removed_is_listed_and_the_rest_goes(repo, monkeypatch, capsys):
    unlink, stuck = os.unlink, {"000500.png", "000003.png"}

    def fail(path):
        if Path(path).name in stuck:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path)

    monkeypatch.setattr(os, "unlink", fail)
    assert run("clear", "source_domain", *NOW) == 1
    said = capsys.readouterr().out
    kept = {"0001-wgan_64/samples/000500.png", "0002-wgan_64/samples/000500.png"}
    assert all(name in said for name in kept) and "Permission denied" in said and "--permanent" not in said
    files = {
        name for name, (_, _, content) in snapshot(repo / "source_domain").items() if content is not None
    }
    assert files == kept | {
        "0001-wgan_64/settings.json",
        "0002-wgan_64/settings.json",
    }  # still known to be runs
    assert run("clear", "generated_image", *NOW) == 1
    assert set(os.listdir(repo / "generated_image")) == {".generated", "000003.png"}
    stuck.clear()
    for place in ("source_domain", "generated_image"):
        assert run("clear", place, *NOW) == 0
        assert os.listdir(repo / place) == []


def test_files_go_to_the_trash_unless_told_otherwise(repo, tmp_path, monkeypatch, capsys):
    trashed = []

    def send2trash(path):
        trashed.append(str(path))
        os.replace(path, tmp_path / f"trash-{len(trashed)}")

    fake = types.SimpleNamespace(send2trash=send2trash)
    monkeypatch.setitem(sys.modules, "send2trash", fake)
    assert run("clear", "target_domain", "--yes") == 0
    assert len(trashed) == 14 and os.listdir(repo / "target_domain") == []
    assert "moved to the trash: 14 files" in capsys.readouterr().out

    def fail(path):
        raise OSError(f"no trash for {path}")

    before = snapshot(repo)
    fake.send2trash = fail
    assert run("clear", "source_domain", "--yes") == 1
    assert "--permanent needs no trash" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "send2trash", None)  # not installed
    assert "--permanent" in refused(capsys, "clear", "source_domain", "--yes")
    assert snapshot(repo) == before


def test_the_real_trash_holds_what_was_cleared(repo, tmp_path):
    script = f"import operating_file as o, pathlib; o.ROOT = pathlib.Path({str(repo)!r}); o.main()"
    place = tmp_path / "home" / "share"
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(operating_file.__file__).parent),
        "XDG_DATA_HOME": str(place),
    }
    words = [sys.executable, "-c", script, "clear", str(repo / "target_domain"), "--yes"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert os.listdir(repo / "target_domain") == []
    assert len(list((place / "Trash" / "files").iterdir())) == 14


def test_clear_knows_what_a_run_and_the_scores_write(repo, faces, monkeypatch):
    import torch

    import wgan_64
    from transfer.drawing import keep
    from transfer.record import Run

    promised = re.findall(r"^ +([a-z]+\.[a-z]+) {2,}", Run.__doc__, re.MULTILINE)
    assert {"settings.json", "samples.webp"} < set(promised)
    assert all(re.fullmatch(operating_file.RUN, name) for name in promised)
    out = repo / "source_domain"
    tiny = {"latent": 4, "width": 4, "iterations": 1, "critic_steps": 1, "batch_size": 4, "device": "cpu"}
    wgan_64.main(wgan_64.Settings(images=faces, out=out, **tiny))
    assert any(path.name.startswith("0003-") for path in out.iterdir())
    assert run("clear", "source_domain", *NOW) == 0
    assert os.listdir(out) == []
    assert run("clear", "generated_image", *NOW) == 0
    keep(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), repo / "generated_image")
    assert run("clear", "generated_image", *NOW) == 0
    keep(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), repo / "generated_image")  # as it was: empty


# ----------------------------------------------------------------------------------------------------------
# The shipped images, and the command line itself.


def test_the_shipped_cartoons_are_96_different_faces_of_64_pixels(capsys):
    folder = operating_file.ROOT / "train_images" / "target_domain"
    assert sorted(os.listdir(folder)) == sorted([f"{index:02d}.png" for index in range(96)] + ["README.md"])
    assert run("inspect", folder) == 0
    report = capsys.readouterr().out
    assert "96 files, 96 of them readable images\nsizes: 1\n  64 x 64: 96\nmodes: 1\n  RGB: 96\n" in report
    assert "exact duplicates: 0" in report
    assert "creativecommons.org/licenses/by/4.0" in (folder / "README.md").read_text()


def test_the_command_line_explains_itself_and_answers_before_torch_is_loaded(repo):
    script = operating_file.__file__
    help_ = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert help_.returncode == 0 and all(
        word in help_.stdout for word in ("select", "inspect", "clear", "fetch")
    )
    words = [sys.executable, "-X", "importtime", script, "clear", ".", "--yes"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=repo)
    assert done.returncode == 2 and "'.' is never cleared" in done.stderr and "| torch" not in done.stderr
