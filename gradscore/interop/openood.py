"""An evaluation as lines of OpenOOD's leaderboard (its ``results/*.csv``)."""

import csv
import os
from collections.abc import Sequence

import numpy as np

from gradscore.errors import InvalidArgument
from gradscore.escapes import to_cell
from gradscore.evaluation import Evaluation
from gradscore.files import as_text, written_aside
from gradscore.methods import ScoreSpec

COLUMNS = (
    *("Training", "Postprocessor", "Near-OOD_AUROC", "Far-OOD_AUROC", "ID_Accuracy"),
    *("Outlier_Data", "Arch", "Additional_Description"),
)
POSTPROCESSORS = {
    **{"msp": "MSP", "max_logit": "MLS", "energy": "EBO", "odin": "ODIN", "gradnorm": "GradNorm"},
    **{"react": "ReAct", "ash": "ASH", "scale": "SCALE", "knn": "KNN", "nnguide": "NNGuide"},
    **{"fdbd": "fDBD", "vim": "VIM", "gen": "GEN", "mahalanobis": "MDS"},
}
"""What OpenOOD calls methods of ours; others keep their name."""
UNKNOWN = "/"
"""What the leaderboard writes where there is no figure."""


def write_leaderboard(
    path: str | os.PathLike, evaluation: Evaluation, *, near: Sequence[str] = (), model: str = ""
) -> None:
    """Write a line an ID set and score, in the leaderboard's columns and units (percent).

    How the network was trained, and on which outliers, a run does not know: these columns are for
    its user to fill in.

    Args:
        path: A .csv.
        evaluation: What to write.
        near: Names of the OOD sets that are near; all others are far.
        model: What the column ``Arch`` says.

    Raises:
        InvalidArgument: If a near set is none of the evaluation.
        RunError: If the file cannot be written.
    """
    oods = {row["ood"]: None for row in evaluation.rows if row["ood"] != "mean"}
    for name in near:
        if name not in oods:
            known = ", ".join(oods)
            raise InvalidArgument(f"Expected a near OOD set of {known}, got {name!r}.")
    lines: dict[tuple[str, ScoreSpec], dict[str, float]] = {}
    for row in evaluation.rows:
        lines.setdefault((row["id"], row.spec), {})[row["ood"]] = row["auroc"]
    with written_aside(path) as file, as_text(file) as texts:
        writer = csv.writer(texts, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (id_name, spec), aurocs in lines.items():
            figures = [[aurocs[o] for o in oods if (o in near) is side] for side in (True, False)]
            share = evaluation.accuracies[id_name].share
            about = ", ".join(f"{name} {text}" for name, text in spec.settings().items())
            texts_of_line = (
                UNKNOWN,
                POSTPROCESSORS.get(spec.method, spec.method),
                *(_percent(np.mean(side) if side else None) for side in figures),
                _percent(share),
                UNKNOWN,
                model or UNKNOWN,
                f"{id_name}{f': {about}' if about else ''}",
            )
            writer.writerow(map(to_cell, texts_of_line))


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.2f}"
