"""Whether a calibrated threshold keeps its promise, by simulation where the truth is known.

python benchmarks/guarantee.py -o benchmarks/results/guarantee.csv

Each row is 2,000 draws of calibration images at tpr 0.95. ``violated`` is the share of draws whose
threshold flags more than 5% of all ID images (for ``pac`` at most 5% of draws may), ``flagged``
the share of ID images that is flagged on average (for ``marginal`` at most 5%), and ``drift_N``
the share of clean batches of N images that are called drift, by the beta-binomial and, beside it,
by a binomial that takes the promised share for the true one. The share that a threshold flags is
exact for drawn scores. The score of a fitted method (distance from a mean under a regularised
covariance) learns from one half of the images; its share is counted on 10,000 others.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gradscore.detector.threshold import DRIFT, GUARANTEES, Threshold, drift_p_value

TPR, ALPHA = "0.95", 0.05
DRAWS, SIZES, BATCHES = 2000, (200, 1000, 5000), (1000, 10_000, 100_000)
FITTED = ((400, 20), (400, 300), (2000, 20))
"""Images (one half is learned from) and features: fewer and more features than images."""
UNSEEN = 10_000

Draw = Callable[[np.random.Generator, int], NDArray]
Below = Callable[[float], float]


def tied(rng: np.random.Generator, size: int) -> NDArray:
    """Draw scores of 21 values, as coarse digits or a saturated softmax give."""
    return rng.binomial(20, 0.7, size).astype(float)


DISTRIBUTIONS: dict[str, tuple[Draw, Below]] = {
    "normal": (lambda rng, size: rng.standard_normal(size), stats.norm.cdf),
    "tied": (tied, lambda value: stats.binom.cdf(value - 1, 20, 0.7)),
    "cauchy": (lambda rng, size: rng.standard_cauchy(size), stats.cauchy.cdf),
}
"""How scores are drawn, and the share of all that lies below a value."""


def main() -> None:
    """Simulate, print and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args()
    rows = []
    for guarantee in GUARANTEES:
        for name, (draw, below) in DISTRIBUTIONS.items():
            for size in SIZES:
                rng = np.random.default_rng(0)
                found = [drawn(rng, draw, below, size, guarantee) for _ in range(options.draws)]
                rows.append(summary(rng, found, scores=name, images=size, features=""))
        for images, features in FITTED:
            rng = np.random.default_rng(0)
            found = [fitted(rng, images, features, guarantee) for _ in range(options.draws)]
            rows.append(summary(rng, found, scores="fitted", images=images, features=features))
    if options.output is not None:
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def drawn(
    rng: np.random.Generator, draw: Draw, below: Below, size: int, guarantee: str
) -> tuple[Threshold, float]:
    """Return one calibration and the share of all ID images that it flags."""
    threshold = Threshold.of(draw(rng, size), TPR, guarantee=guarantee)
    return threshold, float(below(threshold.value))


def fitted(
    rng: np.random.Generator, images: int, features: int, guarantee: str
) -> tuple[Threshold, float]:
    """Return the same for a score that learns from the first half of the images."""
    x = rng.standard_normal((images + UNSEEN, features), dtype=np.float32)
    half = images // 2
    mean = x[:half].mean(axis=0)
    covariance = np.cov(x[:half], rowvar=False) + 0.1 * np.eye(features)
    factor = np.linalg.cholesky(np.linalg.inv(covariance)).astype(np.float32)
    scores = -np.square((x[half:] - mean) @ factor).sum(axis=1)
    threshold = Threshold.of(scores[: images - half], TPR, guarantee=guarantee)
    return threshold, float((scores[images - half :] < threshold.value).mean())


def summary(
    rng: np.random.Generator, found: list[tuple[Threshold, float]], **what: object
) -> dict[str, object]:
    """Return one row of the table, and print it."""
    shares = np.array([share for _, share in found])
    violated = shares > ALPHA
    row = {
        "guarantee": found[0][0].guarantee,
        **what,
        "calibrated": found[0][0].images,
        "draws": len(found),
        "rank": found[0][0].rank,
        "violated": f"{violated.mean():.4f}",
        "flagged": f"{shares.mean():.5f}",
        "standard_error": f"{shares.std() / len(shares) ** 0.5:.5f}",
    }
    for batch in BATCHES:
        counts = rng.binomial(batch, shares)
        verdicts = [
            drift_p_value(int(count), batch, threshold) < DRIFT
            for count, (threshold, _) in zip(counts, found, strict=True)
        ]
        plain = stats.binom.sf(counts - 1, batch, found[0][0].rank / (found[0][0].images + 1))
        row[f"drift_{batch}"] = f"{np.mean(verdicts):.4f}"
        row[f"binomial_{batch}"] = f"{np.mean(plain < DRIFT):.4f}"
    print(*row.values(), sep="  ", flush=True)
    return row


if __name__ == "__main__":
    main()
