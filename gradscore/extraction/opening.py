"""The sets of an extraction: opened, held to the model's classes, and told of before any image."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gradscore.data import ImageSet, open_set
from gradscore.errors import DataError
from gradscore.extraction.identity import Subject, require_equal
from gradscore.models.class_names import known_class_names
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import RunStore, SetInfo

Sets = Mapping[str, tuple[str | None, str | os.PathLike]]
LABELLED = ("id", "fit")
"""Roles of sets whose folders mean classes, and whose labels must be the model's."""
GROWTH = 3
"""Images that are enlarged so many times are told of."""
LOOKED_AT = 3
CHANGEABLE = ("resize", "crop", "mean", "std", "interpolation")


def open_sets(
    sets: Sets,
    limit: int | Mapping[str, int] | None,
    subject: Subject,
    classes: int,
    max_pixels: int | None,
) -> dict[str, ImageSet]:
    """Open every set; the labels of ID sets and of sets to fit to must be the model's classes.

    Args:
        sets: Set name to ``(role, source)``.
        limit: How many images to take of each set, or of each by name.
        subject: The model.
        classes: The number of its classes.
        max_pixels: Pictures of more are refused; None leaves Pillow's own limit.

    Raises:
        DataError: If a set cannot be opened, or such a set has labels beyond the classes.
    """
    limits = limit if isinstance(limit, Mapping) else dict.fromkeys(sets, limit)
    names = known_class_names(subject.model, classes)
    opened = {
        name: open_set(
            source,
            class_names=names,
            classes=classes,
            labelled=role in LABELLED,
            limit=limits.get(name),
            max_pixels=max_pixels,
        )
        for name, (role, source) in sets.items()
    }
    for name, (role, _) in sets.items():
        if role in LABELLED:
            check_labels(name, opened[name], classes)
    return opened


def check_labels(name: str, images: ImageSet, classes: int) -> None:
    """Raise where a label is none of the model's classes.

    Raises:
        DataError: Naming the first such image, and how many there are.
    """
    beyond = images.labels >= classes
    if beyond.any():
        place, known = int(beyond.argmax()), images.labels[images.labels >= 0]
        from_one = known.min() == 1 and known.max() == classes
        hint = " They seem to count from 1; give a list that counts from 0." if from_one else ""
        raise DataError(
            f"Expected labels of 0 to {classes - 1} in set {name!r}, got {images.labels[place]} "
            f"({images.paths[place]}); {int(beyond.sum()):,} of {len(images):,} images are "
            f"beyond.{hint}"
        )


def what_to_know(subject: Subject, opened: Mapping[str, ImageSet], classes: int) -> Iterator[str]:
    """Yield what the user should know before the first image, in sentences.

    Args:
        subject: The model, and what images undergo.
        opened: The sets.
        classes: The number of the model's classes.
    """
    if subject.spec.startswith("python:"):
        fields = subject.preprocessing.to_dict()
        how = ", ".join(f"{name} {fields[name]}" for name in CHANGEABLE)
        assumed = "; what was not given is ImageNet's, as the model has no `preprocessing`"
        yield (
            f"{subject.spec}: {how}{assumed if subject.assumed else ''}; --resize, --crop, "
            "--mean, --std and --interpolation change it."
        )
    for name, images in opened.items():
        yield f"{name}: {_described(images, classes)}"
        yield from _growth(name, images, subject.preprocessing)


def _described(images: ImageSet, classes: int) -> str:
    """Return how many images a set has, of which classes, and its notice."""
    labels = images.labels
    unknown, beyond = int((labels < 0).sum()), int((labels >= classes).sum())
    if unknown == len(labels):
        told = "none with a label"
    else:
        told = f"{len(np.unique(labels[labels >= 0])):,} classes"
        told += f", {unknown:,} without a label" if unknown else ""
        told += f", {beyond:,} with labels beyond the model's {classes}" if beyond else ""
    noun = "image" if len(labels) == 1 else "images"
    notice = f"; {images.notice}" if images.notice else ""
    return f"{len(labels):,} {noun}, {told}{notice}."


def _growth(name: str, images: ImageSet, preprocessing: Preprocessing) -> Iterator[str]:
    """Yield that the first image that can be read grows several times, where it does."""
    target = preprocessing.resize
    picture = _first(images)
    if target is None or picture is None:
        return
    height, width = picture.shape[1:] if isinstance(picture, np.ndarray) else picture.size[::-1]
    short = target if isinstance(target, int) else min(target)
    if short >= GROWTH * min(height, width):
        factor, side = short / min(height, width), min(height, width)
        yield (
            f"{name}: images of {height} x {width} pixels are enlarged {factor:.3g} times; if the "
            f"model learned from images of that size, give --resize {side} --crop {side}."
        )


def _first(images: ImageSet) -> Any:
    for place in range(min(LOOKED_AT, len(images))):
        try:
            return images[place]
        except DataError:
            continue
    return None


def agree_on_set(store: RunStore, name: str, role: str | None, images: ImageSet) -> None:
    """Add a set to the run, or hold it to the one that is there.

    More images are taken on where the run's are the first of them, as under a larger limit.

    Raises:
        RunError: If the set there differs in role, number of images or list.
    """
    known = store.sets.get(name)
    if known is None:
        store.add_set(
            SetInfo(name, role, images.source, images.sha256, len(images), images.notice)
        )
        return
    what = f"Set {name} of the run"
    require_equal(what, "role", known.role, role)
    longer = known.rows < len(images)
    if longer and images.beginning_sha256(known.rows) == known.manifest_sha256:
        known.rows, known.manifest_sha256 = len(images), images.sha256
        known.notice = images.notice
        return
    require_equal(what, "rows", known.rows, len(images))
    require_equal(what, "manifest_sha256", known.manifest_sha256, images.sha256)
