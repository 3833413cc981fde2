"""Gradients towards a confounding label, classified (Lee & AlRegib, ICIP 2020).

Features: for each parameter tensor the squared L2 norm of the gradient of the binary
cross-entropy between the outputs and an all-ones label. A small multilayer perceptron then tells
the inputs of an ID set from those of a set of noise, which stands in for OOD (Appendix E of Huang,
Geng & Li).
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.errors import NotRecorded, RunError
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.fitted import Arrays, Source, fitted, require_sets
from gradscore.objective import RecordedObjective

OBJECTIVE = RecordedObjective(p=2.0, temperature=1.0, target="all-ones")
CLASSIFIER = {
    "hidden_layer_sizes": (32,),
    "activation": "relu",
    "solver": "lbfgs",
    "alpha": 1.0,
    "max_iter": 5000,
    "max_fun": 100_000,
    "random_state": 0,
}
"""One hidden layer, since there are few features; enough decay that the fit has a minimum where
ID and noise are wholly apart."""


def _plan(spec: ScoreSpec, run: RecordedRun) -> Plan:
    name = run.find_norms(OBJECTIVE, tuple(run.info.parameters)).name
    sets = spec.fit_sets()
    require_sets(run, sets)

    def learn(*sources: Source) -> Arrays:
        features = [
            np.concatenate([squared(block[name]) for block in source()]) for source in sources
        ]
        if not all(np.isfinite(side).all() for side in features):
            raise RunError(f"Expected finite norms in the sets {spec.fit}, got others.")
        return fit_classifier(*features)

    def score(classifier: Arrays, block: Block) -> Tensor:
        return torch.from_numpy(log_odds(classifier, squared(block.arrays[name])))

    settings = {"pass": name, **CLASSIFIER}
    fit = partial(fitted, run, spec.method, sets, learn, settings=settings, passes=(name,))
    return Plan(score, passes=(name,), fit=fit)


def fit_classifier(ids: NDArray, noise: NDArray) -> Arrays:
    """Return the perceptron that tells ID from noise, on standardised features.

    Args:
        ids: Squared norms of ID inputs, shape ``[n, parameters]``.
        noise: Those of noise, shape ``[m, parameters]``.

    Returns:
        ``mean`` and ``scale`` of the features, then ``weight0``, ``bias0`` and so on, a layer
        each.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([ids, noise])
    is_id = np.repeat([1, 0], [len(ids), len(noise)])
    scaler = StandardScaler().fit(x)
    model = MLPClassifier(**CLASSIFIER).fit(scaler.transform(x), is_id)
    arrays = {"mean": scaler.mean_, "scale": scaler.scale_}
    for number, (weight, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    return arrays


def log_odds(classifier: Arrays, features: NDArray) -> NDArray[np.float64]:
    """Return the log-odds of ID, since probabilities of 1 would tie.

    Args:
        classifier: What :func:`fit_classifier` returned.
        features: Squared norms, shape ``[rows, parameters]``.
    """
    x = (features - classifier["mean"]) / classifier["scale"]
    layers = (len(classifier) - 2) // 2
    for number in range(layers):
        x = x @ classifier[f"weight{number}"] + classifier[f"bias{number}"]
        if number < layers - 1:
            x = np.maximum(x, 0)
    return x[:, 0]


def squared(norms: NDArray) -> NDArray[np.float64]:
    """Return the squared L2 norm of each parameter tensor's gradient, ``[rows, parameters]``."""
    return np.square(norms, dtype=np.float64)


def _fit_sets(fit: str) -> tuple[str, ...]:
    names = tuple(fit.split(","))
    if len(names) != 2:
        raise NotRecorded(
            f"Method lee_alregib learns from an ID set and a set of noise: expected fit as "
            f"ID,NOISE, got {fit!r}."
        )
    return names


LEE_ALREGIB = Method(
    "lee_alregib",
    "Perceptron on squared gradient norms towards an all-ones label; fit: ID,NOISE.",
    plan=_plan,
    options={"fit": None},
    required=("fit",),
    fit_sets=_fit_sets,
)
