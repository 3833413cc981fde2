"""The slider over the threshold, and the table of what it does to each set."""

from collections.abc import Sequence

from gradscore.accuracy import percent
from gradscore.reporting.basis import Cut
from gradscore.reporting.markup import Markup, joined, note, table, tag
from gradscore.reporting.operating import Grid, Shares
from gradscore.reporting.scored import ScoredSet
from gradscore.reporting.words import set_label


def draw_slider(grid: Grid, cut: Cut) -> Markup:
    """Return the slider; it shows where the page's own program runs."""
    told = tag("output", grid.labels()[grid.start], for_="threshold", data_show="threshold")
    slider = tag(
        "input",
        type="range",
        id="threshold",
        min=0,
        max=len(grid.thresholds) - 1,
        step=1,
        value=grid.start,
        aria_describedby="about-threshold",
    )
    row = tag(
        "div",
        tag("label", "Threshold ", told, for_="threshold"),
        slider,
        tag("button", "Back to the start", type="button", id="reset"),
        class_="slider",
        id="slider",
        hidden=True,
    )
    return joined(tag("p", cut.about, id="about-threshold"), row)


def draw_shares(sets: Sequence[ScoredSet], shares: Sequence[Shares], grid: Grid) -> Markup:
    """Return the table of what the threshold does to each set."""
    rows = []
    for place, (one, known) in enumerate(zip(sets, shares, strict=True)):
        at = grid.start
        share, low, high = known.share[at], known.low[at], known.high[at]
        rows.append(
            [
                set_label(one.info),
                *_right(place, one.role, share, low, high),
                _cell(place, "flagged", percent(share)),
                _cell(place, "kept", percent(1000 - share)),
                _cell(place, "count", f"{known.flagged[at]:,}"),
                f"{known.images:,}",
            ]
        )
    columns = ["Set", "Handled right", "95% interval", "Flagged", "Kept", "Images flagged"]
    columns.append("Images")
    told = (
        "Handled right: ID images that are kept, OOD images that are flagged. The interval says "
        "how far that may be off for other images like these: few images leave much room."
    )
    caption = "What this threshold does to each set"
    return joined(table(caption, columns, rows, id="shares"), note(told))


def _right(place: int, role: str | None, share: int, low: int, high: int) -> list[Markup]:
    """Return the share that is handled right; of a set without a role nobody knows."""
    if role not in ("id", "ood"):
        return [tag("td", "unknown"), tag("td")]
    if role == "id":
        share, low, high = 1000 - share, 1000 - high, 1000 - low
    how, interval = {"data_set": place, "data_role": role}, f"{percent(low)} to {percent(high)}"
    return [
        tag("td", percent(share), data_show="right", class_="strong", **how),
        tag("td", interval, data_show="interval", **how),
    ]


def _cell(place: int, what: str, text: str) -> Markup:
    return tag("td", text, data_set=place, data_show=what)
