"""The tables of one model's run, each figure beside the paper's own."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from paper_subjects import Subject

from gradscore.ablation import ablate
from gradscore.evaluation import Row, evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.plots import plot_ablation
from gradscore.tables import write_evaluation

FIGURES = Path(__file__).with_name("paper_figures.csv")
COMPARED = ("msp", "odin", "energy", "mahalanobis_stages", "lee_alregib", "gradnorm")
PLAIN = ("msp", "odin", "energy", "gradnorm")
"""Those that learn nothing; ODIN without perturbation, as the paper compares it."""
ABLATIONS = ("layers", "decomposition", "p", "temperature", "target", "kl")
GAPS = {
    "one-hot minus uniform": ("target", "one-hot", "uniform"),
    "p = 2 minus p = 1": ("p", 2.0, 1.0),
    "lee_alregib minus gradnorm": ("method", "lee_alregib", "gradnorm"),
}
"""What the text compares: which setting varies, the worse and the better."""

Tables = dict[str, list[Row]]


def paper_figures() -> dict[tuple[str, ...], tuple[float | None, float | None]]:
    """Return (table, model, setting, OOD set) to FPR95 and AUROC in percent."""
    figures = {}
    with FIGURES.open(newline="") as file:
        for row in csv.DictReader(file):
            *key, fpr95, auroc = row.values()
            figures[tuple(key)] = tuple(float(x) if x else None for x in (fpr95, auroc))
    return figures


def tables_of(subject: Subject, run: Path, output: Path) -> Tables:
    """Return a model's tables beside the paper's, and write its sweeps with their figures."""
    fits = dict.fromkeys(PLAIN) | subject.learning
    asked = [ScoreSpec(method, fit=fits[method]) for method in COMPARED if method in fits]
    evaluation = evaluate_run(run, asked)
    (only,) = evaluation.accuracies.values()
    about = {"paper_model": subject.name, "model": subject.model, "weights": subject.weights.name}
    tables: Tables = {"models": [about | {"id_accuracy": only.share}]}
    for table in sorted({"table1", "table3"} & {*subject.tables}):
        tables[table] = beside_the_paper(table, subject, evaluation.rows)
    if "table4" in subject.tables:
        rows = [r for r in evaluation.rows if (r["method"], r["ood"]) == ("gradnorm", "mean")]
        tables["table4"] = beside_the_paper("table4", subject, rows)
    if "ablations" in subject.tables:
        found = ablate(run, ABLATIONS)
        tables["table2"] = beside_the_paper("table2", subject, found["layers"].rows, "layers")
        tables["table5"] = beside_the_paper("table5", subject, found["decomposition"].rows)
        sources = {kind: found[kind].rows for kind in ("target", "p")}
        tables["text"] = text_figures(subject, sources | {"method": evaluation.rows})
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


def text_figures(subject: Subject, sources: Mapping[str, Iterable[Row]]) -> list[Row]:
    """Return how many points of FPR95 one setting loses to another, as the paper's text says.

    Args:
        subject: The model.
        sources: What varies to its rows: ``target``, ``p`` and ``method``.
    """
    figures, result = paper_figures(), []
    for text, (key, worse, better) in GAPS.items():
        fpr95 = {(row[key], row["ood"]): 100 * row["fpr95"] for row in sources[key]}
        gaps = {
            ood: points - fpr95[better, ood]
            for (setting, ood), points in fpr95.items()
            if setting == worse
        }
        if gaps:  # none where the worse one could not learn
            gaps["largest"] = max(gaps.values())
        for ood, gap in gaps.items():
            paper, _ = figures.get(("text", subject.name, text, ood), (None, None))
            line = {"paper_model": subject.name, "model": subject.model, "gap": text}
            line |= {"ood": ood, "points": round(gap, 2), "paper_points": paper}
            result.append(line | {"difference": _difference(gap, paper)})
    return result


def _difference(ours: float, theirs: float | None) -> float | None:
    return None if theirs is None else round(ours - theirs, 2)
