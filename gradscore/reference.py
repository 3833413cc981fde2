"""The slow and plainly right ways to per-sample gradient norms, to which the rules are held."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradscore.errors import ModelError
from gradscore.norms import check_order, vector_norm
from gradscore.objective import check_target, check_temperature, logit_gradient
from gradscore.outputs import logits_of
from gradscore.results import GradientNorms
from gradscore.selection import differentiable_parameters, select
from gradscore.uses import (
    check_eval_mode,
    check_images,
    straighten_batch_norms,
    undisturbed,
    without_tables,
)
from gradscore.uses.forward import requiring_grad

Objective = Callable[[Tensor], Tensor]
"""Gradient of the summed losses with respect to logits ``[batch, classes]``, detached."""


def one_backward_a_sample(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "all",
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
) -> GradientNorms:
    """Return per-sample gradient norms by one forward and backward for each sample.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        layers: ``all``, a comma list of names and globs, or a list of names.
        p: Order of the norm, positive.
        temperature: Softmax temperature, positive.
        target: ``uniform`` or ``one-hot``.

    Returns:
        The norms, in the same layout as :func:`gradscore.gradient_norms` gives them.

    Raises:
        InvalidArgument: If a setting is outside its range.
        ModelError: If the model is in train mode, or its output is not a matrix of logits.
    """
    return _ask(backward_norms, "reference", model, images, layers, p, temperature, target)


def per_sample_vmap(
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Sequence[str] = "all",
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
) -> GradientNorms:
    """Return per-sample gradient norms by ``torch.func.vmap`` of ``grad`` over the parameters.

    It holds ``[batch, parameters]`` at once. Arguments, result and errors are those of
    :func:`one_backward_a_sample`; models with functions that cannot be vmapped raise ModelError.
    """
    return _ask(vmap_norms, "vmap", model, images, layers, p, temperature, target)


def backward_norms(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    objective: Objective,
    orders: Sequence[float],
) -> Tensor:
    """Return norms ``[len(orders), batch, K]``, by one backward for each sample."""
    norms = []
    with _differentiating(model, images, selected):
        for image in images:
            with undisturbed(model):
                logits = logits_of(model(image[None].clone()), 1)
            if not logits.requires_grad:
                gradients = (None,) * len(selected)
            else:
                straighten_batch_norms(logits)
                cotangent = objective(logits.detach()).to(logits.dtype)
                gradients = torch.autograd.grad(
                    logits, list(selected.values()), cotangent, allow_unused=True
                )
            norms.append(
                [
                    [_norm(g, p) if g is not None else logits.new_zeros(()) for g in gradients]
                    for p in orders
                ]
            )
    rows = [torch.stack([torch.stack(row) for row in sample]) for sample in norms]
    return torch.stack(rows, dim=1) if rows else _empty(images, orders, selected)


def vmap_norms(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    objective: Objective,
    orders: Sequence[float],
) -> Tensor:
    """Return norms ``[len(orders), batch, K]``, by vmap of grad over all samples at once."""
    if not len(images):
        return _empty(images, orders, selected)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        logits = logits_of(functional_call(model, parameters, (image[None],)), 1)
        return (logits * objective(logits.detach())).sum()

    with _differentiating(model, images, {}), undisturbed(model):
        try:
            gradients = vmap(grad(loss), in_dims=(None, 0))(dict(selected), images)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelError(
                f"Expected a model that torch.func.vmap can run, got: {reason}"
            ) from error
    return torch.stack(
        [
            torch.stack([vector_norm(g.abs().flatten(1), p) for g in gradients.values()], dim=1)
            for p in orders
        ]
    )


def _ask(
    method: Callable[..., Tensor],
    rule: str,
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[str],
    p: float,
    temperature: float,
    target: str,
) -> GradientNorms:
    p, temperature = check_order(p), check_temperature(temperature)
    check_target(target)
    check_images(images)
    parameters = differentiable_parameters(model)
    names = select(tuple(parameters), {}, layers)
    selected = {name: parameters[name] for name in names}
    norms = method(model, images, selected, lambda f: logit_gradient(f, temperature, target), (p,))
    return GradientNorms(names, norms[0], p, dict.fromkeys(names, rule))


@contextmanager
def _differentiating(
    model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]
) -> Iterator[None]:
    check_eval_mode(model)
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        requiring_grad(model, selected),
        without_tables(model, images),
    ):
        yield


def _norm(gradient: Tensor, p: float) -> Tensor:
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return vector_norm(gradient.abs().flatten(), p)


def _empty(images: Tensor, orders: Sequence[float], selected: Mapping[str, Tensor]) -> Tensor:
    dtype = torch.promote_types(images.dtype, torch.float32)
    return images.new_zeros(len(orders), math.prod(images.shape[:1]), len(selected), dtype=dtype)
