"""The metrics of fid/: closed forms, agreement with other programs, and sets that are small or degenerate."""

import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import copies
from fid import metrics
from fid.memorisation import likeness, memorisation, thumbnailer
from fid.metrics import Gaussian, frechet


def features(n: int, d: int = 16, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.2, 1, d) * scale + shift


def full(x: torch.Tensor) -> Gaussian:
    """The same Gaussian, of which only mean and covariance are known."""
    gaussian = Gaussian.of(x)
    return Gaussian(gaussian.mean, None, gaussian.sigma(), gaussian.n)


# The Frechet distance. n <= d keeps rows, n > d a covariance: 10 and 40 images at 16 features are both cases.


@pytest.mark.parametrize("n", [2, 10, 40])
def test_frechet_of_a_set_with_itself_is_zero(n):
    x = features(n)
    assert frechet(Gaussian.of(x), Gaussian.of(x)) == pytest.approx(0, abs=1e-6)
    assert frechet(full(x), full(x)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_frechet_of_a_shifted_gaussian_is_the_squared_shift(n):
    x = features(n)
    shift = torch.arange(16) / 8
    distance = frechet(Gaussian.of(x), Gaussian.of(x + shift))
    assert distance == pytest.approx(shift.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_frechet_of_a_scaled_gaussian(n):
    x = features(n).double()
    a, b = Gaussian.of(x), Gaussian.of(3 * x)
    expected = (2**2 * a.spread() + (2 * a.mean).square().sum()).item()  # (3 - 1)^2 tr A + |3 m - m|^2
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_covariances_that_commute():
    a, b = torch.linspace(1, 4, 8).double(), torch.linspace(9, 1, 8).double()
    zero = torch.zeros(8).double()
    distance = frechet(Gaussian(zero, None, a.diag(), None), Gaussian(zero, None, b.diag(), None))
    assert distance == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-12)


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 100))
def test_frechet_is_the_same_by_every_way_and_symmetric(n, m, seed):
    x, y = features(n, seed=seed), features(m, seed=seed + 1, scale=1.3, shift=0.2)
    a, b = Gaussian.of(x), Gaussian.of(y)
    distance = frechet(a, b)
    assert distance == pytest.approx(frechet(full(x), full(y)), rel=1e-6, abs=1e-6)
    assert distance == pytest.approx(frechet(full(x), b), rel=1e-6, abs=1e-6)
    assert distance == pytest.approx(frechet(b, a), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(30, 40), (30, 300), (200, 300), (300, 20)])
def test_frechet_agrees_with_pytorch_fid(n, m):
    reference = pytest.importorskip("pytorch_fid.fid_score")
    if "disp" not in inspect.signature(reference.linalg.sqrtm).parameters:
        pytest.skip("pytorch-fid needs scipy < 1.18")
    x, y = features(n, 64), features(m, 64, seed=1, scale=1.3, shift=0.2)
    statistics = [(s.double().mean(0).numpy(), np.cov(s.double().numpy(), rowvar=False)) for s in (x, y)]
    expected = reference.calculate_frechet_distance(*statistics[0], *statistics[1])
    assert frechet(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(expected, rel=1e-5)


def test_frechet_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = features(200, 64), features(300, 64, seed=1, scale=1.3, shift=0.2)
    statistics = [fidelity.fid_features_to_statistics(s.double()) for s in (x, y)]
    expected = fidelity.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet(Gaussian.of(x), Gaussian.of(y)) == pytest.approx(expected, rel=1e-5)


def test_the_covariance_is_numpys_whatever_the_block(monkeypatch):
    x = features(40)
    monkeypatch.setattr(metrics, "BLOCK", 7)
    np.testing.assert_allclose(Gaussian.of(x).sigma(), np.cov(x.double().numpy(), rowvar=False), rtol=1e-9)


# The kernel distance.


def test_kid_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = features(60), features(60, seed=1, scale=1.2, shift=0.1)
    options = {"kid_subset_size": 60, "kid_subsets": 1, "verbose": False}
    expected = fidelity.kid_features_to_metric(x.double(), y.double(), **options)
    assert metrics.kid(x, y, 0)[0] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)


