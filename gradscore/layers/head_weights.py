"""What the graph of autograd says of a last layer: its weight's gradient, and its parameters.

Values do not show that a layer's gradient is the closed form's. ``x + (x - x.detach())`` is
``x`` with twice the gradient, a clamp shows for large logits alone, and a hook changes a gradient
unseen. So two things are asked of the graph from the logits to the weight: only functions that
multiply, move or cast lie on it, which act alike on every image; and the gradient of one sample is
the outer product of its cotangent and its features.

Where no layer's ``W x + b`` are the logits, the graph shows which parameters ``last`` means.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradscore.capture import (
    Forward,
    ParameterArgument,
    RecordedCall,
    record_forward,
    requiring_grad,
    tie_parameters,
)
from gradscore.errors import ModelError
from gradscore.graph import drawn_like, nodes_below, run_backward
from gradscore.network import force_eager, observe, preserve_state, without_caches
from gradscore.outputs import check_carries_gradient, logits_of
from gradscore.selection import differentiable_parameters

MULTIPLY = {"Addmm", "Mm", "Bmm", "Linear", "MkldnnLinear", "Convolution", "Add"}
MOVE = {
    *{"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Expand"},
    *{"T", "Transpose", "Permute", "Clone", "Alias", "AsStrided", "ToCopy", "AccumulateGrad"},
}
"""Functions that may lie between a weight and the logits, as autograd names their nodes."""

MAGNITUDES = (-4, 0, 4)
"""Exponents of two of the cotangents: a hook may clip gradients, or round small ones."""

Parts = Mapping[int, Sequence[ParameterArgument]]
"""Number of a recorded call to the matrices in it."""


def gradient_fault(model: nn.Module, layer: str, images: Tensor) -> str:
    """Return why the gradient of a layer's weight is not the outer product, or nothing.

    Args:
        model: Classifier in evaluation mode; left as it is.
        layer: Name of the layer whose weight is in question, called once in a forward.
        images: Its input, shape ``[batch, ...]``; two samples are enough.

    Raises:
        ModelError: If the weight cannot require a gradient, or there is a hook on it.
    """
    module = model.get_submodule(layer)
    weight = module.weight
    seen: list[Tensor] = []

    def keep(name: str, args: tuple, output: Tensor) -> None:
        # In the type that was multiplied: autocast rounds the features.
        seen.append(args[0].detach().to(output.dtype).flatten(1))

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        requiring_grad(model, {f"{layer}.weight".lstrip("."): weight}),
        without_caches(model, images),
        preserve_state(model),
        force_eager(),
        observe({layer: module}, keep),
    ):
        logits = logits_of(model(images.detach().clone()), len(images))
        if not logits.requires_grad:
            return "the logits have no graph, as under torch.no_grad()"
        for node in nodes_below([logits.grad_fn]):
            if _kind(node.name()) not in MULTIPLY | MOVE:
                return f"{node.name()} lies between its weight and the logits"
        return _difference(logits, seen[-1], weight)


def _kind(name: str) -> str:
    """Return the function behind a node: ``Addmm`` for ``AddmmBackward0``."""
    name = name.rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def _difference(logits: Tensor, x: Tensor, weight: Tensor) -> str:
    """Return how the weight's gradients differ from outer products, or nothing."""
    # One sample and powers of two: each entry is one feature, which rounds nothing but in TF32.
    exact = logits.device.type == "cpu" and logits.dtype != torch.float16
    tolerance = 1e-5 if exact else 2e-3
    draws = torch.Generator().manual_seed(0)
    for sample in range(len(x)):
        exponents = torch.tensor([MAGNITUDES], device="cpu").T.expand(-1, logits.shape[1])
        signs = torch.randint(0, 2, exponents.shape, generator=draws, device="cpu") * 2 - 1
        for row in (signs * 2.0**exponents).to(logits):
            cotangent = torch.zeros_like(logits)
            cotangent[sample] = row
            (got,) = torch.autograd.grad(logits, weight, cotangent, retain_graph=True)
            expected = torch.outer(row, x[sample]).to(got.dtype)
            off = (got.flatten(1) - expected).abs_().sum(dtype=torch.float64)
            if not off <= tolerance * expected.abs_().sum(dtype=torch.float64):
                return "the gradient of its weight is not that of W x + b"
    return ""


