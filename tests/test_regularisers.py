"""The regularisers: formulas against numpy, nothing at the source, nothing at weight 0, exact resuming."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import wgan_64
from experiments.resume import equal
from tests.conftest import LATENT, WIDTH
from tests.runs import REGULARISED, tiny
from transfer import UserError
from transfer.augment import Adaptive, Augment
from transfer.checkpoints import Checkpoints
from transfer.images import Images
from transfer.plan import Split
from transfer.regularisers import EWC, L2SP, DistanceConsistency, Distillation, Drift, LeCam, fisher
from transfer.shared import Source, carry
from transfer.weights import learning

WEIGHTS = {"l2_sp": 1.0, "distillation": 1.0, "ewc": 1e-3, "consistency": 100.0, "lecam": 0.3}


@pytest.fixture
def carried(source):
    """The source's two, G(1, 2, 2) and D(1, 2, 2)."""
    source = Source.read(source)
    G = wgan_64.Generator(LATENT, WIDTH, Split(1, 2, 2).generator())
    D = wgan_64.Discriminator(WIDTH, Split(1, 2, 2).discriminator())
    carry(G, source, "G")
    carry(D, source, "D")
    return G, D


def move(network):
    with torch.no_grad():
        for tensor in learning(network):
            tensor += 0.1 * torch.randn_like(tensor)


def test_l2_sp_is_the_sum_of_the_tensors_mean_squares(carried):
    G, _ = carried
    start = [tensor.detach().numpy().copy() for tensor in learning(G)]
    term = L2SP(2.0, G)
    assert term() == 0
    move(G)
    expected = sum(
        ((now.detach().numpy() - then) ** 2).mean() for now, then in zip(learning(G), start, strict=True)
    )
    assert term().item() == pytest.approx(2 * expected, rel=1e-5)
    term().backward()
    for tensor, then in zip(learning(G), start, strict=True):
        slope = 2 * 2 * (tensor.detach().numpy() - then) / then.size
        assert np.allclose(tensor.grad.numpy(), slope, rtol=1e-4, atol=1e-8)


class Line(nn.Module):
    """z (N, 3) -> a z, number by number: the score's slope is known."""

    arguments: ClassVar = {"latent": 3}

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, z):
        return z * self.a


class Sum(nn.Module):
    def forward(self, x):
        return x.sum(1)


def test_fisher_information_is_the_mean_square_of_single_gradients_over_its_mean():
    torch.manual_seed(0)
    (found,) = fisher(Line(), Sum(), 50)
    torch.manual_seed(0)
    squares = (torch.randn(50, 1, 3).numpy()[:, 0] ** 2).sum(0)  # the gradient of one score by a is z
    assert np.allclose(found.numpy(), squares / squares.mean(), rtol=1e-5)


def test_fisher_information_is_of_the_networks_that_are_sampled_and_leaves_them(carried):
    """That is with running statistics: an image alone has no batch to be normalised with."""
    G, D = carried
    found = []
    for _ in range(2):
        before = {key: tensor.clone() for key, tensor in G.state_dict().items()}
        torch.manual_seed(0)
        found.append(fisher(G, D, 4))
        assert all(torch.equal(tensor, before[key]) for key, tensor in G.state_dict().items()) and G.training
        G.norm2.running_var *= torch.rand(len(G.norm2.running_var)) + 0.5
    assert not all(map(torch.equal, *found))


def test_ewc_weighs_the_squares_by_fisher_information(carried):
    G, D = carried
    start = [tensor.detach().numpy().copy() for tensor in learning(G)]
    term = EWC(3.0, G, D, samples=4)
    assert term() == 0
    numbers = np.concatenate([F.numpy().ravel() for F in term.fisher])
    assert numbers.mean() == pytest.approx(1, rel=1e-4) and numbers.std() > 0.1
    move(G)
    expected = sum(
        (F.numpy() * (now.detach().numpy() - then) ** 2).sum()
        for F, now, then in zip(term.fisher, learning(G), start, strict=True)
    )
    assert term().item() == pytest.approx(3 * expected, rel=1e-4)


