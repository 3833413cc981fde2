"""A copy of a model that computes in float64, whatever types the model asks for."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gradscore.network.contents import is_own_hook

MOVED = 0.01
"""By what share of themselves parameters are moved; those that are zero, by this share of 0.1."""

_WIDENED = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_MODULES_OWN = frozenset(vars(nn.Module()))
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


def widened(x: Tensor) -> Tensor:
    """Return a floating-point or complex tensor in double precision, and any other as it is."""
    return x.to(_WIDENED[x.dtype]) if x.dtype in _WIDENED else x


def float64_copy(model: nn.Module, moved: Collection[int]) -> nn.Module:
    """Return a copy of a model, to be run in :class:`Float64`, without hooks of this package.

    Args:
        model: The model.
        moved: Identities of parameters that get other values in the copy, a little off.

    Raises:
        Exception: Whatever a part of the model raises that cannot be copied.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(widened(parameter.detach()).clone(), requires_grad=False)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
    }
    with torch.no_grad(), _Widening(memo):
        try:
            double = copy.deepcopy(model, dict(memo))
        except Exception:
            memo |= _shared(model, memo)
            double = copy.deepcopy(model, memo)
        if any(isinstance(module, torch.jit.ScriptModule) for module in double.modules()):
            double.double()
    draw = torch.Generator().manual_seed(0)
    for parameter, copied in zip(model.parameters(), double.parameters(), strict=True):
        value = copied.detach()
        if id(parameter) in moved and value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw, dtype=torch.float64).to(value)
            value += MOVED * noise * torch.where(value == 0, 0.1, value)
    for original, module in zip(model.modules(), double.modules(), strict=False):
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            # What stands for padding is never trained, and often zero for a reason.
            row = widened(original.weight.detach()[module.padding_idx])
            module.weight.data[module.padding_idx] = row
    for module in double.modules():
        for name, hooks in vars(module).items():
            if name.endswith("_hooks"):
                for key in [key for key, hook in hooks.items() if is_own_hook(hook)]:
                    del hooks[key]
    return double


def _shared(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return what cannot be copied of a model, such as locks, for the copy to share."""
    shared = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in _MODULES_OWN:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:  # whatever such a thing raises
                    shared[id(value)] = value
    return shared


class _Widening(TorchFunctionMode):
    """Copy tensors in double precision, those with a graph among them."""

    def __init__(self, memo: dict[int, Any]) -> None:
        super().__init__()
        self._memo = memo

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copy a tensor, or run what is called as it is."""
        if func is not Tensor.__deepcopy__:
            # Parameters that the model does not list clone their data.
            result = func(*args, **(kwargs or {}))
            return widened(result) if func is Tensor.clone else result
        tensor = args[0]
        if id(tensor) not in self._memo:
            self._memo[id(tensor)] = widened(tensor.detach()).clone()
        return self._memo[id(tensor)]


class Float64(TorchFunctionMode):
    """Let every function that is called inside return double precision.

    Many models ask for single precision here and there, or make tensors of the default type.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call in double precision."""
        if func in _CASTS:
            return widened(args[0])
        args = tuple([_WIDENED.get(x, x) if isinstance(x, torch.dtype) else x for x in args])
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs["dtype"] = _WIDENED.get(kwargs["dtype"], kwargs["dtype"])
        result = func(*args, **kwargs)
        if (args and result is args[0]) or kwargs.get("out") is not None:  # written in place
            return result
        if isinstance(result, Tensor):
            return widened(result)
        return tree_map_only(Tensor, widened, result) if type(result) in (tuple, list) else result


class ResultTypes(TorchDispatchMode):
    """See the types that are computed in, inside of functions as well.

    Attributes:
        seen: Floating-point types of all results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note the types of its results."""
        result = func(*args, **(kwargs or {}))
        self.seen |= {
            leaf.dtype
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        }
        return result
