"""Tensors that a forward uses and that came from elsewhere: neither registered nor made in it.

Such a tensor may be a constant, or what an earlier forward made of weights and kept. The gradient
of the weights is then zero for autograd as well, though the logits do depend on them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscore.network.checks import wrap_forward_errors
from gradscore.network.dry_runs import dry_run, without_caches


def kept_tensors_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the floating tensors that a model keeps outside of its parameters and buffers.

    Args:
        model: The model; left as it is.
        images: Its input, shape ``[batch, ...]``; one of them is run.
    """
    with (
        _casting_anew(),
        without_caches(model, images),
        dry_run(model, images[:1]) as own,
        _Origins(model, own) as origins,
    ):
        try:
            model(own)
        except Exception:  # it takes another number of images
            with wrap_forward_errors(model, images):
                model(images.clone())
    return origins.found


@contextmanager
def _casting_anew() -> Iterator[None]:
    """Let autocast not use what it has cast before, which would be found."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Origins(TorchDispatchMode):
    """Tell tensors by the memory that they are in.

    Attributes:
        found: Those whose memory was neither the model's, nor the input's, nor made inside.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._made: list[Tensor] = []
        self._known: set[int] = set()
        for tensor in (*model.parameters(), *model.buffers(), images):
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        self._made.append(tensor)  # kept, so that its memory is not given to another
        self._known.add(_memory(tensor))

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one call and note where its tensors are from."""
        kwargs = kwargs or {}
        # What was written out as numbers in the forward is lifted into a tensor.
        if not func.name().startswith("aten::lift"):
            for tensor in tree_leaves((args, kwargs)):
                if _is_value(tensor) and _memory(tensor) not in self._known:
                    self.found.append(tensor)
                    self._note(tensor)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result


def _is_value(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and quantised tensors have another kind
        return id(tensor)
