"""Whether exported detectors decide as `predict` does, in a process without torch.

python benchmarks/exported.py --data DATA -o benchmarks/results/onnx.csv

ResNet-20 and MobileNetV2 with trained weights, timm's ViT-tiny and a small ViT of transformers
with drawn ones. Half of the ID images set the threshold at tpr 0.95. The other half and an OOD set
are decided by `predict`, and by onnxruntime alone from raw uint8 pixels in batches of 1, 7 and 64,
in a process that cannot import torch. Columns: the largest difference of a score as a part of the
largest score (``apart``) and of the scores' standard deviation (``of_spread``); how many decisions
differ, and how many scores are within that difference of the threshold (``near``). With --device
cuda also how far the GPU's scores are from the CPU's.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import records
import torch
from numpy.typing import NDArray
from timing import device_name, device_option
from torch import nn

from gradscore import Detector, create_model, extract
from gradscore.data import open_set
from gradscore.detector.calibration import calibrate_run
from gradscore.detector.prediction import predict_images
from gradscore.detector.trial import trial_images
from gradscore.detector.wanted import Wanted
from gradscore.errors import GradScoreError

METHODS = ("energy", "gradnorm", "laplace_energy_blocks")
OTHERS = (
    *("u", "v", "kl", "msp", "max_logit", "gen", "odin", "react", "ash", "scale", "knn"),
    *("nnguide", "fdbd", "vim", "laplace_energy"),
)
"""Every other score of one forward that needs no labels."""
SIZES = (1, 7, 64)
CIFAR = ("cifar10/id_cifar10_test", "cifar10/ood_textures_dtd")
IMAGENET = ("imagenet/id_imagenet_samples", "imagenet/ood_flowers")
ALONE = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "gradscore"):
            raise ImportError(name)

sys.meta_path.insert(0, NoTorch())
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[4])
run = onnxruntime.InferenceSession(sys.argv[1], options, ["CPUExecutionProvider"])
pixels = np.load(sys.argv[2])
assert pixels.dtype == np.uint8
found = {}
for size in (1, 7, 64):
    parts = [
        run.run(["score", "accepted"], {"images": pixels[k : k + size]})
        for k in range(0, len(pixels), size)
    ]
    for name, values in zip(("score", "accepted"), zip(*parts)):
        found[f"{name}{size}"] = np.concatenate(values)
assert not {"torch", "gradscore"} & set(sys.modules)
np.savez(sys.argv[3], **found)
"""


@dataclass(frozen=True)
class Subject:
    """A model and its images.

    Attributes:
        make: Returns the model.
        sets: Folders of the ID images and of OOD images, below the data.
        images: Images of each set, at most.
        methods: Scores.
        preprocessing: What differs from the model's own.
    """

    make: Any
    sets: tuple[str, str]
    images: int
    methods: tuple[str, ...] = METHODS
    preprocessing: dict[str, Any] | None = None


def drawn_vit(folder: Path) -> nn.Module:
    """Return a small ViT of transformers with drawn weights, as its folder gives it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    size = {"image_size": 32, "patch_size": 4, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = ViTConfig(hidden_size=64, intermediate_size=128, num_labels=10, **size)
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return create_model(f"hf:{folder}")


def subjects(data: Path, folder: Path) -> dict[str, Subject]:
    """Return the models by name."""
    trained = partial(
        create_model, "cifar:resnet20", data / "cifar10/resnet20_cifar10.safetensors"
    )
    mobile = partial(
        create_model,
        "timm:mobilenetv2_100?pad_type=same",
        data / "imagenet/mobilenetv2_100_imagenet.safetensors",
    )
    halves = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    how = {"resize": 256, "crop": 224, **halves}
    tiny = partial(create_model, "timm:vit_tiny_patch16_224", "random")
    return {
        "cifar:resnet20": Subject(trained, CIFAR, 500, (*METHODS, *OTHERS)),
        "timm:mobilenetv2_100": Subject(mobile, IMAGENET, 300, preprocessing=how),
        "timm:vit_tiny_patch16_224, drawn": Subject(tiny, IMAGENET, 300),
        "hf:ViTForImageClassification, drawn": Subject(
            partial(drawn_vit, folder / "hf"), CIFAR, 300, (*METHODS, "knn", "vim")
        ),
    }


def main() -> None:
    """Export, compare, print and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="Only models whose name holds this.")
    parser.add_argument("--device", type=device_option, default="cpu")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, subject in subjects(options.data, Path(folder)).items():
            if options.model and options.model not in name:
                continue
            place = Path(folder, str(len(rows)))
            place.mkdir()
            for row in measured(name, subject, options.data, place, options.device):
                print(*row.values(), sep="  ", flush=True)
                rows.append(row)
    if options.output is not None:
        records.write(options.output, rows)


