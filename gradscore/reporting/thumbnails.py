"""Small copies of a set's images, read where the run says that they are.

A run may come from someone else. Its sources are opened by the readers of extractions: regular
files of bounded size, decoded by Pillow's plain formats. What could do more than read, such as a
library's data set, is opened only where the user names it. Pixels alone are kept: no metadata of
a file reaches the page.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gradscore.data import ImageSet
from gradscore.data.pictures import Files, Picture
from gradscore.errors import DataError, RunError
from gradscore.extraction.sets import Opener
from gradscore.run import ROLE_OPTIONS, RunInfo, SetInfo
from gradscore.run.hints import require_openable
from gradscore.run.names import ARRAYS

SIDE = 128
"""Pixels along the longer side, at most."""
SMALL = 64
"""Pictures up to this side are kept as they are, without loss."""
QUALITY = 80
GONE = "moved or removed"
CHANGED = (
    "The list of these images has changed since it was recorded. The images below have the "
    "recorded names; whether they still are the same nobody knows."
)


@dataclass(frozen=True)
class Thumbnail:
    """One image of a set, or why it cannot be shown.

    Attributes:
        address: The image as a ``data:`` address, or empty.
        reason: Why there is none, or empty.
        small: Whether it is so small that its pixels are shown as squares.
    """

    address: str = ""
    reason: str = ""
    small: bool = False


@dataclass(frozen=True)
class Source:
    """Where the images of a set are read from.

    Attributes:
        images: The images, or None where they are files below ``folder``, or not to be had.
        places: Name of an image to its place, where the list is another than the recorded one.
        folder: Where the files are.
        notice: What the reader should know, or empty.
    """

    images: ImageSet | None = None
    places: Mapping[str, int] | None = None
    folder: Path | None = None
    notice: str = ""

    def thumbnail(self, index: int, path: str) -> Thumbnail:
        """Return the small copy of an image.

        Args:
            index: Its place in the recorded list.
            path: Its name there.
        """
        if self.folder is None and self.images is None:
            return Thumbnail(reason="not found")
        try:
            if self.folder is not None:
                return make_thumbnail(_below(self.folder, path))
            place = index if self.places is None else self.places.get(path)
            if place is None:
                return Thumbnail(reason=GONE)
            return make_thumbnail(self.images[place])
        except DataError as error:
            return Thumbnail(reason=str(error).removeprefix(f"{path}: "))


def open_source(about: RunInfo, run: Path, entry: SetInfo, moved: str | None = None) -> Source:
    """Return where the images of a set are now.

    Args:
        about: What the run says of its model.
        run: The run's directory.
        entry: The set.
        moved: Where the user says that they are; None takes what the run says.
    """
    source = entry.source if moved is None else moved
    opener = Opener(about.class_names, about.classes, None)
    if about.model == ARRAYS:
        return _beside_arrays(opener, entry, moved)
    if moved is None and _is_gone(source):
        return Source(
            notice=f"The images are not at {source!r} any more. Say where they are: "
            f"{ROLE_OPTIONS[None]} {entry.name}=PATH."
        )
    try:
        if moved is None:
            require_openable(run, entry, "--data")
        if os.path.isdir(source):
            return Source(folder=Path(source))  # not listed: only what is shown is looked for
        images = opener(source, entry.role, entry.rows)
        if images.sha256 == entry.manifest_sha256:
            return Source(images)
        images = opener(source, entry.role)
    except (DataError, RunError) as error:
        hint = "" if moved is not None else _hint(entry, source)
        return Source(notice=f"{error}{hint}")
    places = {path: place for place, path in enumerate(images.paths)}
    return Source(images, places, notice="" if moved is not None else CHANGED)


def _beside_arrays(opener: Opener, entry: SetInfo, moved: str | None) -> Source:
    """Return the images of a set that came as arrays: only the user knows where they are."""
    if moved is None:
        option = f"{ROLE_OPTIONS[None]} {entry.name}=PATH"
        return Source(
            notice="These features came without images. Say where the images are, in the same "
            f"order: {option}."
        )
    try:
        images = opener(moved, entry.role)
    except DataError as error:
        return Source(notice=str(error))
    if len(images) != entry.rows:
        return Source(
            notice=f"Expected {entry.rows:,} images in the order of the features, got "
            f"{len(images):,} in {moved!r}."
        )
    return Source(images)


def _below(folder: Path, path: str) -> Picture:
    """Return the picture in a file below a folder.

    Raises:
        DataError: If the name leads elsewhere, or the file is gone or no picture.
    """
    if os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
        raise DataError("its name leads out of the folder")
    if not os.path.lexists(folder / path):
        raise DataError(GONE)
    return Files(folder, [path]).read(0)


def make_thumbnail(picture: Picture) -> Thumbnail:
    """Return a small copy of a picture.

    Args:
        picture: Of mode ``L`` or ``RGB``, or floats ``[channels, height, width]`` in 0..1.
    """
    if isinstance(picture, np.ndarray):
        picture = _of_floats(picture)
    small = max(picture.size) <= SMALL
    if not small:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    # A new picture of the pixels alone: profiles and comments of the file stay behind.
    plain = Image.fromarray(np.asarray(picture))
    file = io.BytesIO()
    if small:
        plain.save(file, "PNG", optimize=True)
    else:
        plain.save(file, "JPEG", quality=QUALITY, optimize=True)
    kind = "png" if small else "jpeg"
    text = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{text}", small=small)


def _of_floats(values: np.ndarray) -> Image.Image:
    eight = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    if len(eight) < 3:
        return Image.fromarray(np.ascontiguousarray(eight[0]))
    return Image.fromarray(np.ascontiguousarray(eight[:3].transpose(1, 2, 0)))


def _is_gone(source: str) -> bool:
    """Say whether a source is the plain path of what is not there."""
    return os.path.isabs(source) and not set("@#{*") & set(source) and not os.path.exists(source)


def _hint(entry: SetInfo, source: str) -> str:
    if ":" in source.partition(os.sep)[0]:
        return ""
    relative = "" if os.path.isabs(source) else " (from the folder that extract ran in)"
    option = ROLE_OPTIONS[None]
    return f" Looked in {source!r}{relative}; say where they are: {option} {entry.name}=PATH."


def check_moved(names: Sequence[str], moved: Mapping[str, str]) -> None:
    """Raise where the user says where images of an unknown set are.

    Raises:
        DataError: Naming the set, and those that there are.
    """
    for name in moved:
        if name not in names:
            raise DataError(
                f"Expected the images of a set of the run ({', '.join(names) or 'none'}), got "
                f"{name!r}."
            )
