"""The choice that a run keeps, read again: by whoever uses a score without being told which."""

import math
import os
from typing import Any

from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods import METHODS, RecordedRun, ScoreSpec, make_spec
from gradscore.methods.custom import own_digest
from gradscore.recorded import Run, open_store
from gradscore.run import ChoiceRecord, RunStore
from gradscore.run.hints import command


def read_choice(
    run: Run | RecordedRun | str | os.PathLike,
) -> tuple[ScoreSpec, ChoiceRecord] | None:
    """Return the score that :func:`~gradscore.choosing.choose` recommended, and all that it said.

    The one reader of ``fits/choice.json``: a calibration without a method takes its score from
    here, and a report its tables. Texts of the record come from a file: escape them where they are
    shown.

    Args:
        run: The run, or its directory.

    Returns:
        The recommended score and the record, or None where nothing was chosen.

    Raises:
        RunError: If the file is damaged, or may not be read.
        NotRecorded: If the choice rests on a set that the run no longer holds, or recommends a
            method that is not known here, or a function of the user's own that is another now;
            the message says what to do.
    """
    store = open_store(run)
    record = store.read_choice() if isinstance(store, RunStore) else None
    if record is None:
        return None
    again = f"choose again with {command('choose', store.path)}"
    used = [*record.id, record.options.get("fit")]
    gone = [name for name in used if name is not None and name not in store.sets]
    if gone:
        raise NotRecorded(
            f"The run {store.path} no longer holds the set {gone[0]!r}, by which its score was "
            f"chosen; {again}."
        )
    try:
        spec = spec_of(record.method, record.options)
    except InvalidArgument as error:
        raise NotRecorded(
            f"The choice of the run {store.path} recommends a score that is not known here: "
            f"{error} Register or give it, or {again}."
        ) from error
    if own_digest(spec.definition) != record.own:
        raise NotRecorded(
            f"The method {record.method!r} is not the function that was chosen in the run "
            f"{store.path}: that, or something that it refers to, is another now; {again}."
        )
    return spec, record


def spec_of(method: str, options: dict[str, Any]) -> ScoreSpec:
    """Return a score as a choice's record names it.

    Raises:
        InvalidArgument: If there is no such method or option, or an option is out of range.
    """
    read = {name: math.inf if value == "inf" else value for name, value in options.items()}
    return make_spec(method, **read)


def asked_fit(record: ChoiceRecord) -> str | None:
    """Return the set that a choice was told to learn from, or None."""
    for row in (*record.far, *record.near):
        method = METHODS.get(row.method)
        if method is not None and "fit" in method.options and not method.required:
            return row.options.get("fit")
    return None
