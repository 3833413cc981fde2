"""Mahalanobis over all stages, learned from labelled ID images (Lee et al., NeurIPS 2018).

As Huang, Geng & Li compare with it: one set of class Gaussians a stage; 500 images and their FGSM
images fit the logistic regression that combines the stages, 500 others choose the magnitude of the
input perturbation. No OOD image is seen.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.choices import AUTO
from gradscore.data import Batch, ImageSet, decoding_processes, load_batches
from gradscore.errors import DataError
from gradscore.extraction.classifier import Classifier, memory_for
from gradscore.extraction.probes import StageFit, fgsm, stage_confidences
from gradscore.extraction.settings import Settings
from gradscore.gaussians import ClassGaussians, fit_gaussians
from gradscore.layers.features import find_stages, observe_stages
from gradscore.metrics import fpr95
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import FitInfo, RunStore, describe_fit, mahalanobis_name
from gradscore.run.identity import require_equal
from gradscore.run.parts import shared_fit

MAGNITUDES = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.005, 0.01)
FGSM_STEP = 0.05
IMAGES = 500
"""Images that fit the regression, and as many others that choose the magnitude."""
SEED = 0
FITTING_BATCH = 64
"""Images at once where the batch size is to be found by trying, which a fit does not."""

Read = Callable[[NDArray[np.int64]], Iterator[tuple[NDArray[np.int64], Tensor]]]
"""From places in a set to batches of places and images, those that can be read."""


def fit_settings(stages: Mapping[str, str]) -> dict[str, Any]:
    """Return what a fit depends on beside the labelled set."""
    return {
        "stages": dict(stages),
        "magnitudes": list(MAGNITUDES),
        "fgsm_step": FGSM_STEP,
        "images": IMAGES,
        "seed": SEED,
    }


def learn_stages(
    classifier: Classifier,
    stages: Mapping[str, str],
    labels: NDArray[np.int64],
    read: Read,
    advance: Callable[[int], None],
) -> StageFit:
    """Return the Gaussians, the regression and the magnitude that labelled ID images give.

    Args:
        classifier: The classifier.
        stages: Stage to the module whose output it is.
        labels: Class of each image of the set, -1 where unknown, shape ``[n]``.
        read: Reads images of the set.
        advance: Is told how many images were worked on; up to :func:`work`.

    Raises:
        DataError: If fewer than two images with a label can be read.
    """
    places, gaussians = _gaussians(classifier, stages, labels, read, advance)
    if len(places) < 2:
        raise DataError(f"Expected at least 2 labelled images to fit to, got {len(places)}.")
    drawn = np.random.default_rng(SEED).permutation(places)
    count = images_a_side(len(places))
    sides = [np.sort(drawn[:count]), np.sort(drawn[count : 2 * count])]
    fitting, choosing = (
        _confidences(classifier, stages, gaussians, labels, read(side), advance) for side in sides
    )
    regressions = [_regression(*pair) for pair in zip(*fitting, strict=True)]
    rates = [
        fpr95(*(-(side @ weight + bias) for side in pair))
        for (weight, bias), pair in zip(regressions, zip(*choosing, strict=True), strict=True)
    ]
    weight, bias = regressions[int(np.argmin(rates))]
    on_host = {stage: fitted.to("cpu") for stage, fitted in gaussians.items()}
    return StageFit(stages, on_host, weight, bias, MAGNITUDES, np.array(rates))


def images_a_side(labelled: int) -> int:
    """Return how many images fit the regression, and how many others choose the magnitude."""
    return min(IMAGES, labelled // 2)


def work(labelled: int) -> int:
    """Return how many images :func:`learn_stages` works on."""
    return labelled + 2 * images_a_side(labelled)


def _gaussians(
    classifier: Classifier,
    stages: Mapping[str, str],
    labels: NDArray[np.int64],
    read: Read,
    advance: Callable[[int], None],
) -> tuple[NDArray[np.int64], dict[str, ClassGaussians]]:
    """Return the places that could be read, and each stage's Gaussians on the device."""
    found: list[NDArray] = []
    features: dict[str, list[Tensor]] = {stage: [] for stage in stages}
    for places, batch in read(np.flatnonzero(labels >= 0)):
        images = batch.to(classifier.device)
        with (
            memory_for(images),
            torch.inference_mode(),
            observe_stages(classifier.model, stages, images) as seen,
        ):
            classifier(images)
        found.append(places)
        for stage, parts in features.items():
            parts.append(seen[stage].cpu())
        advance(len(places))
    if not found:
        return np.empty(0, np.int64), {}
    places = np.concatenate(found)
    known = torch.from_numpy(labels[places])
    fitted = {stage: fit_gaussians(torch.cat(parts), known) for stage, parts in features.items()}
    return places, {stage: known.to(classifier.device) for stage, known in fitted.items()}


