"""Gradient norm of the last linear layer, in closed form: the public functions.

For logits ``f = W x + b`` and the loss ``KL(u || softmax(f/T))``, with ``u`` uniform over ``C``
classes, the gradient with respect to ``W`` is an outer product::

    dL/dW = -g x^T,    g = (1 - C softmax(f/T)) / (C T).

Every entry-wise L_p norm of an outer product is the product of the two vector norms, so no
backward pass is needed: ``S = U V / (C T)`` with ``U = |x|_p`` and ``V = |1 - C softmax(f/T)|_p``.
With ``p = 1`` this is the GradNorm score, Eq. 9 of Huang, Geng & Li, "On the Importance of
Gradients for Detecting Distributional Shifts in the Wild", NeurIPS 2021.

What is here checks inputs and results and chooses who computes: :mod:`gradscore.closed_form.cpu`,
loops compiled by numba; :mod:`gradscore.closed_form.cuda`, kernels compiled by Triton; and
:mod:`gradscore.closed_form.plain`, a few lines of torch that serve everywhere, in graphs too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.functional import linear

from gradscore.closed_form import cpu, plain
from gradscore.closed_form.checks import check_backend, check_finite, check_head, check_matrix
from gradscore.closed_form.cuda import use_triton
from gradscore.errors import InvalidArgument
from gradscore.norms import check_order
from gradscore.objective import Objective

BLOCK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Features or logits of a head's product at once, by device: enough rows for its full speed, on a
CPU few enough for caches, on CUDA enough work for a launch."""

BLOCK_ROWS = 768
"""Fewest rows at once, if that many come: each block reads the whole weight again."""

FUSED_FEATURES = 256
"""Most features for which, on CUDA, a second product costs less than writing and reading the
logits: it adds ``2 m C`` operations a row and saves ``12 C`` bytes."""


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
        backend: ``numba`` (CPU), ``triton`` (CUDA, up to float32), ``torch`` (anywhere), or
            ``auto``: the first of these that serves the inputs.

    Returns:
        Scores in nats per unit of weight, shape ``[batch]``, without gradient, in float64 if the
        inputs are, otherwise in float32 (half precision overflows when summing ``|x|``).

    Raises:
        InvalidArgument: If the shapes disagree, ``temperature`` or ``p`` is not positive,
            ``target`` or ``backend`` is unknown, the backend cannot serve the inputs, or a row of
            the inputs is not finite. A logit of minus infinity is a class of probability zero.
    """
    if features.ndim != 2 or logits.ndim != 2 or features.shape[0] != logits.shape[0]:
        raise InvalidArgument(
            "Expected features [batch, in_features] and logits [batch, classes], "
            f"got {list(features.shape)} and {list(logits.shape)}."
        )
    objective = Objective(p, temperature, target)
    return check_finite(_score(features, logits, objective, backend), "features and logits")


@torch.no_grad()
def head_score(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
    backend: str = "auto",
) -> Tensor:
    """Return each sample's last-layer score from its features and the layer's parameters.

    The logits of all rows never stand in memory. They are made for some rows at a time, in a block
    that is reused, and each block is scored while it is in cache: the cost is that of the bare
    matrix product. On CUDA a narrow head is scored by one kernel, which writes no logits.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        weight: Its weight ``W``, shape ``[classes, in_features]``.
        bias: Its bias, shape ``[classes]``, or None.
        p: Order of the norm, positive.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform`` or ``one-hot``.
        backend: As of :func:`last_layer_score`.

    Returns:
        Scores as of :func:`last_layer_score`, shape ``[batch]``.

    Raises:
        InvalidArgument: If shapes or types disagree, a setting is out of range, the backend
            cannot serve the inputs, or a row's features or logits are not finite.
    """
    check_head(features, weight, bias)
    objective = Objective(p, temperature, target)
    if torch.compiler.is_compiling():
        return _score(features, linear(features, weight, bias), objective, "torch")
    if _fused(backend, features, weight, bias):
        from gradscore.closed_form.cuda import from_head

        bias = None if bias is None else bias.contiguous()
        score = from_head(features, weight, bias, **asdict(objective))
    else:
        score = features.new_empty(features.shape[0], dtype=_raised(features))
        for rows, logits in _logits(features, weight, bias):
            score[rows] = _score(features[rows], logits, objective, backend)
    return check_finite(score, "features and logits")


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
    return feature_norms(features, [check_order(p)])[0].to(_raised(features))


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
            largest logit.

    Returns:
        Norms without unit, shape ``[batch]``, in at least float32.

    Raises:
        InvalidArgument: If ``logits`` is not a matrix, ``p`` or ``temperature`` is not positive,
            or ``target`` is unknown.
    """
    return deviation_norms(logits, [Objective(p, temperature, target)])[0].to(_raised(logits))


