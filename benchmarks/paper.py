"""Huang, Geng & Li (NeurIPS 2021): every table beside the paper's own figures.

    python benchmarks/paper.py --data DATA --train LIST -o benchmarks/results/paper

DATA holds the sets as data_manifests/paper_imagenet.json declares them, and the weight files in
`checkpoints/`. Each model is extracted once; a second call resumes. What is missing is named with
where to get it. LIST (path,label) names ID images that Mahalanobis learns from.

    GRADSCORE_DATA=DATA python benchmarks/paper.py --stand-in

makes the same tables from other models on the smaller real sets of that folder: it tests the way,
and says nothing of the paper's figures.
"""

import argparse
import csv
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscore.ablation import ablate
from gradscore.cli.console import Progress
from gradscore.data.declared import build_list, problems, read_declaration
from gradscore.errors import GradScoreError
from gradscore.evaluation import Evaluation, Row, evaluate_run
from gradscore.extraction import extract
from gradscore.plots import plot_ablation
from gradscore.scores import Question
from gradscore.tables import write_evaluation, write_rows

HERE = Path(__file__).parent
DECLARATION = HERE.parent / "data_manifests" / "paper_imagenet.json"
BIT, DENSENET = "bit:BiT-S-R101x1", "timm:densenet121"
FAMILY = tuple(f"BiT-S-R{size}" for size in ("50x1", "101x1", "50x3", "152x2", "101x3"))
COMPARED = ("msp", "odin", "energy", "mahalanobis", "gradnorm")
ABLATIONS = ("layers", "decomposition", "p", "temperature", "target", "kl")
AUTHORS = "http://pages.cs.wisc.edu/~huangrui/finetuned_model"
GOOGLE = "https://storage.googleapis.com/bit_models"
TIMM = "model.safetensors of https://huggingface.co/timm/densenet121.ra_in1k"
TRAIN = "train"
CENTRAL = {"resize": 256, "crop": 224, "interpolation": "bilinear", "mean": 0.5, "std": 0.5}

Sets = dict[str, tuple[str | None, str]]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Subject:
    """One model of the paper on its sets, or what stands in for it.

    Attributes:
        name: The paper's model.
        model: Spec of the model that is run.
        weights: Its weight file.
        tables: Which tables it has rows in; ``ablations`` are tables 2 and 5, and the sweeps.
        sets: Set name to role and source; :data:`TRAIN` is what Mahalanobis learns from.
        origin: Where the weight file comes from.
        preprocessing: What differs from the model's own.
    """

    name: str
    model: str
    weights: Path
    tables: tuple[str, ...]
    sets: Sets
    origin: str = ""
    preprocessing: dict | None = None

    @property
    def layers(self) -> str:
        """Return the parameters whose norms are recorded: ablations ask for every layer."""
        return "all" if "ablations" in self.tables else "last"


