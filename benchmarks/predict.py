"""Throughput and memory of `gradscore predict`, beside the extraction of the same images.

python benchmarks/predict.py --data DATA -o benchmarks/results/predict-cpu.csv

Both read the same 10,048 pictures of 32 x 32 pixels and run ResNet-20, in turns and in one
process; both write their result. The pictures are those of CIFAR-10 below DATA, listed again and
again; by default 500 drawn ones, and drawn weights. Memory: the most that the process had held
after 2,048 images and after all of the first round; batches are full, as a batch of a new size is
checked first. With --cpu-time a round's time is that of the process on its cores: what else a busy
machine does is then left out.
"""

import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import records
import torch
from PIL import Image
from timing import device_name, interleaved

from gradscore import Detector, create_model, extract
from gradscore.data import open_set
from gradscore.detector.prediction import Tally, predict_images
from gradscore.detector.prediction_file import written_predictions

MODEL, IMAGES, FIRST, BATCH = "cifar:resnet20", 157 * 64, 2048, 64
CALIBRATED, DRAWN = 256, 500
WEIGHTS = "cifar10/resnet20_cifar10.safetensors"
CIFAR = ("cifar10/id_cifar10_test", "cifar10/id_cifar10_train_subset")


def main() -> None:
    """Measure, print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--data", type=Path, help="Folder with CIFAR-10 and its weights.")
    parser.add_argument("--method", default="gradnorm")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--cpu-time", action="store_true", help="Count the process's own time.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measured(Path(folder), options)
    print(*row.items(), sep="\n")
    if options.output is not None:
        records.append(options.output, row)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return the row of one method."""
    images = repeated(options.data, folder)
    model = create_model(MODEL, options.data / WEIGHTS if options.data else "random")
    pictures = open_set(images, labelled=False, limit=CALIBRATED)
    prepared = [model.preprocessing(pictures[place]) for place in range(CALIBRATED)]
    detector = Detector.calibrate(model, torch.stack(prepared), method=options.method)
    runs = 0

    peaks: dict[int, float] = {}

    def predict() -> None:
        tally = Tally(detector.info, kept=5)
        with written_predictions(folder / "decisions.csv", detector.info) as rows:
            for part in predict_images(detector, open_set(images, labelled=False)):
                tally.add(part)
                rows.add(part)
                if FIRST <= tally.images < FIRST + BATCH or tally.images == IMAGES:
                    peaks.setdefault(FIRST if tally.images < IMAGES else IMAGES, peak())

    def record() -> None:
        nonlocal runs
        runs += 1
        sets = {"images": (None, images)}
        extract(model, sets, folder / f"run{runs}", layers="last", batch_size=BATCH)

    forget_peak()
    predict()
    both = {"extract": record, "predict": predict}
    clock = time.process_time if options.cpu_time else time.perf_counter
    taken = interleaved(both, repeats=options.repeats, seconds=options.seconds, clock=clock)
    ratios = [e / p for e, p in zip(taken["extract"], taken["predict"], strict=True)]
    return {
        "model": MODEL,
        "method": options.method,
        "images": IMAGES,
        "first": FIRST,
        "batch_size": BATCH,
        "repeats": len(ratios),
        "extract": f"{IMAGES / statistics.median(taken['extract']):.1f}",
        "predict": f"{IMAGES / statistics.median(taken['predict']):.1f}",
        "fraction": f"{statistics.median(ratios):.3f}",
        "lowest": f"{min(ratios):.3f}",
        "highest": f"{max(ratios):.3f}",
        "peak_first_mb": f"{peaks[FIRST] / 1e6:.1f}",
        "peak_all_mb": f"{peaks[IMAGES] / 1e6:.1f}",
        "time": "process" if options.cpu_time else "wall",
        "device": device_name("cpu"),
        "torch": torch.__version__,
    }


def repeated(data: Path | None, folder: Path) -> str:
    """Write a list of pictures, each of them several times; return what names it."""
    if data is None:
        pixels = np.random.default_rng(0).integers(0, 256, (DRAWN, 32, 32, 3), dtype=np.uint8)
        paths = [f"{place}.png" for place in range(DRAWN)]
        for path, picture in zip(paths, pixels, strict=True):
            Image.fromarray(picture).save(folder / path)
    else:
        paths = []
        for one in CIFAR:
            with open(data / one / "manifest.csv", newline="") as file:
                paths += [f"{one}/{row['path']}" for row in csv.DictReader(file)]
    with open(folder / "images.csv", "w", newline="") as file:
        rows = ((paths[place % len(paths)], -1) for place in range(IMAGES))
        csv.writer(file).writerows([("path", "label"), *rows])
    return f"{folder / 'images.csv'}@{data or folder}"


def forget_peak() -> None:
    """Begin anew to note the most memory that this process holds."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most memory that this process has held since, in bytes."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
