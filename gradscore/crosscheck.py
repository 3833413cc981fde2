"""The engine's answers held to plain autograd, on the first batch of each kind.

A gradient may reach a parameter by a way that no recorded call shows: a function that recomputes
in its backward, a call that torch hands to nobody. One ``logits.backward`` of a sample alone, on
a copy of the model, knows nothing of recorded calls, and so shows every such way at once.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.graph import straighten_batch_norms
from gradscore.norms import vector_norm
from gradscore.outputs import logits_of
from gradscore.uses import (
    as_written,
    state_of,
    undisturbed,
    without_tables,
)
from gradscore.uses.undisturbed import ONE_AT_A_TIME

CHECKED_ORDER = 2.0
"""The order that is always compared: below one, noise in entries near zero is magnified."""

FIRST_SAMPLES = 4
"""Samples that are compared on the first batch of a model; later kinds of batch take one."""

TOLERANCES = {torch.float64: (1e-6, 1e-6), torch.float32: (2e-3, 1e-2)}
"""Relative error, and the share of a sample's whole norm to which smaller norms are held, by the
coarsest type that took part; ``(0.1, 0.1)`` for all others. Autograd repeats float32 results of
deep networks to 1e-5, and to 1e-3 where another kernel rounds a rectifier's input past zero."""

_RULES_ALONE: ContextVar[bool] = ContextVar("rules alone", default=False)


def known_kinds(model: nn.Module) -> dict[Hashable, frozenset[str]]:
    """Return the parameters that only autograd serves, by kind of batch already compared.

    Whoever compares adds to it; a model in another state has nothing in it.
    """
    return state_of(model).found.setdefault(disagreeing, {})