def test_distillation_is_the_distance_of_features(carried, faces):
    _, D = carried
    images = Images.load(faces)
    term = Distillation(5.0, D, images)
    assert term(4) == 0
    kept = {}
    D.conv5.register_forward_hook(lambda layer, inputs, output: kept.update(x=inputs[0].detach().numpy()))
    features = []
    for moved in (False, True):
        if moved:
            move(D)
        torch.manual_seed(2)
        D(images.batch(4))
        features.append(kept["x"].copy())
    torch.manual_seed(2)
    expected = ((features[0] - features[1]) ** 2).mean()
    assert term(4).item() == pytest.approx(5 * expected, rel=1e-4) and expected > 0


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_distance_consistency_is_the_divergence_of_likenesses(carried, source):
    G, _ = carried
    term = DistanceConsistency(7.0, G)
    z = torch.randn(10, LATENT)  # two fours; the last two are left out
    assert abs(term(z).item()) < 1e-6
    move(G)
    start = wgan_64.Generator(LATENT, WIDTH, Split(1, 2, 2).generator())
    carry(start, Source.read(source), "G")
    likenesses = []
    for network in (G, start):
        maps = []
        for index in range(2, 6):  # what reaches each later layer is what the one before has made
            layer = getattr(network, f"conv{index}")
            layer.register_forward_hook(
                lambda layer, inputs, output, maps=maps: maps.append(inputs[0].detach().numpy())
            )
        network(z[:8])
        rows = []
        for x in maps:
            x = x.reshape(8, -1)
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            for anchor in range(8):
                four = range(anchor // 4 * 4, anchor // 4 * 4 + 4)
                rows.append(softmax(np.array([x[anchor] @ x[other] for other in four if other != anchor])))
        likenesses.append(np.array(rows))
    target, origin = likenesses
    expected = (origin * (np.log(origin) - np.log(target))).mean()
    assert term(z).item() == pytest.approx(7 * expected, rel=1e-3) and expected > 1e-6


def test_lecam_holds_scores_to_the_other_sides_average():
    torch.manual_seed(0)
    term, random = LeCam(0.3, torch.device("cpu")), np.random.default_rng(0)
    averages = None
    for _ in range(4):
        real, fake = random.normal(1, 1, 6), random.normal(-1, 1, 6)
        now = np.array([real.mean(), fake.mean()])
        averages = now if averages is None else 0.99 * averages + 0.01 * now
        expected = (np.maximum(real - averages[1], 0) ** 2).mean() + (
            np.maximum(averages[0] - fake, 0) ** 2
        ).mean()
        scores = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (real, fake)]
        assert term(*scores).item() == pytest.approx(0.3 * expected, rel=1e-5)
    term(*scores).backward()
    assert (scores[0].grad >= 0).all() and (scores[1].grad <= 0).all() and scores[0].grad.any()


def kinds(n, spread=0.3):
    """Maps (4 n, 8, 4, 4) of four kinds, n of each."""
    centres = 3 * torch.randn(4, 8, 4, 4)
    return centres, centres.repeat(n, 1, 1, 1) + spread * torch.randn(4 * n, 8, 4, 4)


def test_features_that_drift_come_to_be_of_every_kind_and_no_others():
    torch.manual_seed(0)
    centres, real = kinds(16)
    fake = centres.mean(0) + 0.3 * torch.randn(16, 8, 4, 4)  # all alike, between the kinds
    drift = Drift(8, size=64, temperature=0.1)
    for _ in range(200):
        drift(real[torch.randint(len(real), (16,))], fake, torch.ones_like(fake), 1.0)
        fake = fake + 5 * drift.field(16)
    distances = torch.cdist(fake.flatten(1), centres.flatten(1))
    found = distances.argmin(1).bincount(minlength=4)
    assert found.min() >= 2, found
    assert (distances.min(1).values < 0.5 * torch.pdist(centres.flatten(1)).min()).all()


def test_features_stay_where_both_are_alike():
    torch.manual_seed(0)
    _, real = kinds(32)
    drift = Drift(8, size=64, temperature=0.1)
    for start in range(0, 64, 16):
        drift(real[start : start + 16], real[start + 64 : start + 80], torch.ones(16, 8, 4, 4), 1.0)
    alike = drift.field(16).norm()
    drift.fake += 0.5
    assert alike < 0.5 * drift.field(16).norm()


