"""Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018), in two forms.

``mahalanobis`` is the plain form on the last features, from the run alone: no input perturbation,
no earlier stages. ``mahalanobis_stages`` is the whole method as Huang, Geng & Li compare with it:
the confidences of every stage, each at its own perturbed input, recorded by ``extract --record
mahalanobis`` and combined by the logistic regression that was fitted with them.
"""

from typing import Any

import torch
from torch import Tensor

from gradscore.errors import NotRecorded, RunError
from gradscore.gaussians import ClassGaussians, fit_gaussians
from gradscore.methods.block import Block
from gradscore.methods.columns import require_closed_form
from gradscore.methods.fitted import Arrays, fitted, labelled_set, require_sets
from gradscore.methods.question import Method, Needs, Question
from gradscore.run import extract_command, mahalanobis_name, mahalanobis_options


def _plan(question: Question, run: Any) -> Needs:
    require_closed_form(question, run)
    require_sets(run, question.learned_from())
    return Needs(("features",))


def _fit(question: Question, run: Any) -> ClassGaussians:
    (name,) = question.learned_from()

    def learn() -> Arrays:
        known = _fit_features(run, name)
        return {"means": known.means.numpy(), "precision": known.precision.numpy()}

    arrays = fitted(run, "mahalanobis", [name], {"features": "last"}, learn)
    return ClassGaussians(*(torch.from_numpy(arrays[field]) for field in ("means", "precision")))


def _fit_features(run: Any, name: str) -> ClassGaussians:
    features, labels = [], []
    for block in run.blocks(name, fields=("features", "label")):
        known = torch.as_tensor(block["label"], device="cpu") >= 0
        features.append(torch.as_tensor(block["features"], device="cpu")[known])
        labels.append(torch.as_tensor(block["label"], device="cpu")[known])
    if not any(map(len, labels)):
        raise RunError(
            f"Method mahalanobis learns from labels, but no row of set {name!r} has one; add a "
            f"list with labels with {extract_command(run, '--data', 'NAME=LIST')}."
        )
    highest = max(int(y.max()) for y in labels if len(y))
    if highest >= run.info.classes:
        raise RunError(
            f"Expected labels of 0 to {run.info.classes - 1} in set {name!r}, got {highest}."
        )
    if not all(x.isfinite().all() for x in features):
        raise RunError(f"Expected finite features in set {name!r}, got others.")
    return fit_gaussians(torch.cat(features), torch.cat(labels))


def _mahalanobis(question: Question, block: Block, state: ClassGaussians) -> Tensor:
    return state.confidence(block.features)


def _plan_stages(question: Question, run: Any) -> Needs:
    (name,) = question.learned_from()
    if mahalanobis_name(name) not in run.info.passes:
        require_sets(run, [name])
        raise NotRecorded(
            f"The run holds no confidences of the stages fitted to {name}; record them with "
            f"{extract_command(run, *mahalanobis_options(run.info, name))}."
        )
    return Needs(passes=(mahalanobis_name(name),))


def _read_stages(question: Question, run: Any) -> Arrays:
    (fit_set,) = question.learned_from()
    name = run.info.passes[mahalanobis_name(fit_set)].details["fit"]
    arrays = run.read_fit(name)
    if arrays is None:
        again = extract_command(run, *mahalanobis_options(run.info, fit_set))
        raise RunError(f"The fit {name} is missing; make it again with {again}.")
    return arrays


def _mahalanobis_stages(question: Question, block: Block, state: Arrays) -> Tensor:
    confidences = block.recorded(mahalanobis_name(*question.learned_from())).double()
    # Minus the log-odds of OOD, which order inputs as minus its probability does, without ties.
    return -(confidences @ torch.from_numpy(state["weight"]) + torch.from_numpy(state["bias"]))


MAHALANOBIS = Method(
    "mahalanobis",
    "Minus half the squared Mahalanobis distance of the last features to the nearest class.",
    plan=_plan,
    score=_mahalanobis,
    options={"fit": None},
    required=("fit",),
    fit=_fit,
    learns_from=labelled_set,
)

MAHALANOBIS_STAGES = Method(
    "mahalanobis_stages",
    "Mahalanobis over all stages with input perturbation: minus the log-odds of OOD.",
    plan=_plan_stages,
    score=_mahalanobis_stages,
    options={"fit": None},
    required=("fit",),
    fit=_read_stages,
    learns_from=labelled_set,
)
