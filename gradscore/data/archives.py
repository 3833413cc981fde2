"""Images in .tar archives: WebDataset shards, or plain archives of folders."""

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradscore.data.folders import MACOS, counted, ending, folder_labels, paths_of
from gradscore.data.labels import Wanted, class_numbers
from gradscore.data.manifest_formats import IMAGE_SUFFIXES
from gradscore.data.pictures import LARGEST_FILE, Opened, decode_image
from gradscore.data.tar_index import Listed, index_path, keep_index, read_index, state_of
from gradscore.data.tar_members import HEADER, is_header_of, open_archive, sound_members
from gradscore.data.texts import Texts
from gradscore.errors import DataError
from gradscore.files import SCARCE, open_regular

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LABEL_KEYS = ("label", "cls", "class_id", "class", "target")
"""Where the label stands in a sample's .json."""
PACKED_BYTES = 4 << 30
"""Images of compressed archives are held in memory up to this size."""
LABEL_BYTES = 1 << 20


class Members:
    """Image files inside .tar archives.

    Those of an uncompressed archive are read at their place. Those of a compressed one are all
    held in memory, once a process.

    Args:
        archives: The archives.
        places: Of each image the place of its archive among these, of its first byte in it, and
            its number of bytes, ``[n, 3]``.
        names: What errors call the images.
        packed: Whether the archives are compressed.
    """

    def __init__(
        self,
        archives: Sequence[Path],
        places: NDArray[np.int64],
        names: Sequence[str],
        packed: bool,
    ) -> None:
        self.archives, self.places, self.names, self.packed = archives, places, names, packed
        self._contents: dict[tuple[Path, int], bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave the contents to be read again by the process that receives this."""
        return {**self.__dict__, "_contents": {}}

    def read(self, place: int) -> Image.Image:
        """Return the picture in a member."""
        number, offset, size = self.places[place].tolist()
        path = self.archives[number]
        name = f"{path}:{self.names[place]}"
        if size > LARGEST_FILE:
            raise DataError(f"{name}: expected at most {LARGEST_FILE:,} bytes, got {size:,}.")
        content = (
            self._unpacked(path, offset, name)
            if self.packed
            else _in_place(path, offset, size, name)
        )
        return decode_image(content, name)

    def _unpacked(self, path: Path, offset: int, name: str) -> bytes:
        if (path, offset) not in self._contents:
            self._unpack(path)
        if (path, offset) not in self._contents:
            raise DataError(f"{name}: the archive has changed since it was opened.")
        return self._contents[path, offset]

    def _unpack(self, path: Path) -> None:
        of_path = self.places[:, 0] == self.archives.index(path)
        wanted = set(self.places[of_path, 1].tolist())
        try:
            with open_archive(path) as archive:
                for member in sound_members(archive, path):
                    if member.offset_data in wanted and member.size <= LARGEST_FILE:
                        content = archive.extractfile(member).read()
                        self._contents[path, member.offset_data] = content
        except Exception as error:  # each kind of packing has its own for damage
            raise DataError(f"Cannot read the archive {str(path)!r}: {error}") from error


def _in_place(path: Path, offset: int, size: int, name: str) -> bytes:
    """Return a member's bytes from an uncompressed archive."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, offset - HEADER))
            header, content = file.read(HEADER), file.read(size)
    except OSError as error:
        if error.errno in SCARCE:
            raise
        raise DataError(f"{name}: cannot be read: {error.strerror}.") from None
    if len(content) != size:
        raise DataError(f"{name}: the archive ends in the middle of it.")
    if not is_header_of(header, name[len(f"{path}:") :], size):
        raise DataError(
            f"{name}: expected its header before it, got other bytes; the archive has changed "
            f"since it was opened, or {index_path(path)} is not its own: delete that."
        )
    return content


class _Labels:
    """The labels of an archive's samples, by the names of the files that hold them.

    A sample's key is its name up to the first dot of the last part, as in WebDataset. Names of
    samples may hold dots all the same: where a label's file agrees with the image's but for the
    ending, it is that image's.
    """

    def __init__(self) -> None:
        self._exact: dict[str, Any] = {}
        self._by_key: dict[str, set[Any]] = defaultdict(set)

    def add(self, name: str, label: Any) -> None:
        self._exact[name.rpartition(".")[0]] = label
        self._by_key[_key(name)].add(label)

    def of(self, name: str) -> Any:
        """Return the label of an image, or None."""
        stem, of_key = name.rpartition(".")[0], self._by_key.get(_key(name), ())
        return self._exact.get(stem, next(iter(of_key)) if len(of_key) == 1 else None)

    def __bool__(self) -> bool:
        return bool(self._exact)


def open_archives(text: str, wanted: Wanted) -> Opened:
    """Open the images of one archive or several.

    Labels are those of .cls and .json files beside the images; where there are none, the
    archive's folders are classes, as those of a folder.

    Args:
        text: A path, with at most one ``{000..009}``, or with wildcards.
        wanted: What is known of the model.

    Raises:
        DataError: If an archive is absent or damaged, or none holds an image.
    """
    places, names, labels, packed, others = [], [], [], False, Counter()
    paths = paths_of(text, "archive")
    for number, path in enumerate(paths):
        listed, is_packed = _listed(path)
        packed = packed or is_packed
        places.append(np.insert(listed.places, 0, number, axis=1))
        names.append(listed.names)
        labels += listed.labels
        others += listed.others
    held = Texts.of(chain.from_iterable(names))
    if not held:
        there = f"; there are {counted(others)}" if others else ""
        raise DataError(f"No images in the archive {text!r}{there}.")
    if any(label is not None for label in labels):
        numbers, notice = class_numbers(labels, wanted.class_names, wanted.classes)
    elif wanted.labelled:
        numbers, notice = folder_labels(_inside(held), wanted.class_names, wanted.classes)
    else:
        numbers, notice = None, ""
    notices = [notice, f"passed over: {counted(others)}" if others else ""]
    where = np.concatenate(places)
    sizes, total = map(str, where[:, 2].tolist()), int(where[:, 2].sum())
    if packed and total > PACKED_BYTES:
        raise DataError(
            f"Expected a compressed archive of at most {PACKED_BYTES >> 30} GiB of images, got "
            f"{total / (1 << 30):.1f} GiB in {text!r}: unpack it to a .tar (gunzip, unxz), which "
            "is read in place."
        )
    reader = Members(paths, where, held, packed)
    return Opened(held, numbers, reader, contents=Texts.of(sizes), notices=notices)


def _listed(path: Path) -> tuple[Listed, bool]:
    """Return what an archive holds, from its index if it has one, and whether it is compressed.

    Raises:
        DataError: If it is damaged.
    """
    try:
        packed, state = _is_packed(path), state_of(path)
        listed = None if packed else read_index(path)
        if listed is None:
            with open_archive(path) as archive:
                listed = _sorted_out(archive, path)
            if not packed:  # of which every process reads the whole in any case
                keep_index(path, listed, state)
    except Exception as error:  # each kind of packing has its own for damage
        raise DataError(f"Cannot read the archive {str(path)!r}: {error}") from error
    return listed, packed


def _sorted_out(archive: tarfile.TarFile, path: Path) -> Listed:
    """Return the members that are images with their labels, and the number of all others."""
    places, names, found, others, members = [], [], _Labels(), Counter(), 0
    for member in sound_members(archive, path):
        members += 1
        parts = member.name.removeprefix("./").split("/")
        kind = ending(member.name)
        if MACOS in parts or any(part.startswith(".") for part in parts):
            others["hidden"] += 1
        elif kind in IMAGE_SUFFIXES:
            places.append((member.offset_data, member.size))
            names.append(member.name)
        elif kind in (".cls", ".json") and member.size <= LABEL_BYTES:
            label = _label(kind, archive.extractfile(member).read(), member.name)
            if label is not None:
                found.add(member.name, label)
        else:
            others[kind] += 1
    labels = [found.of(name) for name in names] if found else [None] * len(names)
    held = Texts.of(name.removeprefix("./") for name in names)
    return Listed(np.array(places, np.int64).reshape(-1, 2), held, labels, others, members)


def _label(kind: str, content: bytes, name: str) -> Any:
    text = content.decode("utf-8-sig", errors="replace").strip()
    if kind == ".cls":
        return text or None
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} is no JSON") from None
    if isinstance(fields, dict):
        fields = next((fields[key] for key in LABEL_KEYS if key in fields), None)
    return fields if isinstance(fields, str | int | float) else None


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _inside(names: Sequence[str]) -> Sequence[str]:
    """Return names without the one folder that all of them lie in, where folders are below it."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) == 1 and all(name.count("/") > 1 for name in names):
        return [name.partition("/")[2] for name in names]
    return names


def _is_packed(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
