"""A run as one page to look at: a single HTML file, offline."""

from gradscore.reporting.writing import report

__all__ = ["report"]
