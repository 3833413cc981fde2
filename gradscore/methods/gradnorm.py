"""GradNorm and its two factors (Huang, Geng & Li, NeurIPS 2021, Eqs. 5 to 9).

The last layer has a closed form in the recorded features and logits. Every other choice of
parameters combines recorded norms, one column a parameter tensor, or runs the part of the network
behind a kept module again.
"""

from functools import partial
from typing import Any

from torch import Tensor

from gradscore.closed_form import last_layer_score
from gradscore.extraction.replay import PASS_PREFIX, Replay
from gradscore.methods.block import Block, Shared
from gradscore.methods.columns import (
    NormColumns,
    closed_form_applies,
    kept_below,
    norm_columns,
    require_closed_form,
)
from gradscore.methods.question import Method, Needs, Question
from gradscore.norms import combine_norms
from gradscore.objective import Objective


def _plan_gradnorm(question: Question, run: Any) -> Needs:
    if question.layers == "last" and closed_form_applies(run):
        return Needs(("features", "logits"), shared=_factors(question))
    return Needs(passes=(_pass(question, run),))


def _gradnorm(question: Question, block: Block, answer: NormColumns | Replay | None) -> Tensor:
    if answer is None and block.device is not None:
        return _launched(question, block)
    if answer is None:
        u, v = (block.norm(factor) for factor in _factors(question))
        classes = block.logits.shape[1] if question.target == "uniform" else 1
        norm = u * v / (classes * question.temperature)
    elif isinstance(answer, NormColumns):
        chosen = block.recorded(answer.name)[:, list(answer.places)]
        norm = combine_norms(chosen.double().unbind(dim=1), question.p)
    else:
        objective = Objective(question.p, question.temperature, question.target)
        norms = answer.norms(block.recorded(answer.name), objective)
        norm = combine_norms(norms.double().unbind(dim=1), question.p)
    # With a one-hot target ID inputs have the smaller gradient.
    return norm if question.target == "uniform" else -norm


def _launched(question: Question, block: Block) -> Tensor:
    how = {"p": question.p, "temperature": question.temperature, "target": question.target}
    rows = (values.to(block.device) for values in (block.features, block.logits))
    return last_layer_score(*rows, **how, backend="triton").double().cpu()


def _answer(question: Question, run: Any) -> NormColumns | Replay | None:
    if question.layers == "last" and closed_form_applies(run):
        return None
    module = kept_below(question, run)
    return Replay(run, module, question.layers) if module else norm_columns(question, run)


def _pass(question: Question, run: Any) -> str:
    module = kept_below(question, run)
    return PASS_PREFIX + module if module else norm_columns(question, run).name


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
    fit=_answer,
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
