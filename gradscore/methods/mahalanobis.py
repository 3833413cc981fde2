"""Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), in two forms.

``mahalanobis`` is the plain form on the last features, from the run alone: no input perturbation,
no earlier stages. ``mahalanobis_stages`` is the whole method as Huang, Geng & Li compare with it:
the confidences of every stage, each at its own perturbed input, recorded by ``extract --record
mahalanobis`` and combined by the logistic regression that was fitted with them.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from gradscore.errors import NotRecorded, RunError
from gradscore.gaussians import ClassGaussians, fit_streamed_gaussians
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.fitted import Arrays, Source, fitted, labelled_set, require_sets
from gradscore.methods.gradnorm import require_closed_form
from gradscore.run import extract_command, mahalanobis_name, mahalanobis_options


def _plan(spec: ScoreSpec, run: RecordedRun) -> Plan:
    require_closed_form(run)
    sets = spec.fit_sets()
    require_sets(run, sets)

    def fit() -> ClassGaussians:
        learn, settings = partial(_learn, run, *sets), {"features": "last"}
        fields = ("features", "label")
        arrays = fitted(run, spec.method, sets, learn, settings=settings, fields=fields)
        return ClassGaussians(*(torch.from_numpy(arrays[name]) for name in ("means", "precision")))

    return Plan(_confidence, fields=("features",), fit=fit)


def _confidence(gaussians: ClassGaussians, block: Block) -> Tensor:
    return gaussians.confidence(block.features)


def _learn(run: RecordedRun, name: str, source: Source) -> dict[str, Tensor]:
    """Return the Gaussians of the labelled rows of the set ``name``."""
    labelled = partial(_labelled_rows, run, name, source)
    if not any(len(labels) for _, labels in labelled()):
        raise RunError(
            f"Method mahalanobis learns from labels, but no row of set {name!r} has one; add a "
            f"list with labels with {extract_command(run, '--data', 'NAME=LIST')}."
        )
    found = fit_streamed_gaussians(labelled, run.info.classes)
    return {"means": found.means, "precision": found.precision}


def _labelled_rows(run: RecordedRun, name: str, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features and class numbers of the labelled rows of the set ``name``.

    Raises:
        RunError: If a class number is too large.
    """
    for block in source():
        labels = torch.as_tensor(block["label"], device="cpu")
        known = labels >= 0
        highest = int(labels.max())
        if highest >= run.info.classes:
            raise RunError(
                f"Expected labels of 0 to {run.info.classes - 1} in set {name!r}, got {highest}."
            )
        yield torch.as_tensor(block["features"], device="cpu")[known], labels[known]


def _plan_stages(spec: ScoreSpec, run: RecordedRun) -> Plan:
    (fit_set,) = spec.fit_sets()
    name = mahalanobis_name(fit_set)
    if name not in run.info.passes:
        require_sets(run, [fit_set])
        raise NotRecorded(
            f"The run holds no confidences of the stages fitted to {fit_set}; record them with "
            f"{extract_command(run, *mahalanobis_options(run.info, fit_set))}."
        )

    def fit() -> Arrays:
        recorded = run.info.passes[name].details["fit"]
        arrays = run.read_fit(recorded)
        if arrays is None:
            again = extract_command(run, *mahalanobis_options(run.info, fit_set))
            raise RunError(f"The fit {recorded} is missing; make it again with {again}.")
        return arrays

    def score(regression: Arrays, block: Block) -> Tensor:
        weight, bias = (torch.from_numpy(regression[key]) for key in ("weight", "bias"))
        # Minus the log-odds of OOD, which order inputs as minus its probability does, untied.
        return -(block.recorded(name).double() @ weight + bias)

    return Plan(score, passes=(name,), fit=fit)


MAHALANOBIS = Method(
    "mahalanobis",
    "Minus half the squared Mahalanobis distance of the last features to the nearest class.",
    plan=_plan,
    options={"fit": None},
    required=("fit",),
    fit_sets=labelled_set,
)

MAHALANOBIS_STAGES = Method(
    "mahalanobis_stages",
    "Mahalanobis over all stages with input perturbation: minus the log-odds of OOD.",
    plan=_plan_stages,
    options={"fit": None},
    required=("fit",),
    fit_sets=labelled_set,
)
