"""What `extract --store` saves for a model of many classes, and how far its scores move.

    python benchmarks/scale_stored.py [--features 2048] [--classes 21843] [--output FILE.csv]

The model is drawn: one hidden layer, whose features are as sparse as those behind a ReLU, and a
last layer of the size asked for. The same drawn images are recorded with all that there is, with
features alone, and with features in half precision: bytes of the base pass an image, seconds of
recording and of scoring by all methods of the logits, and the largest difference of any score from
that of the recorded logits, as a share of the largest score.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import records
import timing
import torch
from torch import nn

import gradscore as gs

METHODS = ("gradnorm", "kl", "msp", "max_logit", "energy", "gen")
SIDE = 16


class Drawn(nn.Module):
    """A classifier with drawn weights."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(3 * SIDE * SIDE, features), nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits ``[batch, classes]``."""
        return self.head(torch.relu(self.hidden(images.flatten(1))))


def main() -> None:
    """Record in each way, compare, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=21843)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = Drawn(chosen.features, chosen.classes).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)  # logits as far apart as those of a trained classifier
    pixels = np.random.default_rng(0).integers(0, 256, (chosen.images, SIDE, SIDE, 3), np.uint8)
    rows, expected = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", pixels)
        sets = {"id": ("id", str(folder / "images.npy"))}
        first = gs.extract(
            model, sets, folder / "first", layers="last", limit=64, preprocessing=CENTRED
        )
        for method in METHODS:  # imports and compilation
            first.score("id", method)
        for store in ("all", "features", "features-float16"):
            began = time.perf_counter()
            how = {"layers": "last", "store": store, "preprocessing": CENTRED}
            run = gs.extract(model, sets, folder / store, **how)
            recorded = time.perf_counter() - began
            began = time.perf_counter()
            scores = {method: run.score("id", method) for method in METHODS}
            scored = time.perf_counter() - began
            expected = expected or scores
            apart = {
                method: float((scores[method] - one).abs().max() / one.abs().max())
                for method, one in expected.items()
            }
            most = max(apart, key=apart.get)
            size = sum(file.stat().st_size for file in (folder / store).rglob("base/*.h5"))
            row = {"features": chosen.features, "classes": chosen.classes, "store": store}
            row |= {"images": chosen.images, "bytes an image": round(size / chosen.images)}
            row |= {"recording s": f"{recorded:.1f}", "scoring s": f"{scored:.1f}"}
            row |= {"largest difference": f"{apart[most]:.1e}", "of": most if apart[most] else ""}
            row |= {"device": timing.device_name("cpu"), "gradscore": gs.__version__}
            print(row, flush=True)
            rows.append(row)
    if chosen.output:
        records.write(chosen.output, rows)


CENTRED = {"resize": None, "crop": None, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

if __name__ == "__main__":
    main()
