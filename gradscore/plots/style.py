"""How figures look: colours, marks, and how names are written in them.

Readable in grey: ID is dark, OOD is lighter, and neighbours differ in their marks too.
"""

from gradscore.escapes import printable

INK = "#1a1a1a"
SHADES = ("#1f6fb2", "#c4551c", "#5f9e3f", "#8a63a6", "#9c8412", "#4aa3a3", "#777777")
FILLS = ("#a9cbe6", "#f0bfa3", "#bcdcab", "#d3c2e0", "#e3d590", "#b5dede", "#d9d9d9")
MEAN = "#6d6d6d"
"""Fill of the bar that is the mean of the others."""
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "oo")
"""One more than fills, so that neighbours differ in both and 56 bars in one of them."""
MARKERS = "osD^vPX*"
STYLES = ("-", "--", "-.", ":")
METRIC_LABELS = {
    "auroc": "AUROC (%), higher is better",
    "fpr95": "FPR95 (%), lower is better",
}
_ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to"}


def as_text(name: str) -> str:
    """Return a name as a figure shows it: no formula, and not hidden for its first character."""
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def set_label(name: str, role: str | None) -> str:
    """Return a set's name with its role.

    >>> set_label("noise", "ood"), set_label("more", None)
    ('noise (OOD)', 'more')
    """
    return as_text(f"{name} ({_ROLES[role]})" if role in _ROLES else name)
