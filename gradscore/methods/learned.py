"""Scores of features, logits, last layer and block means, some of them learned from ID images."""

from typing import Any

from gradscore.methods.activation import (
    ASH_PERCENTILE,
    REACT_PERCENTILE,
    SCALE_PERCENTILE,
    ash,
    fit_react,
    react,
    scale,
)
from gradscore.methods.base import Method
from gradscore.methods.boundary import fdbd, fit_fdbd
from gradscore.methods.laplace import fit_laplace, laplace_energy, laplace_energy_blocks, left_out
from gradscore.methods.learner import Learner
from gradscore.methods.neighbours import NEIGHBOURS, fit_knn, fit_nnguide, knn, nnguide
from gradscore.methods.subspace import fit_vim, vim


def _method(name: str, summary: str, learner: Learner, **options: Any) -> Method:
    if learner.learn is not None:
        options = {"fit": None, **options}
    return Method(name, summary, plan=learner.plan, options=options)


LEARNED = (
    _method(
        "react",
        "Energy of features clipped at a percentile (Sun, Guo & Li, NeurIPS 2021).",
        Learner(
            lambda rows, fit, head, spec: react(rows, fit, head),
            lambda source, head, spec, stages: fit_react(source, percent=spec.percentile),
            ("percentile",),
        ),
        percentile=REACT_PERCENTILE,
    ),
    _method(
        "ash",
        "ASH-S: small features pruned, the others scaled up (Djurisic et al., ICLR 2023).",
        Learner(lambda rows, fit, head, spec: ash(rows, head, percent=spec.percentile)),
        percentile=ASH_PERCENTILE,
    ),
    _method(
        "scale",
        "All features scaled as ASH-S does, none pruned (Xu et al., ICLR 2024).",
        Learner(lambda rows, fit, head, spec: scale(rows, head, percent=spec.percentile)),
        percentile=SCALE_PERCENTILE,
    ),
    _method(
        "knn",
        "Minus the distance to the k-th nearest ID direction (Sun et al., ICML 2022).",
        Learner(
            lambda rows, fit, head, spec: knn(rows, fit, k=spec.k),
            lambda source, head, spec, stages: fit_knn(source),
        ),
        k=NEIGHBOURS,
    ),
    _method(
        "nnguide",
        "Energy times the mean of the k largest guides (Park et al., ICCV 2023).",
        Learner(
            lambda rows, fit, head, spec: nnguide(rows, fit, k=spec.k),
            lambda source, head, spec, stages: fit_nnguide(source),
        ),
        k=NEIGHBOURS,
    ),
    _method(
        "fdbd",
        "Mean distance to the decision boundaries (Liu & Qin, ICML 2024).",
        Learner(
            lambda rows, fit, head, spec: fdbd(rows, fit, head),
            lambda source, head, spec, stages: fit_fdbd(source),
        ),
    ),
    _method(
        "vim",
        "Energy minus the virtual logit of the features' residual (Wang et al., CVPR 2022).",
        Learner(
            lambda rows, fit, head, spec: vim(rows, fit),
            lambda source, head, spec, stages: fit_vim(source, head, dimension=spec.dimension),
            ("dimension",),
        ),
        dimension=None,
    ),
    _method(
        "laplace_energy",
        "Evidence over the distance of the last layer's input, in natural-gradient units.",
        Learner(
            lambda rows, fit, head, spec: laplace_energy(rows, fit, head=head),
            lambda source, head, spec, stages: fit_laplace(source, clip=spec.clip, head=head),
            ("clip",),
            remarks=left_out,
        ),
        clip=None,
    ),
    _method(
        "laplace_energy_blocks",
        "The same, over the distances of the stages' outputs, too.",
        Learner(
            lambda rows, fit, head, spec: laplace_energy_blocks(
                rows, fit, two_sided=spec.two_sided, head=head
            ),
            lambda source, head, spec, stages: fit_laplace(
                source, stages=stages, clip=spec.clip, head=head
            ),
            ("clip",),
            blocks=True,
            remarks=left_out,
        ),
        two_sided=False,
        clip=None,
    ),
)
"""The methods of this module."""
