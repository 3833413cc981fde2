"""Laplace energy: the evidence of an input over its distance from what the last layer has seen.

Evidence is GradNorm's own objective, ``KL(uniform || softmax)``, with the mean logit of ID inputs
in place of the row's own: ``N = logsumexp(f) - log C - mean ID logit``. The distance is the norm
of the last layer's input under the inverse of the ID covariance, bias included: the natural
gradient's measure, as K-FAC (Martens & Grosse, ICML 2015) and the Laplace approximation of the
last layer (Ritter et al., ICLR 2018) have it. So the score says how many natural-gradient units
the head would have to change to lose the evidence. GradNorm is output times gradient; this is
output over gradient. ``laplace_energy_blocks`` divides by the distances of the stages' outputs,
too. No labels are needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.escapes import listed
from gradscore.methods.moments import Moments, inverse_root, percentile, shrunk
from gradscore.methods.rows import (
    FOLDS,
    Fit,
    LastLayer,
    Rows,
    Source,
    check_fit_size,
    in_fold,
)

RIDGE = 0.1
"""Added to the features' covariance, as a share of its mean variance."""
MASKED = 1000.0
"""A class whose logit mostly lies so far below the row's median is masked out."""
SMALLEST = 1e-6
"""Least distance of a stage's output."""


def fit_laplace(
    source: Source,
    *,
    stages: Sequence[str] = (),
    clip: float | None = None,
    head: LastLayer | None = None,
) -> Fit:
    """Learn what the scores divide by, and what evidence starts from.

    Args:
        source: ID rows; no labels are needed.
        stages: Names of the stages whose outputs count; none for :func:`laplace_energy` alone.
        clip: Percentile of all features at which features are clipped before the evidence is
            taken, as ReAct does; None does not clip.
        head: The last layer; only clipping needs it.

    Returns:
        ``kept`` (classes that are not masked, bool), ``mean_logit``, ``mean`` and ``root`` of the
        features; for each stage that varies its ``mean``, ``deviation`` and ``root``;
        ``features.floor`` and ``blocks.floor``; ``clip`` where features are clipped; and
        ``count``.

    Raises:
        InvalidArgument: If there are too few rows, or no feature or no stage's output varies.
    """
    fit: Fit = {}
    if clip is not None:
        limit = percentile(lambda: (rows.features for rows in source()), clip)
        fit["clip"] = torch.tensor(limit, dtype=torch.float64)
    fit.update(_fit_evidence(source, fit, head))
    check_fit_size(int(fit["count"]))
    fit.update(_fit_distances(source, stages))
    fit.update(_floors(source, stages))
    return fit


def laplace_energy(rows: Rows, fit: Fit, *, head: LastLayer | None = None) -> Tensor:
    """Return the evidence over the head's distance, shape ``[rows]``, float64.

    Args:
        rows: Features and logits.
        fit: What :func:`fit_laplace` learned.
        head: The last layer, where features are clipped.
    """
    return _divided(evidence(rows, fit, head), head_distance(rows.features, fit))


def laplace_energy_blocks(
    rows: Rows, fit: Fit, *, two_sided: bool = False, head: LastLayer | None = None
) -> Tensor:
    """Return the evidence over the distances of head and stages, shape ``[rows]``, float64.

    Args:
        rows: Features, logits and block means.
        fit: What :func:`fit_laplace` learned.
        two_sided: Whether a distance below that of a typical ID input counts as evidence.
        head: The last layer, where features are clipped.
    """
    distances = [head_distance(rows.features, fit), stage_distance(rows, fit)]
    if not two_sided:
        floors = (fit["features.floor"], fit["blocks.floor"])
        distances = [torch.maximum(d, floor) for d, floor in zip(distances, floors, strict=True)]
    return _divided(evidence(rows, fit, head), distances[0] * distances[1])


def evidence(rows: Rows, fit: Fit, head: LastLayer | None = None) -> Tensor:
    """Return ``logsumexp(f) - log C - mean ID logit``, in nats, shape ``[rows]``, float64."""
    kept = fit["kept"].bool()
    logits = _logits(rows, fit, head).masked_fill(~kept, -torch.inf)
    return logits.logsumexp(dim=1) - kept.sum().double().log() - fit["mean_logit"]


def head_distance(features: Tensor, fit: Fit) -> Tensor:
    """Return ``sqrt(1 + (x - mu)^T (S + ridge)^-1 (x - mu))``, shape ``[rows]``, float64."""
    whitened = (features.double() - fit["mean"]) @ fit["root"]
    return (1 + whitened.square().sum(dim=1)).sqrt()


def stage_distance(rows: Rows, fit: Fit) -> Tensor:
    """Return the geometric mean of the stages' distances, shape ``[rows]``, float64."""
    logs = [_stage_distance(rows, fit, stage).log() for stage in fitted_stages(fit)]
    return torch.stack(logs).mean(dim=0).exp()


