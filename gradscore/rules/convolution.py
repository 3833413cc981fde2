"""Convolutions in one to three dimensions, plain and transposed, grouped and depthwise."""

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.convolution_tiles import Geometry, conv_tiles, folded_gradient
from gradscore.rules.product_norms import find_norms
from gradscore.rules.rule import Call, Rule, Tile, reduce_tiles, sum_by_channel
from gradscore.rules.windows import product_sizes, window_product

PLAIN = dict.fromkeys(
    (F.conv1d, F.conv2d, F.conv3d),
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
)
TRANSPOSED = dict.fromkeys(
    (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
)


def weight_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return each sample's weight gradient, shape ``[samples, *weight.shape]``.

    A sample's weight gradient is that of a grouped convolution over a single image which holds
    all samples side by side in its channels, one block of groups a sample.
    """
    return folded_gradient(*_inputs(call, argument, grad), call.samples)


def weight_norms(call: Call, argument: str, grad: Tensor, orders: Sequence[float]) -> Tensor:
    """Return the norms of each sample's weight gradient, shape ``[samples, len(orders)]``."""
    x, grad, geometry = _inputs(call, argument, grad)
    if geometry.groups == 1:
        sizes = product_sizes(x, grad, geometry, call.samples)
        norms = find_norms(sizes, orders, grad, x)
        if norms:
            return norms(window_product(x, grad, geometry, call.samples), orders)
    return reduce_tiles(conv_tiles(x, grad, geometry, call.samples), orders)


def weight_tiles(call: Call, argument: str, grad: Tensor) -> Iterator[Tile]:
    """Return each sample's weight gradient in tiles."""
    return conv_tiles(*_inputs(call, argument, grad), call.samples)


def _inputs(call: Call, argument: str, grad: Tensor) -> tuple[Tensor, Tensor, Geometry]:
    """Return input, output gradient and what else the convolution does."""
    x, weight = call.arguments["input"], call.arguments[argument]
    x, grad = unbatched(x, weight), unbatched(grad, weight)
    x, padding = padded(call, x)
    dims = weight.ndim - 2
    geometry = Geometry(
        shape=weight.shape,
        stride=sizes(call.get("stride", 1), dims),
        padding=padding,
        dilation=sizes(call.get("dilation", 1), dims),
        groups=call.get("groups", 1),
        transposed=call.function in TRANSPOSED,
        output_padding=sizes(call.get("output_padding", 0), dims),
    )
    return x, grad, geometry


def bias_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient over positions, shape ``[samples, channels]``."""
    return sum_by_channel(unbatched(grad, call.arguments["weight"]), call.samples)


def sizes(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Spell a stride, dilation or padding out for every spatial dimension."""
    if isinstance(value, int):
        return (value,) * dims
    return tuple(value) * dims if len(value) == 1 else tuple(value)


def padded(call: Call, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return the input and its symmetric zero padding; uneven ``same`` padding is applied."""
    dims = x.ndim - 2
    padding = call.get("padding", 0)
    if padding == "valid":
        return x, (0,) * dims
    if padding != "same":
        return x, sizes(padding, dims)
    kernel, dilation = call.arguments["weight"].shape[2:], sizes(call.get("dilation", 1), dims)
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if all(t % 2 == 0 for t in total):
        return x, tuple(t // 2 for t in total)
    pairs = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    return F.pad(x, pairs), (0,) * dims


def unbatched(x: Tensor, weight: Tensor) -> Tensor:
    """Give a single image without batch axis its batch axis."""
    return x.unsqueeze(0) if x.ndim < weight.ndim else x


WEIGHT = Rule("conv", weight_gradient, weight_norms, tiles=weight_tiles)
TRANSPOSED_WEIGHT = Rule("transposed conv", weight_gradient, weight_norms)
BIAS = Rule("conv bias", bias_gradient, reads_data=False)
