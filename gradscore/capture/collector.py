"""The gradients of a backward, each reduced to norms and freed as soon as it can be."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscore.capture.arrival import Arrival
from gradscore.capture.bundle import Bundle
from gradscore.capture.forward import Forward


class Collector:
    """Take the gradients of a backward as they arrive, and reduce each as soon as it can be."""

    def __init__(
        self,
        forward: Forward,
        bundles: Sequence[Bundle],
        orders: tuple[float, ...],
        last: bool,
        found: dict[str, Tensor],
    ) -> None:
        self._forward, self._orders, self._last, self._found = forward, orders, last, found
        self._waiting = {bundle: set(bundle.uses) for bundle in bundles}
        self._by_use: dict[int, list[Bundle]] = {}
        for bundle in bundles:
            for number in bundle.uses:
                self._by_use.setdefault(number, []).append(bundle)
        self.wanted = tuple(self._by_use)
        self._arrivals: dict[int, Arrival] = {}

    def listener(self, number: int, position: int) -> Callable[[Sequence[Tensor | None]], None]:
        """Return the hook that takes the gradient of one output of one use."""

        def arrive(arrived: Sequence[Tensor | None]) -> None:
            arrival = self._arrival(number)
            arrival.grads[position] = arrival.use.edges[position].gradient(arrived)
            if all(grad is not None for grad in arrival.grads):
                with torch.no_grad():
                    self._complete(number)

        return arrive

    def _arrival(self, number: int) -> Arrival:
        if number not in self._arrivals:
            use, layout = self._forward.uses[number], self._forward.layouts[number]
            assert layout is not None, "uses without a layout are served by the reference"
            self._arrivals[number] = Arrival(use, layout)
        return self._arrivals[number]

    def _complete(self, number: int) -> None:
        for bundle in self._by_use[number]:
            self._waiting[bundle].discard(number)
            if not self._waiting[bundle]:
                self._reduce(bundle)
        self._release(number)

    def _reduce(self, bundle: Bundle) -> None:
        del self._waiting[bundle]
        self._found |= bundle.norms(self._arrivals, self._orders)
        for number in bundle.uses:
            self._release(number)

    def _release(self, number: int) -> None:
        """Free a use's gradient, and its inputs, once no bundle waits for them."""
        if any(bundle in self._waiting for bundle in self._by_use[number]):
            return
        self._arrivals.pop(number, None)
        if self._last:
            self._forward.uses[number].release()

    def finish(self) -> None:
        """Reduce what still waits for outputs on which the logits do not depend."""
        for bundle in list(self._waiting):
            self._reduce(bundle)
