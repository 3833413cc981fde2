"""What opening many images takes: long lists, a folder of many files, a large .tar and its index.

    python benchmarks/scale_lists.py [--rows 10000000] [--files 1000000] [--output FILE.csv]

Each is drawn, then opened in a process of its own: seconds, seconds of processors, the largest
resident size, and how much that is above the size before, in bytes an image. The .tar is opened
twice: the first time it is listed, and its index written beside it.
"""

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import records
import timing
from PIL import Image

import gradscore

CLASSES = 1000


def names(count: int) -> Iterator[tuple[str, int]]:
    """Yield names like those of ImageNet's training images, and their classes."""
    for place in range(count):
        label = place * CLASSES // count
        yield f"n{label:08d}/n{label:08d}_{place}.JPEG", label


def make_list(path: Path, count: int) -> None:
    """Write a list with labels: .csv or .txt."""
    mark = "," if path.suffix == ".csv" else " "
    with path.open("w") as file:
        file.write("path,label\n" if path.suffix == ".csv" else "")
        file.writelines(f"train/{name}{mark}{label}\n" for name, label in names(count))


def make_folder(path: Path, count: int) -> None:
    """Make a folder of empty files, a sub-folder a class."""
    for name, _ in names(count):
        place = path / name
        try:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        except FileNotFoundError:
            place.parent.mkdir(parents=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))


def make_tar(path: Path, count: int) -> None:
    """Write a WebDataset archive: an image and its label a sample."""
    content = io.BytesIO()
    Image.new("L", (8, 8), 7).save(content, "JPEG")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for place in range(count):
            label = str(place % CLASSES).encode()
            for ending, held in (("jpg", content.getvalue()), ("cls", label)):
                info = tarfile.TarInfo(f"{place:09d}.{ending}")
                info.size = len(held)
                archive.addfile(info, io.BytesIO(held))


def opened(send: Any, path: Path) -> None:
    """Open a set, and send what that took."""
    from gradscore.data import open_set

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, processors = time.perf_counter(), time.process_time()
    images = open_set(path, classes=CLASSES)
    taken = time.perf_counter() - began, time.process_time() - processors
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    send.send(
        {
            "images": len(images),
            "seconds": f"{taken[0]:.1f}",
            "processor seconds": f"{taken[1]:.1f}",
            "peak MB": after // 1024,
            "bytes an image": round(1024 * (after - before) / len(images)),
        }
    )


def measured(path: Path) -> dict[str, Any]:
    """Return what opening a set takes in a process of its own."""
    receive, send = get_context("spawn").Pipe(duplex=False)
    child = get_context("spawn").Process(target=opened, args=(send, path))
    child.start()
    send.close()
    row = receive.recv()
    child.join()
    return row


def main() -> None:
    """Make and open each, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    kinds: list[tuple[str, str, Callable, int]] = [
        ("list.csv", "list .csv", make_list, chosen.rows),
        ("list.txt", "list .txt", make_list, chosen.rows),
        ("folder", "folder", make_folder, chosen.files),
        ("s.tar", ".tar, listed", make_tar, chosen.samples),
        ("s.tar", ".tar, by its index", lambda *how: None, chosen.samples),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, what, make, count in kinds:
            path = Path(folder) / name
            make(path, count)
            row = {"what": what} | measured(path)
            row |= {"device": timing.device_name("cpu"), "gradscore": gradscore.__version__}
            print(row, flush=True)
            if chosen.output:
                records.append(chosen.output, row)


if __name__ == "__main__":
    main()
