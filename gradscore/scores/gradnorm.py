"""GradNorm and its two factors (Huang, Geng & Li, NeurIPS 2021, Eqs. 5 to 9).

The last layer has a closed form in the recorded features and logits. Every other choice of
parameters combines recorded norms, one column a parameter tensor.
"""

from functools import partial
from typing import Any

from torch import Tensor

from gradscore.norms import combine_norms
from gradscore.scores.block import Block, Shared
from gradscore.scores.columns import closed_form_applies, norm_columns, require_closed_form
from gradscore.scores.question import Method, Needs, Question


def _plan_gradnorm(question: Question, run: Any) -> Needs:
    if question.layers == "last" and closed_form_applies(run):
        return Needs(("features", "logits"), shared=_factors(question))
    return Needs(passes=(norm_columns(question, run).name,))


def _gradnorm(question: Question, block: Block, columns: Any) -> Tensor:
    if columns is None:
        u, v = (block.norm(factor) for factor in _factors(question))
        classes = block.logits.shape[1] if question.target == "uniform" else 1
        norm = u * v / (classes * question.temperature)
    else:
        chosen = block.recorded(columns.name)[:, list(columns.places)]
        norm = combine_norms(chosen.double().unbind(dim=1), question.p)
    # With a one-hot target ID inputs have the smaller gradient.
    return norm if question.target == "uniform" else -norm


def _columns(question: Question, run: Any) -> Any:
    if question.layers == "last" and closed_form_applies(run):
        return None
    return norm_columns(question, run)


def _factors(question: Question) -> tuple[Shared, Shared]:
    return (
        Shared(question.p),
        Shared(question.p, question.temperature, question.target or "uniform"),
    )


def _plan_factor(question: Question, run: Any, *, place: int, field: str) -> Needs:
    require_closed_form(question, run)
    return Needs((field,), shared=(_factors(question)[place],))


def _factor(question: Question, block: Block, state: None, *, place: int) -> Tensor:
    return block.norm(_factors(question)[place])


GRADNORM = Method(
    "gradnorm",
    "L_p norm of the gradient of KL(uniform || softmax(f/T)), Eq. 5; one-hot: minus the norm.",
    plan=_plan_gradnorm,
    score=_gradnorm,
    options={"layers": "last", "p": 1.0, "temperature": 1.0, "target": "uniform"},
    fit=_columns,
)

U = Method(
    "u",
    "U = |x|_p, the feature factor of Eq. 9.",
    plan=partial(_plan_factor, place=0, field="features"),
    score=partial(_factor, place=0),
    options={"p": 1.0},
)

V = Method(
    "v",
    "V = |1 - C softmax(f/T)|_p, the output factor of Eq. 9.",
    plan=partial(_plan_factor, place=1, field="logits"),
    score=partial(_factor, place=1),
    options={"p": 1.0, "temperature": 1.0},
)
