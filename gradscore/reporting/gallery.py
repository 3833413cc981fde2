"""The images that a score judges worst, and those at the threshold."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.escapes import counted
from gradscore.extraction.settings import Progress
from gradscore.reporting.basis import Cut
from gradscore.reporting.markup import Markup, clipped, details, joined, note, table, tag
from gradscore.reporting.scales import short
from gradscore.reporting.scored import ScoredSet
from gradscore.reporting.thumbnails import Source, Thumbnail, open_source
from gradscore.reporting.words import class_label, set_label
from gradscore.run import RunStore

A_STRIP = 12
"""Images of a strip; a set has two."""
IN_ALL = 600
"""Images of a page: with more sets there are fewer of each."""
FEWEST = 2
NAME = 40
"""Characters of an image's name that are shown below it."""
ENDING = 8
"""Of these, so many at the end stand in one line: number and ending, such as ``0174.png``."""


def draw_gallery(
    store: RunStore,
    sets: Sequence[ScoredSet],
    cut: Cut,
    moved: Mapping[str, str],
    progress: Progress,
) -> Markup:
    """Return the worst mistakes and the borderline images of each set.

    Args:
        store: The run.
        sets: The sets, one image or more each.
        cut: The report's threshold.
        moved: Set name to where the user says that its images are now.
        progress: Is told of each image.
    """
    count = max(FEWEST, min(A_STRIP, IN_ALL // (2 * len(sets))))
    strips = [(one, _strips(one, cut, count)) for one in sets]
    total = sum(len(places) for _, of_set in strips for _, _, places in of_set)
    progress.start(total, "Reading images for the gallery")
    try:
        told = tag(
            "p", "Below each image: its name, the class that the model predicts, its score."
        )
        return joined(told, *(_of_set(store, *pair, moved, progress) for pair in strips))
    finally:
        progress.finish()


def _strips(one: ScoredSet, cut: Cut, count: int) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Return title, what it means, and the rows of each strip of a set."""
    order = np.argsort(one.scores, kind="stable")
    edge = int(np.searchsorted(one.scores[order], cut.value, side="left"))
    flagged, kept = order[:edge], order[edge:]
    if one.role == "id":
        title, told = "Worst false alarms", "ID images with the lowest scores, all flagged."
        worst = flagged[:count]
    elif one.role == "ood":
        title, told = "Worst misses", "OOD images with the highest scores, all accepted."
        worst = kept[::-1][:count]
    else:
        title, told = "Most unusual", "Images with the lowest scores."
        worst = order[:count]
    below, above = flagged[~np.isin(flagged, worst)], kept[~np.isin(kept, worst)]
    half = count // 2
    some = max(half, count - len(above)), max(count - half, count - len(below))
    near = np.concatenate([below[max(0, len(below) - some[0]) :], above[: some[1]]])[:count]
    borderline = ("Borderline", "Images next to the threshold, on either side.", near)
    return [(title, told, worst), borderline]


def _of_set(
    store: RunStore,
    one: ScoredSet,
    strips: Sequence[tuple[str, str, NDArray[np.int64]]],
    moved: Mapping[str, str],
    progress: Progress,
) -> Markup:
    source = open_source(store.info, store.path, one.info, moved.get(one.name))
    wanted = np.concatenate([rows for _, _, rows in strips])
    paths = _paths(store, one, wanted)
    parts = [tag("h3", set_label(one.info))]
    if source.notice:
        parts.append(note(source.notice))
    for title, told, rows in strips:
        parts.append(tag("h4", title))
        if not len(rows):
            parts.append(tag("p", _none(one, title), class_="about"))
            continue
        parts.append(tag("p", told, class_="about"))
        if source.images is None and source.folder is None:
            parts.append(_listed(store, one, rows, paths, title))
        else:
            tiles = [_tile(store, one, int(row), paths[int(row)], source) for row in rows]
            parts.append(tag("ul", *tiles, class_="strip"))
        progress.advance(len(rows))
    return tag("div", *parts, class_="gallery")


def _none(one: ScoredSet, title: str) -> str:
    if title == "Worst false alarms":
        return f"None of the {counted(len(one), 'image')} is flagged at this threshold."
    if title == "Worst misses":
        return f"All {counted(len(one), 'image')} are flagged at this threshold."
    return "No other image is left."


def _paths(store: RunStore, one: ScoredSet, wanted: NDArray[np.int64]) -> dict[int, str]:
    """Return the names of some rows, from one pass over the names alone."""
    row_of = dict(zip(one.index[wanted].tolist(), wanted.tolist(), strict=True))
    found = {}
    for block in store.blocks(one.name, fields=("index", "path")):
        index = block["index"]
        for place in np.flatnonzero(np.isin(index, list(row_of))).tolist():
            found[row_of[int(index[place])]] = str(block["path"][place])
    return found


def _listed(
    store: RunStore, one: ScoredSet, rows: NDArray[np.int64], paths: Mapping[int, str], title: str
) -> Markup:
    """Return images in words, where none of the set's pictures can be had."""
    cells = [
        [
            clipped(paths[int(row)]),
            class_label(store.info, int(one.predicted[row])),
            short(one.scores[row]),
        ]
        for row in rows
    ]
    listed = table(f"{title} of {one.name}", ["Image", "Predicted", "Score"], cells)
    return details(f"{counted(len(cells), 'image')} by name", listed)


def _tile(store: RunStore, one: ScoredSet, row: int, path: str, source: Source) -> Markup:
    thumbnail = source.thumbnail(int(one.index[row]), path)
    predicted = class_label(store.info, int(one.predicted[row]))
    score = short(one.scores[row])
    caption = tag(
        "figcaption",
        tag("span", *_shortened(path), class_="file", title=clipped(path)),
        tag("span", predicted),
        tag("span", score),
    )
    return tag("li", tag("figure", *_picture(thumbnail, path), caption))


def _picture(thumbnail: Thumbnail, path: str) -> Iterator[Markup]:
    if thumbnail.address:
        how = {"class_": "small"} if thumbnail.small else {}
        yield tag("img", src=Markup(thumbnail.address), alt=clipped(path), **how)
    else:
        yield tag("div", thumbnail.reason, class_="absent")


def _shortened(path: str) -> tuple[str, Markup]:
    """Return the last part of a name, of a long one its end; its own end is kept in one line."""
    name = path.rstrip("/").rpartition("/")[2]
    name = name if len(name) <= NAME else f"...{name[-NAME:]}"
    return name[:-ENDING], tag("span", name[-ENDING:])