def paper_figures() -> dict[tuple[str, ...], tuple[float | None, float | None]]:
    """Return (table, model, setting, OOD set) to FPR95 and AUROC in percent."""
    figures = {}
    with (HERE / "paper_figures.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            *key, fpr95, auroc = row.values()
            figures[tuple(key)] = tuple(float(x) if x else None for x in (fpr95, auroc))
    return figures


def paper_sets(data: Path, lists: Path) -> tuple[Sets, list[str]]:
    """Return the declared sets that are there, listed with checksums, and what is missing."""
    sets: Sets = {}
    missing = []
    for declared in read_declaration(DECLARATION):
        found = list(problems(declared, data))
        missing += [f"set {declared.name}: {problem}" for problem in found]
        if not found:
            path = lists / f"{declared.name}.csv"
            if not path.exists():
                build_list(declared, data, path)
            sets[declared.name] = (declared.role, f"{path}@{data}")
    return sets, missing


def paper_subjects(data: Path, sets: Sets) -> list[Subject]:
    """Return the paper's models; Table 4 is of Google's weights, Tables 1, 2 and 5 of its own."""
    checkpoints = data / "checkpoints"
    own = "BiT-S-R101x1-flat-finetune.pth.tar"
    dense = "densenet121.safetensors"
    main = ("table1", "ablations")
    return [
        Subject(BIT, BIT, checkpoints / own, main, sets, f"{AUTHORS}/{own}"),
        Subject(DENSENET, DENSENET, checkpoints / dense, ("table3",), sets, TIMM),
        *(
            Subject(
                *(f"bit:{name}", f"bit:{name}", checkpoints / f"{name}.npz", ("table4",), sets),
                f"{GOOGLE}/{name}.npz",
            )
            for name in FAMILY
        ),
    ]


def stand_ins(data: Path) -> list[Subject]:
    """Return models and sets that are there in place of the paper's two main models."""

    def sets(folder: Path, names: str) -> Sets:
        roles = {"id": "id", TRAIN: None}
        pairs = [pair.split("=") for pair in names.split()]
        return {
            name: (roles.get(name, "ood"), str(folder / source / "manifest.csv"))
            for name, source in pairs
        }

    cifar, imagenet = data / "cifar10", data / "imagenet"
    return [
        Subject(
            *(BIT, "cifar:resnet20", cifar / "resnet20_cifar10.safetensors"),
            ("table1", "table4", "ablations"),
            sets(
                cifar,
                "id=id_cifar10_test train=id_cifar10_train_subset gtsrb=ood_gtsrb "
                "textures=ood_textures_dtd imagenet=ood_imagenet_resize",
            ),
        ),
        Subject(
            *(DENSENET, "timm:mobilenetv2_100?pad_type=same"),
            *(imagenet / "mobilenetv2_100_imagenet.safetensors", ("table3", "table4")),
            sets(
                imagenet,
                "id=id_imagenet_samples flowers=ood_flowers sun=ood_scenes_sun "
                "textures=ood_textures_dtd",
            ),
            preprocessing=CENTRAL,
        ),
    ]


def tables_of(subject: Subject, run: Path, output: Path) -> Tables:
    """Return a model's tables beside the paper's, and write its sweeps with their figures."""
    fits = {"mahalanobis": TRAIN}
    asked = [
        Question(method, fit=fits.get(method))
        for method in COMPARED
        if method not in fits or TRAIN in subject.sets
    ]
    evaluation = evaluate_run(run, asked)
    about = {"paper_model": subject.name, "model": subject.model, "weights": subject.weights.name}
    tables: Tables = {"models": [about | {"id_accuracy": evaluation.id_accuracy}]}
    for table in sorted({"table1", "table3"} & {*subject.tables}):
        tables[table] = beside_the_paper(table, subject, evaluation.rows)
    if "table4" in subject.tables:
        rows = [r for r in evaluation.rows if (r["method"], r["ood"]) == ("gradnorm", "mean")]
        tables["table4"] = beside_the_paper("table4", subject, rows)
    if "ablations" in subject.tables:
        found = ablate(run, ABLATIONS)
        tables["table2"] = beside_the_paper("table2", subject, found["layers"].rows, "layers")
        tables["table5"] = beside_the_paper("table5", subject, found["decomposition"].rows)
        tables["text"] = text_figures(subject, found)
        for kind in ABLATIONS:
            write_evaluation(output / f"{kind}.csv", found[kind])
            plot_ablation(kind, run, found[kind], output / f"{kind}.png")
    return tables


def beside_the_paper(
    table: str, subject: Subject, rows: Iterable[Row], key: str = "method"
) -> list[Row]:
    """Return rows in percent with the paper's figures and the differences in points."""
    figures = paper_figures()
    result = []
    for row in rows:
        line = {"paper_model": subject.name, "model": subject.model}
        line |= {key: row[key], "ood": row["ood"]}
        paper = figures.get((table, subject.name, row[key], row["ood"]), (None, None))
        for metric, theirs in zip(("fpr95", "auroc"), paper, strict=True):
            ours = 100 * row[metric]
            line[f"{metric}_percent"] = round(ours, 2)
            line[f"paper_{metric}"] = theirs
            line[f"{metric}_difference"] = _difference(ours, theirs)
        result.append(line)
    return result


def text_figures(subject: Subject, found: dict[str, Evaluation]) -> list[Row]:
    """Return how many points of FPR95 one setting loses to another, as the paper's text says."""
    asked = {
        "one-hot minus uniform": ("target", "one-hot", "uniform"),
        "p = 2 minus p = 1": ("p", 2.0, 1.0),
    }
    figures, result = paper_figures(), []
    for text, (kind, worse, better) in asked.items():
        fpr95 = {(r[kind], r["ood"]): 100 * r["fpr95"] for r in found[kind].rows}
        sets = [ood for setting, ood in fpr95 if setting == better and ood != "mean"]
        gaps = {ood: fpr95[worse, ood] - fpr95[better, ood] for ood in sets}
        for ood, gap in {**gaps, "largest": max(gaps.values())}.items():
            paper, _ = figures.get(("text", subject.name, text, ood), (None, None))
            line = {"paper_model": subject.name, "model": subject.model, "gap": text}
            line |= {"ood": ood, "points": round(gap, 2), "paper_points": paper}
            result.append(line | {"difference": _difference(gap, paper)})
    return result


def _difference(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else round(ours - theirs, 2)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", type=Path, help="folder with the sets and checkpoints/")
    where.add_argument(
        "--stand-in", action="store_true", help="other models, on the folder GRADSCORE_DATA"
    )
    parser.add_argument("--train", metavar="LIST", help="path,label of ID images to learn from")
    parser.add_argument("--limit", type=int, help="first images of each set only")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once (default: 64)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--runs", type=Path, help="where the runs are kept (default: OUTPUT/runs)")
    parser.add_argument("-o", "--output", type=Path, default=Path("paper"))
    options = parser.parse_args(arguments)
    if options.stand_in:
        options.data = Path(os.environ.get("GRADSCORE_DATA") or parser.error("set GRADSCORE_DATA"))
    if not options.data.is_dir():
        parser.error(f"expected a folder, got {options.data}")
    return options


def chosen(options: argparse.Namespace) -> tuple[list[Subject], list[str]]:
    """Return the models whose sets and weights are there, and what is missing, a line each."""
    if options.stand_in:
        return stand_ins(options.data), []
    sets, missing = paper_sets(options.data, options.output / "lists")
    whole = not missing
    if options.train:
        sets[TRAIN] = (None, options.train)
    else:
        missing.append("mahalanobis: no labelled ID images to learn from; give --train LIST")
    subjects = paper_subjects(options.data, sets)
    there = [subject for subject in subjects if subject.weights.exists()]
    absent = [subject for subject in subjects if subject not in there]
    missing += [f"weights: {s.weights} is not there; get {s.origin}" for s in absent]
    return there if whole else [], missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Extract, evaluate and write; return 1 if nothing of the paper could be run."""
    options = _arguments(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    subjects, missing = chosen(options)
    tables: Tables = {}
    for subject in subjects:
        run = (options.runs or options.output / "runs") / subject.weights.name.split(".")[0]
        print(f"{subject.model}: {', '.join(subject.sets)} into {run}", flush=True)
        try:
            extract(
                *(subject.model, subject.sets, run),
                layers=subject.layers,
                weights=subject.weights,
                preprocessing=subject.preprocessing,
                limit=options.limit,
                batch_size=options.batch_size,
                workers=options.workers,
                progress=Progress(),
            )
            found = tables_of(subject, run, options.output)
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