def samples_to_check(batch: int, *, first: bool) -> list[int]:
    """Return the numbers of the samples to compare: several of a model's first batch, then one."""
    count = min(batch, FIRST_SAMPLES) if first else 1
    return sorted({batch - 1 - i * batch // count for i in range(count)})


def plain_norms(
    model: nn.Module,
    images: Tensor,
    sample: int,
    cotangent: Tensor,
    positions: Sequence[int],
    orders: Sequence[float],
) -> Tensor:
    """Return one sample's gradient norms by one backward through the model as it is.

    The sample is alone, but for models that take batches of one size only.

    Args:
        model: A copy of the model, of which every parameter may require a gradient.
        images: Its input, shape ``[batch, ...]``.
        sample: Number of the sample.
        cotangent: Gradient of the summed losses with respect to the logits.
        positions: Positions of ``K`` parameters among the model's.
        orders: Orders of the norms.

    Returns:
        Norms, shape ``[len(orders), K]``.

    Raises:
        ModelError: If the logits carry no gradient at all.
    """
    logits, cotangent = _forward(model, images, slice(sample, sample + 1), cotangent)
    if not logits.requires_grad:
        raise ModelError(
            "Expected logits that carry a gradient, got a forward that runs without one; take "
            "torch.no_grad(), torch.inference_mode() or detach() out of it."
        )
    straighten_batch_norms(logits)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = None
    logits.backward(cotangent.to(logits.dtype))
    zero = torch.zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    found = [parameters[position].grad for position in positions]
    return torch.stack(
        [torch.stack([zero if g is None else _norm(g, p).cpu() for g in found]) for p in orders]
    )


def _forward(
    model: nn.Module, images: Tensor, part: slice, cotangent: Tensor
) -> tuple[Tensor, Tensor]:
    """Return logits in which one sample has the cotangent, all others zeros."""
    mask = torch.zeros_like(cotangent)
    mask[part] = 1
    ways = [
        # Some functions give parameters a gradient only where their input requires one.
        (lambda: images[part].detach().requires_grad_().clone(), cotangent[part]),
        (lambda: images[part].clone(), cotangent[part]),
        # A model may take batches of one size only.
        (lambda: images.clone(), cotangent * mask),
    ]
    for number, (make, rows) in enumerate(ways, start=1):
        try:
            with undisturbed(model):
                return logits_of(model(make()), len(rows)), rows
        except Exception:
            if number == len(ways):
                raise
    raise AssertionError("the last way returns or raises")


def _norm(gradient: Tensor, p: float) -> Tensor:
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return vector_norm(gradient.abs().flatten(), p)


def disagreeing(
    model: nn.Module,
    images: Tensor,
    cotangent: Tensor,
    selected: Mapping[str, Tensor],
    norms: Mapping[str, Tensor | None],
    orders: Sequence[float],
    coarsest: torch.dtype,
) -> frozenset[str]:
    """Return the parameters of which the norms of some samples are not autograd's.

    Args:
        model: The model; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        cotangent: Gradient of the summed losses with respect to the logits.
        selected: The parameters by name.
        norms: What the engine computed, ``[batch, len(orders)]`` by name; ``None`` where no
            gradient arrived.
        orders: Orders of the norms.
        coarsest: The coarsest type that took part.

    Raises:
        ModelError: If the logits carry no gradient at all.
    """
    tolerance, share = TOLERANCES.get(coarsest, (0.1, 0.1))
    wrong: set[str] = set()
    if not norms:
        return frozenset()
    positions = _positions(model, selected, norms)
    compared = [k for k, p in enumerate(orders) if p >= 1]
    some = [orders[k] for k in compared]
    samples = samples_to_check(len(images), first=not known_kinds(model))
    for sample, plain in zip(
        samples, _by_autograd(model, images, samples, cotangent, positions, some), strict=True
    ):
        expected = plain.double()
        whole = torch.stack([vector_norm(row, p) for row, p in zip(expected, some, strict=True)])
        bound = tolerance * torch.maximum(expected, share * whole[:, None])
        for k, name in enumerate(norms):
            got = norms[name]
            if got is None:
                amiss = expected[:, k] > 0
            elif _RULES_ALONE.get():
                continue
            else:
                amiss = (got[sample, compared].cpu().double() - expected[:, k]).abs() > bound[:, k]
            if amiss.any():
                wrong.add(name)
    return frozenset(wrong)


def autograd_norms(
    model: nn.Module,
    images: Tensor,
    cotangent: Tensor,
    selected: Mapping[str, Tensor],
    orders: Sequence[float],
) -> Tensor:
    """Return norms ``[len(orders), batch, K]`` by one plain backward for each sample.

    Arguments and errors are those of :func:`plain_norms`, for all samples.
    """
    positions = _positions(model, selected, selected)
    rows = _by_autograd(model, images, range(len(images)), cotangent, positions, orders)
    return torch.stack(rows, dim=1).to(images.device)


def _by_autograd(
    model: nn.Module,
    images: Tensor,
    samples: Sequence[int],
    cotangent: Tensor,
    positions: Sequence[int],
    orders: Sequence[float],
) -> list[Tensor]:
    with _twin(model) as twin, without_tables(twin, images):
        return [plain_norms(twin, images, i, cotangent, positions, orders) for i in samples]


def _positions(
    model: nn.Module, selected: Mapping[str, Tensor], names: Iterable[str]
) -> list[int]:
    """Return where parameters stand in a model, which may know them by other names."""
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    return [places[id(selected[name])] for name in names]


@contextmanager
def rules_alone() -> Iterator[None]:
    """Answer by rules even where autograd disagrees, to see how far they are from it.

    Parameters that no recorded call shows are still served by autograd.
    """
    token = _RULES_ALONE.set(True)
    try:
        yield
    finally:
        _RULES_ALONE.reset(token)


@contextmanager
def _twin(model: nn.Module) -> Iterator[nn.Module]:
    """Give a copy of a model in which every parameter requires a gradient, or the model itself.

    Not every model can be copied; such a one is restored on the way out.
    """
    hooked = any(parameter._backward_hooks for parameter in model.parameters())
    try:
        if hooked:
            raise ValueError("a copy of a parameter has none of its hooks")
        # What was computed from weights has a graph, which cannot be copied.
        made = [x for part in model.modules() for x in vars(part).values() if _is_made(x)]
        twin = deepcopy(model, {id(x): x.detach().clone() for x in made})
    except Exception:  # locks, open files, graphs in containers
        twin = model
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad(), as_written():
        before = [(x, x.requires_grad, x.grad) for x in twin.parameters()]
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
            yield twin
        finally:
            for parameter, required, grad in before:
                parameter.requires_grad_(required)
                parameter.grad = grad


def _is_made(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf
