"""The sources: one experiment in one command, its runs, its models, and its part of the page."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import lines, runs, selection, sources
from experiments.tables import Row
from transfer import UserError, record
from transfer.images import Images


@pytest.fixture
def settings(tmp_path, monkeypatch, faces):
    """The experiment with sources of four and eight images and networks that take a blink."""
    monkeypatch.setattr(lines, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(runs, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(record, "SCORED", 8)
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    for name, value in (("SIZES", (4,)), ("AVATARS", 8), ("SCORED", 4)):
        monkeypatch.setattr(sources, name, value)
    tiny = {"critic_steps": 1, "fast": False}
    own = {"latent": 4, "width": 4, **tiny}
    for name in ("FACES", "DRAWN"):
        monkeypatch.setattr(sources, name, Row("", "wgan_64", own))
    monkeypatch.setattr(sources, "CARRIED", Row("", "wgan_64_finetune", tiny))
    monkeypatch.setattr(sources, "JUDGES", runs.JUDGES[:1])
    monkeypatch.setattr(sources, "Budget", lambda **given: runs.Budget(**given | {"judges": runs.JUDGES[:1]}))
    monkeypatch.setattr(sources.Settings, "targets", lambda self: ((self.cartoons, self.cartoons_reference),))
    both = dict.fromkeys(("faces", "avatars", "cartoons", "cartoons_reference"), faces)
    return sources.Settings(
        **both, anime=faces, anime_reference=faces, iterations=1, transfer=1, batch_size=4, device="cpu",
        out=tmp_path / "out",
    )  # fmt: skip


def test_the_experiment_is_made_once_by_one_command_and_stands_on_the_page(settings, capsys):
    assert "Not run yet" in sources.markdown()
    sources.main(replace(settings, dry_run=True))
    assert capsys.readouterr().out.count("1 runs are missing") == 2 and not settings.out.exists()
    sources.main(settings)
    found = lines.read("run")
    assert [line["script"] for line in found] == ["wgan_64"] * 2 + ["wgan_64_finetune"] * 2
    assert sorted(line["images"]["count"] for line in found[:2]) == [4, 8]
    assert {line["settings"]["source"] for line in found[2:]} == {
        "faces_4-1.safetensors (1 iterations)",
        "avatars_8-1.safetensors (1 iterations)",
    }
    assert [line["row"] for line in lines.read("source")] == ["faces_4", "avatars_8"]
    sources.main(settings)
    assert len(lines.read("run")) == 4 and len(lines.read("source")) == 2
    licence = (settings.out / "avatars_8-1.md").read_text()
    assert "cc-by-4.0" in licence and "cc-by" not in (settings.out / "faces_4-1.md").read_text()
    page = sources.markdown()
    assert (
        "1 iterations of 4 images" in page and "\n| 4 faces | " in page and "\n| 8 drawn avatars | " in page
    )
    assert "From the best to the worst: " in page
    (settings.out / "faces_4-1.safetensors").unlink()
    for folder in (settings.out / found[0]["run"]).glob("0*"):
        folder.rename(settings.out / "gone")
    with pytest.raises(UserError, match="take its line out"):
        sources.main(settings)


def test_smaller_sources_are_part_of_larger_ones_and_too_few_images_are_refused(tmp_path, faces):
    images = Images.load(faces)
    held = []
    for count in (3, 6):
        sources.cut(images, count, tmp_path / "new" / f"{count}.zip")
        with zipfile.ZipFile(tmp_path / "new" / f"{count}.zip") as archive:
            held.append(set(archive.namelist()))
        again = Images.load(tmp_path / "new" / f"{count}.zip")
        places = [int(name[:5]) for name in again.names]
        assert torch.equal(again.pixels, images.pixels[places]), "pixels are kept as they are"
    assert len(held[0]) == 3 and held[0] < held[1]
    with pytest.raises(UserError, match=r"9\.zip needs 9 images, and 8 are given"):
        sources.cut(images, 9, tmp_path / "9.zip")


def test_density_is_the_distance_to_the_nearest_other_image(monkeypatch):
    monkeypatch.setattr(sources, "CHUNK", 2)
    line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]])
    assert sources.nearest(line) == pytest.approx((1 + 1 + 3) / 3)


def test_only_transfers_from_these_sources_are_on_their_part_of_the_page(monkeypatch):
    def run(source, script="projected_critic", reference="held"):
        settings = {"source": source, "reference": reference, "iterations": 500, "batch_size": 16}
        return {"script": script, "settings": settings}

    ours, elsewhere = (
        run("faces_5000-1000.safetensors (1,000 iterations)"),
        run("avatars_5000-9", reference="b"),
    )
    others = [
        run("projected_64.safetensors (3,506 iterations)"),
        run(None),
        run("faces_5000-1000", "wgan_64"),
    ]
    found = sources.carried([ours, elsewhere, *others])
    assert {key: dict(value) for key, value in found.items()} == {
        ("held", 500, 16): {"faces_5000": [ours]},
        ("b", 500, 16): {"avatars_5000": [elsewhere]},
    }


def test_the_avatars_are_of_the_styles_whose_licence_is_named_and_not_the_cartoons():
    head, _, code = Path(sources.__file__).with_name("avatars.mjs").read_text().partition("import ")
    begin = code.index("const sources"), code.index("const targets")
    source, target = (
        re.findall(r'^  "?([\w-]+)"?: \[', part, re.MULTILINE)
        for part in (code[slice(*begin)], code[begin[1] :])
    )
    assert len(source) == 6 and len(target) == 3
    assert all(style.removesuffix("s") in head for style in source + target), "author and licence"
    assert "toonHead" not in code and not set(source) & set(target)


def test_each_source_has_a_line_by_its_own_recipe_and_heads_never_rest_on_drawings():
    for name, (_, count) in sources.sources().items():
        row, images = sources.pretrained(name), f"{name}.zip"
        made = [
            line for line in selection.lines_of(row, selection.runs()) if line["images"]["name"] == images
        ]
        assert [line["images"]["count"] for line in made] == [count]
        assert made[0]["settings"]["rest"] == (0.6 if name.startswith("faces") else 0.0)
