"""The head of a report: what ran on which images, and what makes its figures doubtful."""

from collections.abc import Mapping, Sequence

from gradscore.accuracy import chance_cause, percent, tenths
from gradscore.escapes import counted
from gradscore.reporting.basis import Basis
from gradscore.reporting.markup import Markup, breakable, details, joined, note, table, tag
from gradscore.reporting.operating import Grid, Shares
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
    known = [one for one in sets if one.role == "id" and one.accuracy.labelled]
    if known:
        cards.append(_accuracy_card(known))
    if grid is not None:
        pairs = list(zip(sets, (known.share[grid.start] for known in shares), strict=True))
        kept = {one.name: 1000 - share for one, share in pairs if one.role == "id"}
        flagged = {one.name: share for one, share in pairs if one.role == "ood"}
        if kept:
            cards.append(("ID images kept", *_ends(kept, "at the report's threshold")))
        if flagged:
            cards.append(("OOD images flagged", *_ends(flagged, "at the same threshold")))
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
        "ID accuracy": ""
        if info.id_accuracy is None
        else f"{info.id_accuracy:.1%} of the calibration images that have a label",
    }
    return details("The detector", _listed(facts))


def _warnings(about: RunInfo, sets: Sequence[ScoredSet]) -> list[Markup]:
    told = [f"{about.model}: {about.notice}."] if about.notice else []
    for one in sets:
        if one.role == "id" and one.accuracy.is_chance(about.classes):
            figure = one.accuracy
            told.append(
                f"{one.name}: the accuracy of {figure} is chance for {about.classes:,} classes: "
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
                breakable(entry.name),
                ROLES[entry.role],
                _accuracy(scored) if scored else "",
                f"{entry.done(BASE) - len(entry.failed):,} of {entry.rows:,}",
                entry.source,
            ]
        )
    columns = ["Set", "Role", "Accuracy", "Images recorded", "Images from"]
    return table("The sets of images", columns, rows)


def _accuracy(one: ScoredSet) -> str:
    if not one.accuracy.labelled:
        return "no labels" if one.role == "id" else ""
    return str(one.accuracy)


def _accuracy_card(known: Sequence[ScoredSet]) -> tuple[str, str | Markup, str]:
    """Return the accuracy of all recorded labelled ID images, as everything that says it does."""
    if len(known) == 1:
        figure, _, of = str(known[0].accuracy).partition(" ")
        return "ID accuracy", figure, of
    shares = {one.name: tenths(one.accuracy.right, one.accuracy.labelled) for one in known}
    return ("ID accuracy", *_ends(shares, "of the labelled images"))


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
            f"The run also holds {counted(made, 'surrogate set')}: changed copies of ID images. "
            "Only the choice of a score used them; they are not shown here."
        )
    return [note(text) for text in told]


def _ends(shares: Mapping[str, int], about: str) -> tuple[str | Markup, str]:
    """Return the share of the one set, or those of the lowest and of the highest set by name."""
    lowest, highest = (find(shares, key=shares.__getitem__) for find in (min, max))
    if shares[lowest] == shares[highest]:
        return percent(shares[lowest]), about
    lines = (
        tag("span", percent(shares[name]), " ", tag("small", f"{name}, {which}"), class_="end")
        for name, which in ((lowest, "lowest"), (highest, "highest"))
    )
    return joined(*lines), f"of {counted(len(shares), 'set')} {about}"
