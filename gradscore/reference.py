"""The slow and plainly right way to per-sample gradient norms, to which everything is held.

For each sample alone: a copy of the model, one forward, ``loss.backward()``, the norms of
``.grad``. Nothing here comes from the engine, so that an error there cannot hide an error here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gradscore.copies import as_found, copied, gradient_leaves, plainly, tensor_tables
from gradscore.errors import ModelError
from gradscore.graph import nodes_below, work_around_strides
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.outputs import NO_GRADIENT, logits_of
from gradscore.results import GradientNorms
from gradscore.selection import select_parameters

Loss = Callable[[Tensor], Tensor]
"""From one sample's logits ``[1, classes]`` to its loss, differentiable."""

DEFAULT = Objective()
"""The paper's: the uniform target, ``T`` = 1 and ``p`` = 1."""


def one_backward_a_sample(
    model: nn.Module,
    images: Tensor,
    objective: Objective = DEFAULT,
    *,
    layers: str | Sequence[str] = "all",
) -> GradientNorms:
    """Return per-sample gradient norms by one forward and backward for each sample.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        objective: The loss, and the order of the norm.
        layers: ``all``, a comma list of names and globs, or a list of names.

    Returns:
        The norms, in the same form as :func:`gradscore.gradient_norms` gives them.

    Raises:
        InvalidArgument: If ``layers`` means no parameter.
        ModelError: If the model returns no logits.
    """
    selected = select_parameters(model, layers)
    losses = [loss_function(objective)] * len(images)
    (norms,) = backward_norms(model, images, selected, losses, (objective.p,))
    names = tuple(selected)
    return GradientNorms(names, norms, objective.p, dict.fromkeys(names, "reference"))


def loss_function(objective: Objective) -> Loss:
    """Return the loss of one sample, computed in float64 whatever the type of the logits."""
    return lambda logits: objective.loss(logits.double()).sum()


def backward_norms(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    losses: Sequence[Loss],
    orders: Sequence[float],
    *,
    samples: Sequence[int] | None = None,
) -> Tensor:
    """Return the norms of each sample's gradients, by one backward for each sample.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: Parameters of the model, ``K`` of them, by any name.
        losses: The loss of each sample asked for, in their order.
        orders: Orders of the norm, positive.
        samples: Numbers of the samples asked for; all of them by default.

    Returns:
        Norms, shape ``[len(orders), samples, K]``, in at least float32.

    Raises:
        ModelError: If the model returns no logits, or logits that depend on the parameters and
            carry no gradient.
    """
    samples = range(len(images)) if samples is None else samples
    if not samples:
        return no_norms(images, orders, selected)
    stale = _stale_tables(model, images[:1])
    rows = []
    for sample, loss_of_sample in zip(samples, losses, strict=True):
        gradients = _gradients(
            model, images, sample, list(selected.values()), loss_of_sample, stale
        )
        rows.append(_norms_of(gradients, orders))
    return torch.stack(rows, dim=1)


def _norms_of(gradients: list[Tensor], orders: Sequence[float]) -> Tensor:
    """Return norms ``[len(orders), len(gradients)]``; the list is emptied to save memory."""
    columns = []
    while gradients:
        magnitudes = gradients.pop().abs().flatten()
        columns.append(torch.stack([vector_norm(magnitudes, p) for p in orders]))
    return torch.stack(columns[::-1], dim=1)


def no_norms(images: Tensor, orders: Sequence[float], selected: Mapping[str, Tensor]) -> Tensor:
    """Return norms ``[len(orders), 0, K]`` of an empty batch."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    return images.new_zeros(len(orders), 0, len(selected), dtype=dtype)


def _gradients(
    model: nn.Module,
    images: Tensor,
    sample: int,
    parameters: Sequence[Tensor],
    loss_of_sample: Loss,
    stale: Sequence[int],
) -> list[Tensor]:
    """Return the gradients of one sample's loss, zero where it does not depend on a parameter."""
    alone = images[sample : sample + 1]
    ways = (
        # As in training, everything requires a gradient, and the image too: a checkpointed block
        # gives its parameters none where nothing that enters it requires one.
        (alone, 0, True),
        # Some models refuse that, such as those that hand tensors to NumPy.
        (alone, 0, False),
        # Some take batches of one size only.
        (images, sample, False),
    )
    for last, (batch, row, everything) in enumerate(ways, start=1 - len(ways)):
        try:
            return _backward(
                model, batch, row, parameters, loss_of_sample, stale, everything=everything
            )
        except Exception:
            if last == 0:
                raise
    raise AssertionError("the last way returns or raises")


