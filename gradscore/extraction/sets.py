"""The sets of an extraction: opened, and checked against the model's classes before any image."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from gradscore.data import ImageSet, first_readable, open_set
from gradscore.errors import DataError, NotRecorded
from gradscore.extraction.settings import Settings
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import SetInfo

LABELLED = ("id", "fit")
"""Roles of sets whose folders mean classes, and whose labels must be the model's."""
GROWTH = 3
"""Images that are enlarged so many times are reported."""
LOOKED_AT = 3


@dataclass(frozen=True)
class Opener:
    """Opens sets for a model.

    Attributes:
        class_names: The names of its classes, where they are known.
        classes: Their number.
        max_pixels: Pictures of more are refused; None leaves Pillow's own limit.
    """

    class_names: Sequence[str] | None
    classes: int
    max_pixels: int | None

    def __call__(self, source: object, role: str | None, limit: int | None = None) -> ImageSet:
        """Return a set of images, at most ``limit`` of them.

        Raises:
            DataError: If it cannot be opened.
        """
        return open_set(
            source,
            class_names=self.class_names,
            classes=self.classes,
            labelled=role in LABELLED,
            limit=limit,
            max_pixels=self.max_pixels,
        )


def first_image(settings: Settings, preprocessing: Preprocessing) -> Tensor:
    """Return an image of the first set that can be opened, ``[1, channels, height, width]``.

    Raises:
        DataError: If no image of any set can be read; what was wrong with the first.
    """
    failure: DataError | None = None
    for _, source in settings.sets.values():
        try:
            images = open_set(source, labelled=False, max_pixels=settings.max_pixels)
            return first_readable(images, preprocessing)
        except DataError as error:
            failure = failure or error
    assert failure is not None, "there is at least one set"
    raise failure


def open_sets(
    settings: Settings, opener: Opener, recorded: Container[str] = ()
) -> tuple[dict[str, ImageSet], list[str]]:
    """Open every set; the labels of ID sets and of sets to fit to must be the model's classes.

    A set that a run holds already may have vanished since: it does not keep the others waiting.

    Args:
        settings: What the extraction is asked.
        opener: Opens one set.
        recorded: Names of the sets that the run holds.

    Returns:
        The images by set name, and what was wrong with those left out.

    Raises:
        DataError: If none can be opened, or a new one cannot, or such a set has labels beyond the
            classes.
    """
    opened: dict[str, ImageSet] = {}
    faults: dict[str, str] = {}
    for name, (role, source) in settings.sets.items():
        try:
            opened[name] = opener(source, role, settings.limit_of(name))
        except DataError as error:
            if name not in recorded:
                raise
            faults[name] = str(error)
    if not opened:
        raise DataError(" ".join(f"Set {name}: {fault}" for name, fault in faults.items()))
    for name, images in opened.items():
        if settings.sets[name][0] in LABELLED:
            check_labels(name, images, opener.classes)
    return opened, [f"Set {name} was left out: {fault}" for name, fault in faults.items()]


def open_fit_set(
    name: str, opened: Mapping[str, ImageSet], recorded: Mapping[str, SetInfo], opener: Opener
) -> ImageSet:
    """Return the labelled images to fit to: of the sets given, or of the run's.

    Args:
        name: The set's name.
        opened: The sets given.
        recorded: The sets that the run holds.
        opener: Opens another.

    Raises:
        NotRecorded: If there is no such set.
        DataError: If it has no label, or others than the model's classes.
    """
    images = opened.get(name)
    if images is None:
        if name not in recorded:
            raise NotRecorded(
                f"Unknown set {name!r} to fit to; give its images, too, as a set of that name."
            )
        entry = recorded[name]
        images = opener(entry.source, entry.role, entry.rows)
    if images.labels.max() < 0:
        raise DataError(
            f"Method mahalanobis learns from labels, but no image of set {name!r} has one; give a "
            "list with labels."
        )
    check_labels(name, images, opener.classes)
    return images


def check_labels(name: str, images: ImageSet, classes: int) -> None:
    """Raise where a label is none of the model's classes.

    Raises:
        DataError: Naming the first such image, and how many there are.
    """
    beyond = images.labels >= classes
    if beyond.any():
        place, known = int(beyond.argmax()), images.labels[images.labels >= 0]
        from_one = known.min() == 1 and known.max() == classes
        hint = (
            " They seem to count from 1: number the folders from 0, or give a list (path,label) "
            "that does."
        )
        hint = hint if from_one else ""
        raise DataError(
            f"Expected labels of 0 to {classes - 1} in set {name!r}, got {images.labels[place]} "
            f"({images.paths[place]}); {int(beyond.sum()):,} of {len(images):,} images are "
            f"beyond.{hint}"
        )


def set_notices(
    opened: Mapping[str, ImageSet],
    roles: Mapping[str, str | None],
    preprocessing: Preprocessing,
    classes: int,
) -> Iterator[str]:
    """Yield what the user should know of sets before the first image, in sentences.

    Args:
        opened: The images by set name.
        roles: The sets' roles by name.
        preprocessing: From pictures to the model's input.
        classes: The number of the model's classes.
    """
    for name, images in opened.items():
        if "~" in name:
            continue
        yield f"{name}: {_described(images, classes, roles[name] in LABELLED)}"
        yield from _growth(name, images, preprocessing)


def _described(images: ImageSet, classes: int, of_model: bool) -> str:
    """Return how many images a set has, of which classes, and its notice.

    Args:
        images: The set.
        classes: The number of the model's classes.
        of_model: Whether the labels are the model's classes.
    """
    labels = images.labels
    unknown, beyond = int((labels < 0).sum()), int((labels >= classes).sum())
    if unknown == len(labels):
        labelled = "none with a label"
    else:
        found = len(np.unique(labels[labels >= 0]))
        some = of_model and found < classes
        labelled = (
            f"{found:,} of the model's {classes:,} classes" if some else f"{found:,} classes"
        )
        labelled += f", {unknown:,} without a label" if unknown else ""
        labelled += f", {beyond:,} with labels beyond the model's {classes}" if beyond else ""
    noun = "image" if len(labels) == 1 else "images"
    notice = f"; {images.notice}" if images.notice else ""
    return f"{len(labels):,} {noun}, {labelled}{notice}."


def _growth(name: str, images: ImageSet, preprocessing: Preprocessing) -> Iterator[str]:
    """Yield that the first image that can be read grows several times, or is padded."""
    target, crop = preprocessing.resize, preprocessing.crop
    picture = _first(images)
    if picture is None:
        return
    height, width = picture.shape[1:] if isinstance(picture, np.ndarray) else picture.size[::-1]
    if target is None:
        rows, columns = crop if isinstance(crop, tuple) else (crop or 0, crop or 0)
        if rows > height or columns > width:
            yield (
                f"{name}: images of {height} x {width} pixels are padded with black to the crop "
                f"of {rows} x {columns}; `preprocessing={{'resize': S}}` scales them."
            )
        return
    short = target if isinstance(target, int) else min(target)
    if short >= GROWTH * min(height, width):
        factor, side = short / min(height, width), min(height, width)
        yield (
            f"{name}: images of {height} x {width} pixels are enlarged {factor:.3g} times; if the "
            "model learned from images of that size, give "
            f"`preprocessing={{'resize': {side}, 'crop': {side}}}`."
        )


def _first(images: ImageSet) -> Any:
    for place in range(min(LOOKED_AT, len(images))):
        try:
            return images[place]
        except DataError:
            continue
    return None
