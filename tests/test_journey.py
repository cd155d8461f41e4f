"""The journey of a new user, command by command: from thirty drawn pictures to a model that is shared."""

import json
import os
import re
import signal
import sys

import pytest
from PIL import Image, ImageDraw

from tests.runs import ROOT
from transfer import record

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")


def drawn(folder):
    """Thirty round faces of different colours, and a note that is no picture."""
    folder.mkdir()
    for index in range(30):
        image = Image.new("RGB", (80, 64), (9 * index % 255, 120, 250 - 8 * index))
        pen = ImageDraw.Draw(image)
        pen.ellipse((16, 8, 64, 56), fill=(250 - 3 * index, 200 - 5 * index, 150))
        pen.ellipse((28, 24, 33, 29), fill="black")
        pen.ellipse((47, 24, 52, 29), fill="black")
        image.save(folder / f"{index:02d}.{('png', 'jpg', 'webp')[index % 3]}")
    (folder / "notes.jpg").write_text("drawn today", encoding="utf-8")
    return folder


@pytest.fixture
def journey(program, tmp_path, monkeypatch):
    """Runs a line of the README from the project's folder, and wants it to end well."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(record, "SCORED", 16)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))

    def go(line, *more, status=0):
        found, out = program(f"{sys.executable} {line}", *more)
        assert found == status and "Traceback" not in out, out
        return out

    return go


def test_from_a_folder_of_pictures_to_a_model_that_is_shared(journey, source, tmp_path, monkeypatch):
    mine, out = drawn(tmp_path / "mine"), tmp_path / "out"
    told = journey("operating_file.py inspect", mine)
    assert "30" in told and "notes.jpg" in told

    train = f"wgan_64_transferlearning.py --images {mine} --source {source} --out {out} --batch-size 4"
    train += " --device cpu --sample-every 2 --log-every 1 --iterations 6"
    assert "finetune" in journey(train, "--dry-run") and not out.exists()

    losses = record.Run.losses

    def stopped(self, **given):
        losses(self, **given)
        if len(given) and self.step == 2:  # the third iteration is under way
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(record.Run, "losses", stopped)
        told = journey(train, status=143)
    (resume,) = re.findall(r"go on with \S+ (.*)", told)
    told = journey(resume)
    (run,) = sorted(out.glob("0*"))
    assert str(run) in told and (run / "samples" / "000006.png").exists()
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]

    pictures, walk = tmp_path / "drawn", tmp_path / "walk.webp"
    journey("-m transfer draw", run, "--count", 9, "--to", pictures, "--walk", walk)
    assert len([*pictures.glob("*.png")]) == 9
    with Image.open(walk) as animation:
        assert animation.is_animated and animation.size == (64, 64)

    told = journey(
        "-m fid",
        pictures,
        mine,
        "--size",
        64,
        "--extractor",
        "efficientnet_lite0",
        "--nearest",
        tmp_path / "p.png",
    )
    assert "copies" in told and "coverage" in told

    held = train.replace("--iterations 6", "--iterations 2 --hold-out 0.2 --score-every 1")
    told = journey(held, "--extractor", "efficientnet_lite0")
    assert "24 images, 6 set aside" in told
    (scores,) = out.glob("0002-*/scores.jsonl")
    assert [json.loads(line)["heldout"]["n_real"] for line in scores.read_text().splitlines()] == [6, 6]
    journey("-m transfer draw", scores.parent, "--best", "--grid", tmp_path / "best.png")

    shared = tmp_path / "shared.safetensors"
    journey("-m transfer share", run, shared)
    card = shared.with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith("---") and str(tmp_path) not in card
    again = train.replace(str(source), str(shared)).replace("--iterations 6", "--iterations 1")
    journey(again)
    assert len(sorted(out.glob("0*"))) == 3
    assert journey("-m transfer share", run, shared, status=2).count("\n") == 1, "nothing is overwritten"
