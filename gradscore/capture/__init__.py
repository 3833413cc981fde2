"""One forward recorded: the calls that take parameters, and the gradients that arrive there."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, get_gradient_edge

from gradscore.capture.backward import backward_to_norms
from gradscore.capture.batch_check import checked_forward
from gradscore.capture.batch_dimension import Dimensions
from gradscore.capture.calls import RecordedCall, autocast_type
from gradscore.capture.forward import Forward
from gradscore.capture.gradients import ParameterArgument
from gradscore.capture.recorder import Recorder
from gradscore.capture.tied import TiedParameters, tie_parameters
from gradscore.errors import ModelError
from gradscore.graph import leaves_below, leaves_of, nodes_below, work_around_strides
from gradscore.network import (
    ONE_AT_A_TIME,
    check_eval_mode,
    check_unhooked,
    dry_run,
    force_eager,
    listing_of,
    note_data_dependence,
    preserve_state,
    remembered,
    without_caches,
    wrap_forward_errors,
)
from gradscore.outputs import logits_of

__all__ = [
    "Forward",
    "ParameterArgument",
    "RecordedCall",
    "TiedParameters",
    "autocast_type",
    "backward_to_norms",
    "own_images",
    "record_forward",
    "requiring_grad",
    "tie_parameters",
    "unrecorded_forward",
]

HOOKED = (
    "Expected a model that keeps what its backward needs, got it run within hooks on saved "
    "tensors; leave torch.autograd.graph.saved_tensors_hooks to score it."
)


def record_forward(model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]) -> Forward:
    """Run the model once and record the calls that take some of its parameters.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters asked for, by name.

    Returns:
        The logits and the recorded calls.

    Raises:
        ModelError: If a layer is in train mode that then mixes samples or is random, or the
            output is not a matrix of logits.
    """
    check_eval_mode(model)
    if images.is_inference():
        images = images.clone()
    with requiring_grad(model, selected), without_caches(model, images):
        recorder, dimensions = _recorded(model, images, selected)
        logits = recorder.logits
        names = {id(parameter): name for name, parameter in selected.items()}
        nodes = nodes_below([logits.grad_fn])
        work_around_strides(nodes)
        ends = leaves_of(nodes)
        missed = [leaf for leaf in ends if id(leaf) in names]
        derived = [tensor.grad_fn for call in recorder.calls for _, tensor in call.parameters]
        below = leaves_below(derived)
        edges = {
            names[id(leaf)]: get_gradient_edge(leaf)
            for leaf in (*missed, *below)
            if id(leaf) in names
        }
        _check_registered(recorder, names, (*ends, *below))
    if recorder.data_dependent:
        note_data_dependence(model)
    return Forward(
        logits=logits,
        start=recorder.start,
        calls=recorder.calls,
        dimensions=dimensions,
        edges=edges,
        uncovered=frozenset(names[id(leaf)] for leaf in missed),
        differentiates=recorder.differentiates,
        coarsest=recorder.coarsest,
        forget=recorder.forget,
    )


def unrecorded_forward(
    model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]
) -> Forward:
    """Return a forward that has logits alone, for a model that changes its parameters.

    They are put back after it, so that no graph of it would have the values that it had.
    Arguments are those of :func:`record_forward`.
    """
    with dry_run(model, images) as own:
        logits = logits_of(model(own), len(images))
    note_data_dependence(model)
    return Forward(logits, logits, frozenset(selected), differentiates=True, coarsest=logits.dtype)


def _check_registered(
    recorder: Recorder, names: Mapping[int, str], leaves: Sequence[Tensor]
) -> None:
    """Refuse logits that depend on a parameter that the model does not list.

    It is a leaf of the graph, or, where it requires no gradient, an argument of a call. A forward
    that takes gradients of its own makes leaves of its own.
    """
    found = list(recorder.unlisted.values())
    if not recorder.differentiates:
        found += [x for x in leaves if id(x) not in names and x is not recorder.start]
    if found:
        kind = "an nn.Parameter" if isinstance(found[0], nn.Parameter) else "a trainable tensor"
        raise ModelError(
            f"Expected a model that lists all its parameters, got one that uses {kind} "
            f"{list(found[0].shape)} that model.parameters() does not list; register it, as "
            "nn.ParameterList or nn.ModuleList do, or detach it if it is a constant."
        )


def _recorded(
    model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]
) -> tuple[Recorder, Dimensions]:
    """Run the model, and find where the samples are in each recorded call."""

    def run(images: Tensor, expansions: Sequence[bool]) -> Recorder:
        return _run(model, images, selected, expansions)

    recorder, dimensions = checked_forward(model, images, run)
    wrong = any(
        found is None and call.expansion is not None
        for call, found in zip(recorder.calls, dimensions, strict=True)
    )
    if wrong and any(recorder.expansions):
        # A parameter was broadcast over something that only had the size of the batch.
        never = [False] * len(recorder.expansions)
        del recorder
        recorder, dimensions = checked_forward(model, images, run, never)
    return recorder, dimensions


@contextmanager
def requiring_grad(model: nn.Module, selected: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the selected parameters alone require a gradient, and restore all of them after.

    Raises:
        ModelError: If one cannot: it was made in inference mode, or computed from others.
    """
    for name, parameter in selected.items():
        if parameter.is_meta:
            raise ModelError(
                f"Expected parameters with values, got {name!r} on the meta device, offloaded or "
                "never loaded; load the whole model to the device of the images."
            )
        check_unhooked(name, parameter)
        if parameter.is_inference() or not parameter.is_leaf:
            made = "made in inference mode" if parameter.is_inference() else "computed from others"
            raise ModelError(
                f"Expected parameters that can require a gradient, got {name!r}, {made}; "
                "make or convert the model outside inference mode and under torch.no_grad()."
            )
    wanted = {id(parameter) for parameter in selected.values()}
    with ONE_AT_A_TIME:
        parameters = listing_of(model).parameters.values()
        before = [(parameter, parameter.requires_grad) for parameter in parameters]
        try:
            for parameter, required in before:
                if required != (id(parameter) in wanted):
                    parameter.requires_grad_(not required)
            yield
        finally:
            for parameter, required in before:
                if parameter.requires_grad != required:
                    parameter.requires_grad_(required)