def fitted_stages(fit: Fit) -> list[str]:
    """Return the stages whose outputs count, in the order of depth."""
    names = [name.removesuffix(".root") for name in fit if name.endswith(".root")]
    return sorted(names, key=lambda name: (len(name), name))


def left_out(fit: Fit, stages: Sequence[str]) -> list[str]:
    """Return which classes and stages do not count, a clause each.

    Args:
        fit: What :func:`fit_laplace` learned.
        stages: Names of the stages that were to count.
    """
    masked = (fit["kept"] == 0).nonzero().flatten().tolist()
    still = [stage for stage in stages if stage not in fitted_stages(fit)]
    clauses = []
    if masked:
        far = f"whose logits mostly lie more than {MASKED:,.0f} below the others"
        clauses.append(f"left out of the evidence, as masked: classes {listed(masked)}, {far}")
    if still:
        clauses.append(f"left out, as their outputs never vary: {listed(still)}")
    return clauses


def _divided(evidence: Tensor, distance: Tensor) -> Tensor:
    """Return a score that falls with the distance and rises with the evidence, whatever its sign.

    Negative evidence is multiplied: divided it would rise with the distance.
    """
    return torch.where(evidence >= 0, evidence / distance, evidence * distance)


def _logits(rows: Rows, fit: Fit, head: LastLayer | None) -> Tensor:
    if "clip" not in fit:
        return rows.logits.double()
    if head is None:
        raise InvalidArgument("Expected the last layer to clip its features, got none.")
    return head(rows.features.double().minimum(fit["clip"]))


def _fit_evidence(source: Source, fit: Fit, head: LastLayer | None) -> Fit:
    """Return which classes are not masked, their mean logit, and the number of rows."""
    count, below, total = 0, torch.zeros(0), torch.zeros(0)
    for rows in source():
        logits = _logits(rows, fit, head)
        if not count:
            below, total = (logits.new_zeros(logits.shape[1]) for _ in range(2))
        far = logits - logits.median(dim=1, keepdim=True).values < -MASKED
        below += far.sum(dim=0)
        total += logits.sum(dim=0)
        count += len(rows)
    kept = 2 * below <= count
    mean = total[kept].mean() / max(count, 1)
    return {"kept": kept, "mean_logit": mean, "count": torch.tensor(count)}


def _fit_distances(source: Source, stages: Sequence[str]) -> Fit:
    features, blocks = Moments(), {stage: Moments() for stage in stages}
    for rows in source():
        features.add(rows.features)
        for stage, moments in blocks.items():
            moments.add(rows.blocks[stage])
    covariance = features.covariance
    variance = covariance.diagonal().mean()
    if not variance > 0:
        raise InvalidArgument("Expected features that vary over the images to fit to, got others.")
    ridge = RIDGE * variance * torch.eye(len(covariance), dtype=torch.float64)
    fit: Fit = {"mean": features.mean, "root": inverse_root(covariance + ridge)}
    deviations = {stage: moments.deviation for stage, moments in blocks.items()}
    varying = [stage for stage, deviation in deviations.items() if deviation.any()]
    if stages and not varying:
        raise InvalidArgument(
            "Expected stages whose outputs vary over the images to fit to, got none; "
            "laplace_energy needs none."
        )
    for stage in varying:
        fit[f"{stage}.mean"] = blocks[stage].mean
        fit[f"{stage}.deviation"] = deviations[stage]
    fourth = dict.fromkeys(varying, 0.0)
    for rows in source():
        for stage in varying:
            z = _standardised(rows, fit, stage)
            fourth[stage] += float(z.square().sum(dim=1).square().sum())
    for stage in varying:
        deviation, count = deviations[stage], blocks[stage].count
        kept = deviation > 0
        scale = deviation[kept]
        correlation = blocks[stage].covariance[kept][:, kept] / scale.outer(scale)
        fit[f"{stage}.root"] = inverse_root(shrunk(correlation, fourth[stage] / count, count))
    return fit


def _standardised(rows: Rows, fit: Fit, stage: str) -> Tensor:
    kept = fit[f"{stage}.deviation"] > 0
    means = rows.blocks[stage].double()[:, kept]
    return (means - fit[f"{stage}.mean"][kept]) / fit[f"{stage}.deviation"][kept]


def _stage_distance(rows: Rows, fit: Fit, stage: str) -> Tensor:
    whitened = _standardised(rows, fit, stage) @ fit[f"{stage}.root"]
    return whitened.square().sum(dim=1).sqrt().clamp_min(SMALLEST)


def _floors(source: Source, stages: Sequence[str]) -> Fit:
    """Return the median distances of ID rows, each from a fit that has not seen them."""
    heads, blocks = [], []
    for fold in range(FOLDS):
        fit = _fit_distances(in_fold(source, fold, inside=False), stages)
        for rows in in_fold(source, fold, inside=True)():
            heads.append(head_distance(rows.features, fit))
            if stages:
                blocks.append(stage_distance(rows, fit))
    floors = {"features.floor": torch.cat(heads).median()}
    return floors | ({"blocks.floor": torch.cat(blocks).median()} if stages else {})
