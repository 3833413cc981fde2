"""Gradient norm of the last linear layer, in closed form.

For logits ``f = W x + b`` and the loss ``KL(u || softmax(f/T))``, with ``u`` uniform over ``C``
classes, the gradient with respect to ``W`` is an outer product::

    dL/dW = -g x^T,    g = (1 - C softmax(f/T)) / (C T).

Every entry-wise L_p norm of an outer product is the product of the two vector norms, so no
backward pass is needed: ``S = U V / (C T)`` with ``U = |x|_p`` and ``V = |1 - C softmax(f/T)|_p``.
With ``p = 1`` this is the GradNorm score, Eq. 9 of Huang, Geng & Li, "On the Importance of
Gradients for Detecting Distributional Shifts in the Wild", NeurIPS 2021.
"""

import torch
from torch import Tensor

from gradscore.deviation import block_rows, one_hot_norm, uniform_norm
from gradscore.errors import InvalidArgument
from gradscore.kernels import use_triton
from gradscore.norms import check_order, vector_norm
from gradscore.objective import (
    check_target,
    check_temperature,
    one_hot_deviation,
    uniform_deviation,
)


@torch.no_grad()
def last_layer_score(
    features: Tensor,
    logits: Tensor,
    *,
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
    backend: str = "auto",
) -> Tensor:
    """Return each sample's score from the last layer's weight gradient; larger means more ID.

    Uniform target: the L_p norm of the gradient, ``U V / (C T)``. One-hot target: minus the
    norm, ``-|x|_p |softmax(f/T) - e_y|_p / T``, since there ID inputs have the smaller gradient.
    The bias gradient is left out, as in the paper. The authors' released code does not divide
    its target by ``C``: its scores are ``C`` times these, in the same order.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        logits: Its output ``f``, not yet divided by ``temperature``, shape ``[batch, classes]``.
        p: Order of the norm, positive; ``math.inf`` is allowed, and so are the fractions of the
            paper's Fig. 4, though below 1 the result is no norm.
        temperature: Softmax temperature ``T``, positive and without unit.
        target: ``uniform`` or ``one-hot``.
        backend: ``torch``, ``triton`` (CUDA, up to float32), or ``auto``: triton where it runs.

    Returns:
        Scores in nats per unit of weight, shape ``[batch]``, without gradient, in float64 if the
        inputs are, otherwise in float32 (half precision overflows when summing ``|x|``).

    Raises:
        InvalidArgument: If the shapes disagree, ``temperature`` or ``p`` is not positive,
            ``target`` or ``backend`` is unknown, triton cannot serve the inputs, or a row of the
            inputs is not finite. A logit of minus infinity is a class of probability zero.
    """
    if features.ndim != 2 or logits.ndim != 2 or len(features) != len(logits):
        raise InvalidArgument(
            "Expected features [batch, in_features] and logits [batch, classes], "
            f"got {list(features.shape)} and {list(logits.shape)}."
        )
    score, _, _ = score_and_factors(features, logits, p, temperature, target, backend)
    return check_finite(score, "features and logits")


def score_and_factors(
    features: Tensor, logits: Tensor, p: float, temperature: float, target: str, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the score of :func:`last_layer_score`, U and V, each ``[batch]``, not checked.

    Raises:
        InvalidArgument: If an input is no matrix, or a setting is out of range.
    """
    p, temperature = check_order(p), check_temperature(temperature)
    how = {"p": p, "temperature": temperature, "target": check_target(target)}
    if not torch.compiler.is_compiling() and use_triton(backend, features, logits):
        from gradscore.kernels.launch import from_logits

        check_matrix(features, "features [batch, in_features]")
        check_matrix(logits, "logits [batch, classes]")
        result = from_logits(features, logits, **how)
        return result["score"], result["feature_norm"], result["deviation_norm"]
    u, v = feature_norm(features, p=p), deviation_norm(logits, **how)
    if target == "uniform":
        return u * v / (logits.shape[1] * temperature), u, v
    return -(u * v) / temperature, u, v


@torch.no_grad()
def feature_norm(features: Tensor, *, p: float = 1.0) -> Tensor:
    """Return ``U = |x|_p`` of Eq. 9 for each sample.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        p: Order of the norm, positive.

    Returns:
        Norms in units of the features, shape ``[batch]``, in at least float32.

    Raises:
        InvalidArgument: If ``features`` is not a matrix or ``p`` is not positive.
    """
    p = check_order(p)
    check_matrix(features, "features [batch, in_features]")
    if torch.compiler.is_compiling():
        return vector_norm(features, p, dim=1)
    rows, columns = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    step = min(block_rows(columns, dtype, features.device), max(1, rows))
    work = features.new_empty(step, columns, dtype=dtype)
    result = features.new_empty(rows, dtype=dtype)
    for start in range(0, rows, step):
        x = features[start : start + step].to(dtype)
        result[start : start + step] = vector_norm(x, p, dim=1, work=work[: len(x)])
    return result


@torch.no_grad()
def deviation_norm(
    logits: Tensor, *, p: float = 1.0, temperature: float = 1.0, target: str = "uniform"
) -> Tensor:
    """Return ``V = |1 - C softmax(f/T)|_p`` of Eq. 9, or its one-hot counterpart.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        p: Order of the norm, positive.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform``, or ``one-hot`` for ``|softmax(f/T) - e_y|_p``, ``y`` being the first
            largest logit. One-hot is computed in float64: confident samples leave too little
            for float32.

    Returns:
        Norms without unit, shape ``[batch]``, in at least float32.

    Raises:
        InvalidArgument: If ``logits`` is not a matrix, ``p`` or ``temperature`` is not positive,
            or ``target`` is unknown.
    """
    p, temperature = check_order(p), check_temperature(temperature)
    check_matrix(logits, "logits [batch, classes]")
    uniform = check_target(target) == "uniform"
    if torch.compiler.is_compiling():
        # A graph has no branches on values: one form for all rows, exact in all of them.
        deviation = uniform_deviation if uniform else one_hot_deviation
        dtype = torch.promote_types(logits.dtype, torch.float32)
        wide = logits.to(dtype if p >= 1 and uniform else torch.float64)
        return vector_norm(deviation(wide, temperature), p, dim=1).to(dtype)
    return (uniform_norm if uniform else one_hot_norm)(logits, p, temperature)


def check_matrix(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is a floating-point matrix with at least one column.

    Raises:
        InvalidArgument: Naming ``what`` was expected.
    """
    if tensor.ndim != 2 or tensor.shape[1] == 0 or not tensor.is_floating_point():
        raise InvalidArgument(f"Expected {what}, got {tensor.dtype} {list(tensor.shape)}.")


def check_finite(score: Tensor, inputs: str) -> Tensor:
    """Return ``score [batch]``, or raise naming its first row that is not finite.

    Raises:
        InvalidArgument: Naming the ``inputs`` to be looked at, and the row.
    """
    if not torch.compiler.is_compiling():
        bad = (~score.isfinite()).nonzero()
        if len(bad):
            raise InvalidArgument(
                f"Expected finite {inputs}, got a score of {score[bad[0, 0]].item()} "
                f"in row {bad[0, 0].item()}."
            )
    return score
