"""Where in the network GradNorm sees a difference: AUROC of each group of layers and OOD set."""

from collections.abc import Sequence

import numpy as np

from gradscore.metrics import auroc
from gradscore.reporting.markup import Markup, breakable, joined, note, table, tag
from gradscore.reporting.scored import ScoredSet

SHADES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""AUROCs between which cells have one shade."""


def draw_layers(ids: Sequence[ScoredSet], oods: Sequence[ScoredSet]) -> Markup | None:
    """Return the map of layers and sets, or None where the run holds no norms of inner layers."""
    groups = _groups([*ids, *oods])
    if not groups:
        return None
    rows = []
    for group in groups:
        known = np.concatenate([one.layers[group] for one in ids])
        values = [auroc(known, one.layers[group]) for one in oods]
        rows.append([breakable(group), *map(_cell, values), _cell(float(np.mean(values)))])
    columns = ["Layers", *(breakable(one.name) for one in oods), "mean"]
    told = (
        "AUROC of GradNorm by the layers whose gradient is measured, p = 1, T = 1. Stronger "
        "colour is better; 50% is a coin toss."
    )
    caption = "AUROC of GradNorm by layers and OOD sets"
    shown = table(caption, columns, rows, class_="scroll heat")
    below = note("Cells below 50% have another colour: there the score points the wrong way.")
    turned = any("h0" in cell for row in rows for cell in row[1:])
    return joined(tag("p", told), shown, below if turned else None)


def _groups(sets: Sequence[ScoredSet]) -> list[str]:
    """Return the groups that all sets have, in the network's order."""
    first, *others = (one.layers for one in sets)
    return [group for group in first if all(group in layers for layers in others)]


def _cell(value: float) -> Markup:
    shade = sum(value >= least for least in SHADES)
    return tag("td", f"{100 * value:.1f}%", class_=f"h{shade}")