@torch.no_grad()
def feature_norms(features: Tensor, orders: Sequence[float], *, backend: str = "auto") -> Tensor:
    """Return ``U = |x|_p`` for each order, from one pass over the features.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        orders: Orders of the norm, positive.
        backend: ``numba``, ``torch`` or ``auto``; ``triton``, which has no kernel for norms
            alone, is ``torch`` here.

    Returns:
        Norms in units of the features, shape ``[orders, batch]``, in float64 (on devices that
        have it).

    Raises:
        InvalidArgument: If ``features`` is not a matrix, or the backend is unknown or cannot
            serve it.
    """
    check_matrix(features, "features [batch, in_features]")
    return (cpu if _in_numba(backend, features) else plain).feature_norms(features, orders)


@torch.no_grad()
def deviation_norms(
    logits: Tensor, objectives: Sequence[Objective], *, backend: str = "auto"
) -> Tensor:
    """Return V for each order, temperature and target, from one pass over the logits.

    In float64: confident samples differ in V by less than float32 tells apart.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        objectives: What to answer.
        backend: ``numba``, ``torch`` or ``auto``; ``triton``, which has no kernel for norms
            alone, is ``torch`` here.

    Returns:
        Norms without unit, shape ``[objectives, batch]``, in float64 (on devices that have it).

    Raises:
        InvalidArgument: If ``logits`` is not a matrix, or the backend is unknown or cannot
            serve it.
    """
    check_matrix(logits, "logits [batch, classes]")
    return (cpu if _in_numba(backend, logits) else plain).deviation_norms(logits, objectives)


def _in_numba(backend: str, *tensors: Tensor) -> bool:
    """Return whether the loops compiled by numba shall serve.

    Raises:
        InvalidArgument: If ``backend`` is unknown, or is ``numba`` and they cannot.
    """
    check_backend(backend)
    if backend not in ("auto", "numba"):
        return False
    serves = cpu.serves(*tensors)
    if backend == "numba" and not serves:
        kinds = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in tensors)
        raise InvalidArgument(
            "Expected inputs that backend 'numba' can serve, floating point on a CPU outside of "
            f"graphs, and the package numba, got {kinds}; choose `backend='auto'`."
        )
    return serves


def _score(features: Tensor, logits: Tensor, objective: Objective, backend: str) -> Tensor:
    """Return the score of :func:`last_layer_score`, shape ``[batch]``, not checked."""
    triton = not torch.compiler.is_compiling() and use_triton(backend, features, logits)
    check_matrix(features, "features [batch, in_features]")
    check_matrix(logits, "logits [batch, classes]")
    if triton:
        from gradscore.closed_form.cuda import from_logits

        return from_logits(features, logits, **asdict(objective))
    if _in_numba(backend, features, logits):
        return cpu.score(features, logits, objective)
    u = plain.feature_norms(features, [objective.p])[0]
    v = plain.deviation_norms(logits, [objective])[0]
    sign = logits.shape[1] if objective.target == "uniform" else -1
    score = u * v / (sign * objective.temperature)
    return score.to(torch.promote_types(_raised(features), logits.dtype))


def _raised(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _logits(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows and their logits, in a block that the next rows overwrite."""
    dtype = _raised(features)
    classes, in_features = weight.shape
    # Tensor cores multiply half precision exactly and add in float32: no operand need be widened.
    half = features.is_cuda and features.dtype == weight.dtype != dtype
    weight = weight.t() if half else weight.to(dtype).t()
    bias = None if bias is None else bias.to(dtype)
    held = BLOCK_BYTES.get(features.device.type, BLOCK_BYTES["cpu"])
    step = max(BLOCK_ROWS, held // (max(classes, in_features) * dtype.itemsize))
    block = features.new_empty(min(step, features.shape[0]), classes, dtype=dtype)
    for start in range(0, features.shape[0], step):
        rows = slice(start, start + step)
        x = features[rows] if half else features[rows].to(dtype)
        out = block[: x.shape[0]]
        if half:
            torch.mm(x, weight, out_dtype=dtype, out=out)
            if bias is not None:
                out += bias
        elif bias is None:
            torch.mm(x, weight, out=out)
        else:
            torch.addmm(bias, x, weight, out=out)
        yield rows, out


def _fused(backend: str, *tensors: Tensor | None) -> bool:
    features, *parameters = (tensor for tensor in tensors if tensor is not None)
    able = use_triton(backend, features, *parameters)
    return able and (backend == "triton" or features.shape[1] <= FUSED_FEATURES)
