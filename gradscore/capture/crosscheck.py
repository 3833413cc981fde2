"""The engine's answers checked against plain autograd, on the first batch of each kind.

A gradient may reach a parameter by a way that no recorded call shows: a function that recomputes
in its backward, a call that torch hands to nobody. One ``logits.backward`` of a sample alone, on
a copy of the model, knows nothing of recorded calls, and so shows every such way at once.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.network import (
    kept_tensors_of,
    preserve_state,
    running_collector,
    state_of,
    unobserved,
    wrap_forward_errors,
)
from gradscore.norms import vector_norm
from gradscore.reference import backward_norms

CHECKED_ORDER = 2.0
"""The order that is always compared: below one, noise in entries near zero is magnified."""

FIRST_SAMPLES = 4
"""Samples that are compared on the first batch of a model; later kinds of batch take one."""

TOLERANCES = {torch.float64: (1e-6, 1e-6), torch.float32: (5e-4, 1e-2)}
"""Relative error, and the share of a sample's whole norm that stands for smaller norms, by the
coarsest type that took part. Kernels for one image and for many agree to 1e-6 in float32, but for
a rectifier's input that they round past zero."""

COARSE = (0.1, 0.1)
"""The same for other types."""

TF32 = (2e-2, 1e-2)
"""The same for float32 where products may be rounded to TF32."""

_RULES_ALONE: ContextVar[bool] = ContextVar("rules alone", default=False)


def samples_to_check(batch: int, *, first: bool) -> list[int]:
    """Return the numbers of the samples to compare: several of a model's first batch, then one."""
    count = min(batch, FIRST_SAMPLES) if first else 1
    return sorted({batch - 1 - i * batch // count for i in range(count)})


class CrossCheck:
    """What plain autograd says of a batch: one backward of a sample alone, on a copy of the model.

    Args:
        model: The model; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters by name.
        kind: What a comparison holds for, besides the parameters and the state of the model.

    Attributes:
        unseen: The parameters that only autograd serves, or ``None`` where no batch of this kind
            was compared so far.
    """

    def __init__(
        self, model: nn.Module, images: Tensor, selected: Mapping[str, Tensor], kind: Hashable
    ) -> None:
        self._model, self._images, self._selected = model, images, selected
        self._kind = tuple(selected), kind
        self.unseen = self._known().get(self._kind)

    def _known(self) -> dict[Hashable, frozenset[str]]:
        """Return what was found for each kind of batch in the state that the model is in."""
        return state_of(self._model).found.setdefault(CrossCheck, {})

    def compare(
        self,
        cotangent: Tensor,
        norms: Mapping[str, Tensor | None],
        orders: Sequence[float],
        coarsest: torch.dtype,
    ) -> None:
        """Compare the engine's norms with autograd's, and note the parameters that differ.

        Args:
            cotangent: Gradient of the summed losses with respect to the logits.
            norms: What the engine computed, ``[batch, len(orders)]`` by name; ``None`` where no
                gradient arrived.
            orders: Orders of the norms.
            coarsest: The coarsest type that took part.

        Raises:
            ModelError: If the logits carry no gradient at all, or depend on a tensor that may
                have been made of a parameter before.
        """
        with running_collector():
            wrong = self._differing(cotangent, norms, orders, coarsest) if norms else frozenset()
            unused = [name for name, got in norms.items() if got is None and name not in wrong]
            check_nothing_kept(self._model, self._images, unused)
        self.unseen = self._known()[self._kind] = wrong

    def _differing(
        self,
        cotangent: Tensor,
        norms: Mapping[str, Tensor | None],
        orders: Sequence[float],
        coarsest: torch.dtype,
    ) -> frozenset[str]:
        """Return the parameters of which the norms of some samples are not autograd's."""
        tolerance, share = TOLERANCES.get(coarsest, COARSE)
        if coarsest == torch.float32 and not self._images.is_cpu:
            tolerance, share = TF32
        samples = samples_to_check(len(self._images), first=not self._known())
        compared = [k for k, p in enumerate(orders) if p >= 1]
        some = [orders[k] for k in compared]
        wrong: set[str] = set()
        rows = self.autograd_norms(samples, cotangent, list(norms), some).double().cpu()
        for sample, expected in zip(samples, rows.unbind(1), strict=True):
            whole = torch.stack([vector_norm(x, p) for x, p in zip(expected, some, strict=True)])
            bound = tolerance * torch.maximum(expected, share * whole[:, None])
            for k, (name, got) in enumerate(norms.items()):
                if got is None:
                    differs = expected[:, k] > 0
                elif _RULES_ALONE.get():
                    continue
                else:
                    error = (got[sample, compared].cpu().double() - expected[:, k]).abs()
                    differs = error > bound[:, k]
                if differs.any():
                    wrong.add(name)
        return frozenset(wrong)

    def autograd_norms(
        self,
        samples: Sequence[int],
        cotangent: Tensor,
        names: Sequence[str],
        orders: Sequence[float],
    ) -> Tensor:
        """Return norms ``[len(orders), len(samples), len(names)]`` by one backward a sample.

        Args:
            samples: Numbers of the samples asked for.
            cotangent: Gradient of the summed losses with respect to the logits.
            names: Names of the parameters asked for.
            orders: Orders of the norms.

        Raises:
            ModelError: If the logits carry no gradient at all.
        """
        model, images, norms = self._model, self._images, []
        selected = {name: self._selected[name] for name in names}
        for sample in samples:
            loss = partial(_product, cotangent[sample])
            # Between two samples nothing remains that the model's code keeps outside of the copy.
            alone = images[sample : sample + 1]
            with (
                running_collector(),
                unobserved(),
                preserve_state(model),
                wrap_forward_errors(model, alone),
            ):
                norms.append(
                    backward_norms(model, images, selected, [loss], orders, samples=[sample])
                )
        return torch.cat(norms, dim=1)


def _product(cotangent: Tensor, logits: Tensor) -> Tensor:
    """Return a loss of which the cotangent is the gradient with respect to the logits."""
    return (logits * cotangent.to(logits)).sum()


def check_nothing_kept(model: nn.Module, images: Tensor, unused: Sequence[str]) -> None:
    """Refuse a model that may have kept what an earlier forward made of its weights.

    Args:
        model: The model; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.
        unused: Parameters to which no gradient arrived.

    Raises:
        ModelError: If the logits depend on a tensor that is neither registered nor made in the
            forward, and that may have been made of one of those parameters.
    """
    if not unused:
        return
    for tensor in kept_tensors_of(model, images):
        raise ModelError(
            f"Expected a forward that makes what it needs of the weights, got no use of "
            f"{unused[0]!r} in it, and a tensor {list(tensor.shape)} from elsewhere that may have "
            "been made of it before: clear what the model keeps between forwards, register a "
            "constant as a buffer, or leave that parameter out of the layers."
        )


def check_no_graph_kept(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that kept a tensor with its graph, which one backward would use up.

    This is asked once for a state of the model, before the first forward with a graph.

    Args:
        model: The model; it is left as it is found.
        images: Its input, shape ``[batch, ...]``.

    Raises:
        ModelError: If a forward uses such a tensor.
    """
    known = state_of(model).found
    if check_no_graph_kept in known:
        return
    for tensor in kept_tensors_of(model, images):
        if tensor.grad_fn is not None:
            raise ModelError(
                "Expected a forward that makes what it needs of the weights, got a tensor "
                f"{list(tensor.shape)} that an earlier one made, with its graph: clear what the "
                "model keeps between forwards."
            )
    known[check_no_graph_kept] = True


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
