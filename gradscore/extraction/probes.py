"""Passes that need forwards of their own: logits of perturbed inputs, confidences of the stages.

ODIN, Mahalanobis and FGSM move inputs along the sign of a gradient. Magnitudes are in units of the
normalised model input; nothing is clipped to the range of pixels. Only the sign of the gradient
counts, so that each sample's may be scaled before the backward: no type that the model computes in
then rounds it to zero.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.extraction.classifier import Classifier
from gradscore.extraction.computing import Probe
from gradscore.gaussians import ClassGaussians
from gradscore.layers.features import observe_stages
from gradscore.network import hold_state
from gradscore.objective import one_hot_deviation
from gradscore.run import PassInfo

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


def stage_confidences(
    classifier: Classifier,
    stages: Mapping[str, str],
    gaussians: Mapping[str, ClassGaussians],
    images: Tensor,
    magnitudes: Sequence[float],
) -> Tensor:
    """Return each stage's largest confidence, each at an input perturbed for that stage.

    ``x - m sign(grad_x(-M(x)))``, ``M`` the stage's confidence (Lee et al., Eq. 3).

    Args:
        classifier: The classifier.
        stages: Stage to the module whose output it is.
        gaussians: Stage to its Gaussians, on the classifier's device.
        images: The batch, on the classifier's device.
        magnitudes: What the input is perturbed by, in units of the normalised input.

    Returns:
        Shape ``[magnitudes, batch, stages]``, float64, on the device.
    """
    # One look at the model serves all of these forwards.
    with (
        hold_state(classifier.model),
        observe_stages(classifier.model, stages, images) as features,
    ):
        signs = {}
        if any(magnitudes):
            with differentiable(images) as (leaf, copy):
                classifier(copy)
                for stage, z in dict(features).items():
                    towards = gaussians[stage].gradient(z.detach())
                    signs[stage] = sign_of_gradient(leaf, z, towards, keep=True)
        result = images.new_empty(
            len(magnitudes), len(images), len(stages), dtype=torch.float64, requires_grad=False
        )
        with torch.inference_mode():
            for row, magnitude in zip(result, magnitudes, strict=True):
                for column, stage in enumerate(stages):
                    if magnitude:
                        classifier(images + magnitude * signs[stage])
                    elif not column:
                        classifier(images)
                    row[:, column] = gaussians[stage].confidence(features[stage])
    return result


@dataclass(frozen=True)
class StageFit:
    """What Mahalanobis over all stages learned from labelled ID images.

    Attributes:
        stages: Stage to the module whose output it is, in the order of depth.
        gaussians: Stage to the Gaussians of its features.
        weight: What the log-odds of OOD take of each stage's confidence, shape ``[stages]``.
        bias: Their constant, shape ``[1]``.
        magnitudes: The magnitudes of the input perturbation that were tried, ascending.
        fpr95: Of each of them on the images that chose among them.
    """

    stages: Mapping[str, str]
    gaussians: Mapping[str, ClassGaussians]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    magnitudes: Sequence[float]
    fpr95: NDArray[np.float64]

    @property
    def magnitude(self) -> float:
        """The magnitude of the input perturbation: of those with the lowest FPR95 the smallest."""
        return self.magnitudes[int(self.fpr95.argmin())]

    def arrays(self) -> dict[str, NDArray]:
        """Return everything but the stages' modules as named arrays."""
        arrays = {"weight": self.weight, "bias": self.bias, "fpr95": self.fpr95}
        for stage, fitted in self.gaussians.items():
            arrays[f"{stage}.means"] = fitted.means.numpy()
            arrays[f"{stage}.precision"] = fitted.precision.numpy()
        return arrays

    @classmethod
    def from_arrays(
        cls,
        stages: Mapping[str, str],
        magnitudes: Sequence[float],
        arrays: Mapping[str, NDArray],
    ) -> "StageFit":
        """Return the fit whose :meth:`arrays` these are."""
        gaussians = {
            stage: ClassGaussians(
                torch.from_numpy(arrays[f"{stage}.means"]),
                torch.from_numpy(arrays[f"{stage}.precision"]),
            )
            for stage in stages
        }
        weight, bias, fpr95 = (arrays[name] for name in ("weight", "bias", "fpr95"))
        return cls(stages, gaussians, weight, bias, magnitudes, fpr95)


def make_probes(
    classifier: Classifier, passes: Sequence[PassInfo], fits: Mapping[str, StageFit]
) -> list[Probe]:
    """Return what computes the ``odin`` and ``mahalanobis`` passes among ``passes``.

    Args:
        classifier: The classifier.
        passes: The passes wanted, of any kind.
        fits: Name of each ``mahalanobis`` pass to what it is computed with.
    """
    by_temperature = defaultdict(dict)
    for entry in passes:
        if entry.kind == "odin":
            by_temperature[entry.temperature][entry.name] = entry.details["epsilon"]
    probes = [_odin(classifier, t, epsilons) for t, epsilons in by_temperature.items()]
    stages = [entry.name for entry in passes if entry.kind == "mahalanobis"]
    return probes + [_stages(classifier, name, fits[name]) for name in stages]


def _odin(classifier: Classifier, temperature: float, epsilons: Mapping[str, float]) -> Probe:
    def probe(images: Tensor) -> dict[str, Tensor]:
        logits = odin_logits(classifier, images, temperature, list(epsilons.values()))
        return dict(zip(epsilons, logits, strict=True))

    return probe


def _stages(classifier: Classifier, name: str, fit: StageFit) -> Probe:
    gaussians = {stage: fitted.to(classifier.device) for stage, fitted in fit.gaussians.items()}

    def probe(images: Tensor) -> dict[str, Tensor]:
        magnitudes = (fit.magnitude,)
        return {name: stage_confidences(classifier, fit.stages, gaussians, images, magnitudes)[0]}

    return probe
