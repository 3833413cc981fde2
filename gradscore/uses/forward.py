"""One forward with its uses recorded, laid out, and proved to be all there are."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import (
    GradientEdge,
    disable_saved_tensors_hooks,
    get_gradient_edge,
)

from gradscore.errors import InvalidArgument, ModelError
from gradscore.uses.derivation import leaves_below, nodes_below
from gradscore.uses.layout import (
    UseLayout,
    batch_first_layout,
    keeps_samples_apart,
    proved_layout,
    same_uses,
    signature_of,
)
from gradscore.uses.recorder import Recorder
from gradscore.uses.use import Use

CHECKPOINTED = (
    "Expected a model that keeps what its backward needs, got one with activation checkpointing "
    "or other hooks on saved tensors; turn them off to score it."
)

_PROVED: WeakKeyDictionary[nn.Module, dict[Any, list[UseLayout | None]]] = WeakKeyDictionary()
"""Layouts that a second forward proved, by model and shapes: one proof serves a whole run."""


@dataclass
class Forward:
    """What one forward told.

    Attributes:
        logits: Output of the model, shape ``[batch, classes]``, with its graph down to the first
            use of a selected parameter.
        start: The tensor at which that graph begins.
        uses: The uses of selected parameters, in order.
        layouts: Where the samples are in each use; ``None`` where that could not be told.
        edges: Graph edges of the selected parameters that something was made of, by name.
        uncovered: Names of parameters that are used in a way that was not recorded.
    """

    logits: Tensor
    start: Tensor
    uses: list[Use]
    layouts: list[UseLayout | None]
    edges: dict[str, GradientEdge]
    uncovered: frozenset[str]


def record_forward(model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]) -> Forward:
    """Run the model once and record the uses of some of its parameters.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters asked for, by name.

    Returns:
        The logits and the uses.

    Raises:
        ModelError: If a layer is in train mode that then mixes samples or is random, or the
            output is not a matrix of logits.
    """
    check_eval_mode(model)
    batch = len(images)
    if images.is_inference():
        images = images.clone()
    with requiring_grad(model, selected):
        recorder, logits = _run(model, images, selected)
        layouts = _layouts(model, images, selected, recorder, logits)
        if layouts is None:
            # A parameter was spread over something that only had the size of the batch.
            never = [False] * len(recorder.expansions)
            recorder, logits = _run(model, images, selected, never)
            layouts = _layouts(model, images, selected, recorder, logits)
        names = {id(parameter): name for name, parameter in selected.items()}
        missed = [leaf for leaf in leaves_below([logits.grad_fn]) if id(leaf) in names]
        made = [tensor.grad_fn for use in recorder.uses for _, tensor in use.operands]
        edges = {
            names[id(leaf)]: get_gradient_edge(leaf)
            for leaf in (*missed, *leaves_below(made))
            if id(leaf) in names
        }
    if logits.ndim != 2 or len(logits) != batch:
        raise ModelError(
            f"Expected logits [{batch}, classes] from the model, got {list(logits.shape)}."
        )
    return Forward(
        logits=logits,
        start=recorder.start,
        uses=recorder.uses,
        layouts=layouts or [None] * len(recorder.uses),
        edges=edges,
        uncovered=frozenset(names[id(leaf)] for leaf in missed),
    )


def check_eval_mode(model: nn.Module) -> None:
    """Refuse a model with layers that are random or mix samples.

    Raises:
        ModelError: Naming the first such layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training or module.running_mean is None:
                remedy = "call model.eval() first"
                if module.running_mean is None:
                    remedy = "build it with track_running_stats=True"
                raise ModelError(
                    f"Expected batch norm with fixed statistics, got layer {name!r} "
                    f"which takes them from the batch; {remedy}."
                )
        elif module.training and _drop_rate(module) > 0:
            raise ModelError(
                f"Expected a model without active dropout, got layer {name!r} "
                f"({type(module).__name__}) in train mode; call model.eval() first."
            )