def _backward(
    model: nn.Module,
    batch: Tensor,
    row: int,
    parameters: Sequence[Tensor],
    loss_of_sample: Loss,
    stale: Sequence[int],
    *,
    everything: bool,
) -> list[Tensor]:
    with plainly():
        copy = copied(model)
        leaves = gradient_leaves(model, copy)
        wanted = [leaves.get(id(parameter), [parameter]) for parameter in parameters]
        with as_found(model, values=copy is model):
            _require(wanted, optional=leaves.values() if everything else ())
            for number, table in enumerate(tensor_tables(copy)):
                if number in stale:
                    table.clear()
            own = batch.detach().clone()
            if everything and (own.is_floating_point() or own.is_complex()):
                own.requires_grad_()
            # Of a leaf that requires a gradient nothing may be overwritten; of its clone it may.
            logits = logits_of(copy(own.clone()), len(own))[row : row + 1]
            if logits.requires_grad:
                work_around_strides(nodes_below([logits.grad_fn]))
                # A graph that the model itself keeps must serve the next sample too.
                loss_of_sample(logits).backward(retain_graph=copy is model)
            elif _moves(copy, own, logits, [twins[-1] for twins in wanted], row):
                raise ModelError(NO_GRADIENT)
            return [_total(twins) for twins in wanted]


def _moves(
    copy: nn.Module, batch: Tensor, logits: Tensor, parameters: Sequence[Tensor], row: int
) -> bool:
    """Say whether a sample's logits change with parameters; a copy's are left changed."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(1)
        return not torch.equal(logits_of(copy(batch.clone()), len(batch))[row : row + 1], logits)


def _require(wanted: Iterable[Sequence[Tensor]], optional: Iterable[Sequence[Tensor]]) -> None:
    """Let parameters require a gradient, and let the hooks of each see that of its copies.

    Raises:
        ModelError: If a wanted one cannot.
    """
    for twins in wanted:
        if not any(_can_require(twin) for twin in twins):
            raise ModelError(
                "Expected parameters that can require a gradient, got one made in inference mode "
                "or computed from others; make or convert the model outside inference mode and "
                "under torch.no_grad()."
            )
    unique = {id(twins[0]): twins for twins in (*wanted, *optional)}
    for original, *copies in unique.values():
        for twin in (original, *copies):
            if _can_require(twin):
                twin.requires_grad_()
                twin.grad = None
        for twin in copies:
            for hook in (original._backward_hooks or {}).values():
                twin.register_hook(hook)


def _can_require(x: Tensor) -> bool:
    return x.is_leaf and not x.is_inference() and (x.is_floating_point() or x.is_complex())


def _total(twins: Sequence[Tensor]) -> Tensor:
    """Return the gradient that arrived at a parameter and its copies together."""
    found = [twin.grad for twin in twins if twin.is_leaf and twin.grad is not None]
    dense = [g.to_dense() if g.layout is torch.sparse_coo else g for g in found]
    if len(dense) == 1:  # a sum would be a copy
        return dense[0]
    return sum(dense) if dense else torch.zeros_like(twins[0])


def _stale_tables(model: nn.Module, image: Tensor) -> Sequence[int]:
    """Return which tables the model makes anew where they are empty, with the same logits.

    One that was filled in an earlier forward without a graph hides the parameters behind it.
    """
    every = range(len(tensor_tables(model)))
    logits = _emptied(model, image, ()) if every else None
    if logits is None:
        return ()

    def made_anew(numbers: Sequence[int]) -> bool:
        found = _emptied(model, image, numbers)
        return found is not None and torch.allclose(found, logits)

    return every if made_anew(every) else [number for number in every if made_anew([number])]


def _emptied(model: nn.Module, image: Tensor, numbers: Sequence[int]) -> Tensor | None:
    """Return the logits after some tables were emptied, or None if the forward filled not all."""
    with plainly(), torch.no_grad():
        copy = copied(model)
        with as_found(model, values=copy is model):
            tables = [tensor_tables(copy)[number] for number in numbers]
            for table in tables:
                table.clear()
            try:
                logits = logits_of(copy(image.detach().clone()), 1)
            except Exception:  # what is in the tables is needed
                return None
            return logits if all(tables) else None