def measured(
    name: str, subject: Subject, data: Path, folder: Path, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one model."""
    torch.manual_seed(0)
    model = subject.make()
    ids, ood = (data / one for one in subject.sets)
    calibrated, others = halves(ids, subject.images, folder)
    shown = listed(ood, subject.images // 2, folder / "ood.csv")
    run = extract(
        model,
        {"calibrated": ("id", calibrated)},
        folder / "run",
        layers="last",
        preprocessing=subject.preprocessing,
    )
    for method in subject.methods:
        made = calibrate_run(run.store, Wanted(method))
        detector = Detector(model, made.info, made.arrays)
        pixels = torch.cat(
            [trial_images(made.info, one, "uint8", 1 << 20)[0] for one in (others, shown)]
        )
        try:
            file = folder / "gate.onnx"
            detector.export(file, pixels[:64], takes="uint8")
        except GradScoreError as error:
            print(name, method, error, sep="  ", flush=True)
            continue
        decided = decisions(detector, others, shown)
        about = {"model": name, "method": method, "images": len(pixels)}
        told = {"file_bytes": file.stat().st_size, "device": device_name("cpu"), **versions()}
        found = alone(file, pixels.numpy(), folder)
        for size in SIZES:
            there = found[f"score{size}"], found[f"accepted{size}"]
            figures = compared(decided, there, made.info.threshold.value)
            yield {**about, "by": "onnxruntime, cpu", "batch": size, **figures, **told}
        if device == "cuda":
            there = decisions(detector.to(device), others, shown)
            detector.to("cpu")
            figures = compared(decided, there, made.info.threshold.value)
            told["device"] = device_name(device)
            yield {**about, "by": "torch, cuda", "batch": 64, **figures, **told}


def halves(folder: Path, images: int, place: Path) -> tuple[str, str]:
    """Return lists of every other image of a set, and of those between."""
    first = listed(folder, images, place / "calibrated.csv", 0, 2)
    return first, listed(folder, images, place / "others.csv", 1, 2)


def listed(folder: Path, images: int, path: Path, start: int = 0, step: int = 1) -> str:
    """Write a list of some images of a set; return what names it."""
    with open(folder / "manifest.csv", newline="") as file:
        header, *rows = csv.reader(file)
    spread = rows[:: max(1, len(rows) // images)][:images]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *spread[start::step]])
    return f"{path}@{folder}"


def decisions(detector: Detector, *sets: str) -> tuple[NDArray, NDArray]:
    """Return scores and decisions as `predict` gives them."""
    parts = [part for one in sets for part in predict_images(detector, open_set(one))]
    return (
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.accepted for part in parts]),
    )


def alone(file: Path, pixels: NDArray, folder: Path) -> dict[str, NDArray]:
    """Return what onnxruntime says in a process without torch."""
    np.save(folder / "pixels.npy", pixels)
    paths = [file, folder / "pixels.npy", folder / "found.npz"]
    words = [sys.executable, "-c", ALONE, *map(str, paths), str(torch.get_num_threads())]
    subprocess.run(words, check=True)
    return dict(np.load(paths[-1]))


def compared(
    decided: tuple[NDArray, NDArray], found: tuple[NDArray, NDArray], threshold: float
) -> dict[str, Any]:
    """Return how far scores are apart, and how many decisions differ."""
    apart = np.abs(found[0] - decided[0]).max()
    return {
        "apart": f"{apart / np.abs(decided[0]).max():.1e}",
        "of_spread": f"{apart / decided[0].std():.1e}",
        "differ": int((found[1] != decided[1]).sum()),
        "near": int((np.abs(decided[0] - threshold) <= apart).sum()),
        "flagged": int((~decided[1]).sum()),
    }


def versions() -> dict[str, str]:
    """Return the libraries' versions."""
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    main()
