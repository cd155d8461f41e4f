"""A shared file: what a run has trained, as other people get it."""

import json

import pytest
import torch
from safetensors import safe_open

from tests.runs import tiny
from transfer import UserError, checkpoints, shared
from transfer.__main__ import adapter, draw, seconds, share
from transfer.adapters import Adapter
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
    page = (tmp_path / "new" / "mine.md").read_text()
    assert "wgan_64.py" in page and "(mine.png)" in page
    assert (tmp_path / "new" / "mine.png").read_bytes() == (run / "samples" / "000002.png").read_bytes()


def test_repeated_iterations_count_once(tmp_path):
    (tmp_path / "settings.json").write_text('{"settings": {"batch_size": 10, "critic_steps": 5}}')
    steps = [(10, 50.0), (20, 25.0), (20, 100.0), (30, 1.0)]  # 20 was done twice, 30 is not in the file
    lines = [json.dumps({"step": step, "images_per_second": rate}) for step, rate in steps]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert seconds(tmp_path, 20) == pytest.approx(10 * 50 / 50 + 10 * 50 / 100)


def test_another_ending_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"\.safetensors"):
        share(run, tmp_path / "mine.pt")


def test_a_run_that_was_stopped_between_two_grids_shares_the_last(run, tmp_path):
    last = Checkpoints(run).newest()[1]["step"]
    grid = run / "samples" / f"{last:06d}.png"
    content, before = grid.read_bytes(), sorted((run / "samples").glob("*.png"))[-2].read_bytes()
    grid.unlink()
    try:
        share(run, tmp_path / "mine.safetensors")
    finally:
        grid.write_bytes(content)
    assert (tmp_path / "mine.png").read_bytes() == before


def test_the_newest_the_best_or_a_given_checkpoint_is_shared_drawn_and_scored(faces, source, tmp_path):
    script, settings = tiny("wgan_64_transferlearning", faces, source, tmp_path, iterations=3, save_every=1)
    run = script.main(settings)
    kept = Checkpoints(run)
    second, state = kept.folder / "000002.pt", checkpoints.load(kept.folder / "000002.pt")
    kept.save(2, state, best=True)
    ways = {"newest": (run, False, 3), "best": (run, True, 2), "given": (second, False, 2)}
    for name, (model, best, step) in ways.items():
        expected = kept.newest()[1] if step == 3 else state
        share(model, tmp_path / f"{name}.safetensors", best)
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