def _drop_rate(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    rates = (getattr(module, name, 0.0) for name in ("drop_prob", "dropout", "p"))
    return max((rate for rate in rates if isinstance(rate, float)), default=0.0)


@contextmanager
def requiring_grad(model: nn.Module, selected: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the selected parameters alone require a gradient, and restore all of them after.

    Raises:
        ModelError: If one cannot: it was made in inference mode, or computed from others.
    """
    for name, parameter in selected.items():
        if parameter.is_inference() or not parameter.is_leaf:
            made = "made in inference mode" if parameter.is_inference() else "computed from others"
            raise ModelError(
                f"Expected parameters that can require a gradient, got {name!r}, {made}; "
                "make or convert the model outside inference mode and under torch.no_grad()."
            )
    wanted = {id(parameter) for parameter in selected.values()}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


def _run(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    expansions: Sequence[bool] = (),
    survey: bool = False,
) -> tuple[Recorder, Tensor]:
    wanted = {id(parameter) for parameter in selected.values()}
    constants = [
        tensor
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None and id(tensor) not in wanted
    ]
    recorder = Recorder(selected.values(), constants, len(images), expansions, survey)
    try:
        with torch.enable_grad(), recorder, disable_saved_tensors_hooks(CHECKPOINTED):
            logits = model(images)
    except RuntimeError as error:
        if str(error) == CHECKPOINTED:
            raise ModelError(CHECKPOINTED) from None
        raise
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"Expected a tensor of logits from the model, got {type(logits).__name__}."
        )
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes_below([logits.grad_fn])):
        raise ModelError(CHECKPOINTED)
    return recorder, logits


def _layouts(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    recorder: Recorder,
    logits: Tensor,
) -> list[UseLayout | None] | None:
    """Return the layout of every use, or ``None`` if a guess about an expansion was wrong."""
    batch, uses = len(images), recorder.uses
    if batch == 1 or recorder.batch_first:
        layouts = [batch_first_layout(use, batch) for use in uses]
        if batch == 1 or None not in layouts:
            return layouts
    proofs, key = _PROVED.setdefault(model, {}), (batch, signature_of(uses))
    if key not in proofs:
        layouts = _prove(model, images, selected, recorder, logits)
        wrong = any(
            layout is None and use.expansion is not None
            for use, layout in zip(uses, layouts, strict=True)
        )
        if wrong and any(recorder.expansions):
            return None
        proofs[key] = layouts
    return proofs[key]


def _prove(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    recorder: Recorder,
    logits: Tensor,
) -> list[UseLayout | None]:
    """Prove layouts by a forward over one sample, or over one more where that does not run.

    A model that mixes samples has no layout: only a batch of one tells a sample's gradient.
    """
    batch, uses = len(images), recorder.uses
    for other in (images[:1], torch.cat([images, images[:1]])):
        try:
            survey, twin = _run(model, other, selected, recorder.expansions, survey=True)
        except (RuntimeError, ValueError, IndexError):
            continue
        _check_apart(logits, twin)
        if not keeps_samples_apart(recorder.shapes, survey.shapes):
            break
        if same_uses(uses, survey.uses):
            pairs = zip(uses, survey.uses, strict=True)
            return [proved_layout(use, twin, batch, len(other)) for use, twin in pairs]
    return [None] * len(uses)


def _check_apart(logits: Tensor, twin: Tensor) -> None:
    """Refuse a model in which the first sample's logits depend on the others."""
    if twin.shape[1:] != logits.shape[1:]:
        return
    first, same = logits[0].detach(), twin[0].detach()
    tolerance = 10 * math.sqrt(torch.finfo(first.dtype).eps) * float(first.abs().max())
    if not float((first - same).abs().max()) <= tolerance:
        raise ModelError(
            "Expected a model whose logits for an image do not depend on the rest of the batch, "
            f"got ones that differ by {float((first - same).abs().max()):.2g}."
        )


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch of images.

    Raises:
        InvalidArgument: If it is not a tensor with a batch axis.
    """
    if not isinstance(images, Tensor) or images.ndim < 2:
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InvalidArgument(f"Expected images [batch, ...], got {got}.")
