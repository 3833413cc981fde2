"""Scores of the logits alone: KL, maximum softmax probability, maximum logit, energy.

All are computed in float64: in float32 the softmax of a confident input is 1, and a large share
of real ID data would tie.
"""

from typing import Any

import torch
from torch import Tensor

from gradscore.closed_form.plain import row_blocks
from gradscore.methods.block import Block
from gradscore.methods.question import Method, Needs, Question
from gradscore.objective import kl_divergence


def _plan(question: Question, run: Any) -> Needs:
    return Needs(("logits",))


def _kl(question: Question, block: Block, state: None) -> Tensor:
    parts = row_blocks(block.logits)
    return torch.cat([kl_divergence(f.double(), question.temperature) for f in parts])


def _msp(question: Question, block: Block, state: None) -> Tensor:
    return max_softmax(block.logits, question.temperature)


def _max_logit(question: Question, block: Block, state: None) -> Tensor:
    return block.logits.amax(dim=1).double()


def _energy(question: Question, block: Block, state: None) -> Tensor:
    temperature = question.temperature
    parts = row_blocks(block.logits)
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
