"""The experiments: strips of a run's grids, and the page that is written from what was measured."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import scale, strip
from transfer import UserError


def test_a_strip_shows_the_same_latents_row_by_row(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (0, 100, 200):
        tiles = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(64, 0).repeat(64, 1) + np.uint8(step // 2)
        Image.fromarray(tiles).convert("RGB").save(tmp_path / "samples" / f"{step:06d}.png")
    strip.main(strip.Settings(tmp_path, tmp_path / "new" / "strip.png", steps=(0, 200), columns=10))
    picture = np.asarray(Image.open(tmp_path / "new" / "strip.png"))
    assert picture.shape == (128, 640, 3)
    assert picture[::64, ::64, 0].tolist() == [list(range(10)), list(range(100, 110))]
    with pytest.raises(UserError, match="no grid of iteration 50"):
        strip.main(strip.Settings(tmp_path, tmp_path / "strip.png", steps=(50,)))


def test_the_results_page_is_what_the_results_say():
    assert scale.PAGE.read_text() == scale.page()


def test_the_page_shows_every_number_with_what_it_was_measured_with(tmp_path, monkeypatch):
    side = {"fid": 12.34, "kid": 0.0056, "precision": 0.5, "recall": 0.25, "density": 1.0, "coverage": 0.75}
    line = {"table": "scale", "row": "A against B", "n_generated": 1000, "n_real": 96, **side}
    line |= {"heldout": {**side, "fid": 56.78, "n_real": 5000}, "memorisation": {"near_copies": 0.05}}
    line |= {"extractor": "some-network", "resize": "some resize", "seed": 3, "hardware": "some CPU"}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(scale, "RESULTS", tmp_path / "results.jsonl")
    page = scale.page()
    assert "| A against B | 1,000 | 96 | 12.3 | 5.6 | 0.50 | 0.25 | 1.00 | 0.75 | 0.05 |" in page
    assert "| 1,000 | 5,000 | 56.8 | 5.6 |" in page
    assert "some-network, some resize, seed 3" in page and "some CPU" in page


def test_the_readme_tells_what_was_measured():
    readme = " ".join((scale.PAGE.parents[1] / "README.md").read_text().split())
    rows = {line["row"]: line for line in scale.lines() if line["table"] == "scale"}
    last = [row for row in rows if row.startswith("wgan_64_transferlearning")][-1]
    source = last.rpartition(" from ")[2]
    before, after = rows[source]["heldout"], rows[last]["heldout"]
    assert f"from the source's {before['fid']:.0f} to {after['fid']:.0f}" in readme
    assert f"{before['n_real']:,} held-out images" in readme
