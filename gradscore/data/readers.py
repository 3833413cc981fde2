"""Where the images of a set lie, and how one is fetched; each can be sent to worker processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradscore.data.decode import LARGEST_FILE, decode_image, decoding_here, read_image_file
from gradscore.data.tar_members import open_archive, sound_members
from gradscore.errors import DataError
from gradscore.files import SCARCE, open_regular
from gradscore.numpy_files import load_npy, open_npz

Picture = Image.Image | NDArray[np.float32]


class Reader(Protocol):
    """Fetches images by their place in the set."""

    def read(self, place: int) -> Picture:
        """Return a picture (``L`` or ``RGB``), or a float array ``[channels, height, width]``.

        Raises:
            DataError: If it cannot be read; the message names it.
        """
        ...


class Files:
    """Image files below a folder, held to their SHA-256 where the list has it."""

    def __init__(self, root: Path, paths: Sequence[str], sha256: Sequence[str] = ()) -> None:
        self.root, self.paths, self.sha256 = root, paths, sha256

    def read(self, place: int) -> Image.Image:
        """Return the picture in a file."""
        path = self.root / self.paths[place]
        content = read_image_file(path)
        if self.sha256:
            import hashlib

            if hashlib.sha256(content).hexdigest() != self.sha256[place]:
                raise DataError(f"{path}: its SHA-256 is not the one in the manifest.")
        return decode_image(content, str(path))


class Pictures:
    """Grey pictures held in memory."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def read(self, place: int) -> Image.Image:
        """Return one picture."""
        return Image.fromarray(self.images[place])


class ArrayFile:
    """Images of an .npy, or of an array of an .npz: uint8, or floats in 0..1.

    Stored without compression they are read in place; compressed ones are held in memory, once a
    process.

    Args:
        path: The file.
        key: Name of the array in an .npz; None for an .npy.
        start: Where the set begins in the array.
        channels_first: Whether an image is ``[c, h, w]``, not ``[h, w]`` or ``[h, w, c]``.
    """

    def __init__(
        self, path: Path, key: str | None, start: int = 0, *, channels_first: bool = False
    ) -> None:
        self.path, self.key, self.start = path, key, start
        self.channels_first = channels_first
        self._images: NDArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the array to be opened again by the process that receives this."""
        return {**self.__dict__, "_images": None}

    @property
    def images(self) -> NDArray:
        """The whole array, mapped from the file where it can be."""
        if self._images is None:
            try:
                self._images = array_in(self.path, self.key)
            except (OSError, ValueError) as error:  # it was sound when the set was opened
                raise DataError(f"Cannot read {str(self.path)!r}: {error}") from error
        return self._images

    def read(self, place: int) -> Picture:
        """Return one picture, or a float array ``[channels, height, width]``."""
        image = self.images[self.start + place]
        if image.ndim == 2:
            image = image[None]
        elif not self.channels_first:
            image = image.transpose(2, 0, 1)
        if image.dtype != np.uint8:
            return np.array(image, np.float32)
        if len(image) == 1:
            return Image.fromarray(np.ascontiguousarray(image[0]))
        return Image.fromarray(np.ascontiguousarray(image[:3].transpose(1, 2, 0)))


def array_in(path: Path, key: str | None, *, check: bool = False) -> NDArray:
    """Return an array of a file, in its place there where it can be.

    Args:
        path: An .npz, or an .npy.
        key: Name of the array in an .npz; None for an .npy.
        check: Whether the checksum of an array that stays in the file is compared.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is damaged or cannot be read safely.
    """
    if key is None:
        return load_npy(path, mapped=True)
    with open_npz(path) as arrays:
        mapped = arrays.mapped(key, check=check)
        return arrays.read(key) if mapped is None else mapped


class ArchiveMembers:
    """Image files inside uncompressed .tar archives, read at their place."""

    def __init__(self, places: Sequence[tuple[Path, int, int]], names: Sequence[str]) -> None:
        self.places, self.names = places, names

    def read(self, place: int) -> Image.Image:
        """Return the picture in a member."""
        path, offset, size = self.places[place]
        name = f"{path}:{self.names[place]}"
        _refuse_large(name, size)
        try:
            with open_regular(path) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            if error.errno in SCARCE:
                raise
            raise DataError(f"{name}: cannot be read: {error.strerror}.") from None
        if len(content) != size:
            raise DataError(f"{name}: the archive ends in the middle of it.")
        return decode_image(content, name)


class PackedMembers:
    """Image files inside compressed .tar archives: all held in memory, once a process."""

    def __init__(self, places: Sequence[tuple[Path, int, int]], names: Sequence[str]) -> None:
        self.places, self.names = places, names
        self._contents: dict[tuple[Path, int], bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the contents to be read again by the process that receives this."""
        return {**self.__dict__, "_contents": {}}

    def read(self, place: int) -> Image.Image:
        """Return the picture in a member."""
        path, offset, size = self.places[place]
        name = f"{path}:{self.names[place]}"
        _refuse_large(name, size)
        if (path, offset) not in self._contents:
            self._unpack(path)
        if (path, offset) not in self._contents:
            raise DataError(f"{name}: the archive has changed since it was opened.")
        return decode_image(self._contents[path, offset], name)

    def _unpack(self, path: Path) -> None:
        wanted = {offset for there, offset, _ in self.places if there == path}
        try:
            with open_archive(path) as archive:
                for member in sound_members(archive, path):
                    if member.offset_data in wanted and member.size <= LARGEST_FILE:
                        content = archive.extractfile(member).read()
                        self._contents[path, member.offset_data] = content
        except Exception as error:  # each kind of packing has its own for damage
            raise DataError(f"Cannot read the archive {str(path)!r}: {error}") from error


def _refuse_large(name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise DataError(f"{name}: expected at most {LARGEST_FILE:,} bytes, got {size:,}.")


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
