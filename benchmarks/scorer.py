"""The module ``GradNorm`` beside the plain forward of the model that it wraps.

python benchmarks/scorer.py -o benchmarks/results/scorer-cpu.csv

Both run in turn on the same batch, without gradients. A ratio of 1.02 is 2% dearer than a forward.
"""

import argparse
import statistics
from pathlib import Path

import records
import torch
from timing import device_name, device_option, interleaved

import gradscore as gs


def main() -> None:
    """Measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:resnet18")
    parser.add_argument("--device", default="cpu", type=device_option, metavar="cpu|cuda")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    model = gs.create_model(options.model, "random").to(options.device)
    scorer = gs.GradNorm(model)
    rows = []
    for batch in (16, 64):
        images = torch.randn(batch, 3, 224, 224, device=options.device)
        with torch.inference_mode():
            taken = interleaved(
                {"forward": lambda x=images: model(x), "scorer": lambda x=images: scorer(x)},
                repeats=51,
                seconds=options.seconds,
                device=options.device,
            )
        ratios = [
            own / plain for own, plain in zip(taken["scorer"], taken["forward"], strict=True)
        ]
        rows.append(
            {
                "model": options.model,
                "batch": batch,
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
                "rounds": len(ratios),
                "forward_s": round(statistics.median(taken["forward"]), 4),
                "device": device_name(options.device),
                "torch": torch.__version__,
            }
        )
        print(rows[-1], flush=True)
    if options.output:
        records.write(options.output, rows)


if __name__ == "__main__":
    main()