def test_a_subset_of_kid_is_the_kid_of_that_subset(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 7)
    x, y = features(30), features(20, seed=1, shift=0.3)
    u, v = torch.zeros(1, 30).double(), torch.zeros(1, 20).double()
    u[0, 5:15], v[0, 3:9] = 1, 1
    assert metrics.mmd(x, y, u, v).item() == pytest.approx(metrics.kid(x[5:15], y[3:9], 0)[0], rel=1e-9)


def test_kid_is_unbiased():
    found = [
        metrics.kid(features(8, seed=s), features(12, seed=1000 + s), 0, subsets=1)[0] for s in range(300)
    ]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 50), (3, 5), (50, 4)])
def test_kid_of_sets_smaller_than_a_subset_is_finite_and_seeded(n, m):
    x, y = features(n), features(m, seed=1)
    found = metrics.kid(x, y, seed=3)
    assert all(map(math.isfinite, found))
    assert found == metrics.kid(x, y, seed=3)


def test_the_bootstrap_is_seeded_and_around_the_measured_value():
    x, y = features(30), features(40, seed=1, shift=0.3)
    fid, (kid, _, _) = frechet(Gaussian.of(x), Gaussian.of(y)), metrics.kid(x, y, 0)
    intervals = metrics.bootstrap(x, y, fid, kid, times=50, seed=0)
    for (low, high), value in zip(intervals, (fid, kid), strict=True):
        assert low < value < high
    assert intervals == metrics.bootstrap(x, y, fid, kid, times=50, seed=0)


# Neighbourhoods, diversity, classes.


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize(("n", "m"), [(60, 60), (30, 100)])
def test_neighbourhoods_agree_with_prdc(n, m, k, monkeypatch, capsys):
    prdc = pytest.importorskip("prdc")
    monkeypatch.setattr(metrics, "BLOCK", 16)
    x, y = features(n), features(m, seed=1, scale=0.8, shift=0.1)
    expected = prdc.compute_prdc(y.double().numpy(), x.double().numpy(), k)
    found = metrics.neighbourhoods(x, y, k, k)
    assert found == pytest.approx(
        [expected[key] for key in ("precision", "recall", "density", "coverage")], rel=1e-5
    )


def test_precision_and_recall_agree_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = features(50), features(70, seed=1, scale=0.8, shift=0.1)
    options = {"prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": False, "verbose": False}
    expected = fidelity.prc_features_to_metric(x.double(), y.double(), **options)
    assert metrics.neighbourhoods(x, y)[:2] == pytest.approx(
        [expected["precision"], expected["recall"]], rel=1e-5
    )


def test_neighbourhoods_of_equal_sets():
    x = features(30)
    precision, recall, _, coverage = metrics.neighbourhoods(x, x)
    assert (precision, recall, coverage) == (1, 1, 1)


def test_the_inception_score_agrees_with_torch_fidelity():
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    x, weight, bias = features(50), features(10, seed=1) * 3, features(1, 10, seed=2)[0]
    expected = fidelity.isc_features_to_metric(x.double() @ weight.double().T + bias, splits=1, shuffle=False)
    assert metrics.inception_score(x, weight, bias) == pytest.approx(
        expected["inception_score_mean"], rel=1e-5
    )


def test_the_inception_score_of_certain_and_of_equal_classes():
    assert metrics.inception_score(torch.eye(4) * 1e4, torch.eye(4), None) == pytest.approx(4)
    assert metrics.inception_score(torch.ones(4, 4), torch.eye(4), None) == pytest.approx(1)


def test_diversity(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 7)
    x = features(20)
    assert metrics.diversity(x) == pytest.approx(torch.pdist(x.double()).mean().item(), rel=1e-6)
    pairs = torch.tensor([[0.0, 0], [3, 4], [10, 0], [10, 2], [50, 50]])
    assert metrics.intra_cluster(pairs, (0, 0, 1, 1, 2)) == pytest.approx((5 + 2) / 2)
    assert metrics.intra_cluster(pairs, (0, 1, 2, 3, 4)) is None


def test_the_vendi_score_is_how_many_different_ones_there_are():
    rows = torch.eye(5)
    assert metrics.vendi(rows) == pytest.approx(5)
    assert metrics.vendi(rows[[0, 0, 1, 1, 2, 2]]) == pytest.approx(3), "however often each is there"
    assert metrics.vendi(rows[[0, 0, 0]]) == pytest.approx(1)
    between = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # likenesses of 0.6: eigenvalues 0.8 and 0.2
    assert metrics.vendi(between) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))
    assert metrics.vendi(torch.zeros(3, 4)) == pytest.approx(1), "images without any layout"


