"""Scores of the logits alone: KL, maximum softmax probability, maximum logit, energy, ODIN, GEN.

All are computed in float64: in float32 the softmax of a confident input is 1, and a large share
of real ID data would tie.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradscore.closed_form.plain import row_blocks
from gradscore.errors import NotRecorded
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.norms import number_name
from gradscore.objective import is_class, kl_divergence
from gradscore.run import extract_command, odin_name, odin_options

GEN_GAMMA, GEN_LARGEST = 0.1, 100
"""Exponent and number of classes, of GEN's paper."""


def _of_logits(score: Callable[..., Tensor]) -> Callable[[ScoreSpec, RecordedRun], Plan]:
    """Return what plans a score of the logits, ``(logits, temperature) -> scores``."""

    def plan(spec: ScoreSpec, run: RecordedRun) -> Plan:
        how = {} if spec.temperature is None else {"temperature": spec.temperature}
        return Plan(lambda state, block: score(block.logits, **how), fields=("logits",))

    return plan


def _kl(logits: Tensor, temperature: float) -> Tensor:
    return torch.cat([kl_divergence(f.double(), temperature) for f in row_blocks(logits)])


def _max_logit(logits: Tensor) -> Tensor:
    return logits.amax(dim=1).double()


def _energy(logits: Tensor, temperature: float) -> Tensor:
    parts = row_blocks(logits)
    return torch.cat([temperature * (f.double() / temperature).logsumexp(dim=1) for f in parts])


def max_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return ``max_j softmax(f/T)_j``, shape ``[batch]``, float64.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        temperature: Softmax temperature ``T``, positive.
    """
    parts = []
    for block in row_blocks(logits):
        d = block.double() - block.amax(dim=1, keepdim=True)
        parts.append(d.div_(temperature).exp_().sum(dim=1))
    return 1 / torch.cat(parts)


def gen(logits: Tensor, *, gamma: float = GEN_GAMMA, largest: int = GEN_LARGEST) -> Tensor:
    """Return the generalised entropy ``-sum_j q_j^gamma (1 - q_j)^gamma`` (Liu et al., CVPR 2023).

    Args:
        logits: Shape ``[rows, classes]``.
        gamma: The exponent.
        largest: Only so many of the largest probabilities count.

    Returns:
        At most 0, shape ``[rows]``, float64.
    """
    q = torch.softmax(logits.double(), dim=1)
    # Of the most probable class as the sum of all others, which keeps its digits near 1.
    first = is_class(q.argmax(dim=1, keepdim=True), q)
    rest = torch.where(first, q.masked_fill(first, 0).sum(dim=1, keepdim=True), 1 - q)
    places = q.topk(min(largest, q.shape[1]), dim=1).indices
    return -(q * rest).gather(1, places).pow(gamma).sum(dim=1)


def _plan_odin(spec: ScoreSpec, run: RecordedRun) -> Plan:
    """Plan ODIN: the maximum softmax probability at a high temperature.

    Without input perturbation, as Huang, Geng & Li compare with it, the recorded logits give it
    at any temperature. A perturbed input depends on the temperature too: its logits give the
    score at the temperature that they were recorded with, and at no other.
    """
    if not spec.epsilon:
        return _of_logits(max_softmax)(spec, run)
    name = odin_name(spec.temperature, spec.epsilon)
    if name not in run.info.passes:
        temperature, epsilon = map(number_name, (spec.temperature, spec.epsilon))
        command = extract_command(run, *odin_options(spec.temperature, spec.epsilon))
        raise NotRecorded(
            f"The run holds no logits perturbed at T = {temperature} by epsilon = {epsilon}; "
            f"record them with {command}."
        )

    def score(state: Any, block: Block) -> Tensor:
        return max_softmax(block.recorded(name), spec.temperature)

    return Plan(score, passes=(name,))


KL = Method(
    "kl",
    "KL(uniform || softmax(f/T)) itself, in nats (the paper's Fig. 6).",
    plan=_of_logits(_kl),
    options={"temperature": 1.0},
)

MSP = Method(
    "msp",
    "Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017).",
    plan=_of_logits(max_softmax),
    options={"temperature": 1.0},
)

MAX_LOGIT = Method(
    "max_logit",
    "Largest logit (Hendrycks et al., ICML 2022).",
    plan=_of_logits(_max_logit),
)

ENERGY = Method(
    "energy",
    "Negative free energy, T logsumexp(f/T) (Liu et al., NeurIPS 2020).",
    plan=_of_logits(_energy),
    options={"temperature": 1.0},
)

GEN = Method(
    "gen",
    "Generalised entropy of the largest softmax probabilities (Liu et al., CVPR 2023).",
    plan=_of_logits(gen),
)

ODIN = Method(
    "odin",
    "Maximum softmax probability at T = 1000, at an input perturbed by epsilon (0 by default).",
    plan=_plan_odin,
    options={"temperature": 1000.0, "epsilon": 0.0},
)
