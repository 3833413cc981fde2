"""One backward of a recorded forward, whose gradients become norms on the way.

Each gradient is reduced to norms and freed as soon as the backward has brought what its parameters
wait for.
"""

from collections.abc import Sequence

from torch import Tensor

from gradscore.capture.forward import Forward
from gradscore.capture.gradients import GradientSink
from gradscore.capture.small_gradients import SmallGradients
from gradscore.capture.tied import TiedParameters
from gradscore.graph import Listener, run_backward


def backward_to_norms(
    forward: Forward,
    groups: Sequence[TiedParameters],
    cotangent: Tensor,
    orders: Sequence[float],
    *,
    last: bool,
) -> dict[str, Tensor]:
    """Run one backward, and reduce each gradient to norms as soon as it can be.

    Args:
        forward: The recorded forward.
        groups: The parameters asked for; those left to the reference get no norms.
        cotangent: Gradient of the summed losses with respect to the logits.
        orders: Orders of the norm.
        last: Whether no other backward follows: what the forward left is freed on the way.

    Returns:
        Norms ``[batch, len(orders)]`` by name, of those parameters that a gradient arrived at.

    Raises:
        ModelError: If the model changed a recorded input in place.
    """
    served = [group for group in groups if not group.by_reference]
    run = _Backward(forward, served, orders, last)
    # What uncovered parameters get on the way is not used.
    uncovered = [forward.edges[n] for n in forward.uncovered if n in forward.edges]
    ends = [forward.start, *uncovered]
    listeners = [
        (edge, run.listener(number, position))
        for number in run.by_call
        for position, edge in enumerate(forward.calls[number].edges)
    ]
    run_backward(forward.logits, ends, listeners, cotangent, retain=not last)
    return run.finish()


class _Backward:
    """The gradient sinks of one backward, and which parameters still wait for which of them."""

    def __init__(
        self,
        forward: Forward,
        groups: Sequence[TiedParameters],
        orders: Sequence[float],
        last: bool,
    ) -> None:
        self._forward, self._orders, self._last = forward, orders, last
        self._numbers = {group: group.numbers for group in groups}
        self._waiting = {group: set(numbers) for group, numbers in self._numbers.items()}
        self._small = SmallGradients(orders)
        self._found: dict[str, Tensor] = {}
        self.by_call: dict[int, list[TiedParameters]] = {}
        for group, numbers in self._numbers.items():
            for number in numbers:
                self.by_call.setdefault(number, []).append(group)
        self._unread = {number: len(groups) for number, groups in self.by_call.items()}
        self._sinks = {
            number: GradientSink(forward.calls[number], forward.dimensions[number])
            for number in self.by_call
        }

    def listener(self, number: int, position: int) -> Listener:
        """Return the hook that takes the gradient of one output of one call.

        A backward that records no graph runs it without one, too.
        """
        sink = self._sinks[number]
        edge, grads = sink.call.edges[position], sink.grads

        def arrive(arrived: Sequence[Tensor | None]) -> None:
            grads[position] = edge.gradient(arrived)
            for grad in grads:
                if grad is None:
                    return
            self._complete(number)

        return arrive

    def _complete(self, number: int) -> None:
        for group in self.by_call[number]:
            waits_for = self._waiting[group]
            waits_for.discard(number)
            if not waits_for:
                self._reduce(group)

    def _reduce(self, group: TiedParameters) -> None:
        """Reduce the gradients of a group, and free what nobody else will read of its calls."""
        del self._waiting[group]
        self._found.update(group.norms(self._sinks, self._orders, self._small))
        for number in self._numbers[group]:
            self._unread[number] -= 1
            if not self._unread[number]:
                del self._sinks[number]
                if self._last:
                    self._forward.calls[number].free()

    def finish(self) -> dict[str, Tensor]:
        """Reduce what still waits for outputs on which the logits do not depend."""
        for group in list(self._waiting):
            self._reduce(group)
        return self._found | self._small.norms()