@pytest.mark.parametrize("n", [2, 3, 30])
def test_constant_images_have_finite_scores(n):
    same, other = torch.full((n, 16), 3.3), torch.full((5, 16), -1.7)
    assert frechet(Gaussian.of(same), Gaussian.of(same)) == 0
    assert frechet(Gaussian.of(same), Gaussian.of(other)) == pytest.approx(16 * 5**2)
    for y in (same, other, features(10)):
        found = [*metrics.kid(same, y, 0), *metrics.neighbourhoods(same, y), metrics.diversity(same)]
        assert all(map(math.isfinite, found))
    assert metrics.neighbourhoods(same, same)[:2] == (1, 1)
    assert metrics.neighbourhoods(same, other) == (0, 0, 0, 0)
    far = 1000 * features(1).expand(n, 16)  # where rounding would move equal images apart
    assert metrics.neighbourhoods(far, far)[:2] == (1, 1) and metrics.diversity(far) == 0


# Memorisation.


def report_of(made, training, heldout=None):
    """A report on points, which stand for features and for thumbnails."""
    pad = [None if x is None else F.pad(x, (0, 768 - x.shape[1])) for x in (made, training, heldout)]
    return memorisation((made, training, heldout), tuple(pad))


def test_copies_are_told_from_new_images():
    training, heldout, new = (features(n, seed=s) for n, s in ((40, 0), (60, 1), (50, 2)))
    copies = training[torch.arange(50) % 40] + 1e-3
    report = report_of(copies, training, heldout)
    assert report.near_copies == 1 and report.nearer_than_heldout == 1
    assert report.nearest == tuple(index % 40 for index in range(50))
    report = report_of(new, training, heldout)
    assert report.near_copies < 0.2 and 0.35 < report.nearer_than_heldout < 0.65
    assert report.generated == pytest.approx(report.heldout, rel=0.2)
    report = report_of(copies, training)
    assert report.near_copies == 1 and report.nearer_than_heldout is None and report.heldout is None


def test_equal_distances_are_neither_nearer_nor_further():
    training, heldout = features(20), features(30, seed=1)
    assert report_of(heldout, training, heldout).nearer_than_heldout == pytest.approx(0.5)


def drawn(n, seed):
    """Pictures (n, 3, 64, 64), uint8, of large soft shapes, each its own."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=64, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)


@pytest.mark.parametrize("change", copies.CHANGES)
def test_changed_training_images_are_copies_and_new_ones_are_not(change):
    training, heldout, new = drawn(40, 0), drawn(200, 1), drawn(100, 2)
    small = thumbnailer(torch.device("cpu"))
    for known in (heldout, None):
        sets = [None if x is None else small(x) for x in (training, known)]
        found = []
        for images in (training, new):
            made = small(copies.CHANGES[change](images))
            found.append(memorisation((made, *sets), (made, *sets)))
        if change != "enlarged by a quarter":  # which is more than the measure sees
            assert found[0].copies > (0.6 if change == "grey" else 0.8)
        if change not in ("two images, half and half", "grey", "enlarged by a quarter"):
            assert found[0].original == tuple(range(40))
        assert found[1].copies < 0.25


def test_a_moved_or_mirrored_image_is_as_near_as_itself_and_another_is_not():
    small, noise = thumbnailer(torch.device("cpu")), torch.Generator().manual_seed(0)
    x = torch.randint(256, (6, 3, 64, 64), generator=noise).to(torch.uint8)
    for moved in (x.roll((4, -4), (2, 3)), x.roll((-4, 4), (2, 3)), x.flip(3).roll(4, 3)):
        distance = likeness(small(moved), small(x))
        assert distance.diagonal().max() < 2e-3
        assert distance.fill_diagonal_(2).min() > 0.9
    assert likeness(small(x.roll(8, 3)), small(x)).diagonal().min() > 0.9, "which is too far"


def test_plain_images_are_no_copies_of_each_other():
    small = thumbnailer(torch.device("cpu"))
    grey = small(torch.full((5, 3, 64, 64), 128, dtype=torch.uint8))
    training = small(drawn(20, 0))
    report = memorisation((grey, training, None), (grey, training, None))
    assert report.copies == 0 and all(ratio > 0.9 for ratio in report.ratio)