def last_weights(model: nn.Module, images: Tensor, classes: int) -> tuple[str, ...]:
    """Return the weights of the calls with one output a class that the logits are made of.

    No other weight lies between them and the logits. Where none has one output a class, it is the
    last call's. Of a weight to which an adapter adds its own, as LoRA does, it is that weight
    alone: the gradient of the sum, which merging leaves, is the gradient of each summand.

    Args:
        model: Classifier in evaluation mode; left as it is.
        images: Its input, shape ``[batch, ...]``; two samples are enough.
        classes: Number of logits.

    Returns:
        Names of parameters, in the model's order.

    Raises:
        ModelError: If the logits carry no gradient, or an adapter does more than add to a weight:
            no parameter then has the gradient of the weight that merging leaves.
    """
    selected = differentiable_parameters(model)
    with torch.inference_mode(False):
        forward = record_forward(model, images.clone(), selected)
        check_carries_gradient(forward.logits)
        parts: dict[int, list[ParameterArgument]] = defaultdict(list)
        for group in tie_parameters(forward, selected):
            for part in group.arguments:
                if part.tensor.ndim > 1:
                    parts[part.number].append(part)
        ends = _ends(forward, parts)
        wide = [n for n in ends if any(classes in s[1:] for s in forward.calls[n].output_shapes)]
        found = _without_adapters(forward, parts, wide or ends[-1:])
    if not found:
        matrices = [name for name, parameter in selected.items() if parameter.ndim > 1]
        found = {(matrices or list(selected))[-1]}
    return tuple(name for name in selected if name in found)


def _ends(forward: Forward, parts: Parts) -> list[int]:
    """Return the numbers of the calls that no other call parts from the logits, in order."""
    owners = {edge.node: n for n in parts for edge in forward.calls[n].edges}
    found, seen = set(), set()
    pending: list[Node | None] = [forward.logits.grad_fn]
    while pending:
        node = pending.pop()
        if node in owners:
            found.add(owners[node])
        elif node is not None and node not in seen:
            seen.add(node)
            pending.extend(next_ for next_, _ in node.next_functions)
    return sorted(found)


def _without_adapters(forward: Forward, parts: Parts, ends: Sequence[int]) -> set[str]:
    """Return the sources of the last calls; of weights that adapters add to, those alone."""
    calls = forward.calls
    inputs = {n: _data_of(calls[n]) for n in parts}
    adapters = [n for n in ends if _is_adapter(n, parts, ends, calls, inputs)]
    bases = [n for n in ends if n not in adapters]
    sources = {name for n in ends for part in parts[n] for name in part.sources}
    if adapters and not (len(bases) == 1 and _gets_the_cotangent(forward, calls[bases[0]])):
        raise _refusal(sources)
    found = set()
    for part in (part for n in bases for part in parts[n]):
        holders = [name for name in part.sources if _holds(part, name, forward)]
        if len(part.sources) > 2 and len(holders) != 1:
            raise _refusal(sources)
        found |= set(holders if len(holders) == 1 else part.sources)
    return found


def _refusal(sources: set[str]) -> ModelError:
    return ModelError(
        "Expected a last layer whose weight is a parameter, got one that is made of "
        f"{', '.join(sorted(sources))}; merge the adapter into the weight first, as "
        "merge_and_unload() of peft does, or choose parameters by name."
    )


def _is_adapter(
    number: int, parts: Parts, ends: Sequence[int], calls: Sequence[RecordedCall], inputs: Mapping
) -> bool:
    """Say whether a call adds to the weight of another one, of which it shares the input."""
    x = inputs[number]
    for base in ends:
        if base == number or x is None or inputs[base] is None:
            continue
        if len(parts[number][0].sources) > 1 and _same(x, inputs[base]):
            return len(parts[base][0].sources) == 1
        for inner in parts:
            if inner not in ends and _same(inputs[inner], inputs[base]):
                with torch.no_grad():
                    between = calls[inner].arguments.call()
                if _is_multiple(x, between):
                    return True
    return False


def _data_of(call: RecordedCall) -> Tensor | None:
    """Return what a call multiplies with its parameters."""
    data = list(call.data.values())
    return data[0].detach() if len(data) == 1 else None


def _same(x: Tensor | None, other: Tensor | None) -> bool:
    return x is not None and other is not None and x.shape == other.shape and torch.equal(x, other)


def _is_multiple(x: Tensor, other: Tensor) -> bool:
    """Say whether ``x`` is ``other`` times a number: an adapter may scale on its way."""
    if not isinstance(other, Tensor) or x.shape != other.shape:
        return False
    x, other = x.double(), other.detach().double()
    factor = (x * other).sum() / (other * other).sum()
    return torch.allclose(x, factor * other, rtol=1e-4, atol=1e-6 * float(x.abs().max()))


def _gets_the_cotangent(forward: Forward, call: RecordedCall) -> bool:
    """Say whether a call's output has the gradient of the logits: it was only added to."""
    logits, edge = forward.logits, call.edges[0]
    drawn = drawn_like(logits)
    arrived: list[Tensor | None] = []
    listener = (edge, lambda gradients: arrived.append(edge.gradient(gradients)))
    run_backward(logits, [forward.start], [listener], drawn, retain=True)
    got = arrived[0] if arrived else None
    return got is not None and got.numel() == drawn.numel() and _same(got.reshape_as(drawn), drawn)


def _holds(part: ParameterArgument, name: str, forward: Forward) -> bool:
    """Say whether the gradient of a derived parameter is that of one of its sources."""
    if part.direct:
        return True
    made = part.tensor
    drawn = drawn_like(made)
    (got,) = torch.autograd.grad(
        made, [forward.edges[name]], drawn, retain_graph=True, allow_unused=True
    )
    return _same(got, drawn)
