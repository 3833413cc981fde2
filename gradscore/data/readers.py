"""Where the images of a set lie, and how one is fetched; each can be sent to worker processes."""

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradscore.data.decode import decode_image, decoding_here, read_image_file
from gradscore.errors import DataError

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
        if self._images is None and self.key is None:
            self._images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        if self._images is None:
            self._images = _mapped(self.path, f"{self.key}.npy")
        if self._images is None:
            with np.load(self.path, allow_pickle=False) as arrays:
                self._images = arrays[self.key]
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


def _mapped(path: Path, member: str) -> NDArray | None:
    """Return an array of an archive without reading it, or None where it is compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)
            if read_header is None:
                return None
            shape, column_major, dtype = read_header(file)
            header = file.tell()
            if dtype.hasobject:
                return None
    with open(path, "rb") as file:
        # The lengths of the name and the extra field in the member's own header (which may differ
        # from the directory's) stand at its bytes 26 to 30, the content follows them.
        file.seek(info.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
    offset = info.header_offset + 30 + int(lengths.sum()) + header
    order = "F" if column_major else "C"
    return np.memmap(path, dtype, "r", offset, shape, order)


class ArchiveMembers:
    """Image files inside uncompressed .tar archives, read at their place."""

    def __init__(self, places: Sequence[tuple[Path, int, int]], names: Sequence[str]) -> None:
        self.places, self.names = places, names

    def read(self, place: int) -> Image.Image:
        """Return the picture in a member."""
        path, offset, size = self.places[place]
        name = f"{path}:{self.names[place]}"
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
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
        path, offset, _ = self.places[place]
        name = f"{path}:{self.names[place]}"
        if (path, offset) not in self._contents:
            self._unpack(path)
        return decode_image(self._contents[path, offset], name)

    def _unpack(self, path: Path) -> None:
        wanted = {offset for there, offset, _ in self.places if there == path}
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    if member.offset_data in wanted:
                        content = archive.extractfile(member).read()
                        self._contents[path, member.offset_data] = content
        except (OSError, EOFError, tarfile.TarError) as error:
            raise DataError(f"Cannot read the archive {str(path)!r}: {error}") from error


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
