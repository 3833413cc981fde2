"""The rows of a set as a table: where each image came from, its classes, its scores."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.scoring import Scores, iterate_scores, known_sets

if TYPE_CHECKING:
    import pyarrow


def score_columns(block: Scores, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the columns of a written table of scores, by name.

    Args:
        block: The scores.
        names: The classes' names, where they are known: ``predicted_name`` then says them.
    """
    columns = {
        "set": [block.set] * len(block),
        "path": block.path.tolist(),
        "label": block.label.tolist(),
        "predicted": block.predicted.tolist(),
    }
    if names is not None:
        columns["predicted_name"] = [names[k] for k in columns["predicted"]]
    return {**columns, **block.columns}


def arrow_table(columns: dict[str, Any]) -> "pyarrow.Table":
    """Return columns as a table of pyarrow.

    Arrow's text is UTF-8; other bytes of file names are written as Python shows them.
    """
    import pyarrow

    texts = {
        name: [text and text.encode(errors="backslashreplace").decode() for text in columns[name]]
        for name in columns.keys() & {"path", "label_name", "predicted_name"}
    }
    return pyarrow.table({**columns, **texts})


def rows_table(run: RecordedRun, name: str, specs: Sequence[ScoreSpec]) -> "pyarrow.Table":
    """Return one row an image of a set, with a column for each score.

    Args:
        run: The run's store.
        name: Name of the set.
        specs: The scores; may be empty.

    Returns:
        Columns ``set``, ``index``, ``path``, ``label``, ``predicted``; ``label_name`` and
        ``predicted_name`` where the run knows its classes' names; then the scores.

    Raises:
        InvalidArgument: If the set is unknown.
        NotRecorded: If the run does not hold what a score needs.
        RunError: If the run is damaged, or a value is not finite.
    """
    import pyarrow

    known_sets(run, [name])
    blocks = iterate_scores(run, [name], specs) if specs else _unscored(run, name)
    names = run.info.class_names
    tables = []
    for block in blocks:
        columns = score_columns(block, names)
        scores = {key: columns.pop(key) for key in block.columns}
        columns = {"set": columns.pop("set"), "index": block.index, **columns}
        if names is not None:  # labels of an OOD set may be beyond the model's classes
            labels = [names[k] if 0 <= k < len(names) else None for k in block.label]
            columns |= {"label_name": labels, "predicted_name": columns.pop("predicted_name")}
        tables.append(arrow_table(columns | scores))
    if names is not None:
        field = pyarrow.field("label_name", pyarrow.string())  # also where no row has a label
        place = tables[0].schema.get_field_index("label_name")
        tables = [t.set_column(place, field, t["label_name"].cast(field.type)) for t in tables]
    return pyarrow.concat_tables(tables)


def _unscored(run: RecordedRun, name: str) -> Iterator[Scores]:
    """Yield the rows of a set without scores."""
    for arrays in run.blocks(name, fields=("index", "path", "label", "logits")):
        predicted = np.asarray(arrays["logits"]).argmax(axis=1)
        rows = (arrays["index"], arrays["path"], arrays["label"], predicted)
        yield Scores(name, *rows, {})
