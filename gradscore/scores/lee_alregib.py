"""Gradients towards a confounding label, classified (Lee & AlRegib, ICIP 2020).

Features: for each parameter tensor the squared L2 norm of the gradient of the binary
cross-entropy between the outputs and an all-ones label. A logistic regression then tells the
inputs of an ID set from those of a set of noise, which stands in for OOD (Appendix E of Huang,
Geng & Li).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.errors import InvalidArgument, NotRecorded, RunError
from gradscore.scores.block import Block
from gradscore.scores.question import Method, Needs, Question

TARGET = "all-ones"


def _plan(question: Question, run: Any) -> Needs:
    needs = Needs(passes=(_pass(run),))
    for name in _fit_sets(question):
        if name not in run.sets:
            raise InvalidArgument(
                f"Unknown set {name!r} to fit to; the run holds: {', '.join(run.sets)}."
            )
    return needs


def _fit(question: Question, run: Any) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    name = _pass(run)
    sides = [
        np.concatenate(
            [squared(block[name]) for block in run.blocks(side, fields=("index",), norms=(name,))]
        )
        for side in _fit_sets(question)
    ]
    if not all(np.isfinite(side).all() for side in sides):
        raise RunError(f"Expected finite norms in the sets {question.fit}, got others.")
    is_id = np.repeat([1, 0], [len(side) for side in sides])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return model.fit(np.concatenate(sides), is_id)


def _score(question: Question, block: Block, state: Any) -> Tensor:
    (name,) = (key for key in block.arrays if key.startswith(f"norms-{TARGET}-"))
    # The log-odds, since probabilities of 1 would tie.
    return torch.from_numpy(state.decision_function(squared(block.arrays[name])))


def squared(norms: NDArray) -> NDArray[np.float64]:
    """Return the squared L2 norm of each parameter tensor's gradient, ``[rows, parameters]``."""
    return np.square(norms, dtype=np.float64)


def _fit_sets(question: Question) -> tuple[str, str]:
    names = tuple(question.fit.split(","))
    if len(names) != 2:
        raise NotRecorded(
            f"Method lee_alregib learns from an ID set and a set of noise: expected fit as "
            f"ID,NOISE, got {question.fit!r}."
        )
    return names


def _pass(run: Any) -> str:
    try:
        return run.find_norms(TARGET, 1.0, 2.0, tuple(run.info.parameters)).name
    except NotRecorded:
        raise NotRecorded(
            "The run holds no gradient norms towards the all-ones label; record them with "
            f"`gradscore extract --target {TARGET} -p 2 --layers all`."
        ) from None


LEE_ALREGIB = Method(
    "lee_alregib",
    "Logistic regression on squared gradient norms towards an all-ones label; fit: ID,NOISE.",
    plan=_plan,
    score=_score,
    options={"fit": None},
    required=("fit",),
    fit=_fit,
)
