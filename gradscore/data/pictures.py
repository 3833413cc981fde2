"""Pictures of 8 bits, grey or RGB, from image files and what else holds them.

Anything doubtful is refused by name. A reader fetches the pictures of a set one by one; it can be
sent to worker processes.
"""

import hashlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gradscore.errors import DataError, reason_of
from gradscore.files import SCARCE, read_regular

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded here; others, such as EPS, would run further programs."""
LARGEST_FILE = 1 << 29
"""Bytes of an image file: more than the most pixels in any of these formats."""
Picture = Image.Image | NDArray[np.float32]
_replacing = threading.RLock()


class UnknownScale(ValueError):
    """A picture's values have no known black and white."""

    def __init__(self, expected_and_got: str) -> None:
        super().__init__(
            f"expected {expected_and_got}; store it with 8 bits a channel, or the set as an .npz "
            "of floats from 0 (black) to 1 (white)."
        )


_open = Image.open
Image.init()  # registers the formats that PIL does not load by itself


def decode_image(content: bytes, name: str) -> Image.Image:
    """Return the picture in an image file's bytes.

    The orientation that a camera recorded is applied. 16-bit grey is scaled to 8 bits (PIL alone
    would clip it), an alpha channel is dropped, palettes and CMYK become RGB.

    Args:
        content: The file's bytes.
        name: What an error calls the image.

    Returns:
        A picture of mode ``L`` or ``RGB``.

    Raises:
        DataError: If it is no image, truncated, damaged, of more than ``Image.MAX_IMAGE_PIXELS``
            pixels, or of a mode without a known scale (floating point).
    """
    # A library may have been built without some of them.
    known = [kind for kind in FORMATS if kind in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is an error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(io.BytesIO(content), formats=known) as picture:
                picture.load()
                ImageOps.exif_transpose(picture, in_place=True)
                return _eight_bits(picture)
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: not an image ({', '.join(FORMATS)}).") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name}: expected an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got "
            f"{_pixels_of(error)}; `max_pixels=N` raises the limit, where the file can be trusted."
        ) from None
    except UnknownScale as error:
        raise DataError(f"{name}: {error}") from None
    except MemoryError:  # says nothing about the image
        raise
    except Exception as error:  # each decoder has its own kinds for a damaged file
        raise DataError(f"{name}: damaged image: {reason_of(error).rstrip('.')}.") from error


def read_image_file(path: str | os.PathLike) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DataError: If it cannot be read, is no regular file, or is too large.
        OSError: If the machine lacks what it takes, which says nothing about the file.
    """
    try:
        return read_regular(path, LARGEST_FILE)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        raise DataError(f"{os.fspath(path)}: cannot be read: {error.strerror}.") from None


def load_image(path: str | os.PathLike) -> Image.Image:
    """Return the picture in an image file, of mode ``L`` or ``RGB``.

    Raises:
        DataError: As :func:`read_image_file` and :func:`decode_image` do.
    """
    return decode_image(read_image_file(path), os.fspath(path))


@contextmanager
def decoding_here() -> Iterator[None]:
    """Have ``PIL.Image.open`` decode as :func:`decode_image` does.

    Libraries' data sets call it with the formats that PIL knows, some of which start programs;
    most of them take no other loader.
    """

    def opened(source: Any, mode: str = "r", formats: Any = None) -> Image.Image:
        if hasattr(source, "read"):
            content = source.read(LARGEST_FILE)
            return decode_image(content, str(getattr(source, "name", "an image")))
        return load_image(source)

    with _replacing:
        theirs = Image.open
        Image.open = opened
        try:
            yield
        finally:
            Image.open = theirs


@contextmanager
def pixels_up_to(limit: int | None) -> Iterator[None]:
    """Have pictures of up to ``limit`` pixels decoded; None leaves Pillow's own limit."""
    if limit is None:
        yield
        return
    with _replacing:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _pixels_of(error: Exception) -> str:
    """Return the number of pixels that Pillow's message about too many of them names."""
    found = re.search(r"\((\d+) pixels\)", str(error))
    return found[1] if found else "more"


def _eight_bits(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode in ("L", "RGB"):
        return picture
    if mode.startswith("I"):
        values = np.asarray(picture)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise UnknownScale(f"values of 16 bits, got {values.min()} to {values.max()}")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if mode == "F":
        low, high = picture.getextrema()
        raise UnknownScale(
            f"8 or 16 bits a channel, got floating point of {low:.4g} to {high:.4g}"
        )
    if mode in ("1", "LA", "La"):
        return picture.convert("L")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


class Reader(Protocol):
    """Fetches images by their place in the set."""

    def read(self, place: int) -> Picture:
        """Return a picture (``L`` or ``RGB``), or a float array ``[channels, height, width]``.

        Raises:
            DataError: If it cannot be read; the message names it.
        """
        ...


class Files:
    """Image files below a folder; each is checked against its SHA-256 where the list has one.

    Args:
        root: The folder.
        paths: Paths below it.
        sha256: Digest of each, or empty.
        inside: Whether links that lead out of the folder are refused.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[str],
        sha256: Sequence[str] = (),
        *,
        inside: bool = False,
    ) -> None:
        self.root, self.paths, self.sha256, self.inside = root, paths, sha256, inside

    def read(self, place: int) -> Image.Image:
        """Return the picture in a file."""
        path = self.root / self.paths[place]
        if self.inside and os.path.islink(path):
            top = os.path.join(os.path.realpath(self.root), "")
            if not os.path.realpath(path).startswith(top):
                raise DataError(
                    f"{path}: expected a file inside {self.root}, got a link out of it."
                )
        content = read_image_file(path)
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256[place]:
            raise DataError(f"{path}: its SHA-256 is not the one in the manifest.")
        return decode_image(content, str(path))


class Pictures:
    """Grey pictures held in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def read(self, place: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self.images[place])


class Items:
    """Items of a dataset ``[i] -> (image, label)``, as torchvision's are."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def read(self, place: int) -> Image.Image:
        """Return one item's picture."""
        try:
            with decoding_here():
                picture = self.dataset[place][0]
        except DataError:
            raise
        except Exception as error:  # each dataset has its own kinds
            raise DataError(f"{self.name}/{place}: cannot be read: {error}") from error
        if not isinstance(picture, Image.Image):
            kind = type(picture).__name__
            raise DataError(f"{self.name}/{place}: expected a picture, got {kind}.")
        return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


@dataclass(frozen=True)
class Opened:
    """The images of a source.

    Attributes:
        paths: A name for each image.
        labels: Class numbers ``[n]``, int64, -1 unknown; None where the source has none.
        reader: What fetches an image.
        contents: What identifies the content of each image, or empty.
        whole: What identifies the content of all of them together.
        notices: What the user should know, a clause each.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64] | None
    reader: Reader
    contents: Sequence[str] = ()
    whole: Sequence[str] = ()
    notices: Sequence[str] = ()
