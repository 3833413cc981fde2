"""Huang, Geng & Li (NeurIPS 2021): every table beside the paper's own figures.

python benchmarks/paper.py --data DATA -o benchmarks/results/paper

DATA holds the sets as data_manifests/paper_imagenet.json declares them, and `checkpoints/`. Each
model is extracted once, a second call resumes. What is missing is named with where to get it.
`--stand-in` runs the same tables on the smaller real sets of the folder GRADSCORE_DATA, with other
models: it tests the way, not the paper's figures.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscore.ablation import ablate
from gradscore.data.declared import build_list, problems, read_declaration
from gradscore.errors import GradScoreError
from gradscore.evaluation import Row, evaluate_run
from gradscore.extraction import extract
from gradscore.plots import plot_ablation
from gradscore.scores import Question
from gradscore.tables import write_evaluation, write_rows

DECLARATION = Path(__file__).parents[1] / "data_manifests" / "paper_imagenet.json"
OODS = ("inaturalist", "sun", "places", "textures", "mean")
R101X1, DENSENET = "bit:BiT-S-R101x1", "timm:densenet121"
SWEEPS = ("p", "temperature", "target", "kl")

# (table, model) -> method or layers -> FPR95 / AUROC in percent, in the order of OODS.
FIGURES = {
    ("table1", R101X1): {
        "msp": "63.69/87.59 79.98/78.34 81.44/76.76 82.73/74.45 76.96/79.29",
        "odin": "62.69/89.36 71.67/83.92 76.27/80.67 81.31/76.30 72.99/82.56",
        "energy": "64.91/88.48 65.33/85.32 73.02/81.37 80.87/75.79 71.03/82.74",
        "mahalanobis": "96.34/46.33 88.43/65.20 89.75/64.46 52.23/72.10 81.69/62.02",
        "gradnorm": "50.03/90.33 46.48/89.03 60.86/84.82 61.42/81.07 54.70/86.31",
    },
    ("table2", R101X1): {
        "block1": "- - - - 73.52/76.41",
        "block2": "- - - - 74.34/76.63",
        "block3": "- - - - 71.73/78.11",
        "block4": "- - - - 65.07/85.11",
        "all": "- - - - 69.35/81.14",
        "last": "- - - - 54.70/86.31",
    },
    ("table3", DENSENET): {
        "msp": "48.55/89.16 69.39/80.46 71.42/80.11 68.51/78.69 64.47/82.11",
        "odin": "37.00/93.29 57.30/86.12 61.91/84.14 56.49/84.62 53.18/87.04",
        "energy": "36.39/93.29 54.91/86.53 59.98/84.29 53.87/85.07 51.29/87.30",
        "mahalanobis": "97.36/42.24 98.24/41.17 97.32/47.27 62.78/56.53 88.93/46.80",
        "gradnorm": "23.87/93.97 43.04/87.79 53.92/83.04 43.16/87.48 41.00/88.07",
    },
    ("table4", "bit:BiT-S-R50x1"): {"gradnorm": "- - - - 56.91/84.17"},
    ("table4", R101X1): {"gradnorm": "- - - - 55.84/84.63"},
    ("table4", "bit:BiT-S-R50x3"): {"gradnorm": "- - - - 61.74/81.89"},
    ("table4", "bit:BiT-S-R152x2"): {"gradnorm": "- - - - 61.76/81.33"},
    ("table4", "bit:BiT-S-R101x3"): {"gradnorm": "- - - - 66.20/78.89"},
    ("table5", R101X1): {
        "u": "77.84/74.33 61.90/78.74 76.42/72.75 67.84/72.77 71.00/74.65",
        "v": "66.14/88.45 69.49/83.13 75.95/78.98 81.13/76.06 73.18/81.66",
        "gradnorm": "50.03/90.33 46.48/89.03 60.86/84.82 61.42/81.07 54.70/86.31",
    },
}


@dataclass(frozen=True)
class Subject:
    """One model of the paper on its sets, or what stands in for it.

    Attributes:
        name: The paper's model.
        model: Spec of the model that is run.
        weights: Its weight file.
        origin: Where the weight file comes from.
        sets: Set name to role and source.
        layers: Parameters whose norms are recorded.
        preprocessing: What differs from the model's own.
        train: Labelled ID set that Mahalanobis learns from, if there is one.
    """

    name: str
    model: str
    weights: Path
    origin: str
    sets: dict[str, tuple[str | None, str]]
    layers: str = "last"
    preprocessing: dict | None = None
    train: str | None = None


def paper_subjects(data: Path, lists: Path) -> tuple[list[Subject], list[str]]:
    """Return the paper's models whose pieces are there, and what is missing, a line each."""
    sets, missing = {}, []
    for declared in read_declaration(DECLARATION):
        found = list(problems(declared, data))
        if found:
            missing += [f"set {declared.name}: {text} Get it: {declared.source}" for text in found]
            continue
        lists.mkdir(parents=True, exist_ok=True)
        path = lists / f"{declared.name}.csv"
        if not path.exists():
            build_list(declared, data, path)
        sets[declared.name] = (declared.role, f"{path}@{data}")
    bit = "the BiT-S files of Google's big_transfer, BiT-S-*.npz"
    files = {
        R101X1: (
            "BiT-S-R101x1-flat-finetune.pth.tar",
            "the authors' repository, deeplearning-wisc/gradnorm_ood",
        ),
        DENSENET: ("densenet121.safetensors", "timm's densenet121"),
        **{
            model: (f"{model[4:]}.npz", bit)
            for table, model in FIGURES
            if table == "table4" and model != R101X1
        },
    }
    subjects = [
        Subject(
            *(model, model, data / "checkpoints" / file, origin, sets),
            layers="all" if model == R101X1 else "last",
        )
        for model, (file, origin) in files.items()
    ]
    missing += [
        f"weights of {s.model}: {s.weights} is missing. Get it: {s.origin}"
        for s in subjects
        if not s.weights.exists()
    ]
    return [s for s in subjects if s.weights.exists() and len(sets) == len(OODS)], missing


