"""Mahalanobis over all stages, learned from labelled ID images (Lee et al., NeurIPS 2018).

As Huang, Geng & Li compare with it: one set of class Gaussians a stage; 500 images and their FGSM
images fit the logistic regression that combines the stages, 500 others choose the magnitude of the
input perturbation. No OOD image is seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.errors import DataError
from gradscore.extraction.network import Network, memory_for
from gradscore.extraction.perturbation import differentiable, fgsm, sign_of_gradient
from gradscore.gaussians import ClassGaussians, fit_gaussians
from gradscore.layers.stages import observe_stages
from gradscore.metrics import fpr95

MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)
FGSM_STEP = 0.05
IMAGES = 500
"""Images that fit the regression, and as many others that choose the magnitude."""
SEED = 0

Read = Callable[[NDArray[np.int64]], Iterator[tuple[NDArray[np.int64], Tensor]]]
"""From places in a set to batches of places and images, those that can be read."""


@dataclass(frozen=True)
class StageFit:
    """What was learned.

    Attributes:
        stages: Stage to the module whose output it is, in the order of depth.
        gaussians: Stage to the Gaussians of its features.
        weight: What the log-odds of OOD take of each stage's confidence, shape ``[stages]``.
        bias: Their constant, shape ``[1]``.
        fpr95: Of each of :data:`MAGNITUDES` on the images that chose among them.
    """

    stages: Mapping[str, str]
    gaussians: Mapping[str, ClassGaussians]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    fpr95: NDArray[np.float64]

    @property
    def magnitude(self) -> float:
        """The magnitude of the input perturbation: of those with the lowest FPR95 the smallest."""
        return MAGNITUDES[int(self.fpr95.argmin())]

    def arrays(self) -> dict[str, NDArray]:
        """Return everything but the stages' modules as named arrays."""
        arrays = {"weight": self.weight, "bias": self.bias, "fpr95": self.fpr95}
        for stage, fitted in self.gaussians.items():
            arrays[f"{stage}.means"] = fitted.means.numpy()
            arrays[f"{stage}.precision"] = fitted.precision.numpy()
        return arrays

    @classmethod
    def from_arrays(cls, stages: Mapping[str, str], arrays: Mapping[str, NDArray]) -> "StageFit":
        """Return the fit that :meth:`arrays` told of."""
        gaussians = {
            stage: ClassGaussians(
                torch.from_numpy(arrays[f"{stage}.means"]),
                torch.from_numpy(arrays[f"{stage}.precision"]),
            )
            for stage in stages
        }
        return cls(stages, gaussians, arrays["weight"], arrays["bias"], arrays["fpr95"])


def settings(stages: Mapping[str, str]) -> dict[str, Any]:
    """Return what a fit depends on beside the labelled set."""
    return {
        "stages": dict(stages),
        "magnitudes": list(MAGNITUDES),
        "fgsm_step": FGSM_STEP,
        "images": IMAGES,
        "seed": SEED,
    }


def stage_confidences(
    network: Network,
    stages: Mapping[str, str],
    gaussians: Mapping[str, ClassGaussians],
    images: Tensor,
    magnitudes: Sequence[float],
) -> Tensor:
    """Return each stage's largest confidence, each at an input perturbed for that stage.

    ``x - m sign(grad_x(-M(x)))``, ``M`` the stage's confidence (Lee et al., Eq. 3).

    Args:
        network: The classifier.
        stages: Stage to the module whose output it is.
        gaussians: Stage to its Gaussians, on the network's device.
        images: The batch, on the network's device.
        magnitudes: What the input is perturbed by, in units of the normalised input.

    Returns:
        Shape ``[magnitudes, batch, stages]``, float64, on the device.
    """
    with observe_stages(network.model, stages, images) as features:
        signs = {}
        if any(magnitudes):
            with differentiable(images) as (leaf, copy):
                network(copy)
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
                        network(images + magnitude * signs[stage])
                    elif not column:
                        network(images)
                    row[:, column] = gaussians[stage].confidence(features[stage])
    return result


