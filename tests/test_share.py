"""A shared file: what a run has trained, as other people get it."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.runs import tiny
from transfer import UserError, checkpoints, shared
from transfer.__main__ import adapter, apply, draw, share
from transfer.adapters import Adapter
from transfer.card import page, seconds
from transfer.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def run(faces, tmp_path_factory):
    script, settings = tiny("wgan_64", faces, None, tmp_path_factory.mktemp("out"), learning_rate=0.01)
    return script.main(settings)


def test_a_shared_file_carries_both_networks_and_says_what_they_are(run, tmp_path):
    share(run, tmp_path / "new" / "mine.safetensors")
    state = Checkpoints(run).newest()[1]
    source = shared.Source.read(tmp_path / "new" / "mine.safetensors")
    for key, tensor in state["ema"].items():
        torch.testing.assert_close(source.generator[key], tensor, rtol=1e-3, atol=1e-6)
    for key, tensor in state["D"].items():
        assert torch.equal(source.discriminator[key], tensor), "D is not rounded"
    with safe_open(tmp_path / "new" / "mine.safetensors", "pt") as file:
        card = json.loads(file.metadata()["card"])
    assert card["iterations"] == 2 and card["images"]["count"] == 8
    samples, drawn = (
        np.asarray(Image.open(path)).astype(int)
        for path in (run / "samples" / "000002.png", tmp_path / "new" / "mine.png")
    )
    assert abs(samples - drawn[: len(samples)]).max() <= 1, "the grid is the run's own"


def test_repeated_iterations_count_once(tmp_path):
    settings = {"batch_size": 10, "critic_steps": 5}
    steps = [(10, 50.0), (20, 25.0), (20, 100.0), (30, 1.0)]  # 20 was done twice, 30 is not in the file
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in steps]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 1')
    assert seconds(tmp_path, 20, settings) == pytest.approx(10 * 50 / 50 + 10 * 50 / 100)
    assert seconds(tmp_path / "none", 20, settings) is None


def test_the_card_is_what_hubs_read_and_its_three_lines_draw(faces, source, tmp_path, monkeypatch, capsys):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path / "out", iterations=1)
    run, file = script.main(settings), tmp_path / "mine.safetensors"
    capsys.readouterr()
    share(run, file, licence="cc-by-nc-4.0")
    assert f"{file} (0" in capsys.readouterr().out
    text = file.with_suffix(".md").read_text()
    _, front, body = text.split("---\n", 2)
    front = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in front.splitlines())}
    assert front["license"] == "cc-by-nc-4.0" and front["base_model"] == "tiny"
    assert front["library_name"] == "pytorch" and {"gan", "transfer-learning"} < set(front["tags"])
    assert f"on 8 images (`{faces.name}`)" in body and "(mine.png)" in body
    snippet, found = body.split("```python\n")[1].split("```")[0], {}
    assert snippet.count("\n") == 3
    monkeypatch.chdir(tmp_path)
    exec(snippet, found)
    assert found["images"].shape == (16, 3, 64, 64) and found["images"].dtype == torch.uint8
    capsys.readouterr()
    share(run, tmp_path / "again.safetensors")
    assert "names no licence" in capsys.readouterr().out
    assert "license" not in (tmp_path / "again.md").read_text()


def test_nothing_that_is_given_away_tells_a_path(faces, source, tmp_path):
    script, settings = tiny(
        "wgan_64_transferlearning", faces, source, tmp_path / "out", iterations=1, reference=faces
    )
    run, places = script.main(settings), {str(path.parent).encode() for path in (faces, source, tmp_path)}
    files = [tmp_path / f"{name}.safetensors" for name in ("whole", "own", "mixed")]
    share(run, files[0]), adapter(run, files[1])
    apply((files[1], files[1]), files[2], source, (0.5, 0.5))
    for path in tmp_path.glob("*.*"):
        assert not any(place in path.read_bytes() for place in places), path.name
    assert "0.5 of `own.safetensors` (8 images" in (tmp_path / "mixed.md").read_text()
    for file in (files[0], files[2]):
        assert shared.Source.read(file).policies("G") is not None, "it still knows that it was carried over"
    said = page("a.safetensors", {"script": "wgan_64.py", "settings": {"images": "x|y\nz"}, "images": {}})
    assert "x\\|y z" in said


def test_nothing_is_overwritten(run, faces, source, tmp_path):
    transferred, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path / "out", iterations=1)
    transferred = transferred.main(settings)
    adapter(transferred, tmp_path / "own.safetensors")
    for ending in (".safetensors", ".md", ".png"):
        (tmp_path / f"mine{ending}").write_text("mine")
        for command in (
            lambda file: share(run, file),
            lambda file: apply((tmp_path / "own.safetensors",), file, source),
        ):
            with pytest.raises(UserError, match=rf"mine\{ending} is there already"):
                command(tmp_path / "mine.safetensors")
        assert (tmp_path / f"mine{ending}").read_text() == "mine"
        (tmp_path / f"mine{ending}").unlink()
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        adapter(transferred, tmp_path / "mine.safetensors")


@pytest.mark.parametrize("damage", ["samples", "settings", "log", "alone"])
def test_a_run_as_people_leave_it_is_shared(run, tmp_path, damage):
    left = shutil.copytree(run, tmp_path / "left")
    if damage == "samples":
        shutil.rmtree(left / "samples"), (left / "samples").mkdir()
        (left / "samples" / "holiday.png").write_bytes(b"")
    elif damage == "alone":
        left = left / "checkpoints" / "000002.pt"
        left = left.rename(tmp_path / "moved.pt")
    else:
        (left / ("settings.json" if damage == "settings" else "log.jsonl")).write_text('{"cut')
    share(left, tmp_path / "mine.safetensors")
    assert "trained by `wgan_64.py`" in (tmp_path / "mine.md").read_text()
    assert (tmp_path / "mine.png").exists()


def test_another_ending_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors"):
        share(run, tmp_path / "mine.pt")


def test_the_newest_the_best_or_a_given_checkpoint_is_shared_drawn_and_scored(faces, source, tmp_path):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=3, save_every=1)
    run = script.main(settings)
    kept = Checkpoints(run)
    second, state = kept.folder / "000002.pt", checkpoints.load(kept.folder / "000002.pt")
    kept.save(2, state, best=True)
    ways = {"newest": (run, False, 3), "best": (run, True, 2), "given": (second, False, 2)}
    for name, (model, best, step) in ways.items():
        expected = kept.newest()[1] if step == 3 else state
        share(model, tmp_path / f"{name}.safetensors", best=best)
        adapter(model, tmp_path / f"{name}-adapter.safetensors", best)
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            assert json.loads(file.metadata()["card"])["iterations"] == step
            assert torch.equal(file.get_tensor("D.conv5.weight"), expected["D"]["conv5.weight"])
        assert Adapter.read(tmp_path / f"{name}-adapter.safetensors").card["iterations"] == step
        for read in (
            shared.Source.read(model, best),
            Adapter.of(model, best).as_model(shared.Source.read(source)),
        ):
            assert read.settings["iterations"] == 3
        assert torch.equal(
            shared.Source.read(model, best).generator["conv1.weight"], expected["ema"]["conv1.weight"]
        )
        draw(model, to=tmp_path / name, count=2, best=best)
    pictures = {name: (tmp_path / name / "000000.png").read_bytes() for name in ways}
    assert pictures["best"] == pictures["given"] != pictures["newest"]


def test_a_source_that_was_moved_is_given_anew(faces, source, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(source.read_bytes())
    script, settings = tiny("wgan_64_transferlearning", faces, moved, tmp_path, iterations=1)
    run = script.main(settings)
    moved.unlink()
    with pytest.raises(UserError, match=r"moved.safetensors, the run's source, is not there: give --source"):
        adapter(run, tmp_path / "own.safetensors")
    adapter(run, tmp_path / "own.safetensors", source=source)
    assert Adapter.read(tmp_path / "own.safetensors").networks["D"]
