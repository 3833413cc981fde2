"""ODIN without input perturbation, as the paper compares with it (Liang, Li & Srikant, ICLR 2018).

The score is the maximum softmax probability at a high temperature; the perturbation of the input
is 0 in Huang, Geng & Li's comparison, so that the recorded logits answer it.
"""

from typing import Any

from torch import Tensor

from gradscore.scores.block import Block
from gradscore.scores.confidence import max_softmax
from gradscore.scores.question import Method, Needs, Question


def _plan(question: Question, run: Any) -> Needs:
    return Needs(("logits",))


def _odin(question: Question, block: Block, state: None) -> Tensor:
    return max_softmax(block.logits, question.temperature)


ODIN = Method(
    "odin",
    "Maximum softmax probability at T = 1000, without input perturbation.",
    plan=_plan,
    score=_odin,
    options={"temperature": 1000.0},
)
