"""What detectors flag on real images: calibrated on one half of the ID images, tried on the other.

python benchmarks/detectors.py RUN... -o benchmarks/results/detectors.csv

The ID images of each run (as `real_images.sh` records them; `--layers last` is enough) are halved
20 times. One half sets the threshold at tpr 0.95; the promise is that with 95% confidence at most
5% of the other are flagged. Rows: the share of each set that is flagged, its mean over the halves
and the range. `half`: a score that learns does so from one half of the calibration half; `fit
set`: from the run's set of training images; `cross-fit`: from nine of ten parts for the tenth;
`in-sample`: the threshold is set by the images that were learned from, which no command does.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
from numpy.typing import NDArray

from gradscore.detector.calibration import Calibration, Flagged, calibrate_run
from gradscore.detector.threshold import Threshold
from gradscore.detector.wanted import Wanted
from gradscore.methods import make_spec
from gradscore.methods.memory_run import Arrays, MemoryRun, set_entry
from gradscore.run import RunStore
from gradscore.run.layout import BLOCKS
from gradscore.scoring import score_sets

SCORES = ("gradnorm", "energy", "laplace_energy_blocks")
LEARNED = "laplace_energy_blocks"
HALVES = 20
FIELDS = ("index", "path", "label", "features", "logits")
CALIBRATED, OTHER = "calibrated", "other half"


def main() -> None:
    """Calibrate, count, print and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    for path in options.runs:
        rows += measured(RunStore(path))
    for row in rows:
        print(*row.values(), sep="  ")
    if options.output is not None:
        records.write(options.output, rows)


def measured(run: RunStore) -> list[dict[str, Any]]:
    """Return the rows of one run."""
    whole = {name: loaded(run, name) for name in run.sets}
    found: dict[tuple[str, str], list[tuple[Threshold, int, dict[str, Flagged]]]] = {}
    for seed in range(HALVES):
        for fit in (False, True):
            halved = halves(run, whole, seed, fit=fit)
            for score, how, made in calibrations(halved, fit):
                learned = sum(source.images for source in made.info.fit)
                entry = (made.info.threshold, learned, made.ood)
                found.setdefault((score, how), []).append(entry)
        halved = halves(run, whole, seed, fit=False)
        found.setdefault((LEARNED, "in-sample"), []).append(in_sample(halved))
    return [row for key, made in found.items() for row in summary(run.info.model, *key, made)]


def loaded(run: RunStore, name: str) -> Arrays:
    """Return all recorded arrays of a set."""
    blocks = [*run.blocks(name, FIELDS, (BLOCKS,))]
    return {field: np.concatenate([block[field] for block in blocks]) for field in blocks[0]}


def halves(run: RunStore, whole: dict[str, Arrays], seed: int, *, fit: bool) -> MemoryRun:
    """Return a run of both halves of the ID images, of the OOD sets, and of a set to fit to."""
    (ids,) = [name for name, entry in run.sets.items() if entry.role == "id"]
    count = len(whole[ids]["index"])
    first = np.zeros(count, bool)
    first[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    rows = {CALIBRATED: taken(whole[ids], first), OTHER: taken(whole[ids], ~first)}
    roles = {CALIBRATED: "id", OTHER: "ood"}
    for name, entry in run.sets.items():
        if entry.role == "ood" or (fit and entry.role == "fit"):
            rows[name], roles[name] = whole[name], entry.role
    sets = {n: set_entry(n, roles[n], len(x["index"]), (BLOCKS,)) for n, x in rows.items()}
    return MemoryRun(replace(run.info, sets=sets), run.head(), rows)


def taken(arrays: Arrays, chosen: NDArray[np.bool_]) -> Arrays:
    """Return chosen rows, numbered anew."""
    return {name: values[chosen] for name, values in arrays.items()} | {
        "index": np.arange(chosen.sum())
    }


def calibrations(run: MemoryRun, fit: bool) -> list[tuple[str, str, Calibration]]:
    """Return each score's detectors."""
    if fit:
        there = any(entry.role == "fit" for entry in run.sets.values())
        return [(LEARNED, "fit set", calibrate_run(run, Wanted(LEARNED)))] if there else []
    made = [
        (score, "half" if score == LEARNED else "", calibrate_run(run, Wanted(score)))
        for score in SCORES
    ]
    return [*made, (LEARNED, "cross-fit", calibrate_run(run, Wanted(LEARNED, cross_fit=True)))]


def in_sample(run: MemoryRun) -> tuple[Threshold, int, dict[str, Flagged]]:
    """Return what is flagged where the images that were learned from set the threshold."""
    run.learned = None
    sets = dict(run.info.sets)
    sets[CALIBRATED] = replace(sets[CALIBRATED], role="fit")
    again = MemoryRun(replace(run.info, sets=sets), run.head(), run._rows)
    scored = score_sets(again, sets, [make_spec(LEARNED, fit=CALIBRATED)])
    columns = {name: next(iter(found.columns.values())) for name, found in scored.items()}
    threshold = Threshold.of(columns.pop(CALIBRATED))
    flagged = {
        name: Flagged(int((scores < threshold.value).sum()), len(scores))
        for name, scores in columns.items()
    }
    return threshold, threshold.images, flagged


def summary(
    model: str, score: str, how: str, made: Sequence[tuple[Threshold, int, dict[str, Flagged]]]
) -> list[dict[str, Any]]:
    """Return a row a set."""
    rows = []
    for name in made[0][2]:
        shares = np.array([found[name].flagged / found[name].images for _, _, found in made])
        rows.append(
            {
                "model": model,
                "score": score,
                "how": how,
                "halves": len(made),
                "calibrated": made[0][0].images,
                "learned_from": made[0][1],
                "set": name,
                "images": made[0][2][name].images,
                "flagged": f"{shares.mean():.4f}",
                "lowest": f"{shares.min():.4f}",
                "highest": f"{shares.max():.4f}",
                "torch": torch.__version__,
            }
        )
    return rows


if __name__ == "__main__":
    main()
