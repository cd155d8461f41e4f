"""Several target domains in one model: what they share, what is their own, and what is done with one."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import labels
from experiments import lines as lines_of_results
from experiments.resume import equal
from methods import projected_critic, several_targets
from methods.several_targets import several
from tests.conftest import LATENT, WIDTH
from tests.stand_ins import images as drawn
from tests.stand_ins import tiny as projection
from tests.stand_ins import write
from transfer import UserError, record
from transfer.__main__ import adapter, draw, share
from transfer.adapters import Adapter, applied
from transfer.checkpoints import Checkpoints, of_label
from transfer.drawing import crossing, generator, latents, mixed
from transfer.drawing import draw as draws
from transfer.folder import lines
from transfer.images import Images
from transfer.plan import Split, layers_of
from transfer.shared import Source
from transfer.weights import Average
from wgan_64 import Generator

LABELS = ["cats", "dogs", "owls"]
SMALL = {"iterations": 3, "batch_size": 4, "stretch": 64, "channels": 8, "fade": 3, "rest": 0.0}
SMALL |= {"learning_rate": 0.02, "G": Split(0, 3, 2)}
SMALL |= {"device": "cpu", "log_every": 1, "sample_every": 3}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for seed, label in enumerate(LABELS):
        write(folder / label, drawn(5 + seed, seed))
    return folder


@pytest.fixture
def settings(zoo, source, tmp_path):
    return several_targets.Settings(source=source, images=zoo, out=tmp_path, **SMALL)


@pytest.fixture(scope="module")
def run(zoo, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return several_targets.main(several_targets.Settings(source=source, images=zoo, out=out, **SMALL))


def newest(run, label=None):
    path, state = Checkpoints(run).newest()
    return state if label is None else of_label(path, state, label)


def test_step_0_is_the_source_for_every_label(run, source):
    with Image.open(run / "samples" / "000000.png") as grid:
        rows = np.asarray(grid).reshape(-1, 64, 8 * 64, 3).astype(int)
    z = torch.randn(1000, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = generator(Source.read(source))(z[:16]).add(1).mul(127.5).round()
    expected = images.view(2, 8, 3, 64, 64).permute(0, 3, 1, 4, 2).reshape(2, 64, 8 * 64, 3).int().numpy()
    assert len(rows) == 2 * 3 and all(abs(row - expected[0]).max() <= 1 for row in rows[:3])
    assert all(abs(row - expected[1]).max() <= 1 for row in rows[3:6]), "the next latents"


@pytest.mark.parametrize("in_a_sub_folder", [True, False])
def test_with_one_label_it_is_the_single_transfer_to_the_bit(settings, zoo, tmp_path, in_a_sub_folder):
    folder = zoo / "cats"
    if in_a_sub_folder:
        folder = tmp_path / "one"
        write(folder / "cats", drawn(5, 0))
    settings = replace(settings, images=folder, D=Split(1, 2, 2))
    fields = projected_critic.Settings.__dataclass_fields__
    single = {key: value for key, value in vars(settings).items() if key in fields}
    alone = newest(projected_critic.main(projected_critic.Settings(**single, closer=0, drift=0.0)))
    found = newest(several_targets.main(settings), "cats")
    for part in ("G", "D", "ema", "heads", "optimizers", "random"):
        assert equal(found[part], alone[part]), part


def test_kernels_are_shared_and_what_modulates_and_normalises_them_is_not(run, source):
    origin = Source.read(source)
    one, other = newest(run, "cats"), newest(run, "dogs")
    for part, start in (("G", origin.generator), ("D", origin.discriminator)):
        same = {key for key in one[part] if torch.equal(one[part][key], other[part][key])}
        moved = {key for key in start if not torch.equal(one[part][key], start[key])}
        kernels = {f"conv{layer}.weight" for layer in range(1, 6)}
        if part == "G":
            assert kernels <= same and kernels & moved == {"conv1.weight", "conv2.weight"}
            own = {"conv3.gamma", "conv4.beta", "conv5.gamma", "norm1.weight", "norm3.running_mean"}
            assert not own & same
        else:
            assert kernels & same == kernels - {"conv5.weight"}, "the score is a label's own"
            assert kernels & moved == {"conv3.weight", "conv4.weight", "conv5.weight"}
            assert "norm2.weight" in same - moved and "norm4.bias" not in same
    heads = {key for key in one["heads"] if torch.equal(one["heads"][key], other["heads"][key])}
    assert "0.convs.0.weight" in heads and "0.convs.0.constraint.u" in heads
    assert not {f"{at}.last.weight" for at in range(4)} & heads


def test_an_iteration_teaches_one_label_and_what_it_shares(settings, source):
    start = Source.read(source)
    run = several_targets.main(replace(settings, iterations=1))
    taught = [newest(run, label) for label in LABELS]
    own = [not torch.equal(each["G"]["norm1.weight"], start.generator["norm1.weight"]) for each in taught]
    assert own == [False, True, False]
    assert not torch.equal(taught[0]["G"]["conv1.weight"], start.generator["conv1.weight"])


def test_what_is_shared_is_averaged_once():
    G = several(Generator(LATENT, WIDTH), LABELS)
    average = Average(G, 0.5)
    before = [each.detach().clone() for each in G.parameters()]
    with torch.no_grad():
        for parameter in G.parameters():
            parameter.add_(1)
    average.update(G, 100)
    for old, now in zip(before, average.network.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.5)


def test_a_run_goes_on_to_the_bit_wherever_in_a_turn_it_was_stopped(run, settings):
    stopped = several_targets.main(replace(settings, iterations=2))
    several_targets.main(replace(settings, resume=stopped))
    assert equal(newest(run), newest(stopped))


def test_a_label_is_drawn_shared_and_an_adapter_like_a_run_of_its_own(run, source, tmp_path):
    pictures = {label: draws(Source.read(run, label=label), 4, 0) for label in LABELS}
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(pictures.values(), 2))
    state = newest(run)
    networks = several(Generator(LATENT, WIDTH, Split(0, 3, 2).generator(frozen_norm="source")), LABELS)
    networks.load_state_dict(state["ema"])
    z = latents(Source.read(source), 4, 0)
    with torch.no_grad():
        expected = networks[1].eval()(z).add(1).mul(127.5).round()
    assert (pictures["dogs"].float() - expected).abs().max() <= 1
    share(run, tmp_path / "dogs.safetensors", label="dogs")
    assert (draws(Source.read(tmp_path / "dogs.safetensors"), 4, 0) - expected).abs().max() <= 2, "halves"
    assert "for its label `dogs`" in (tmp_path / "dogs.md").read_text(encoding="utf-8")
    adapter(run, tmp_path / "small.safetensors", label="dogs")
    ends = applied(Source.read(source), [Adapter.read(tmp_path / "small.safetensors")], [1])
    own = newest(run, "dogs")
    assert all(torch.equal(ends["D"][key], tensor) for key, tensor in own["D"].items())
    torch.testing.assert_close(ends["ema"], own["ema"], rtol=1e-3, atol=1e-5)


def test_a_label_that_is_not_there_or_not_named_is_one_sentence(run, settings, source, tmp_path):
    for label in (None, "bats"):
        with pytest.raises(UserError, match="has the labels cats, dogs, owls: name one with --label"):
            Source.read(run, label=label)
    with pytest.raises(UserError, match="no labels: leave --label out"):
        Source.read(source, label="cats")
    with pytest.raises(UserError, match=r"shares are \(1.0,\) for 2 labels"):
        draw(run, grid=tmp_path / "mix.png", label=("cats", "owls"), shares=(1.0,))
    with pytest.raises(UserError, match="name one with --label"):
        several_targets.main(replace(settings, source=run))


def test_labels_are_mixed_and_walked_between(run, tmp_path):
    cats, owls = (Source.read(run, label=label) for label in ("cats", "owls"))
    between = mixed((cats, owls), (0.25, 0.75)).generator
    for key in ("conv3.gamma", "norm1.running_var"):
        expected = 0.25 * cats.generator[key] + 0.75 * owls.generator[key]
        torch.testing.assert_close(between[key], expected)
        assert not torch.allclose(between[key], cats.generator[key], rtol=1e-7, atol=0)
    way = [each.generator["conv3.gamma"] for each in crossing((cats, owls), 2)]
    a, b = (each.generator["conv3.gamma"] for each in (cats, owls))
    torch.testing.assert_close(way, [a, (a + b) / 2, b, (a + b) / 2])
    draw(run, grid=tmp_path / "mix.png", label=("cats", "owls"), shares=(1.0, 3.0), count=4)
    draw(run, walk=tmp_path / "walk.webp", label=("cats", "owls"))
    with Image.open(tmp_path / "walk.webp") as walk:
        assert 8 < walk.n_frames <= 32 and walk.size == (4 * 64, 2 * 64)
    expected = draws(Source.read(run, label="cats"), 4, 0)
    draw(run, grid=tmp_path / "cats.png", label=("cats",), count=4)
    with Image.open(tmp_path / "cats.png") as grid:
        assert np.array_equal(np.asarray(grid)[:64, :64], expected[0].permute(1, 2, 0).numpy())


@pytest.fixture
def scored(settings, zoo, monkeypatch, tmp_path):
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "SCORED", 12)
    monkeypatch.setattr("fid.scores.load", lambda *_, **__: projection(name="tiny-12-bilinear-8"))
    return replace(settings, score_every=2, reference=zoo)


def test_each_label_is_scored_by_its_own_images_and_the_mean_says_which_is_best(scored, monkeypatch):
    given, plain = [], several_targets.scorer

    def noted(settings, images, seen):
        score = plain(settings, images, seen=seen)
        return lambda pixels: given.append((images, pixels)) or score(pixels)

    monkeypatch.setattr(several_targets, "scorer", noted)
    run = several_targets.main(scored)
    z = torch.randn(12, LATENT, generator=torch.Generator().manual_seed(0))
    for label, (images, pixels) in zip(LABELS, given[-3:], strict=True):
        assert {name.partition("/")[0] for name in (*images.names, *images.held_out.names)} == {label}
        with torch.no_grad():
            expected = generator(Source.read(run, label=label))(z).add(1).mul(127.5).round()
        assert (pixels.float() - expected).abs().max() <= 1
    found = lines(run, "scores")
    kids = [[line["labels"][label]["heldout"]["kid"] for label in LABELS] for line in found]
    assert [line["heldout"]["kid"] for line in found] == pytest.approx([np.mean(each) for each in kids])
    best = min(found, key=lambda line: line["heldout"]["kid"])["step"]
    assert [e["step"] for e in Checkpoints(run).listed().values() if e.get("best")] == [best]


def test_input_that_is_not_of_labels_is_refused_before_anything_is_made(scored, tmp_path):
    def refused(match, **changed):
        with pytest.raises(UserError, match=match):
            several_targets.main(replace(scored, **changed))
        assert not [*scored.out.glob("0*")]

    other = tmp_path / "other"
    write(other / "cats", drawn(3, 0))
    refused("has the sub-folders cats, and .* has cats, dogs, owls", reference=other)
    refused("hold_out sets aside . images of", reference=None, hold_out=0.2)
    (other / "empty").mkdir()
    refused("empty holds no image that can be read", images=other)
    (other / "empty" / "readme.txt").write_text("none", encoding="utf-8")
    refused("empty holds no image that can be read", images=other)
    write(tmp_path / "loose", drawn(2, 0))
    write(tmp_path / "loose" / "cats", drawn(2, 1))
    refused("2 of the images in .* are in no sub-folder", images=tmp_path / "loose")


def test_the_plan_says_what_is_a_labels_own(settings, capsys):
    assert several_targets.main(replace(settings, dry_run=True)) is None
    G = several(Generator(LATENT, WIDTH, Split(0, 3, 2).generator()), LABELS)
    norms = sum(2 * layer.norm.num_features for layer in layers_of(G[0]) if layer.norm)
    modulation = 2 * WIDTH * WIDTH * (8 + 2) + 2 * 3 * WIDTH
    text = capsys.readouterr().out
    assert f"each label has its own {norms + modulation:,} in G" in text
    assert "cats: 5, dogs: 6, owls: 7" in text and not [*settings.out.glob("0*")]


def test_the_reals_are_shown_a_row_of_each_label_in_turn(tmp_path):
    for label, count in (("a", 9), ("b", 3)):
        write(tmp_path / label, drawn(count, count))
    images = several_targets.in_rows(Images.load(tmp_path))
    assert [name[0] for name in images.names] == [*8 * "a", *3 * "b", "a"]


def test_the_labels_of_a_run_are_judged_once_and_the_numbers_stored_counted(run, zoo, monkeypatch, tmp_path):
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(record, "SCORED", 4)
    monkeypatch.setattr(lines_of_results, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr("fid.load", lambda *_, **__: projection(name="tiny-12-bilinear-8"))
    settings = labels.Settings(run, tuple(zoo / label for label in LABELS), ("efficientnet_lite0",))
    for _ in range(2):
        labels.main(settings)
    found = lines_of_results.read("several")
    assert [line["label"] for line in found] == LABELS
    assert [line["scores"]["heldout"]["n_real"] for line in found] == [5, 6, 7]
    two = sum(layer.kernel.weight.numel() for layer in layers_of(Generator(LATENT, WIDTH))[:2])
    modulation, norms = 2 * WIDTH * WIDTH * (8 + 2) + 2 * 3 * WIDTH, 4 * WIDTH * (8 + 4 + 2 + 1)
    assert {(line["shared"], line["own"]) for line in found} == {(two, modulation + norms)}
    page, kid = labels.markdown(), 1000 * found[1]["scores"]["heldout"]["kid"]
    assert f"| {LABELS[1]} | {kid:.1f} | – |" in page and f"{two:,} numbers" in page
    with pytest.raises(UserError, match="the labels are cats, dogs, owls"):
        labels.main(replace(settings, references=(zoo,)))
