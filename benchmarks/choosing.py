"""Every score on real images, and what a choice by ID images alone makes of them.

For each model: mean AUROC and FPR95 of each score over its OOD sets, the ranking by surrogates and
by held-out classes, and how well these agree with the real one (Spearman). Where pytorch-ood is
installed its numbers stand beside ours, from the same features and logits.

    python benchmarks/choosing.py --data DIR [--model resnet20]... [-o FILE.csv]

The CIFAR models are fitted to training images and tested on test images. The ImageNet model is
fitted to half of its ID images and tested on the other half: five seeds, both directions, means.
"""

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

import gradscore as gs
from gradscore.choosing import choose, ood_aurocs
from gradscore.choosing.choice import options_of
from gradscore.choosing.specs import choice_specs
from gradscore.metrics import point_metrics
from gradscore.run import Shard
from gradscore.scoring import score_sets

SEEDS = range(5)
CIFAR_OODS = ("gtsrb", "textures_dtd", "imagenet_resize")
IMAGENET_OODS = ("textures_dtd", "scenes_sun", "flowers")
COLUMNS = (
    *("model", "method", "options", "auroc", "fpr95", "pytorch_ood_auroc", "pytorch_ood_fpr95"),
    *("far", "near", "chosen"),
)


@dataclass(frozen=True)
class Subject:
    """A model and its sets below the data folder."""

    spec: str
    weights: str
    ids: str
    oods: dict[str, str]
    fit: str | None = None
    preprocessing: dict | None = None


def cifar(spec: str, weights: str, **how: object) -> Subject:
    """Return a CIFAR-10 model on the test images, fitted to training images."""
    oods = {name: f"cifar10/ood_{name}" for name in CIFAR_OODS}
    ids, fit = (f"cifar10/id_cifar10_{part}" for part in ("test", "train_subset"))
    return Subject(spec, f"cifar10/{weights}.safetensors", ids, oods, fit, **how)


SUBJECTS = {
    "resnet20": cifar("cifar:resnet20", "resnet20_cifar10"),
    "vit6": cifar(
        "python:vit6_cifar10:ViT6",
        "vit6_cifar10",
        preprocessing={
            "resize": 32,
            "crop": 32,
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
        },
    ),
    "mobilenetv2": Subject(
        "timm:mobilenetv2_100?pad_type=same",
        "imagenet/mobilenetv2_100_imagenet.safetensors",
        "imagenet/id_imagenet_samples",
        {name: f"imagenet/ood_{name}" for name in IMAGENET_OODS},
        preprocessing={
            "resize": 256,
            "crop": 224,
            "interpolation": "bilinear",
            "mean": 0.5,
            "std": 0.5,
        },
    ),
}


class Half:
    """A run whose ID set is one half of it; the other half is a set to fit to, ``half``."""

    def __init__(self, run: object, seed: int, side: int) -> None:
        self._run, self.path, self.model = run, run.path, run.model
        count = run.sets["id"].recorded()
        order = np.random.default_rng(seed).permutation(count)
        self._rows = {
            "half": np.sort(order[side::2]),
            "id": np.sort(order[1 - side :: 2]),
        }
        halves = {}
        for name, rows in self._rows.items():
            shard = Shard("", "", 0, len(rows), len(rows))
            role = "id" if name == "id" else "fit"
            passes = {key: [shard] for key in run.sets["id"].passes}
            halves[name] = replace(run.sets["id"], name=name, role=role, passes=passes)
        self.sets = {**run.sets, **halves}
        self.info = replace(run.info, sets=self.sets, fits={})

    def __getattr__(self, name: str) -> object:
        """Return what is the run's own."""
        return getattr(self._run, name)

    def read_fit(self, name: str) -> None:
        """Return None: nothing is kept."""

    def keep_fit(self, entry: object, arrays: object) -> None:
        """Keep nothing."""

    def require_complete(self, name: str, passes: tuple = ("base",)) -> object:
        """Return the entry of a set that is finished."""
        self._run.require_complete("id" if name in self._rows else name, passes)
        return self.sets[name]

    def blocks(self, name: str, fields: tuple, norms: tuple = (), rows: int = 1024) -> Iterator:
        """Yield the rows of a set or of a half."""
        if name not in self._rows:
            yield from self._run.blocks(name, fields, norms, rows)
            return
        start = 0
        for arrays in self._run.blocks("id", fields, norms, rows):
            stop = start + len(next(iter(arrays.values())))
            mine = self._rows[name]
            kept = mine[(mine >= start) & (mine < stop)] - start
            start = stop
            yield {key: values[kept] for key, values in arrays.items()}

    def fit_blocks(self, name: str, fields: tuple, norms: tuple = ()) -> Iterator:
        """Yield the rows to fit to."""
        return self.blocks(name, fields, norms)


