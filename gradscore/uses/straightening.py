"""Gradients of batch norm where torch's own are wrong.

Of an axis of size one the stride is arbitrary, and token networks give the batch axis of a lone
image, or the one row of a sequence, one of its own. From it torch's batch norm on the CPU
concludes another layout of the memory than the one there is, and returns wrong gradients of its
input, weight and bias.
"""

from torch import Tensor, channels_last, channels_last_3d, contiguous_format

from gradscore.uses.derivation import nodes_below

CHANNELS_LAST = {4: channels_last, 5: channels_last_3d}


def straighten_batch_norms(logits: Tensor) -> None:
    """Let each batch norm below get its gradient laid out as its input, with plain strides."""
    for node in nodes_below([logits.grad_fn]):
        if node.name().startswith("NativeBatchNormBackward"):
            node.register_prehook(
                lambda grads, node=node: (_as_laid_out(grads[0], node._saved_input), *grads[1:])
            )


def _as_laid_out(grad: Tensor | None, x: Tensor) -> Tensor | None:
    if grad is None or 1 not in x.shape:
        return grad
    last = CHANNELS_LAST.get(x.ndim)
    is_last = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return grad.clone(memory_format=last if is_last else contiguous_format)
