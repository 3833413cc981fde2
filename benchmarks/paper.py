"""Huang, Geng & Li (NeurIPS 2021): every table beside the paper's own figures.

    python benchmarks/paper.py --data DATA --train LIST -o benchmarks/results/paper

DATA holds the sets as data_manifests/paper_imagenet.json declares them, and the weight files in
`checkpoints/`. Each model is extracted once; a second call resumes. What is missing is named with
where to get it. LIST (path,label) names ID images that Mahalanobis and Lee & AlRegib learn from.

    GRADSCORE_DATA=DATA python benchmarks/paper.py --stand-in

makes the same tables from other models on the smaller real sets of that folder: it tests the way,
and says nothing of the paper's figures.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from paper_subjects import NOISE, TRAIN, Subject, paper_sets, paper_subjects, stand_ins
from paper_tables import Tables, tables_of

from gradscore.cli.console import Progress
from gradscore.errors import GradScoreError
from gradscore.recorded import extract
from gradscore.tables import write_rows

NO_LABELS = "no labelled ID images to learn from"
NOISE_IMAGES = 1000


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
        subjects = stand_ins(options.data)
        lacking = [subject for subject in subjects if TRAIN not in subject.sets]
        return subjects, [f"{s.model}: mahalanobis_stages: {NO_LABELS}" for s in lacking]
    sets, missing = paper_sets(options.data, options.output / "lists")
    whole = not missing
    if options.train:
        sets[TRAIN] = (None, options.train)
    else:
        missing.append(f"mahalanobis_stages, lee_alregib: {NO_LABELS}; give --train LIST")
    subjects = paper_subjects(options.data, sets)
    there = [subject for subject in subjects if subject.weights.exists()]
    absent = [subject for subject in subjects if subject not in there]
    missing += [f"weights: {s.weights} is not there; get {s.origin}" for s in absent]
    return there if whole else [], missing


def record(subject: Subject, run: Path, options: argparse.Namespace) -> None:
    """Record all that a model's tables ask for; what the run holds already is left as it is."""
    how = {
        "weights": subject.weights,
        "preprocessing": subject.preprocessing,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "progress": Progress(),
    }
    fit = subject.learning.get("mahalanobis_stages")
    methods = ["mahalanobis"] if fit else []
    extract(
        subject.model, subject.sets, run, layers=subject.layers, record=methods, fit=fit, **how
    )
    if "lee_alregib" in subject.learning:
        sets = subject.sets | {NOISE: (None, str(noise(run.parent, subject.noise)))}
        extract(subject.model, sets, run, target=["all-ones"], p=[2], **how)


def noise(folder: Path, side: int) -> Path:
    """Return a file of uniform noise, ``side`` by ``side``; written once, always the same."""
    path = folder / f"noise-{side}.npz"
    if not path.exists():
        images = np.random.default_rng(0).integers(
            0, 256, (NOISE_IMAGES, side, side, 3), dtype=np.uint8
        )
        part = path.with_suffix(".part.npz")
        np.savez(part, images=images)
        part.replace(path)  # an interrupted call leaves no torn file under the name
    return path


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
            record(subject, run, options)
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
