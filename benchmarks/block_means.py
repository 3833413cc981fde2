"""What the channel means of each stage cost beside the forward that they are taken from.

    python benchmarks/block_means.py [--model SPEC]... [-o benchmarks/results/block-means-cpu.csv]

Both run in turn on the same batch, without gradients, on one thread. Time is the processor's for
that thread, so that what else the machine does counts little. A ratio of 1.02 is 2% dearer.
"""

import argparse
import statistics
import time
from pathlib import Path

import records
import torch
from timing import device_name, interleaved

from gradscore.layers.features import find_stages, observe_stages
from gradscore.layers.head import find_head
from gradscore.models import create_model

MODELS = (
    *("cifar:resnet20", "timm:resnet18", "timm:mobilenetv2_100"),
    "timm:vit_tiny_patch16_224",
)
BATCH, ROUNDS = 16, 20


def measure(spec: str, *, batch: int = BATCH, rounds: int = ROUNDS) -> dict:
    """Return a model's ratio of forward and means over the forward alone, with its spread."""
    model = create_model(spec, "random").eval()
    images = torch.randn(batch, *model.preprocessing.input_shape())
    stages = find_stages(model, find_head(model, images[:2]), images[:2])

    def with_means() -> None:
        with observe_stages(model, stages, images, detach=True) as means:
            model(images)
        assert len(means) == len(stages)

    with torch.inference_mode():
        functions = {"forward": lambda: model(images), "means": with_means}
        taken = interleaved(functions, repeats=rounds, seconds=300, clock=time.thread_time)
    ratios = [own / plain for own, plain in zip(taken["means"], taken["forward"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "model": spec,
        "batch": batch,
        "stages": len(stages),
        "ratio": round(middle, 4),
        "quarter": round(low, 4),
        "three_quarters": round(high, 4),
        "rounds": len(ratios),
        "forward_s": round(statistics.median(taken["forward"]), 4),
        "device": device_name("cpu"),
        "torch": torch.__version__,
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [measure(spec) for spec in options.model or MODELS]
    for row in rows:
        print("  ".join(map(str, row.values())))
    if options.output:
        records.write(options.output, rows)


if __name__ == "__main__":
    main()