def _run(
    model: nn.Module,
    images: Tensor,
    selected: Mapping[str, Tensor],
    expansions: Sequence[bool],
) -> Recorder:
    """Run the model, on a copy of the images if it writes into them."""
    wanted = {id(parameter) for parameter in selected.values()}
    constants = listing_of(model).constants(besides=wanted)
    recorder = Recorder(selected.values(), constants, len(images), expansions)
    images = images.detach()
    own = own_images(model, images)
    writes, version = own is not images, own._version
    try:
        with (
            preserve_state(model),
            torch.enable_grad(),
            force_eager(),
            disable_saved_tensors_hooks(HOOKED),
            wrap_forward_errors(model, images),
            recorder,
        ):
            output = model(own)
    except RuntimeError as error:
        if str(error) == HOOKED:
            raise ModelError(HOOKED) from None
        raise
    if not writes and own._version != version:
        raise ModelError(
            "Expected a model that leaves its input as it is, as it did with one image, got one "
            "that wrote into it; give it a copy in its forward."
        )
    recorder.logits = logits_of(output, len(images))
    return recorder


def own_images(model: nn.Module, images: Tensor) -> Tensor:
    """Return images that a model may have: a copy if it writes into them, or the images.

    Args:
        model: The model; left as it is.
        images: Its input, shape ``[batch, ...]``.
    """
    try:
        return images.clone() if remembered(_writes_into, model, images) else images
    except Exception:  # what is wrong, the forward that follows will say
        return images.clone()


def _writes_into(model: nn.Module, images: Tensor) -> bool:
    """Say whether the model changes its input, by a forward with one image: all cost memory."""
    with dry_run(model, images[:1]) as own:
        version = own._version
        model(own)
        return own._version != version
