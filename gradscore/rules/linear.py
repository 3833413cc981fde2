"""Linear layers, matrix products, and embeddings, which are products with one-hot rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.norms import vector_norm
from gradscore.rules.broadcast import sum_to_argument
from gradscore.rules.product_norms import find_norms
from gradscore.rules.products import Product, Sizes
from gradscore.rules.rule import Call, Rule, product_tiles, reduce_tiles

LAYERS = {F.linear: ("input", "weight", "bias")}
MATMULS = dict.fromkeys((torch.matmul, Tensor.matmul), ("input", "other"))
MMS = dict.fromkeys((torch.mm, Tensor.mm), ("input", "mat2"))
EINSUMS = {torch.einsum: ("equation", "*operands")}
EMBEDDINGS = {
    F.embedding: (
        *("input", "weight", "padding_idx", "max_norm", "norm_type"),
        *("scale_grad_by_freq", "sparse"),
    ),
    torch.embedding: ("weight", "input", "padding_idx", "scale_grad_by_freq", "sparse"),
}


def weight_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g x^T``, shape ``[samples, out_features, in_features]``."""
    x, g = _positions(call.arguments["input"], call), _positions(grad, call)
    return torch.bmm(g.transpose(1, 2), x)


def weight_norms(call: Call, argument: str, grad: Tensor, orders: Sequence[float]) -> Tensor:
    """Return the norms of each sample's weight gradient, shape ``[samples, len(orders)]``."""
    x, g = _positions(call.arguments["input"], call), _positions(grad, call)
    return linear_weight_norms(x, g, orders)


def linear_weight_norms(x: Tensor, g: Tensor, orders: Sequence[float]) -> Tensor:
    """Return the norms of ``sum over positions of g x^T`` of each sample.

    At one position the gradient is an outer product, whose norm is the product of two norms.

    Args:
        x: Inputs, shape ``[n, positions, in_features]``.
        g: Output gradients, shape ``[n, positions, out_features]``.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[n, len(orders)]``.
    """
    if x.shape[1] == 1:
        return torch.stack(
            [vector_norm(x, p, dim=(1, 2)) * vector_norm(g, p, dim=(1, 2)) for p in orders], dim=1
        )
    sizes = Sizes(len(x), channels=g.shape[2], columns=x.shape[2], positions=x.shape[1])
    norms = find_norms(sizes, orders, g, x)
    if norms:
        return norms(Product(g.transpose(1, 2), x.transpose(1, 2)), orders)
    return reduce_tiles(product_tiles(g.transpose(1, 2), x), orders)


def bias_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient over positions, shape ``[samples, out_features]``."""
    return _positions(grad, call).sum(dim=1)


def _positions(x: Tensor, call: Call) -> Tensor:
    """Bring a tensor to ``[samples, positions, features]``."""
    return x.reshape(call.samples, x.shape[:-1].numel() // call.samples, x.shape[-1])


def is_layer(arguments: Mapping[str, Any]) -> bool:
    """Say whether there is a weight ``[out, in]``, and a bias ``[out]`` if any, as in a layer."""
    weight, bias = arguments["weight"], arguments.get("bias")
    return weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])


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
    x = call.arguments["mat2" if call.function in MMS else "other"]
    if call.arguments[argument].ndim == 1:
        outer = x.conj() @ grad.unsqueeze(-1)
        return sum_to_argument(outer.squeeze(-1), call, argument)
    return sum_to_argument(grad @ x.transpose(-2, -1).conj(), call, argument)


def table_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradients of looked-up rows added where they came from, ``[samples, *table]``."""
    table = call.arguments[argument]
    rows, width = table.shape
    index = call.arguments["input"].reshape(call.samples, -1)
    grad = grad.reshape(call.samples, index.shape[1], width)
    if call.get("scale_grad_by_freq"):
        counts = grad.new_zeros(call.samples, rows).scatter_add_(
            1, index, grad.new_ones(index.shape)
        )
        grad = grad / counts.gather(1, index).unsqueeze(2)
    padding = call.get("padding_idx")
    # ATen's own function marks "no padding" by a negative index; F.embedding counts from the end.
    if padding is not None and (padding >= 0 or call.function is F.embedding):
        grad = grad.masked_fill((index == padding % rows).unsqueeze(2), 0)
    first = torch.arange(call.samples, device=index.device).unsqueeze(1) * rows
    summed = grad.new_zeros(call.samples * rows, width)
    summed.index_add_(0, (index + first).flatten(), grad.flatten(0, 1))
    return summed.reshape(call.samples, rows, width)


WEIGHT = Rule("linear", weight_gradient, weight_norms, trailing=True, serves=is_layer)
BIAS = Rule("linear bias", bias_gradient, reads_data=False, trailing=True, serves=is_layer)
LEFT = Rule("matrix product", left_gradient)
RIGHT = Rule("matrix product", right_gradient)
TABLE = Rule("embedding", table_gradient)
