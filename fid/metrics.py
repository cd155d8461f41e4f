"""The metrics: functions of features (n, d) of generated and of real images, computed in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1024  # how many rows of a matrix of all pairs exist at a time

# ------------------------------------------------------------------------------------------------------------
# The Frechet distance.


@dataclass(frozen=True)
class Gaussian:
    """The mean (d,) and unbiased covariance (d, d) of n features, in float64.

    Where n <= d, `rows` (n, d) stands for the covariance, which is rows.T @ rows: the centred features over
    sqrt(n - 1). Else rows is None. n is None where a file of statistics does not say it.
    """

    mean: Tensor
    rows: Tensor | None
    covariance: Tensor | None
    n: int | None

    @classmethod
    def of(cls, x: Tensor) -> Gaussian:
        """The Gaussian fitted to features x (n, d), n >= 2."""
        n, d = x.shape
        mean = x.mean(0, dtype=torch.float64)
        if n <= d:
            return cls(mean, (x - mean) / (n - 1) ** 0.5, None, n)
        covariance = x.new_zeros(d, d, dtype=torch.float64)
        for block in x.split(BLOCK):
            centred = block - mean
            covariance.addmm_(centred.T, centred, alpha=1 / (n - 1))
        return cls(mean, None, covariance, n)

    def sigma(self) -> Tensor:
        """The covariance (d, d)."""
        return self.rows.T @ self.rows if self.covariance is None else self.covariance

    def spread(self) -> Tensor:
        """The trace of the covariance."""
        return self.rows.square().sum() if self.covariance is None else self.covariance.trace()


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) for covariances A and B (Heusel et al. 2017).

    For any a and b with a^T a = A and b^T b = B the trace of (A B)^(1/2) is the sum of the singular values of
    a b^T. Of few images a and b are the centred features themselves, and no d x d matrix is ever formed.
    """
    thin, other = sorted((a, b), key=lambda gaussian: gaussian.rows is None)
    root = thin.rows if thin.rows is not None else _root(thin.covariance)
    if other.rows is not None:
        overlap = torch.linalg.svdvals(other.rows @ root.T).sum()
    else:
        overlap = torch.linalg.eigvalsh(root @ other.covariance @ root.T).clamp_(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.spread() + b.spread() - 2 * overlap
    return max(distance.item(), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """r (rank, d) with r^T r the covariance; directions that are zero but for rounding are left out."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return (vectors[:, kept] * values[kept].sqrt()).T


# ------------------------------------------------------------------------------------------------------------
# The kernel distance.


def kid(x: Tensor, y: Tensor, seed: int, subsets: int = 100, most: int = 1000) -> tuple[float, float, float]:
    """Kernel distance of x (n, d) and y (m, d): of the whole sets, and mean and deviation over subsets.

    The unbiased squared maximum mean discrepancy for the kernel (x.y / d + 1)^3 (Binkowski et al. 2018); it
    may be negative. A subset takes `most` of each set, or half of the smaller set where that is fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(most, max(2, min(len(x), len(y)) // 2))

    def counts(n: int) -> Tensor:
        chosen = torch.rand(subsets, n, generator=generator).argsort(1)[:, :size]
        return torch.cat([torch.ones(1, n, dtype=torch.float64), _counts(chosen, n)])

    found = mmd(x, y, counts(len(x)), counts(len(y)))
    return found[0].item(), found[1:].mean().item(), found[1:].std(correction=0).item()


def _counts(chosen: Tensor, n: int) -> Tensor:
    """How often each of n images is in each row of chosen (s, size): (s, n)."""
    counts = torch.zeros(len(chosen), n, dtype=torch.float64)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))


def mmd(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancies (s,) where x_i counts u[s, i] times and y_j v[s, j] times.

    An image is not compared to itself, however often it counts.
    """
    x, y, u, v = x.double(), y.double(), u.to(x.device), v.to(y.device)
    pairs_x, pairs_y = (w.sum(1).square() - w.square().sum(1) for w in (u, v))
    between = _kernel(x, y, u, v) / (u.sum(1) * v.sum(1))
    return _kernel(x, x, u, u) / pairs_x + _kernel(y, y, v, v) / pairs_y - 2 * between


def _kernel(x: Tensor, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The sums (s,) of u[s, i] k(x_i, y_j) v[s, j]; without i = j where y is x."""
    total = u.new_zeros(len(u))
    for start in range(0, len(x), BLOCK):
        k = (x[start : start + BLOCK] @ y.T / x.shape[1] + 1) ** 3
        if y is x:
            k.diagonal(start).zero_()
        total += ((k @ v.T) * u[:, start : start + BLOCK].T).sum(0)
    return total


def bootstrap(
    x: Tensor, y: Tensor, fid: float, kid: float, times: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of the Frechet and the kernel distance, from sets resampled with replacement.

    A resampled set repeats images, which alone raises its Frechet distance; so the intervals are the
    quantiles of the resampled distances about their own mean, moved to the value that was measured.
    """
    generator = torch.Generator().manual_seed(seed)
    i = torch.randint(len(x), (times, len(x)), generator=generator)
    j = torch.randint(len(y), (times, len(y)), generator=generator)
    frechets = [frechet(Gaussian.of(x[a]), Gaussian.of(y[b])) for a, b in zip(i, j, strict=True)]
    kernels = mmd(x, y, _counts(i, len(x)), _counts(j, len(y)))
    low, high = _interval(torch.tensor(frechets, dtype=torch.float64), fid)
    return (max(low, 0.0), high), _interval(kernels.cpu(), kid)


def _interval(values: Tensor, middle: float) -> tuple[float, float]:
    low, high = (values.quantile(share).item() - values.mean().item() + middle for share in (0.025, 0.975))
    return low, high


# ------------------------------------------------------------------------------------------------------------
# Distances between images.


def centre(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets in float64, with y's mean as the origin, where distances lose least to rounding."""
    mean = y.mean(0, dtype=torch.float64)
    return x - mean, y - mean


def radii(x: Tensor, *ks: int) -> tuple[Tensor, ...]:
    """For each k the distance (n,) of each x to its k-th nearest other x, or to the furthest of fewer."""
    ks = [min(k, len(x) - 1) for k in ks]
    found = [torch.cdist(block, x).topk(max(ks) + 1, largest=False).values for block in x.split(BLOCK)]
    return torch.cat(found)[:, ks].unbind(1)


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The distance (n,) of each x to the nearest y, and which that is."""
    found = [torch.cdist(block, y).min(1) for block in x.split(BLOCK)]
    return torch.cat([block.values for block in found]), torch.cat([block.indices for block in found])


def neighbourhoods(x: Tensor, y: Tensor, k: int = 3, wide: int = 5) -> tuple[float, float, float, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    precision: the share of generated x in the ball of some real y, out to y's k-th neighbour. recall: the
    share of y in the ball of some x. density: in how many balls of y, out to the `wide`-th neighbour, an x
    is, over `wide`. coverage: the share of these balls with an x in them.
    """
    x, y = centre(x, y)
    (radii_x,), (radii_y, wide_y) = radii(x, k), radii(y, k, wide)
    closest = torch.full_like(wide_y, torch.inf)
    recalled = torch.zeros_like(wide_y, dtype=torch.bool)
    precise = dense = 0
    for block, radius in zip(x.split(BLOCK), radii_x.split(BLOCK), strict=True):
        distance = torch.cdist(block, y)
        precise += (distance <= radii_y).any(1).sum().item()
        dense += (distance <= wide_y).sum().item()
        recalled |= (distance <= radius[:, None]).any(0)
        closest = torch.minimum(closest, distance.min(0).values)
    density = dense / (min(wide, len(y) - 1) * len(x))
    recall, coverage = (hit.double().mean().item() for hit in (recalled, closest <= wide_y))
    return precise / len(x), recall, density, coverage


def diversity(x: Tensor) -> float:
    """The mean distance of two different x."""
    x, _ = centre(x, x)
    return sum(torch.cdist(block, x).sum().item() for block in x.split(BLOCK)) / (len(x) * (len(x) - 1))


def intra_cluster(x: Tensor, owners: tuple[int, ...]) -> float | None:
    """The mean distance of two x with the same owner, averaged over owners; None where no two have the same.

    With an image's nearest training image as its owner, this falls to 0 as a generator repeats its training
    set (Ojha et al. 2021, who measure it in LPIPS).
    """
    owner = torch.tensor(owners, device=x.device)
    clusters = [x[owner == index] for index in owner.unique()]
    means = [diversity(cluster) for cluster in clusters if len(cluster) > 1]
    return sum(means) / len(means) if means else None


def vendi(x: Tensor) -> float:
    """How many different ones x (n, d), each of length 1, amount to, from 1 to n.

    The Vendi score (Friedman and Dieng 2023, section 3): exp of the entropy of the eigenvalues of x x^T / n.
    Those of x^T x / n are the same, but for zeros.
    """
    values = torch.linalg.eigvalsh((x.T @ x).cpu().double()).clamp(min=0)
    return torch.special.entr(values / values.sum().clamp(min=1e-12)).sum().exp().item()


def inception_score(x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """exp E KL(p(class | image) || p(class)) over all x, in one split (Salimans et al. 2016)."""
    logits = x.double() @ weight.to(x.device).double().T
    log_p = (logits if bias is None else logits + bias.to(x.device).double()).log_softmax(1)
    log_mean = log_p.exp().mean(0).clamp(min=torch.finfo(log_p.dtype).tiny).log()
    return (log_p.exp() * (log_p - log_mean)).sum(1).mean().exp().item()
