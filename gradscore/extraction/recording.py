"""What ``--record`` asks for: which passes methods read, and what has to be learned for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.data import Batch, ImageSet, decoding_processes, load_batches
from gradscore.errors import DataError, InvalidArgument, NotRecorded
from gradscore.extraction.batching import AUTO
from gradscore.extraction.identity import require_equal
from gradscore.extraction.network import Network
from gradscore.extraction.opening import Opener, check_labels
from gradscore.extraction.progress import Progress, piece_of_work
from gradscore.extraction.stage_fit import (
    IMAGES,
    StageFit,
    images_a_side,
    learn_stages,
    settings,
    work,
)
from gradscore.layers.stages import find_stages
from gradscore.models.preprocessing import Preprocessing
from gradscore.objective import check_epsilon
from gradscore.run import (
    FitInfo,
    RunStore,
    describe_fit,
    mahalanobis_name,
)
from gradscore.run.layout import RUN_FILE

RECORDED = ("odin", "mahalanobis")
"""Methods with a pass of their own."""
FITTING_BATCH = 64
"""Images at once where the batch size is to be found by trying, which a fit does not."""


def check_recording(
    record: str | Sequence[str], epsilon: Sequence[float], fit: str | None
) -> None:
    """Raise where the methods to record, or their options, are amiss.

    Raises:
        InvalidArgument: If a method is unknown, lacks its option, or an option has no method.
    """
    methods = [record] if isinstance(record, str) else record
    for method in methods:
        if method not in RECORDED:
            raise InvalidArgument(f"Expected record {' or '.join(RECORDED)}, got {method!r}.")
    if epsilon and "odin" not in methods:
        raise InvalidArgument(
            f"Expected epsilon with record odin only, got {epsilon[0]}; add `record='odin'`."
        )
    if fit is not None and "mahalanobis" not in methods:
        raise InvalidArgument(
            f"Expected fit with record mahalanobis only, got {fit!r}; add `record='mahalanobis'`."
        )
    if "odin" in methods and not (epsilon and all(check_epsilon(e) for e in epsilon)):
        raise InvalidArgument(
            f"Expected epsilon > 0 to record odin with, got {', '.join(map(str, epsilon)) or None}"
            "; without perturbation the logits of every run answer it, with it give `epsilon=E`."
        )
    if "mahalanobis" in methods and fit is None:
        raise InvalidArgument(
            "Expected a labelled ID set to fit to, to record mahalanobis with, got none; "
            "name it with `fit='SET'`."
        )


def open_fit_set(
    run: Path,
    name: str,
    opened: Mapping[str, ImageSet],
    opener: Opener,
) -> ImageSet:
    """Return the labelled images to fit to: of the sets given, or of the run's.

    Args:
        run: The run's directory.
        name: The set's name.
        opened: The sets given.
        opener: Opens another.

    Raises:
        NotRecorded: If there is no such set.
        DataError: If it has no label, or others than the model's classes.
    """
    images = opened.get(name)
    if images is None:
        known = RunStore(run).sets if (run / RUN_FILE).exists() else {}
        if name not in known:
            raise NotRecorded(
                f"Unknown set {name!r} to fit to; give its images, too, as a set of that name."
            )
        entry = known[name]
        images = opener(entry.source, entry.role, entry.rows)
    if images.labels.max() < 0:
        raise DataError(
            f"Method mahalanobis learns from labels, but no image of set {name!r} has one; give a "
            "list with labels."
        )
    check_labels(name, images, opener.classes)
    return images


@dataclass(frozen=True)
class Reader:
    """Reads chosen images of a set in batches.

    Attributes:
        images: The set.
        preprocessing: From pictures to the model's input.
        shape: What every preprocessed image must have.
        batch_size: Images at once, or ``auto``.
        workers: Processes that decode.
        skip: Whether images that cannot be read are left out instead of ending the work.
    """

    images: ImageSet
    preprocessing: Preprocessing
    shape: tuple[int, ...]
    batch_size: int | str
    workers: int
    skip: bool

    def __call__(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Yield places and images of those that can be read.

        Raises:
            DataError: If one cannot be read and such are not skipped.
        """
        size = FITTING_BATCH if self.batch_size == AUTO else self.batch_size
        single = [(place, place + 1) for place in places.tolist()]
        loader = load_batches(
            self.images, self.preprocessing, single, shape=self.shape, workers=self.workers
        )
        waiting: list[Batch] = []
        for number, batch in enumerate(loader, start=1):
            if batch.failed and not self.skip:
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
    store: RunStore, network: Network, image: Tensor, name: str, read: Reader, progress: Progress
) -> tuple[FitInfo, StageFit]:
    """Return what Mahalanobis learns from a set of the run; learned once, then read.

    Args:
        store: The run, open for writing, with the set in it.
        network: The classifier.
        image: One preprocessed image on its device, shape ``[1, channels, height, width]``.
        name: Name of the set.
        read: Reads its images.
        progress: Is told how far the work has come.

    Raises:
        ModelError: If the network has no stages to tell apart.
        DataError: If too few images can be read.
        RunError: If the run was recorded with another fit, or the fit is damaged or cannot be
            written.
    """
    stages = find_stages(network.model, network.head, torch.cat([image, image.flip(-1)]))
    entry = describe_fit(store.info, "mahalanobis_stages", [name], settings(stages))
    known = store.info.passes.get(mahalanobis_name(name))
    if known is not None:  # before the work, not after it
        require_equal(f"Pass {known.name} of the run", "fit", known.details["fit"], entry.name)
    arrays = store.read_fit(entry.name)
    if arrays is not None:
        return store.info.fits[entry.name], StageFit.from_arrays(stages, arrays)
    labels = read.images.labels
    labelled = int((labels >= 0).sum())
    with decoding_processes(), piece_of_work(progress, work(labelled), f"fit {name}"):
        learned = learn_stages(network, stages, labels, read, progress.advance)
    if labelled < 2 * IMAGES:
        half = images_a_side(labelled)
        entry.notice = (
            f"{labelled} labelled images, fewer than {2 * IMAGES}: {half} fit the regression and "
            f"{half} choose the magnitude"
        )
    store.write_fit(entry, learned.arrays())
    return entry, learned
