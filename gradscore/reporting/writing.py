"""The report of a run: everything that a person wants to see before trusting a gate."""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gradscore import __version__
from gradscore.choices import REPORT_ENDINGS
from gradscore.extraction.settings import Progress, Silent
from gradscore.files import written_aside
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.recorded import Run, open_store
from gradscore.reporting.choice import draw_choice
from gradscore.reporting.densities import draw_densities
from gradscore.reporting.factors import draw_factors
from gradscore.reporting.false_alarms import draw_false_alarms
from gradscore.reporting.findings import Findings, gather
from gradscore.reporting.gallery import draw_gallery
from gradscore.reporting.header import draw_cards, draw_facts
from gradscore.reporting.layers import draw_layers
from gradscore.reporting.markup import Markup, command, joined, note, tag
from gradscore.reporting.page import Section, make_page
from gradscore.reporting.roc import draw_curves
from gradscore.reporting.threshold import draw_shares, draw_slider
from gradscore.reporting.thumbnails import check_moved
from gradscore.run import RunStore, extract_command
from gradscore.run.hints import command as command_text
from gradscore.run.names import ARRAYS
from gradscore.tables import check_output


def report(
    run: Run | RecordedRun | str | os.PathLike,
    path: str | os.PathLike = "report.html",
    *,
    detector: str | os.PathLike | None = None,
    method: str | ScoreSpec | None = None,
    sets: Iterable[str] = (),
    images: bool = True,
    data: Mapping[str, str | os.PathLike] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write what a run says as one HTML file that needs nothing else.

    It shows the score of the detector, else of ``method``, else the one that was chosen for the
    run's model, else energy. Equal runs and images give equal bytes.

    Args:
        run: The run, or its directory.
        path: Where to; it ends in ``.html``.
        detector: A detector's file, whose threshold is then shown.
        method: A score, or the name of a method.
        sets: Names of the sets to show; by default all but those to fit to and surrogates.
        images: Whether small copies of the images are shown.
        data: Set name to where its images are now, if they have moved.
        progress: Is told how far the work has come.

    Returns:
        The file.

    Raises:
        InvalidArgument: If a set or method is unknown, or the ending is another.
        NotRecorded: If the run does not hold what the detector or ``method`` needs.
        DetectorError: If the detector cannot be read, or is of another model.
        DataError: If ``data`` names a set that the run does not hold.
        RunError: If the run is damaged, or the file cannot be written.
    """
    check_output(path, REPORT_ENDINGS)
    store, progress = open_store(run), progress or Silent()
    moved = {name: os.fspath(place) for name, place in (data or {}).items()}
    check_moved([*store.sets], moved)
    found = gather(store, detector, method, [*sets], progress)
    page = _page(found, moved if images else None, progress)
    with written_aside(path) as file:
        file.write(page)
    return Path(path)


def _page(found: Findings, moved: Mapping[str, str] | None, progress: Progress) -> bytes:
    store, name = found.store, found.basis.title
    lead = joined(
        tag("p", _sentence(found, name)),
        draw_cards(found.basis, found.sets, found.shares, found.grid),
    )
    facts = draw_facts(store, found.sets, found.left, found.basis)
    sections = [
        Section("run", "The run", facts),
        Section("choice", "Which score to trust", draw_choice(found.basis.choice, store)),
        Section("scores", "Scores and threshold", _scores(found, name)),
        Section("curves", "ROC: ID against OOD at any threshold", _curves(found)),
        Section("images", "Images to look at", _images(found, moved, progress)),
        Section("classes", "False alarms by class", _classes(found)),
        Section("layers", "Layers", _layers(found)),
        Section("factors", "The two factors of GradNorm", _factors(found)),
    ]
    footer = tag(
        "p", f"Written by gradscore {__version__}. This file loads nothing from elsewhere."
    )
    title = "Imported features" if store.info.model == ARRAYS else store.info.model
    return make_page(title, lead, sections, footer, _data(found))


def _sentence(found: Findings, name: str) -> str:
    return (
        f"Each image has a score, {name}: high for images like those that the model learned from, "
        "low for others. Images below a threshold are flagged. This page shows how well that "
        "works for the images of this run."
    )


def _scores(found: Findings, name: str) -> Markup:
    if found.grid is None:
        return note("No image of the run has a score yet.")
    slider = draw_slider(found.grid, found.cut)
    figure = draw_densities(found.sets, found.shares, found.grid, name)
    shares = draw_shares(found.sets, found.shares, found.grid)
    promised = None
    if not found.cut.promised:
        make = command_text("calibrate", found.store.path).strip("`")
        promised = note("A threshold with a promise is made by ", command(make))
    told = tag(
        "p",
        "Each set has one curve: it is high where many of the set's images have their score. All "
        "curves are drawn equally high. Images left of the threshold are flagged.",
    )
    return joined(slider, promised, told, figure, shares)


def _lacking(found: Findings, *roles: str) -> Markup | None:
    """Return what to do where a part needs sets that are not there; else None."""
    for role in roles:
        if not found.of_role(role):
            make = _adding(found.store, role)
            told = f"No {role.upper()} set is shown here. Add one with "
            return note(told, command(make))
    return None


def _adding(store: RunStore, role: str) -> str:
    """Return the command that adds a set of a role to a run."""
    if store.info.model == ARRAYS:
        words = ("run", "import", f"--{role}", "NAME", "--features", "F.npy", "--logits", "L.npy")
        return shlex.join(("gradscore", *words, "--run", os.fspath(store.path)))
    return extract_command(store, f"--{role}", "NAME=PATH").strip("`")


def _curves(found: Findings) -> Markup:
    lacking = _lacking(found, "id", "ood")
    if lacking is not None:
        return lacking
    ids = found.of_role("id")
    pooled = np.concatenate([one.scores for one in ids])
    oods = [(place, one) for place, one in enumerate(found.sets) if one.role == "ood"]
    curves = draw_curves(pooled, oods, found.known, found.shares, found.grid)
    together = note("The ID sets count together here.") if len(ids) > 1 else None
    return joined(together, curves)


def _images(found: Findings, moved: Mapping[str, str] | None, progress: Progress) -> Markup:
    if moved is None:
        return note("Images were left out of this report, as asked.")
    if found.cut is None or not found.sets:
        return note("No image of the run has a score yet.")
    return draw_gallery(found.store, found.sets, found.cut, moved, progress)


def _classes(found: Findings) -> Markup:
    lacking = _lacking(found, "id")
    if lacking is not None:
        return lacking
    return draw_false_alarms(found.of_role("id"), found.cut, found.store.info)


def _layers(found: Findings) -> Markup:
    lacking = _lacking(found, "id", "ood")
    if lacking is not None:
        return lacking
    drawn = draw_layers(found.of_role("id"), found.of_role("ood"))
    if drawn is not None:
        return drawn
    make = extract_command(found.store, "--layers", "all").strip("`")
    told = "The run holds no gradient norms of inner layers for all these sets. Record them with "
    return note(told, command(make))


def _factors(found: Findings) -> Markup:
    lacking = _lacking(found, "id", "ood")
    if lacking is not None:
        return lacking
    drawn = draw_factors(found.of_role("id"), found.of_role("ood"))
    reason = found.store.info.head.reason
    told = f"U and V are not known for this model's last layer: {reason or 'no closed form'}."
    return note(told) if drawn is None else drawn


def _data(found: Findings) -> dict[str, Any]:
    """Return the numbers that the page's program looks up."""
    if found.grid is None:
        return {}
    return {
        "thresholds": found.grid.labels(),
        "at": found.grid.positions(),
        "start": found.grid.start,
        "sets": [shares.to_dict() for shares in found.shares],
        "known": None if found.known is None else found.known.to_dict(),
    }
