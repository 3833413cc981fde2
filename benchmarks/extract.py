"""How close extraction comes to its limit: the bare loop over the same loader.

For ``--layers last`` the bare loop is ``for x in loader: model(x)``, with the channels where
extraction has them; with norms it is decoding and :func:`gradscore.gradient_norms`, and nothing
else. Both are run in turn, several times, over the same images (random ones, held in an .npz, so
that decoding costs as little as it can and the model's share is largest). Each figure runs from
the first batch asked for to the last row safely on disk; setting up is left out of both.

python benchmarks/extract.py -o benchmarks/results/extract-cpu.csv
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import records
import torch
from timing import device_name, device_option
from torch import nn

from gradscore.data import batch_spans, load_batches, open_set
from gradscore.engine import gradient_norms
from gradscore.models import create_model
from gradscore.network.batches import memory_format
from gradscore.recorded import extract

MODELS = ("cifar:resnet20", "timm:mobilenetv2_100")


@dataclass(frozen=True)
class Throughput:
    """One comparison.

    Attributes:
        extract: Images a second of extraction, median of the repeats.
        bare: Images a second of the bare loop, median of the repeats.
        fraction: Their ratio, median over the pairs of neighbouring runs.
        lowest: Its lowest value.
        highest: Its highest.
    """

    model: str
    layers: str
    images: int
    batch_size: int
    workers: int
    repeats: int
    extract: float
    bare: float
    fraction: float
    lowest: float
    highest: float
    device: str
    torch: str


class _Clock:
    """Takes the time between start and finish, as extraction tells its progress."""

    def start(self, total: int, description: str) -> None:
        self._began = time.perf_counter()

    def advance(self, n: int) -> None: ...

    def finish(self) -> None:
        self.seconds = time.perf_counter() - self._began

    def tell(self, sentence: str) -> None: ...


def measure(
    models: Sequence[str] = MODELS,
    *,
    images: int = 2000,
    layers: str = "last",
    batch_size: int = 64,
    workers: int = 0,
    repeats: int = 5,
    device: str = "cpu",
) -> Iterator[Throughput]:
    """Yield one comparison for each model, with random weights.

    Args:
        models: Specs.
        images: Number of images.
        layers: What extraction records; ``last`` is forward-only.
        batch_size: Images at once.
        workers: Decoding processes.
        repeats: Pairs of runs, after one to warm up.
        device: ``cpu`` or ``cuda``.
    """
    for spec in models:
        model = create_model(spec, "random").to(device)
        channels, *size = model.preprocessing.input_shape()
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "images.npz")
            shape = (images, *size, channels)
            np.savez(source, images=np.random.default_rng(0).integers(0, 256, shape, np.uint8))
            how = {"batch_size": batch_size, "workers": workers}
            pairs = []
            for number in range(repeats + 1):
                bare = _bare_seconds(model, source, device, layers, **how)
                clock = _Clock()
                run = Path(folder, f"run-{number}")
                sets = {"random": (None, source)}
                extract(model, sets, run, layers=layers, device=device, progress=clock, **how)
                pairs.append((bare, clock.seconds))
        ratios = [bare / ours for bare, ours in pairs[1:]]
        yield Throughput(
            spec,
            layers,
            images,
            batch_size,
            workers,
            repeats,
            round(images / statistics.median(ours for _, ours in pairs[1:]), 1),
            round(images / statistics.median(bare for bare, _ in pairs[1:]), 1),
            round(statistics.median(ratios), 3),
            round(min(ratios), 3),
            round(max(ratios), 3),
            device_name(device),
            torch.__version__,
        )


def _bare_seconds(
    model: nn.Module, source: Path, device: str, layers: str, *, batch_size: int, workers: int
) -> float:
    images = open_set(source)
    loader = load_batches(
        images,
        model.preprocessing,
        batch_spans(0, len(images), batch_size),
        workers=workers,
        pin_memory=device == "cuda",
    )
    began = time.perf_counter()
    for batch in loader:
        images = batch.images.to(device, non_blocking=True)
        if layers != "last":
            gradient_norms(model, images, layers=layers)
            continue
        layout = memory_format(model, images, share=0)
        with torch.inference_mode():
            model(images.contiguous(memory_format=layout))
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and append to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", dest="models")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--layers", default="last")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", type=device_option, metavar="cpu|cuda")
    parser.add_argument("-o", "--output", type=Path)
    options = vars(parser.parse_args(arguments))
    output, models = options.pop("output"), options.pop("models") or MODELS
    for row in measure(models, **options):
        print(row)
        if output is not None:
            records.append(output, asdict(row))


if __name__ == "__main__":
    main()
