"""Exact per-sample gradient norms from one forward and one backward of the batch.

To compare with, ``torch.func.vmap`` over the whole model gives them as well.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradscore.capture import requiring_grad
from gradscore.capture.recording import record
from gradscore.errors import GradScoreWarning, ModelError, memory_ended, reason_of
from gradscore.layers.groups import ModelGroups
from gradscore.network import (
    check_eval_mode,
    check_images,
    check_model,
    hold_state,
    listing_of,
    paused_collector,
    preserve_state,
    without_caches,
)
from gradscore.network.batches import parts_of
from gradscore.norms import vector_norm
from gradscore.objective import Objective
from gradscore.outputs import OutputWatch, check_classes, check_numbers, logits_of
from gradscore.reference import Loss, no_norms
from gradscore.results import GradientNorms
from gradscore.selection import differentiable, selected_of

Check = Callable[[Tensor, int], None]
"""Refuses logits ``[rows, classes]``, given the number of their first image."""


def gradient_norms(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "all",
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
) -> GradientNorms:
    """Return the norm of each sample's loss gradient with respect to each parameter tensor.

    The loss is ``KL(u || softmax(f/T))`` (Huang, Geng & Li, NeurIPS 2021, Eq. 5), or for the
    one-hot target the cross-entropy to the predicted class. The result equals that of one
    backward pass for each sample; no ``[batch, parameters]`` tensor is ever held.

    Args:
        model: A classifier in eval mode; it is left as it is found, whatever happens.
        images: Its input, shape ``[batch, ...]``.
        layers: A group such as ``last`` or ``block4``, ``all``, a comma list of names and globs,
            or a list of names.
        p: Order of the norm, positive; ``math.inf`` is allowed, and so are fractions.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform`` or ``one-hot``.

    Returns:
        The norms, the logits, what served each parameter, and the groups.

    Raises:
        InvalidArgument: If a setting is outside its range, ``layers`` means no parameter, or the
            logits of an image are no numbers.
        ModelError: If the model is in train mode, or its output is not a matrix of logits.
    """
    objective = Objective(p, temperature, target)
    check_images(images)
    check_model(model)
    with hold_state(model):
        check_eval_mode(model)
        result = layer_norms(model, images, layers, objective, _check_logits)
    if fault := OutputWatch().fault(result.logits):
        warnings.warn(f"{type(model).__name__}: {fault}.", GradScoreWarning, stacklevel=2)
    return result


def _check_logits(logits: Tensor, first: int) -> None:
    check_classes(logits)
    check_numbers(logits, first)


def layer_norms(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[str],
    objective: Objective,
    check: Check | None = None,
) -> GradientNorms:
    """Return what :func:`gradient_norms` does, for a model and an objective that are checked.

    Args:
        model: A classifier in eval mode.
        images: Its input, shape ``[batch, ...]``.
        layers: As of :func:`gradient_norms`.
        objective: The loss, and the order of the norm.
        check: Sees the logits before their gradients are taken.
    """
    groups = ModelGroups(model, images)
    parameters = differentiable(listing_of(model).parameters)
    selected = selected_of(parameters, layers, groups)
    if not len(images):
        dtype = torch.promote_types(images.dtype, torch.float32)
        norms, logits = (images.new_zeros(0, width, dtype=dtype) for width in (len(selected), 0))
        rules = dict.fromkeys(selected, "no samples")
        return GradientNorms(tuple(selected), norms, objective.p, rules, groups, logits)
    parts = parts_of(model, images, len(selected) / len(parameters))
    return replace(part_norms(model, parts, selected, objective, check), groups=groups)


def part_norms(
    model: nn.Module,
    parts: Iterable[Tensor],
    selected: Mapping[str, Tensor],
    objective: Objective,
    check: Check | None = None,
) -> GradientNorms:
    """Return the norms of a batch that is recorded part by part.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        parts: The batch's parts, at least one, each of at least one sample.
        selected: The parameter tensors asked for, by name.
        objective: The loss, and the order of the norm.
        check: Sees the logits of each part before their gradients are taken.

    Returns:
        The norms and logits of all parts; of groups nothing is known here.
    """
    logits, norms, rules, rows = [], [], {}, 0
    for part in parts:
        with paused_collector():
            recording = record(model, part, selected)
            if check is not None:
                check(recording.logits, rows)
            norms += recording.objective_norms([objective])
            logits.append(recording.logits)
            rules = rules or recording.rules
            del recording
        rows += len(part)
    return GradientNorms(
        tuple(selected), torch.cat(norms), objective.p, rules, logits=torch.cat(logits)
    )


def vmap_norms(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    loss: Loss,
    orders: Sequence[float],
) -> Tensor:
    """Return norms ``[len(orders), batch, K]``, by vmap of grad over all samples at once.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters asked for, by their names in the model.
        loss: From one sample's logits to its loss.
        orders: Orders of the norm.

    Raises:
        ModelError: If the model is in train mode, returns no logits, or cannot be vmapped.
    """
    if not len(images):
        return no_norms(images, orders, selected)

    def loss_of(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss(logits_of(functional_call(model, parameters, (image[None],)), 1))

    check_eval_mode(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        requiring_grad(model, {}),
        without_caches(model, images),
        preserve_state(model),
    ):
        try:
            gradients = vmap(grad(loss_of), in_dims=(None, 0))(dict(selected), images)
        except RuntimeError as error:
            if memory_ended(error):
                raise
            raise ModelError(
                f"Expected a model that torch.func.vmap can run, got: {reason_of(error)}"
            ) from error
    magnitudes = [gradient.abs().flatten(1) for gradient in gradients.values()]
    return torch.stack(
        [torch.stack([vector_norm(x, p) for x in magnitudes], dim=1) for p in orders]
    )
