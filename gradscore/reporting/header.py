"""The head of a report: what ran on which images, and what makes its figures doubtful."""

from collections.abc import Mapping, Sequence

from gradscore.escapes import counted
from gradscore.evaluation import chance_cause
from gradscore.reporting.basis import Basis
from gradscore.reporting.markup import Markup, breakable, details, joined, note, table, tag
from gradscore.reporting.operating import Grid, Shares
from gradscore.reporting.scales import percent, tenths
from gradscore.reporting.scored import Left, ScoredSet, surrogates
from gradscore.reporting.words import ROLES
from gradscore.run import BASE, RunInfo, RunStore
from gradscore.run.description import preprocessing_text, weights_text

SHOWN_FAILURES, ALL_FAILURES = 20, 200
"""Skipped images that are named, of one set and about so many of all."""
_SOURCES = {
    "detector": "of the detector",
    "method": "as asked",
    "choice": "as chosen for this model",
    "default": "by default: no score was chosen",
}


def draw_cards(
    basis: Basis, sets: Sequence[ScoredSet], shares: Sequence[Shares], grid: Grid | None
) -> Markup:
    """Return the figures that matter most, at the report's own threshold."""
    cards = [("Score", breakable(basis.title), _SOURCES[basis.source])]
    known = [one.accuracy for one in sets if one.role == "id" and one.accuracy.labelled]
    if known:
        right = _range([tenths(one.right, one.labelled) for one in known])
        images = counted(sum(one.labelled for one in known), "labelled image")
        about = f"of {images}" if len(known) == 1 else f"of {len(known)} ID sets"
        cards.append(("ID accuracy", right, about))
    if grid is not None:
        pairs = list(zip(sets, (known.share[grid.start] for known in shares), strict=True))
        kept = [1000 - share for one, share in pairs if one.role == "id"]
        flagged = [share for one, share in pairs if one.role == "ood"]
        if kept:
            cards.append(("ID images kept", _range(kept), "at the report's threshold"))
        if flagged:
            cards.append(("OOD images flagged", _range(flagged), "at the same threshold"))
    parts = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", about, class_="about"))
        for name, value, about in cards
    ]
    return tag("dl", *parts, class_="cards")


def draw_facts(
    store: RunStore, sets: Sequence[ScoredSet], left: Sequence[Left], basis: Basis
) -> Markup:
    """Return what the run says of its model and sets, and every doubt about them."""
    about = store.info
    facts = {
        "Model": about.model,
        "Weights": weights_text(about),
        "SHA-256 of the weights": about.weights_sha256,
        "Preprocessing": preprocessing_text(about),
        "Precision": about.precision,
        "Features, classes": f"{about.features:,}, {about.classes:,}",
        "Recorded with": ", ".join(f"{k} {v}" for k, v in about.versions.items()),
    }
    return joined(
        *_warnings(about, sets),
        _sets(store, sets),
        *(note(text) for text in basis.notices),
        *_skipped(store),
        *_left_out(store, left),
        _detector(basis),
        details("The model and its run", _listed(facts)),
    )


def _listed(facts: Mapping[str, str]) -> Markup:
    """Return names and what they stand for; empty ones are left out."""
    parts = [part for k, v in facts.items() if v for part in (tag("dt", k), tag("dd", v))]
    return tag("dl", *parts, class_="facts")


def _detector(basis: Basis) -> Markup | None:
    """Return what the detector's file says, where there is one."""
    info = basis.detector
    if info is None:
        return None
    threshold = info.threshold
    facts = {
        "File": basis.detector_path,
        "Score": basis.title,
        "Threshold": f"{threshold.value:.6g}; images with a lower score are flagged",
        "Promise": threshold.promise(),
        "Rests on": f"{counted(threshold.images, 'ID image')}, of which {threshold.flagged:,} "
        "lie below the threshold",
        "ID accuracy": "" if info.id_accuracy is None else f"{info.id_accuracy:.1%}",
    }
    return details("The detector", _listed(facts))


def _warnings(about: RunInfo, sets: Sequence[ScoredSet]) -> list[Markup]:
    told = [f"{about.model}: {about.notice}."] if about.notice else []
    for one in sets:
        if one.role == "id" and one.accuracy.is_chance(about.classes):
            figure = one.accuracy
            told.append(
                f"{one.name}: the accuracy of {percent(tenths(figure.right, figure.labelled))} on "
                f"{counted(figure.labelled, 'image')} is chance for {about.classes:,} classes: "
                f"{chance_cause(about)}. Nothing below can be trusted until it fits."
            )
    return [note(text, kind="warning") for text in told]


def _sets(store: RunStore, sets: Sequence[ScoredSet]) -> Markup | None:
    if not store.sets:
        return note("The run holds no set yet.")
    known = {one.name: one for one in sets}
    rows = []
    for entry in store.sets.values():
        if "~" in entry.name:
            continue
        scored = known.get(entry.name)
        rows.append(
            [
                entry.name,
                ROLES[entry.role],
                _accuracy(scored) if scored else "",
                f"{entry.done(BASE) - len(entry.failed):,} of {entry.rows:,}",
                entry.source,
            ]
        )
    columns = ["Set", "Role", "Accuracy", "Images recorded", "Images from"]
    return table("The sets of images", columns, rows)


def _accuracy(one: ScoredSet) -> str:
    figure = one.accuracy
    if not figure.labelled:
        return "no labels" if one.role == "id" else ""
    of = f" of {figure.labelled:,} labelled" if figure.labelled < figure.images else ""
    return percent(tenths(figure.right, figure.labelled)) + of


def _skipped(store: RunStore) -> list[Markup]:
    """Return the images that were skipped, set by set; of many the first ones."""
    blocks = []
    failing = [e for e in store.sets.values() if e.failed and "~" not in e.name]
    count = min(SHOWN_FAILURES, 1 + ALL_FAILURES // max(1, len(failing)))
    for entry in failing:
        shown = [[row.path, row.reason] for row in entry.failed[:count]]
        more = len(entry.failed) - len(shown)
        told = note(f"... and {more:,} more.") if more else None
        title = f"{entry.name}: {counted(len(entry.failed), 'image')} skipped"
        inner = table(f"Skipped images of {entry.name}", ["Image", "Reason"], shown)
        blocks.append(details(title, inner, told))
    return blocks


def _left_out(store: RunStore, left: Sequence[Left]) -> list[Markup]:
    told = [f"{one.name} is not shown: {one.reason}." for one in left]
    made = surrogates(store)
    if made:
        told.append(
            f"{counted(made, 'surrogate set')} of changed ID images served the choice of a score "
            "alone."
        )
    return [note(text) for text in told]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return percent(low) if low == high else f"{percent(low)} to {percent(high)}"
