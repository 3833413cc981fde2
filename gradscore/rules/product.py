"""Matrix products with bare parameters on either side."""

import torch
from torch import Tensor

from gradscore.rules.rule import Call, Rule
from gradscore.rules.scale_shift import sum_to_argument

FUNCTIONS = (torch.matmul, Tensor.matmul, torch.mm, Tensor.mm)
SIGNATURES = {
    **dict.fromkeys((torch.matmul, Tensor.matmul), ("input", "other")),
    **dict.fromkeys((torch.mm, Tensor.mm), ("input", "mat2")),
    torch.einsum: ("equation", "*operands"),
}


def right_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``x^H g`` summed over leading axes, for ``x @ parameter``."""
    x, parameter = call.arguments["input"], call.arguments[argument]
    if parameter.ndim == 1:
        grad = grad.unsqueeze(-1)
    if parameter.ndim <= 2:
        n = call.samples
        x, grad = x.reshape(n, -1, x.shape[-1]), grad.reshape(n, -1, grad.shape[-1])
        return (x.transpose(1, 2).conj() @ grad).reshape(n, *parameter.shape)
    return sum_to_argument(x.transpose(-2, -1).conj() @ grad, call, argument)


def left_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``g x^H`` summed over leading axes, for ``parameter @ x``."""
    x = call.arguments["mat2" if "mat2" in call.arguments else "other"]
    if call.arguments[argument].ndim == 1:
        outer = x.conj() @ grad.unsqueeze(-1)
        return sum_to_argument(outer.squeeze(-1), call, argument)
    return sum_to_argument(grad @ x.transpose(-2, -1).conj(), call, argument)


RULES = {
    **{
        (function, SIGNATURES[function][1]): Rule("matrix product", right_gradient)
        for function in FUNCTIONS
    },
    **{(function, "input"): Rule("matrix product", left_gradient) for function in FUNCTIONS},
}
