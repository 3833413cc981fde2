"""ODIN (Liang, Li & Srikant, ICLR 2018): the maximum softmax probability at a high temperature.

Without input perturbation, as Huang, Geng & Li compare with it, the recorded logits answer it at
any temperature. A perturbed input depends on the temperature too: its logits answer for the
temperature that they were recorded with, and for no other.
"""

from typing import Any

from torch import Tensor

from gradscore.errors import NotRecorded
from gradscore.methods.block import Block
from gradscore.methods.confidence import max_softmax
from gradscore.methods.question import Method, Needs, Question
from gradscore.norms import number_name
from gradscore.run import extract_command, odin_name, odin_options


def _plan(question: Question, run: Any) -> Needs:
    if not question.epsilon:
        return Needs(("logits",))
    name = odin_name(question.temperature, question.epsilon)
    if name not in run.info.passes:
        temperature, epsilon = map(number_name, (question.temperature, question.epsilon))
        command = extract_command(run, *odin_options(question.temperature, question.epsilon))
        raise NotRecorded(
            f"The run holds no logits perturbed at T = {temperature} by epsilon = {epsilon}; "
            f"record them with {command}."
        )
    return Needs(passes=(name,))


def _odin(question: Question, block: Block, state: None) -> Tensor:
    if not question.epsilon:
        return max_softmax(block.logits, question.temperature)
    perturbed = block.recorded(odin_name(question.temperature, question.epsilon))
    return max_softmax(perturbed, question.temperature)


ODIN = Method(
    "odin",
    "Maximum softmax probability at T = 1000, at an input perturbed by epsilon (0 by default).",
    plan=_plan,
    score=_odin,
    options={"temperature": 1000.0, "epsilon": 0.0},
)
