r"""Rows of an evaluation as a table of methods x sets, for readers: Markdown, LaTeX, terminals.

Figures are percent with one decimal. The best of each column is marked, among scores of the same
run and ID set: figures of different ID sets do not compare.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradscore.choices import METRICS
from gradscore.escapes import to_latex, to_markdown
from gradscore.naming import row_namer

METRIC_NAMES = {"auroc": "AUROC", "fpr95": "FPR95", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out"}
LOWER_IS_BETTER = ("fpr95",)
PIVOTED = ("auroc", "fpr95")
"""Figures that a table of methods x sets shows by default."""
BOOTSTRAP = "bootstrap percentiles"
"""What intervals are, where rows do not say it."""
_LEAD = {"run": "run", "model": "model", "id_accuracy": "ID accuracy", "id": "ID set"}
"""What may stand before a method: a column of the rows, and how a table calls it."""


@dataclass(frozen=True)
class Line:
    """One score of one run and ID set.

    Attributes:
        lead: Texts of the first columns, the method last.
        group: What its figures compare within: the run and the ID set.
        rows: OOD set to the row with its figures.
    """

    lead: tuple[str, ...]
    group: tuple[Any, ...]
    rows: dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Pivot:
    """A table of methods x sets.

    Attributes:
        lead: Names of the first columns, ``method`` last.
        sets: OOD sets in order, ``mean`` last.
        metrics: Figures shown of each, of :data:`gradscore.choices.METRICS`.
        lines: One a score.
    """

    lead: tuple[str, ...]
    sets: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: list[Line]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Set and metric of each column of figures."""
        return [(ood, metric) for ood in self.sets for metric in self.metrics]

    def best(self, line: Line, ood: str, metric: str) -> bool:
        """Return whether no score of the line's group has a better figure, as it is printed."""
        figures = [
            float(percent(other.rows[ood][metric]))
            for other in self.lines
            if other.group == line.group and ood in other.rows
        ]
        if len(figures) < 2 or ood not in line.rows:
            return False
        extreme = min(figures) if metric in LOWER_IS_BETTER else max(figures)
        return float(percent(line.rows[ood][metric])) == extreme


def is_evaluation(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether rows are those of an evaluation, so that they can be pivoted."""
    return {"method", "ood", *METRICS} <= rows[0].keys()


def pivot(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] | None = None) -> Pivot:
    """Return evaluation rows as a table of methods x sets.

    Where there is but one OOD set, its figures are the mean, which is left out.

    Args:
        rows: Rows of an evaluation, or of several runs side by side.
        metrics: Figures to show; by default :data:`PIVOTED`.
    """
    sets = sorted(dict.fromkeys(row["ood"] for row in rows), key="mean".__eq__)
    if len(sets) == 2:
        sets = [name for name in sets if name != "mean"]
    lead = [key for key in _LEAD if len({row[key] for row in rows if key in row}) > 1]
    if "id_accuracy" in rows[0] and "id_accuracy" not in lead:
        lead.append("id_accuracy")
    name = row_namer(rows, ("method",))
    lines: dict[tuple, Line] = {}
    for row in rows:
        texts = tuple(lead_text(key, row[key]) for key in lead)
        group = tuple(row.get(key) for key in ("run", "id"))
        key = (*group, name(row))
        lines.setdefault(key, Line((*texts, name(row)), group, {})).rows[row["ood"]] = row
    names = tuple(_LEAD[key] for key in lead)
    return Pivot((*names, "method"), tuple(sets), tuple(metrics or PIVOTED), list(lines.values()))


def intervals_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the intervals of evaluation rows are, in a sentence; empty without intervals.

    >>> intervals_text([{"auroc_low": 0.5}]), intervals_text([{"auroc_low": None}])
    ('95% intervals: bootstrap percentiles.', '')
    """
    kinds: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.get("auroc_low") is not None:
            kind = row.get("intervals", BOOTSTRAP)
            kinds.setdefault(kind, {})[str(row.get("run"))] = None
    if not kinds:
        return ""
    told = [
        f"{kind} (run {', '.join(runs)})" if len(kinds) > 1 else kind
        for kind, runs in kinds.items()
    ]
    return f"95% intervals: {'; '.join(told)}."


def percent(share: float) -> str:
    """Return a fraction in percent, as all tables for readers show it.

    >>> percent(0.97777)
    '97.8'
    """
    return f"{100 * share:.1f}"


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """Return a figure in percent with its interval, where it has one."""
    low, high = (row.get(f"{metric}{end}") for end in ("_low", "_high"))
    interval = "" if low is None else f" [{percent(low)}, {percent(high)}]"
    return percent(row[metric]) + interval


def lead_text(key: str, value: Any) -> str:
    """Return what stands before a method, as text."""
    if key == "id_accuracy":
        return "unknown" if value is None else percent(value)
    return str(value)


def markdown_lines(table: Pivot) -> Iterator[str]:
    """Yield the lines of a table in Markdown, with intervals; the best figures in bold."""
    names = [f"{to_markdown(ood)} {METRIC_NAMES[metric]}" for ood, metric in table.columns]
    yield pipes([*table.lead, *names])
    yield pipes([":--"] * len(table.lead) + ["--:"] * len(names))
    for line in table.lines:
        cells = []
        for ood, metric in table.columns:
            text = with_interval(line.rows[ood], metric) if ood in line.rows else ""
            cells.append(f"**{text}**" if table.best(line, ood, metric) else text)
        yield pipes([*map(to_markdown, line.lead), *cells])


def latex_lines(table: Pivot) -> Iterator[str]:
    """Yield the lines of a ``tabular`` for the package booktabs; the best figures in bold."""
    leads, width = len(table.lead), len(table.metrics)
    yield rf"\begin{{tabular}}{{{'l' * leads}{'r' * len(table.columns)}}}"
    yield r"\toprule"
    spans = [rf"\multicolumn{{{width}}}{{c}}{{{to_latex(ood)}}}" for ood in table.sets]
    yield " & ".join([""] * leads + spans).strip() + r" \\"
    starts = [leads + 1 + width * place for place in range(len(spans))]
    yield "".join(rf"\cmidrule(lr){{{start}-{start + width - 1}}}" for start in starts)
    arrows = {m: r"$\downarrow$" if m in LOWER_IS_BETTER else r"$\uparrow$" for m in METRICS}
    heads = [f"{METRIC_NAMES[metric]} {arrows[metric]}" for _, metric in table.columns]
    yield " & ".join([*table.lead, *heads]) + r" \\"
    before = None
    for line in table.lines:
        if line.group != before:
            yield r"\midrule"
            before = line.group
        cells = []
        for ood, metric in table.columns:
            text = percent(line.rows[ood][metric]) if ood in line.rows else "--"
            cells.append(rf"\textbf{{{text}}}" if table.best(line, ood, metric) else text)
        yield " & ".join([*map(to_latex, line.lead), *cells]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def plain_latex(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a ``tabular`` of texts as they are."""
    yield rf"\begin{{tabular}}{{{'l' * len(columns)}}}"
    yield r"\toprule"
    for place, row in enumerate((columns, *rows)):
        yield " & ".join(map(to_latex, row)) + r" \\"
        if not place:
            yield r"\midrule"
    yield r"\bottomrule"
    yield r"\end{tabular}"


def pipes(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
