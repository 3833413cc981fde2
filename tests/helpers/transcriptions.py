"""Equations of papers, written out literally in float64."""

import numpy as np


def literal_confidence(z, x, y):
    """Eqs. 1 and 2: means and tied covariance of ``x`` by class ``y``, and M(z)."""
    means = {c: x[y == c].mean(axis=0) for c in set(y.tolist())}
    covariance = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(x, y, strict=True))
    precision = np.linalg.pinv(covariance / len(x), hermitian=True, rcond=1e-12)
    return np.array(
        [max(-0.5 * (row - mu) @ precision @ (row - mu) for mu in means.values()) for row in z]
    )