def stand_ins(data: Path) -> list[Subject]:
    """Return models and sets that are there in place of the paper's two main models."""
    cifar, imagenet = data / "cifar10", data / "imagenet"

    def sets(folder: Path, names: dict[str, str]) -> dict[str, tuple[str | None, str]]:
        roles = {"id": "id", "tr": None}
        return {
            name: (roles.get(name[:2], "ood"), str(folder / of / "manifest.csv"))
            for name, of in names.items()
        }

    return [
        Subject(
            R101X1,
            "cifar:resnet20",
            cifar / "resnet20_cifar10.safetensors",
            "",
            sets(
                cifar,
                {
                    "id": "id_cifar10_test",
                    "train": "id_cifar10_train_subset",
                    "gtsrb": "ood_gtsrb",
                    "textures": "ood_textures_dtd",
                    "imagenet": "ood_imagenet_resize",
                },
            ),
            layers="all",
            train="train",
        ),
        Subject(
            DENSENET,
            "timm:mobilenetv2_100?pad_type=same",
            imagenet / "mobilenetv2_100_imagenet.safetensors",
            "",
            sets(
                imagenet,
                {
                    "id": "id_imagenet_samples",
                    "flowers": "ood_flowers",
                    "sun": "ood_scenes_sun",
                    "textures": "ood_textures_dtd",
                },
            ),
            preprocessing={
                **{"resize": 256, "crop": 224, "interpolation": "bilinear"},
                **{"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
            },
        ),
    ]


def beside_the_paper(table: str, subject: Subject, rows: Iterable[Row], key: str) -> list[Row]:
    """Return rows in percent with the paper's figures and the differences in points."""
    paper = {
        (method, ood): tuple(map(float, pair.split("/")))
        for method, line in FIGURES.get((table, subject.name), {}).items()
        for ood, pair in zip(OODS, line.split(), strict=True)
        if pair != "-"
    }
    result = []
    for row in rows:
        ours = (100 * row["fpr95"], 100 * row["auroc"])
        theirs = paper.get((row[key], row["ood"]), (None, None))
        result.append(
            {
                **{"table": table, "paper_model": subject.name, "model": subject.model},
                **{key: row[key], "ood": row["ood"]},
                **{"fpr95_percent": round(ours[0], 2), "auroc_percent": round(ours[1], 2)},
                **{"paper_fpr95": theirs[0], "paper_auroc": theirs[1]},
                "fpr95_difference": _difference(ours[0], theirs[0]),
                "auroc_difference": _difference(ours[1], theirs[1]),
            }
        )
    return result


def tables_of(subject: Subject, run: Path, output: Path, stand_in: bool) -> dict[str, list[Row]]:
    """Return a model's tables, and write its sweeps with their figures."""
    fit = [Question("mahalanobis", fit=subject.train)] if subject.train else []
    compared = [*map(Question, ("msp", "odin", "energy")), *fit, Question("gradnorm")]
    asked: dict[str, Sequence[Row]] = {}
    if subject.name in (R101X1, DENSENET):
        table = "table1" if subject.name == R101X1 else "table3"
        asked[table] = evaluate_run(run, compared).rows
    if subject.name == R101X1:
        kinds = ("layers", "decomposition", *SWEEPS)
        ablations = ablate(run, kinds)
        asked["table2"], asked["table5"] = (ablations[kind].rows for kind in kinds[:2])
        for kind in SWEEPS:
            write_evaluation(output / f"{kind}.csv", ablations[kind])
        for kind in kinds:
            plot_ablation(kind, run, ablations[kind], output / f"{kind}.png")
    if not stand_in and subject.name.startswith("bit:"):
        rows = evaluate_run(run, [Question("gradnorm")]).rows
        asked["table4"] = [row for row in rows if row["ood"] == "mean"]
    return {
        table: beside_the_paper(table, subject, rows, "layers" if table == "table2" else "method")
        for table, rows in asked.items()
    }


def _difference(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else round(ours - theirs, 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Extract, evaluate and write; return 1 if nothing of the paper could be run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the sets and checkpoints/")
    parser.add_argument("--stand-in", action="store_true", help="use the folder GRADSCORE_DATA")
    parser.add_argument("--limit", type=int, help="first images of each set only")
    parser.add_argument("--runs", type=Path, help="where the runs are kept (default: OUTPUT/runs)")
    parser.add_argument("-o", "--output", type=Path, default=Path("paper"))
    options = parser.parse_args(arguments)
    data = os.environ.get("GRADSCORE_DATA") if options.stand_in else options.data
    if not data:
        parser.error("give --data FOLDER, or --stand-in with GRADSCORE_DATA set")
    options.output.mkdir(parents=True, exist_ok=True)
    runs, missing = options.runs or options.output / "runs", []
    if options.stand_in:
        subjects = stand_ins(Path(data))
    else:
        subjects, missing = paper_subjects(Path(data), options.output / "lists")
    tables: dict[str, list[Row]] = {}
    for subject in subjects:
        run = runs / subject.name.replace(":", "-")
        try:
            extract(
                *(subject.model, subject.sets, run),
                layers=subject.layers,
                weights=subject.weights,
                preprocessing=subject.preprocessing,
                limit=options.limit,
            )
            found = tables_of(subject, run, options.output, options.stand_in)
        except GradScoreError as error:
            missing.append(f"{subject.model}: {error}")
            continue
        for table, rows in found.items():
            tables.setdefault(table, []).extend(rows)
    for table, rows in sorted(tables.items()):
        for ending in ("csv", "md"):
            write_rows(options.output / f"{table}.{ending}", rows)
        print(f"{options.output / table}.csv: {len(rows)} rows")
    for text in missing:
        print(f"missing: {text}", file=sys.stderr)
    return 0 if tables else 1


if __name__ == "__main__":
    sys.exit(main())
