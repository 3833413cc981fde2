"""Post-hoc detectors, transcribed literally from their papers in NumPy float64.

``x`` features, ``f`` logits, ``w`` and ``b`` the last layer; ``x0`` and ``f0`` are ID inputs to
fit to. Higher means more ID.
"""

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf


def energy(f):
    return logsumexp(f, axis=1)


def knn(x, x0, k):
    z, z0 = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, x0))
    distances = np.linalg.norm(z[:, None] - z0[None], axis=2)
    return -np.sort(distances, axis=1)[:, k - 1]


def nnguide(x, f, x0, f0, k):
    z, z0 = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, x0))
    guides = np.sort(z @ (z0 * energy(f0)[:, None]).T, axis=1)[:, ::-1]
    return energy(f) * guides[:, :k].mean(axis=1)


def react(x, x0, w, b, percent=90):
    return energy(np.minimum(x, np.percentile(x0, percent)) @ w.T + b)


def ash_s(x, w, b, percent=90):
    rows = []
    for row in x:
        kept = np.argsort(-row)[: len(row) - round(len(row) * percent / 100)]
        pruned = np.zeros_like(row)
        pruned[kept] = row[kept]
        rows.append(pruned * np.exp(row.sum() / pruned.sum()))
    return energy(np.array(rows) @ w.T + b)


def scale(x, w, b, percent=85):
    rows = []
    for row in x:
        kept = np.sort(row)[::-1][: len(row) - round(len(row) * percent / 100)]
        rows.append(row * np.exp(row.sum() / kept.sum()))
    return energy(np.array(rows) @ w.T + b)


def vim(x, f, x0, f0, w, b, dimension):
    u = -np.linalg.pinv(w) @ b
    covariance = (x0 - u).T @ (x0 - u) / len(x0)
    values, vectors = np.linalg.eigh(covariance)
    residual = vectors[:, np.argsort(-values)[dimension:]]
    alpha = f0.max(axis=1).mean() / np.linalg.norm((x0 - u) @ residual, axis=1).mean()
    return energy(f) - alpha * np.linalg.norm((x - u) @ residual, axis=1)


def gen(f, gamma=0.1, largest=100):
    q = np.sort(softmax(f, axis=1), axis=1)[:, ::-1][:, :largest]
    return -(q**gamma * (1 - q) ** gamma).sum(axis=1)


def fdbd(x, f, x0, w):
    scores = []
    for row, logits in zip(x, f, strict=True):
        y = logits.argmax()
        distances = [
            abs(logits[y] - logits[c]) / np.linalg.norm(w[y] - w[c])
            for c in range(len(w))
            if c != y
        ]
        scores.append(np.mean(distances) / np.linalg.norm(row - x0.mean(axis=0)))
    return np.array(scores)


def head_distance(x, x0):
    mu, covariance = x0.mean(axis=0), np.cov(x0.T, bias=True)
    m = len(mu)
    inverse = np.linalg.inv(covariance + 0.1 * np.trace(covariance) / m * np.eye(m))
    return np.array([np.sqrt(1 + (row - mu) @ inverse @ (row - mu)) for row in x])


def stage_distance(blocks, blocks0):
    distances = []
    for h, h0 in zip(blocks, blocks0, strict=True):
        varies = h0.std(axis=0) > 0
        if not varies.any():
            continue
        z, z0 = ((a - h0.mean(axis=0))[:, varies] / h0.std(axis=0)[varies] for a in (h, h0))
        inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(z0).covariance_)
        squares = np.array([row @ inverse @ row for row in z])
        distances.append(np.maximum(np.sqrt(squares), 1e-6))
    return np.prod(distances, axis=0) ** (1 / len(distances))


def fold_of(place):
    """Return the fold of a row: SplitMix64 draws which of a pair is in which."""
    z = (place // 2 + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (place + z // 2**63) % 2


def evidence(f, f0):
    return logsumexp(f, axis=1) - np.log(f.shape[1]) - f0.mean()


def over(n, d):
    return np.where(n >= 0, n / d, n * d)


def laplace_energy(x, f, x0, f0):
    return over(evidence(f, f0), head_distance(x, x0))


def laplace_energy_blocks(x, f, blocks, x0, f0, blocks0, *, two_sided=False):
    a, g = head_distance(x, x0), stage_distance(blocks, blocks0)
    if not two_sided:
        fold = np.array([fold_of(place) for place in range(len(x0))])
        known_a, known_g = [], []
        for seen, unseen in ((fold == 0, fold == 1), (fold == 1, fold == 0)):
            known_a += head_distance(x0[unseen], x0[seen]).tolist()
            known_g += stage_distance(
                [h[unseen] for h in blocks0], [h[seen] for h in blocks0]
            ).tolist()
        lower = [sorted(values)[(len(values) - 1) // 2] for values in (known_a, known_g)]
        a, g = np.maximum(a, lower[0]), np.maximum(g, lower[1])
    return over(evidence(f, f0), a * g)
