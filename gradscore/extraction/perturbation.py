"""Inputs moved along the sign of a gradient, as ODIN, Mahalanobis and FGSM move them.

Magnitudes are in units of the normalised model input; nothing is clipped to the range of pixels.
Only the sign of the gradient counts, so that each sample's may be scaled before the backward: no
type that the model computes in then rounds it to zero.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gradscore.objective import one_hot_deviation

Forward = Callable[[Tensor], Tensor]
"""From images ``[batch, channels, height, width]`` to logits ``[batch, classes]``."""


@contextmanager
def differentiable(images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Let gradients with respect to the images be taken, whatever mode the caller is in.

    Args:
        images: The batch; left as it is.

    Yields:
        A leaf that requires a gradient, and a copy of it for the model, which may write into it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        yield leaf, leaf.clone()


def sign_of_gradient(
    leaf: Tensor, output: Tensor, cotangent: Tensor, *, keep: bool = False
) -> Tensor:
    """Return the sign of ``d (output . cotangent) / d images``, 0 where the gradient is.

    Args:
        leaf: The images, of :func:`differentiable`.
        output: What was computed from them, shape ``[batch, n]``.
        cotangent: Gradient with respect to the output, shape ``[batch, n]``.
        keep: Whether another backward through the same forward follows.

    Returns:
        Signs of -1, 0 and 1, shaped and typed as the images.
    """
    largest = cotangent.abs().amax(dim=1, keepdim=True)
    scaled = cotangent / torch.where(largest > 0, largest, 1)
    (gradient,) = torch.autograd.grad(output, leaf, scaled.to(output.dtype), retain_graph=keep)
    return gradient.sign()


def odin_logits(
    forward: Forward, images: Tensor, temperature: float, epsilons: Sequence[float]
) -> list[Tensor]:
    """Return the logits of inputs moved towards their own prediction (Liang et al., Eq. 2).

    ``x + epsilon sign(grad_x log max softmax(f(x)/T))``. (The paper writes ``x - epsilon
    sign(-grad ...)``; its authors' code takes the sign of 0 as 1, this one as 0.)

    Args:
        forward: The model.
        images: The batch, on the model's device.
        temperature: Softmax temperature ``T``.
        epsilons: Magnitudes of the move.

    Returns:
        Logits ``[batch, classes]`` for each epsilon.
    """
    with differentiable(images) as (leaf, copy):
        logits = forward(copy)
        # softmax - e_y is minus the gradient of log max softmax, up to 1/T.
        towards = -one_hot_deviation(logits.detach().double(), temperature)
        sign = sign_of_gradient(leaf, logits, towards)
    with torch.inference_mode():
        return [forward(images + epsilon * sign) for epsilon in epsilons]


def fgsm(forward: Forward, images: Tensor, labels: Tensor, step: float) -> Tensor:
    """Return adversarial images, ``x + step sign(grad_x CE(f(x), y))`` (Goodfellow et al., 2015).

    Args:
        forward: The model.
        images: The batch, on the model's device.
        labels: True classes ``y``, shape ``[batch]``.
        step: Magnitude of the move.
    """
    with differentiable(images) as (leaf, copy):
        logits = forward(copy)
        y = labels[:, None].to(logits.device)
        others = torch.softmax(logits.detach().double(), dim=1).scatter(1, y, 0)
        # 1 - q_y as the sum of the others: the difference would lose the confident ones.
        away = others.scatter(1, y, -others.sum(dim=1, keepdim=True))
        sign = sign_of_gradient(leaf, logits, away)
    return images + step * sign
