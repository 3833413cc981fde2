"""What a rule is: the per-sample gradient of one call with respect to one of its arguments."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradscore.rules.tile_forms import Tile


@dataclass(frozen=True)
class Call:
    """One recorded call of a function, as a rule sees it.

    Attributes:
        function: The function that was called, such as ``torch.nn.functional.linear``.
        arguments: Its arguments by name, those left out missing. Tensors that hold data are
            detached and batch-first, ``[samples * k, ...]``, the ``k`` rows of a sample side by
            side (``k > 1`` where a network folds windows or patches into the batch); parameters
            and constants are as they were passed.
        samples: Number of samples, at least one. A call without rows, as that of a part of a
            network that no sample is sent to, meets no rule: its gradient is zero.
        memo: What the rules of several arguments share, such as the scale's and the shift's
            gradient, which one reading of input and output gradient gives.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    samples: int
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument ``name``, or ``default`` where the call left it out."""
        return self.arguments.get(name, default)


GradientForm = Callable[[Call, str, Tensor], Tensor]
NormForm = Callable[[Call, str, Tensor, Sequence[float]], Tensor | None]
TileForm = Callable[[Call, str, Tensor], Iterator[Tile]]


@dataclass(frozen=True)
class Rule:
    """How per-sample gradients with respect to one argument of a function are had.

    Attributes:
        name: What reports call the rule.
        gradient: ``(call, argument, grad) -> [samples, *argument.shape]``, where ``grad`` is the
            gradient of the summed loss with respect to the call's output, laid out as its data.
            It is called for a few samples at a time.
        norms: ``(call, argument, grad, orders) -> [samples, len(orders)]`` without ever holding
            more of the gradients than about what the call's data take, or ``None`` where it has
            no cheap form for this call; then ``gradient`` is called in chunks and reduced.
        reads_data: Whether the values of the call's data are needed, not only their shapes; where
            they are not, the data are handed over without memory behind them (on ``meta``).
        trailing: Whether the parameter meets the trailing axes only, so that the batch may come
            from any other axis, as in sequence-first networks.
        serves: From a call's arguments by name to whether the rule holds for them, or ``None``
            where it holds for all. Calls with complex tensors are left to the generic rule.
        tiles: ``(call, argument, grad)`` to the gradients in tiles that each hold whole output
            channels, for what is made of a parameter channel by channel, or ``None``.
    """

    name: str
    gradient: GradientForm
    norms: NormForm | None = None
    reads_data: bool = True
    trailing: bool = False
    serves: Callable[[Mapping[str, Any]], bool] | None = None
    tiles: TileForm | None = None