def test_an_image_is_pushed_off_others_and_not_off_itself():
    real, fake = (value * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) for value in (0.01, 0.1))
    drift = Drift(1, side=1, size=2, temperature=1.0)
    drift(real, fake, torch.ones_like(fake), 1.0)
    assert (drift.field(2) * fake > 0).all(), "away from each other, though all real ones lie between"


def test_the_drift_has_its_weight_beside_the_critics_gradient_and_keeps_what_came_before():
    torch.manual_seed(0)
    drift, maps, gradient = Drift(3, size=8), torch.randn(2, 4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    added = drift(*maps, gradient, 0.5) - gradient
    torch.testing.assert_close(added.norm(), 0.5 * gradient.norm())
    pooled = maps.unflatten(3, (4, 2)).unflatten(5, (4, 2)).mean((4, 6))
    torch.testing.assert_close(drift.real, pooled[0].repeat(2, 1, 1, 1))  # the first batch, twice
    more = torch.randn(2, 4, 3, 4, 4)
    drift(*more, torch.randn(4, 3, 4, 4), 0.5)
    torch.testing.assert_close(drift.real, torch.cat([more[0], pooled[0]]))
    torch.testing.assert_close(drift.fake, torch.cat([more[1], pooled[1]]))
    for n in (1, 3):  # odd batches, and one image alone
        assert torch.isfinite(drift(*torch.randn(2, n, 3, 6, 6), torch.randn(n, 3, 6, 6), 0.5)).all()


def test_a_weight_of_0_costs_nothing(carried, faces):
    G, D = carried
    before = torch.get_rng_state()
    real = torch.randn(4)
    torch.set_rng_state(before)
    terms = [
        L2SP(0.0, G)(), EWC(0.0, G, D)(), Distillation(0.0, D, Images.load(faces))(4),
        DistanceConsistency(0.0, G)(torch.zeros(4, LATENT)), LeCam(0.0, torch.device("cpu"))(real, real),
    ]  # fmt: skip
    assert terms == [0.0] * 5 and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("aside, direction", [(1.0, -1), (0.55, -1), (0.45, 1), (0.0, 1)])
def test_augmentation_becomes_rarer_or_more_frequent_with_r_v(faces, aside, direction):
    """Real images score 1 and generated ones 0, so r_v is 1 - aside, and 0.5 is where the direction turns."""
    adaptive = Adaptive(Augment("diffaugment"), Images.load(faces))
    adaptive.p.fill_(0.5)
    for _ in range(10):
        adaptive.update(lambda x: torch.full((len(x),), aside), torch.ones(4), torch.zeros(4))
    assert adaptive.p.item() == pytest.approx(0.5 + direction * 10 * 1e-3)
    adaptive.p.fill_(1 if direction > 0 else 0)
    adaptive.update(lambda x: torch.full((len(x),), aside), torch.ones(4), torch.zeros(4))
    assert adaptive.p.item() == (1 if direction > 0 else 0)


def test_what_decides_is_an_average_of_scores_over_ten_steps_or_so(faces):
    adaptive, random = Adaptive(Augment("none"), Images.load(faces)), np.random.default_rng(0)
    average = np.zeros(3)
    for _ in range(20):
        now = random.normal([1, 0.7, 0], 0.5)
        average = 0.9 * average + 0.1 * now
        real, aside, fake = (torch.full((4,), value) for value in now)
        adaptive.update(lambda x, aside=aside: aside, real, fake)
    assert np.allclose(adaptive.scores.numpy(), average, rtol=1e-5)


def test_the_share_of_augmented_images_is_the_probability(faces):
    adaptive, x = Adaptive(Augment("diffaugment"), Images.load(faces)), torch.rand(400, 3, 8, 8)
    for p in (0.0, 0.3, 1.0):
        adaptive.p.fill_(p)
        for see in (adaptive.real, adaptive.fake):
            changed = (see(x) != x).flatten(1).any(1).float().mean().item()
            assert changed == pytest.approx(p, abs=0.08)


def test_images_set_aside_are_augmented_as_those_that_are_trained_on(faces):
    images = Images.load(faces)
    whole, shown = images.at(slice(None)), []
    adaptive = Adaptive(Augment("diffaugment"), images)
    for p in (0.0, 1.0):
        adaptive.p.fill_(p)
        adaptive.update(lambda x: shown.append(x) or x.mean((1, 2, 3)), torch.ones(32), torch.zeros(32))
    as_they_are = [
        {image.numpy().tobytes() for image in whole} & {x.numpy().tobytes() for x in each} for each in shown
    ]
    assert len(as_they_are[0]) > 1 and not as_they_are[1] and len(shown[1]) == 32


def test_one_critic_scores_what_it_trains_on_and_what_is_set_aside(faces, source, tmp_path, monkeypatch):
    script, settings = tiny(REGULARISED, faces, source, tmp_path, adapt=3, learning_rate=0.05)
    calls = []

    class Watched(Adaptive):
        def real(self, x):
            self.shown = super().real(x)
            return self.shown

        def update(self, D, real, fake):
            with torch.no_grad():
                calls.append(torch.equal(D(self.shown), real))
            super().update(D, real, fake)

    monkeypatch.setattr(script, "Adaptive", Watched)
    script.main(settings)
    assert calls == [True] * 4


def test_the_probability_of_an_augmentation_is_logged(faces, source, tmp_path, monkeypatch):
    monkeypatch.setattr(Adaptive, "update", lambda self, *_: self.p.add_(0.125))
    for aside, logged in ((0, [None, None]), (3, [0.25, 0.5])):  # two critic steps an iteration
        script, settings = tiny(REGULARISED, faces, source, tmp_path, adapt=aside)
        lines = (script.main(settings) / "log.jsonl").read_text().splitlines()
        assert [json.loads(line).get("augmented") for line in lines] == logged


def test_images_set_aside_are_never_trained_on(faces):
    images = Images.load(faces)
    training, aside = images.apart(3)
    assert len(training) == 5 and len(aside) == 3
    assert sorted(training.names + aside.names) == sorted(images.names)
    for some in (training, aside):
        for pixels, name in zip(some.pixels, some.names, strict=True):
            assert torch.equal(pixels, images.pixels[images.names.index(name)])
    with pytest.raises(UserError, match="leave some"):
        images.apart(8)


def test_without_its_terms_the_regularised_transfer_is_the_transfer(faces, source, tmp_path):
    ends = []
    for name in ("wgan_64_transferlearning", REGULARISED):
        script, settings = tiny(name, faces, source, tmp_path, augment="diffaugment")
        ends.append(Checkpoints(script.main(settings)).newest()[1])
    assert all(equal(ends[0][key], ends[1][key]) for key in ("G", "D", "ema", "optimizers", "random"))


@pytest.mark.parametrize("term", [*WEIGHTS, "adapt"])
def test_each_term_changes_what_is_learnt(term, faces, source, tmp_path):
    # In float32: bf16 would round away what LeCam adds to the gradient of scores as near to 0 as these.
    script, settings = tiny(REGULARISED, faces, source, tmp_path, fast=False)
    changed = replace(settings, **{term: {**WEIGHTS, "adapt": 3}[term]})
    ends = [Checkpoints(script.main(each)).newest()[1] for each in (settings, changed)]
    assert not equal(ends[0]["D"] | ends[0]["G"], ends[1]["D"] | ends[1]["G"])


def test_resuming_with_every_term_is_exact(faces, source, tmp_path):
    script, settings = tiny(REGULARISED, faces, source, tmp_path, iterations=3, adapt=3, **WEIGHTS)
    through = script.main(settings)
    stopped = script.main(replace(settings, iterations=1))
    script.main(replace(settings, resume=stopped))
    ends = [Checkpoints(run).newest()[1] for run in (through, stopped)]
    assert equal(*ends) and ends[0]["augment"]["scores"].all() and ends[0]["lecam"]["updates"] == 6


@pytest.mark.parametrize("network", ["G", "D"])
def test_terms_of_a_network_that_is_frozen_throughout_are_no_obstacle(network, faces, source, tmp_path):
    more = {**WEIGHTS, network: Split(5, 0, 0)}
    script, settings = tiny(REGULARISED, faces, source, tmp_path, iterations=1, **more)
    assert script.main(settings).exists()


def test_a_weight_below_0_is_refused(faces, source, tmp_path):
    script, settings = tiny(REGULARISED, faces, source, tmp_path, lecam=-1.0)
    with pytest.raises(UserError, match=r"lecam is -1\.0: give at least 0"):
        script.main(settings)