def learn_stages(
    network: Network,
    stages: Mapping[str, str],
    labels: NDArray[np.int64],
    read: Read,
    advance: Callable[[int], None],
) -> StageFit:
    """Return the Gaussians, the regression and the magnitude that labelled ID images give.

    Args:
        network: The classifier.
        stages: Stage to the module whose output it is.
        labels: Class of each image of the set, -1 where unknown, shape ``[n]``.
        read: Reads images of the set.
        advance: Is told how many images were worked on; up to :func:`work`.

    Raises:
        DataError: If fewer than two images with a label can be read.
    """
    places, gaussians = _gaussians(network, stages, labels, read, advance)
    if len(places) < 2:
        raise DataError(f"Expected at least 2 labelled images to fit to, got {len(places)}.")
    drawn = np.random.default_rng(SEED).permutation(places)
    count = images_a_side(len(places))
    sides = [np.sort(drawn[:count]), np.sort(drawn[count : 2 * count])]
    fitting, choosing = (
        _confidences(network, stages, gaussians, labels, read(side), advance) for side in sides
    )
    regressions = [_regression(*pair) for pair in zip(*fitting, strict=True)]
    rates = [
        fpr95(*(-(side @ weight + bias) for side in pair))
        for (weight, bias), pair in zip(regressions, zip(*choosing, strict=True), strict=True)
    ]
    weight, bias = regressions[int(np.argmin(rates))]
    on_host = {stage: fitted.to("cpu") for stage, fitted in gaussians.items()}
    return StageFit(stages, on_host, weight, bias, np.array(rates))


def images_a_side(labelled: int) -> int:
    """Return how many images fit the regression, and how many others choose the magnitude."""
    return min(IMAGES, labelled // 2)


def work(labelled: int) -> int:
    """Return how many images :func:`learn_stages` works on."""
    return labelled + 2 * images_a_side(labelled)


def _gaussians(
    network: Network,
    stages: Mapping[str, str],
    labels: NDArray[np.int64],
    read: Read,
    advance: Callable[[int], None],
) -> tuple[NDArray[np.int64], dict[str, ClassGaussians]]:
    """Return the places that could be read, and each stage's Gaussians on the device."""
    found: list[NDArray] = []
    features: dict[str, list[Tensor]] = {stage: [] for stage in stages}
    for places, batch in read(np.flatnonzero(labels >= 0)):
        images = batch.to(network.device)
        with (
            memory_for(images),
            torch.inference_mode(),
            observe_stages(network.model, stages, images) as seen,
        ):
            network(images)
        found.append(places)
        for stage, parts in features.items():
            parts.append(seen[stage].cpu())
        advance(len(places))
    if not found:
        return np.empty(0, np.int64), {}
    places = np.concatenate(found)
    known = torch.from_numpy(labels[places])
    fitted = {stage: fit_gaussians(torch.cat(parts), known) for stage, parts in features.items()}
    return places, {stage: known.to(network.device) for stage, known in fitted.items()}


def _confidences(
    network: Network,
    stages: Mapping[str, str],
    gaussians: Mapping[str, ClassGaussians],
    labels: NDArray[np.int64],
    batches: Iterator[tuple[NDArray[np.int64], Tensor]],
    advance: Callable[[int], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return confidences of images and of their FGSM images, each ``[magnitudes, n, stages]``."""
    sides: tuple[list[NDArray], list[NDArray]] = ([], [])
    for places, batch in batches:
        images = batch.to(network.device)
        with memory_for(images):
            adversarial = fgsm(network, images, torch.from_numpy(labels[places]), FGSM_STEP)
            for side, x in zip(sides, (images, adversarial), strict=True):
                asked = stage_confidences(network, stages, gaussians, x, MAGNITUDES)
                side.append(asked.cpu().numpy())
        advance(len(places))
    clean, adversarial = (np.concatenate(side, axis=1) for side in sides)
    return clean, adversarial


def _regression(clean: NDArray, adversarial: NDArray) -> tuple[NDArray, NDArray]:
    """Return weight ``[stages]`` and bias ``[1]`` of the log-odds of being adversarial."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = np.concatenate([clean, adversarial])
    is_ood = np.repeat([0, 1], [len(clean), len(adversarial)])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(x), is_ood)
    weight = model.coef_[0] / scaler.scale_
    return weight, model.intercept_ - weight @ scaler.mean_