def _confidences(
    classifier: Classifier,
    stages: Mapping[str, str],
    gaussians: Mapping[str, ClassGaussians],
    labels: NDArray[np.int64],
    batches: Iterator[tuple[NDArray[np.int64], Tensor]],
    advance: Callable[[int], None],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return confidences of images and of their FGSM images, each ``[magnitudes, n, stages]``."""
    sides: tuple[list[NDArray], list[NDArray]] = ([], [])
    for places, batch in batches:
        images = batch.to(classifier.device)
        with memory_for(images):
            adversarial = fgsm(classifier, images, torch.from_numpy(labels[places]), FGSM_STEP)
            for side, x in zip(sides, (images, adversarial), strict=True):
                asked = stage_confidences(classifier, stages, gaussians, x, MAGNITUDES)
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


@dataclass(frozen=True)
class LabelledImages:
    """Reads chosen images of the set to fit to in batches.

    Attributes:
        images: The set.
        preprocessing: From pictures to the model's input.
        shape: What every preprocessed image must have.
        settings: What the extraction is asked.
    """

    images: ImageSet
    preprocessing: Preprocessing
    shape: tuple[int, ...]
    settings: Settings

    def __call__(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield places and images of those that can be read.

        Raises:
            DataError: If one cannot be read and such are not skipped.
        """
        size = self.settings.batch_size
        size = FITTING_BATCH if size == AUTO else size
        single = [(place, place + 1) for place in places.tolist()]
        workers = self.settings.workers
        loader = load_batches(
            self.images, self.preprocessing, single, shape=self.shape, workers=workers
        )
        waiting: list[Batch] = []
        for number, batch in enumerate(loader, start=1):
            if batch.failed and not self.settings.skip:
                hint = "Leave such images out with `on_error='skip'`."
                raise DataError(f"{batch.failed[0][1]} {hint}")
            if len(batch.index):
                waiting.append(batch)
            if waiting and (len(waiting) == size or number == len(single)):
                yield (
                    torch.cat([one.index for one in waiting]).numpy(),
                    torch.cat([one.images for one in waiting]),
                )
                waiting = []


def fit_to(
    store: RunStore,
    classifier: Classifier,
    image: Tensor,
    read: LabelledImages,
) -> tuple[FitInfo, StageFit]:
    """Return what Mahalanobis learns from the set to fit to; learned once, then read.

    Args:
        store: The run, open for writing, with the set in it.
        classifier: The classifier.
        image: One preprocessed image on its device, shape ``[1, channels, height, width]``.
        read: The set.

    Raises:
        ModelError: If the network has no stages to tell apart.
        DataError: If too few images can be read.
        RunError: If the run was recorded with another fit, or the fit is damaged or cannot be
            written.
    """
    settings = read.settings
    name = settings.fit
    stages = find_stages(classifier.model, classifier.head, torch.cat([image, image.flip(-1)]))
    entry = describe_fit(store.info, "mahalanobis_stages", [name], fit_settings(stages))
    known = store.info.passes.get(mahalanobis_name(name))
    if known is not None:  # before the work, not after it
        require_equal(f"Pass {known.name} of the run", "fit", known.details["fit"], entry.name)
    arrays = store.read_fit(entry.name)
    if arrays is None and store.info.part is not None:
        # Parts that learned apart could differ in the last digit, and would not be one run.
        shared = shared_fit(settings.run, entry.name)
        if shared is not None:
            entry.notice, arrays = shared[0].notice, shared[1]
            store.write_fit(entry, arrays)
    if arrays is not None:
        return store.info.fits[entry.name], StageFit.from_arrays(stages, MAGNITUDES, arrays)
    labels = read.images.labels
    labelled = int((labels >= 0).sum())
    with decoding_processes(), settings.piece_of_work(work(labelled), f"fit {name}"):
        learned = learn_stages(classifier, stages, labels, read, settings.progress.advance)
    if labelled < 2 * IMAGES:
        half = images_a_side(labelled)
        entry.notice = (
            f"{labelled} labelled images, fewer than {2 * IMAGES}: {half} fit the regression and "
            f"{half} choose the magnitude"
        )
    store.write_fit(entry, learned.arrays())
    return entry, learned
