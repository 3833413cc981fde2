"""Scores of the logits alone: KL, maximum softmax probability, maximum logit, energy.

All are computed in float64: in float32 the softmax of a confident input is 1, and a large share
of real ID data would tie.
"""

from typing import Any

import torch
from torch import Tensor

from gradscore.objective import kl_divergence
from gradscore.scores.block import Block
from gradscore.scores.question import Method, Needs, Question


def _plan(question: Question, run: Any) -> Needs:
    return Needs(("logits",))


def _kl(question: Question, block: Block, state: None) -> Tensor:
    return kl_divergence(block.logits.double(), question.temperature)


def _msp(question: Question, block: Block, state: None) -> Tensor:
    return max_softmax(block.logits, question.temperature)


def _max_logit(question: Question, block: Block, state: None) -> Tensor:
    return block.logits.double().amax(dim=1)


def _energy(question: Question, block: Block, state: None) -> Tensor:
    temperature = question.temperature
    return temperature * torch.logsumexp(block.logits.double() / temperature, dim=1)


def max_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return ``max_j softmax(f/T)_j``, shape ``[batch]``, float64.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        temperature: Softmax temperature ``T``, positive.
    """
    f = logits.double()
    return 1 / ((f - f.amax(dim=1, keepdim=True)) / temperature).exp_().sum(dim=1)


KL = Method(
    "kl",
    "KL(uniform || softmax(f/T)) itself, in nats (the paper's Fig. 6).",
    plan=_plan,
    score=_kl,
    options={"temperature": 1.0},
)

MSP = Method(
    "msp",
    "Maximum softmax probability (Hendrycks & Gimpel, ICLR 2017).",
    plan=_plan,
    score=_msp,
    options={"temperature": 1.0},
)

MAX_LOGIT = Method(
    "max_logit",
    "Largest logit (Hendrycks et al., ICML 2022).",
    plan=_plan,
    score=_max_logit,
)

ENERGY = Method(
    "energy",
    "Negative free energy, T logsumexp(f/T) (Liu et al., NeurIPS 2020).",
    plan=_plan,
    score=_energy,
    options={"temperature": 1.0},
)
