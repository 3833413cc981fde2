"""One recorded forward, ready to answer for any gradient of its logits.

A forward records the calls that take parameters. The backward brings the output gradient of each;
a rule turns that into norms at once, and the gradient is freed before the next one arrives.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gradscore.capture import (
    Forward,
    backward_to_norms,
    record_forward,
    tie_parameters,
    unrecorded_forward,
)
from gradscore.capture.crosscheck import CHECKED_ORDER, CrossCheck, check_no_graph_kept
from gradscore.errors import InvalidArgument, ModelError
from gradscore.network import (
    changes_parameters,
    check_images,
    check_independence,
    hold_state,
)
from gradscore.objective import Objective, by_loss

SAFE = 1e-10
"""Sizes of a cotangent at which no gradient is lost in float32: from here to its inverse."""


def record(model: nn.Module, images: Tensor, selected: Mapping[str, Tensor]) -> "Recording":
    """Run one forward and record the calls that take some parameters.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``, at least one sample.
        selected: The parameter tensors asked for, by name.

    Returns:
        The recording, which answers for any gradient of the logits.

    Raises:
        InvalidArgument: If there are no samples.
        ModelError: If the model is in train mode, or its output is not a matrix of logits.
    """
    check_images(images)
    if not len(images):
        raise InvalidArgument("Expected at least one image, got an empty batch.")
    with torch.inference_mode(False), hold_state(model):
        images = images.clone() if images.is_inference() else images.detach()
        check_no_graph_kept(model, images)
        try:
            check_independence(model, images, selected.values())
        except ModelError:
            record_forward(model, images, selected)  # it may know the layer at fault
            raise
        run = unrecorded_forward if changes_parameters(model) else record_forward
        forward = run(model, images, selected)
    return Recording(model, images, selected, forward)


class Recording:
    """One forward, ready to answer for any gradient of its logits.

    Attributes:
        logits: Output of the model, shape ``[batch, classes]``, detached.
        names: Names of the ``K`` parameter tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        selected: Mapping[str, Tensor],
        forward: Forward,
    ) -> None:
        self.names = tuple(selected)
        self.logits = forward.logits.detach()
        self._forward = forward
        self._tied = tie_parameters(forward, selected)
        used = tuple(name for group in self._tied for name in group.names)
        kind = used, len(forward.calls), images.shape, images.dtype, images.device
        self._crosscheck = CrossCheck(model, images, selected, kind)

    @property
    def rules(self) -> dict[str, str]:
        """What serves each of the parameters, by name."""
        rules = dict.fromkeys(self.names, "unused")
        for group in self._tied:
            rules |= group.rules()
        return rules | dict.fromkeys(self._crosscheck.unseen or (), "reference")

    def objective_norms(self, objectives: Sequence[Objective]) -> list[Tensor]:
        """Return the norms for several objectives; the recording can answer no more after it.

        One backward answers all objectives of the same loss.

        Args:
            objectives: At least one.

        Returns:
            For each objective norms, shape ``[batch, K]``, in at least float32.
        """
        found: dict[int, Tensor] = {}
        together = by_loss(objectives)
        for number, places in enumerate(together, start=1):
            cotangent = objectives[places[0]].logit_gradient(self.logits)
            orders = [objectives[place].p for place in places]
            norms = self.norms(cotangent, orders, last=number == len(together))
            found |= dict(zip(places, norms, strict=True))
        return [found[place] for place in range(len(objectives))]

    def norms(self, cotangent: Tensor, orders: Sequence[float], *, last: bool = False) -> Tensor:
        """Return the norms of the gradients that a gradient of the logits causes.

        Args:
            cotangent: Gradient of the summed losses with respect to the logits, shape
                ``[batch, classes]``.
            orders: Orders of the norm, positive; several cost little more than one.
            last: Whether no other call follows: what the forward left is then freed on the way,
                and the recording can answer no more.

        Returns:
            Norms, shape ``[len(orders), batch, K]``, in at least float32.

        Raises:
            InvalidArgument: If the cotangent has another shape than the logits.
            ModelError: If the model changed a recorded input in place.
        """
        orders = tuple(orders)
        if cotangent.shape != self.logits.shape:
            raise InvalidArgument(
                f"Expected a cotangent {list(self.logits.shape)} as the logits, "
                f"got {list(cotangent.shape)}."
            )
        with torch.inference_mode(False), torch.no_grad():
            cotangent = cotangent.clone() if cotangent.is_inference() else cotangent.detach()
            scaled, scale = _scaled(cotangent, self.logits.dtype)
            first = self._crosscheck.unseen is None
            asked = (*orders, CHECKED_ORDER) if first else orders
            found = backward_to_norms(self._forward, self._tied, scaled, asked, last=last)
            if first:
                plain, factor = self._unscaled(cotangent, scaled, scale)
                self._compare(plain, {n: x * (scale / factor) for n, x in found.items()}, asked)
                found = {name: x[:, : len(orders)] for name, x in found.items()}
            dtype = torch.promote_types(self.logits.dtype, torch.float32)
            zeros = self.logits.new_zeros(len(self.logits), len(orders), dtype=dtype)
            columns = [found.get(name, zeros) for name in self.names]
            result = (torch.stack(columns, dim=-1) * scale[..., None]).to(dtype)
            if names := self._by_reference():
                plain, factor = self._unscaled(cotangent, scaled, scale)
                every, places = range(len(self.logits)), [self.names.index(n) for n in names]
                norms = self._crosscheck.autograd_norms(every, plain, names, orders)
                result[:, :, places] = (norms.movedim(0, 1) * factor[..., None]).to(dtype)
        return result.movedim(1, 0)

    def _unscaled(self, cotangent: Tensor, scaled: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return what autograd itself is asked, and what its norms are then to be scaled by.

        A backward may clip or round gradients: then the norms do not grow with the cotangent, and
        only the cotangent as it is gives them. Scaled is only what might be lost otherwise.
        """
        dtype = self.logits.dtype
        safe = (scale > SAFE) & (scale < 1 / SAFE) & (dtype != torch.float16)
        safe |= self._forward.differentiates
        return torch.where(safe, cotangent.to(dtype), scaled), torch.where(safe, 1.0, scale)

    def _compare(
        self, cotangent: Tensor, found: Mapping[str, Tensor], orders: Sequence[float]
    ) -> None:
        """Compare what was found with plain autograd, and leave to it what differs."""
        left = set(self._by_reference())
        norms = {name: found.get(name) for name in self.names if name not in left}
        self._crosscheck.compare(cotangent, norms, orders, self._forward.coarsest)

    def _by_reference(self) -> list[str]:
        names = [n for group in self._tied if group.by_reference for n in group.names]
        return list(dict.fromkeys([*names, *(self._crosscheck.unseen or ())]))


def _scaled(cotangent: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cotangent in the type of the logits, and what the norms are then to be scaled by.

    A norm grows with the cotangent of its sample alone. Each sample's largest entry is brought to
    about one, so that small gradients do not round to zero; by a power of two, which changes no
    digit.
    """
    largest = cotangent.abs().amax(dim=1, keepdim=True)
    known = torch.where((largest > 0) & largest.isfinite(), largest, 1).double()
    scale = torch.ldexp(torch.ones_like(known), torch.frexp(known).exponent - 1)
    return (cotangent / scale).to(dtype), scale
