"""Throughput and memory of `gradscore predict`, beside the extraction of the same images.

python benchmarks/predict.py -o benchmarks/results/predict-cpu.csv

Both read the same 10,000 pictures of 32 x 32 pixels from one .npz and run ResNet-20 with drawn
weights, in turns and in one process; both write their result. Memory: how much the peak of a
process grows from the first 1,000 images to all.
"""

import argparse
import resource
import statistics
import tempfile
from pathlib import Path

import numpy as np
import records
import torch
from timing import device_name, interleaved

from gradscore import Detector, create_model, extract
from gradscore.data import open_set
from gradscore.detector.prediction import Tally, predict_images
from gradscore.detector.prediction_file import written_predictions

MODEL, IMAGES, FIRST, BATCH = "cifar:resnet20", 10_000, 1000, 64
CALIBRATED = 256


def main() -> None:
    """Measure, print and append a row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--method", default="gradnorm")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measured(Path(folder), options)
    print(*row.items(), sep="\n")
    if options.output is not None:
        records.append(options.output, row)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return the row of one method."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    np.savez(folder / "first.npz", images=pixels[:FIRST])
    model = create_model(MODEL, "random")
    images = open_set(folder / "first.npz", labelled=False)
    prepared = [model.preprocessing(images[place]) for place in range(CALIBRATED)]
    detector = Detector.calibrate(model, torch.stack(prepared), method=options.method)
    runs = 0

    def predict(name: str) -> None:
        tally = Tally(detector.info, kept=5)
        with written_predictions(folder / "decisions.csv", detector.info) as rows:
            for part in predict_images(detector, open_set(folder / name, labelled=False)):
                tally.add(part)
                rows.add(part)

    def record() -> None:
        nonlocal runs
        runs += 1
        sets = {"images": (None, folder / "images.npz")}
        extract(model, sets, folder / f"run{runs}", layers="last", batch_size=BATCH)

    predict("first.npz")
    before = peak()
    predict("images.npz")
    grown = peak() - before
    both = {"extract": record, "predict": lambda: predict("images.npz")}
    taken = interleaved(both, repeats=options.repeats, seconds=options.seconds)
    ratios = [e / p for e, p in zip(taken["extract"], taken["predict"], strict=True)]
    return {
        "model": MODEL,
        "method": options.method,
        "images": IMAGES,
        "batch_size": BATCH,
        "repeats": len(ratios),
        "extract": f"{IMAGES / statistics.median(taken['extract']):.1f}",
        "predict": f"{IMAGES / statistics.median(taken['predict']):.1f}",
        "fraction": f"{statistics.median(ratios):.3f}",
        "lowest": f"{min(ratios):.3f}",
        "highest": f"{max(ratios):.3f}",
        "grown_mb": f"{grown / 1e6:.1f}",
        "device": device_name("cpu"),
        "torch": torch.__version__,
    }


def peak() -> int:
    """Return the most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
