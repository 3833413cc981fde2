"""Chooses: every score of a run, or of a model, asked of ID images alone."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
from torch import nn

from gradscore.choosing.choice import Choice, find_warning
from gradscore.choosing.fewer import fewer
from gradscore.choosing.halves import choosing_part, describe_choosers, who_chose
from gradscore.choosing.ranking import recommended
from gradscore.choosing.recording import FIT, ID, recorded_images
from gradscore.choosing.specs import choice_specs, cost, fitting_specs
from gradscore.choosing.tables import (
    RECORD,
    far_shifts,
    near_shifts,
    ranked_rows,
    score_columns,
    surrogates,
)
from gradscore.errors import InvalidArgument, NotRecorded, RunError
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.methods.fitted import repeat_notices
from gradscore.metrics import auroc
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import Run, open_store
from gradscore.run import BASE, RunStore, extract_command
from gradscore.run.names import CHOICE_FILE
from gradscore.scoring import known_sets, score_sets

OTHER_ORDER = (
    "The far table ranks scores by how they tell these images from changed copies of them, the "
    "near table by classes removed from its last layer. On OOD sets their order may be another: "
    "those are other images."
)
"""Why a choice and an evaluation rank the same scores differently."""


def choose(
    run_or_model: Run | RecordedRun | nn.Module | str | os.PathLike,
    images: Any = None,
    *,
    sets: Iterable[str] = (),
    fit: Any = None,
    keep: bool = True,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    layers: str = "last",
    batch_size: int | str = 64,
) -> Choice:
    """Return which score to trust for a model, asked of its ID images alone.

    Ask a run, or a model with ID images: these are then recorded in a temporary folder, with their
    surrogates. No label is needed, and sets with the role ``ood`` are never read. Of a set of more
    than 50,000 images as many choose. Images that chose a score can give no threshold for it: see
    :func:`choose_by_half`.

    Args:
        run_or_model: The run, or its directory; or, with ``images``, the model or its spec.
        images: ID images of a model, which it was not trained on: a tensor ``[n, channels, height,
            width]``, a data set of images, or a DataLoader of one, as the model takes them; or
            pictures of PIL.
        sets: Names of the run's ID sets; by default every set with that role.
        fit: The run's set that methods learn from; by default as they choose it. With a model
            further ID images; by default methods learn from half of ``images`` for the others.
        keep: Whether the run keeps the choice, where it can be written.
        preprocessing: With a model: how images are normalised, such as ``{'mean': M, 'std': D}``;
            by default the model's own. Where it is not known there is no far table.
        layers: With a model: whose gradient norms are compared, too.
        batch_size: With a model: images at once.

    Raises:
        InvalidArgument: If a set is unknown or no ID set, or images and model do not go together.
        NotRecorded: If there is neither a surrogate nor a class to hold out.
        GradScoreError: As :func:`gradscore.recorded.extract`, with a model.
    """
    if images is None and isinstance(run_or_model, nn.Module):
        raise InvalidArgument("Expected ID images with a model: `choose(model, images)`.")
    if images is None:
        _require_default(preprocessing=preprocessing, layers=layers, batch_size=batch_size)
        if fit is not None and not isinstance(fit, str):
            raise InvalidArgument(f"Expected the name of a set to fit to, got a {_kind(fit)}.")
        store = open_store(run_or_model)
        hint = f"record them with {extract_command(store, *RECORD)}"
        choice = _chosen(store, known_sets(store, sets), fit, hint)
        return _kept(store, choice) if keep else choice
    if not isinstance(run_or_model, nn.Module | str):
        raise InvalidArgument(
            f"Expected a model or its spec with images, got a {_kind(run_or_model)}; ask a run "
            "without them: `choose(run)`."
        )
    if tuple(sets):
        raise InvalidArgument(f"Expected sets with a run only, got {sets!r} with a model.")
    how = {"preprocessing": preprocessing, "layers": layers, "batch_size": batch_size}
    with recorded_images(run_or_model, images, fit, **how) as store:
        hint = "give how images are normalised, `preprocessing={'mean': M, 'std': D}`"
        return _chosen(store, [ID], None if fit is None else FIT, hint)


def choose_by_half(run: RecordedRun, sets: Iterable[str] = (), fit: str | None = None) -> Choice:
    """Return what one half of the ID images chooses, drawn by a fixed seed.

    The other half has no part in it, and may therefore give the threshold of the chosen score.

    Args:
        run: The run, which does not keep the choice.
        sets: As of :func:`choose`.
        fit: As of it, with a run.

    Raises:
        InvalidArgument: As :func:`choose`.
        NotRecorded: As it; or if too few images choose.
    """
    hint = f"record them with {extract_command(run, *RECORD)}"
    return _chosen(run, known_sets(run, sets), fit, hint, half=True)


def _require_default(**given: Any) -> None:
    """Raise where what only a model takes is given with a run.

    Raises:
        InvalidArgument: Naming it.
    """
    for name, value in given.items():
        if value != signature(choose).parameters[name].default:
            raise InvalidArgument(
                f"Expected {name} with a model and images only, got {value!r} with a run."
            )


def _kind(value: object) -> str:
    return type(value).__name__


def _chosen(
    store: RecordedRun, sets: Sequence[str], fit: str | None, hint: str, *, half: bool = False
) -> Choice:
    """Return the choice of a run.

    Args:
        store: The run.
        sets: Names of ID sets; none for all.
        fit: Name of the set that methods learn from, or None.
        hint: What to do where there are no surrogates.
        half: Whether one half of the ID images chooses.
    """
    names = list(sets) or [n for n, s in store.sets.items() if s.role == "id"]
    if not names:
        command = extract_command(store, "--id", "NAME=PATH")
        raise NotRecorded(f"The run holds no ID set to choose by; add one with {command}.")
    _require_id(store, names, fit)
    notes: list[str] = []
    made = surrogates(store, names, notes)
    part = choosing_part(store, names, made, notes, half=half)
    notes[:0] = [who_chose(store, part, names, half=half), OTHER_ORDER]
    specs = choice_specs(part, notes, fit)
    scored_sets = [*names, *(name for name in made if name in part.sets)]
    specs = fitting_specs(part, specs, scored_sets, notes)
    scored = score_sets(part, scored_sets, specs)
    notes += repeat_notices(part, specs, names)
    if store.info.notice:
        notes.append(f"{store.info.model}: {store.info.notice}.")
    shifts, blind = far_shifts(names, scored, notes)
    far = ranked_rows(specs, shifts)
    if not far:
        notes.append(f"Without surrogates there is no far table; {hint}.")
    told = len(notes) - (not far)
    near = ranked_rows(*near_shifts(part, names, specs, scored, notes))
    table = far or near
    if not table:
        raise NotRecorded(" ".join(notes[told:]))
    costs = {row.ranked.place: cost(row.spec, part) for row in table}
    least = max(row.ranked.value for row in table if row.spec.method == "msp")
    best = recommended([row.ranked for row in table], costs, least)
    return Choice(
        next(row.spec for row in table if row.ranked is best),
        "far" if far else "near",
        find_warning(far, near, blind),
        far,
        near,
        tuple(notes),
        tuple(names),
        tuple(describe_choosers(store, part, names, specs)),
    )


def _kept(store: RunStore, choice: Choice) -> Choice:
    """Let a run keep a choice; return it, with the reason where the run cannot."""
    try:
        with RunStore.open_for_writing(store.path) as writable:
            writable.writer.write(CHOICE_FILE, choice.to_json().encode())
    except RunError as error:
        # A run that is read-only, or being written by another process, can be asked all the same.
        return replace(choice, not_kept=str(error))
    return choice


def _require_id(store: RecordedRun, names: Sequence[str], fit: str | None) -> None:
    """Raise unless a choice is asked of ID sets, and learns from no OOD set.

    Raises:
        InvalidArgument: Naming the set and its role.
    """
    for name in names:
        role = store.sets[name].role
        if role != "id":
            raise InvalidArgument(f"Expected ID sets to choose by, got {name!r} of role {role}.")
    if fit is not None:
        known_sets(store, [fit])
        if store.sets[fit].role == "ood":
            raise InvalidArgument(f"Expected ID images to fit to, got the OOD set {fit!r}.")


def ood_aurocs(run: RecordedRun, choice: Choice) -> dict[ScoreSpec, float]:
    """Return the mean AUROC of each score over the run's OOD sets, to check a choice by.

    Unfinished sets, and scores that a set lacks, are left out. Of a set of more than 50,000 images
    as many are asked.

    Returns:
        Nothing where the run holds no OOD set.
    """
    oods = [n for n, entry in run.sets.items() if entry.role == "ood" and entry.complete(BASE)]
    specs = fitting_specs(run, [row.spec for row in choice.far or choice.near], oods, [])
    if not oods or not specs:
        return {}
    names = [*choice.sets, *oods]
    scored = score_sets(fewer(run, names), names, specs)
    ids = score_columns(scored, choice.sets)
    columns = [score_columns(scored, [name]) for name in oods]
    each = [[auroc(*pair) for pair in zip(ids, ood, strict=True)] for ood in columns]
    return dict(zip(specs, np.mean(each, axis=0).tolist(), strict=True))