def figures(run: object, specs: list, oods: list[str]) -> dict:
    """Return each score's mean AUROC and FPR95 over OOD sets, in percent."""
    scored = score_sets(run, ["id", *oods], specs)
    ids = scored["id"].columns.values()
    each = [
        [point_metrics(i, o)[:2] for i, o in zip(ids, scored[ood].columns.values(), strict=True)]
        for ood in oods
    ]
    return dict(zip(specs, 100 * np.mean(each, axis=0), strict=True))


def split_runs(run: object, fit: bool) -> list:
    """Return the run itself, or its halves."""
    return [run] if fit else [Half(run, seed, side) for seed in SEEDS for side in (0, 1)]


def peers(run: object, oods: list[str]) -> dict:
    """Return what pytorch-ood makes of the same features and logits; nothing without it."""
    try:
        from pytorch_ood import detector as peer
    except ImportError:
        return {}
    weights = run.head()
    classes, width = weights["weight"].shape
    head = nn.Linear(width, classes)
    head.weight.data = torch.from_numpy(weights["weight"])
    head.bias.data = torch.from_numpy(weights.get("bias", np.zeros(classes, np.float32)))

    def rows(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        read = list(run.blocks(name, ("features", "logits")))
        both = (np.concatenate([block[key] for block in read]) for key in ("features", "logits"))
        return tuple(map(torch.from_numpy, both))

    fit_set = next(n for n, s in run.sets.items() if s.role == "fit")
    x0, _ = rows(fit_set)
    none = torch.zeros(len(x0), dtype=torch.long)
    flat = nn.Flatten()
    dimension = min(next((d for m, d in ((2048, 1000), (768, 512)) if width >= m), width // 2),
                    len(x0) // 2)  # fmt: skip
    vim = peer.ViM(None, dimension, head.weight, head.bias).fit_features(x0, none)
    knn = peer.KNN(None, k=10).fit_features(x0, none)
    fdbd = peer.fDBD(None, head).fit_features(x0)
    guide = peer.NNGuide(flat, head, k=10)
    guide.fit_features(x0, none)
    react = peer.ReAct(flat, lambda z: head(z.flatten(1)), percentile=0.9)
    react.fit_feature_maps(x0[:, :, None, None], none)
    ash = peer.ASH(None, lambda z: head(z.flatten(1)), percentile=0.9)
    scale = peer.SCALE(None, lambda z: head(z.flatten(1)), percentile=0.85)
    scores = {
        "msp": lambda x, f: -torch.softmax(f, 1).amax(1),
        "energy": lambda x, f: peer.EnergyBased.score(f),
        "gen": lambda x, f: peer.GEN(None, gamma=0.1, M=100).predict_logits(f),
        "vim": lambda x, f: vim.predict_features(x),
        "knn": lambda x, f: knn.predict_features(x),
        "fdbd": lambda x, f: fdbd.predict_features(x),
        "nnguide": lambda x, f: guide.predict_features(x),
        "react": lambda x, f: react.predict_feature_maps(x[:, :, None, None]),
        "ash": lambda x, f: ash.predict_feature_maps(x[:, :, None, None]),
        "scale": lambda x, f: scale.predict_feature_maps(x[:, :, None, None]),
    }
    found = {}
    with torch.no_grad():
        for name, score in scores.items():
            known = -torch.as_tensor(score(*rows("id"))).numpy()
            pairs = [(known, -torch.as_tensor(score(*rows(ood))).numpy()) for ood in oods]
            found[name] = 100 * np.mean([point_metrics(*pair)[:2] for pair in pairs], axis=0)
    return found


def measure(name: str, data: Path, folder: Path) -> list[dict]:
    """Extract a model's run, and return a row a score."""
    subject = SUBJECTS[name]
    sys.path.insert(0, str((data / subject.weights).parent))
    sets = {"id": ("id", data / subject.ids / "manifest.csv")}
    if subject.fit:
        sets["train"] = ("fit", data / subject.fit / "manifest.csv")
    sets |= {ood: ("ood", data / path / "manifest.csv") for ood, path in subject.oods.items()}
    start = time.perf_counter()
    run = gs.extract(
        subject.spec, sets, folder / name, layers="last", record="surrogates",
        weights=data / subject.weights, preprocessing=subject.preprocessing or {},
    ).store  # fmt: skip
    extracted = time.perf_counter()
    choice = choose(run)
    print(f"{name}: extracted in {extracted - start:.0f} s, chosen in "
          f"{time.perf_counter() - extracted:.1f} s")  # fmt: skip
    real = ood_aurocs(run, choice)
    for title, table in (("far", choice.far), ("near", choice.near)):
        agreement = spearmanr(
            [row.ranked.value for row in table], [real[row.spec] for row in table]
        ).statistic
        print(f"  {title}: Spearman with the real ranking {agreement:.2f}")
    chosen, energy = (
        100 * next(v for s, v in real.items() if s == spec or s.method == spec)
        for spec in (choice.spec, "energy")
    )
    print(f"  recommended: {choice.spec.method} {options_of(choice.spec)}: mean AUROC "
          f"{chosen:.1f}, energy {energy:.1f}; warning: {choice.warning}")  # fmt: skip
    runs = split_runs(run, bool(subject.fit))
    oods = list(subject.oods)
    specs = [spec for spec in choice_specs(runs[0], []) if spec.method != "mahalanobis"]
    found = [figures(part, specs, oods) for part in runs]
    beside = [peers(part, oods) for part in runs]
    values = {title: {row.spec: row.ranked.value for row in table}
              for title, table in (("far", choice.far), ("near", choice.near))}  # fmt: skip
    rows = []
    for spec in specs:
        auroc, fpr = np.mean([part[spec] for part in found], axis=0)
        default = spec == type(spec)(spec.method)
        other = [part[spec.method] for part in beside if default and spec.method in part]
        theirs = np.mean(other, axis=0) if other else (None, None)
        options = {k: v for k, v in options_of(spec).items()
                   if v != spec.definition.options.get(k)}  # fmt: skip
        cells = [name, spec.method, " ".join(f"{k}={v}" for k, v in options.items()), auroc, fpr]
        cells += [*theirs, *(values[title].get(spec) for title in ("far", "near"))]
        cells.append("yes" if spec == choice.spec else "")
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return sorted(rows, key=lambda row: -row["auroc"])


def text(value: object, digits: int) -> str:
    """Return a cell's text."""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value or "")


def main(argv: list[str] | None = None) -> None:
    """Measure the models, print and write their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of models and sets")
    parser.add_argument("--model", action="append", choices=SUBJECTS)
    parser.add_argument("-o", "--output", type=Path, help="CSV file")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or SUBJECTS:
            rows += measure(name, options.data, Path(folder))
    for row in rows:
        words = [
            f"{value:.1f}" if isinstance(value, float) else str(value or "")
            for value in row.values()
        ]
        print("  ".join(words))
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()}
                )


if __name__ == "__main__":
    main()
