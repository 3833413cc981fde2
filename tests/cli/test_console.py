"""Tables in terminals of any width show every number whole, and lose no character of a text."""

import re

import pytest

from gradscore.cli.console import print_table

COLUMNS = ("set", "score", "images", "25%", "median", "75%")
ROWS = [
    ("photographs", "mahalanobis_stages", "2,999", "1333.64", "1883.72", "2599.94"),
    ("signs", "gradnorm[p=2]", "500", "517.537", "1153.5", "2008.92"),
]


def shown(capsys, monkeypatch, width):
    """Return the lines of the table in a terminal."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    print_table(COLUMNS, ROWS, left=2)
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()


@pytest.mark.parametrize("width", [10, 40, 60, 62, 70])
def test_a_narrow_terminal_loses_nothing(capsys, monkeypatch, width):
    lines = shown(capsys, monkeypatch, width)
    words = " ".join(lines).split()
    assert set(COLUMNS) <= set(words)
    for row in ROWS:
        assert set(row[2:]) <= set(words)
    pieces = "".join(line.split()[0] for line in lines if line.split())
    assert "photographs" in pieces
    assert any(word.startswith("mahalanobis_") for word in words)
    assert max(map(len, lines)) <= max(width, 67)


def test_a_wide_terminal_folds_nothing(capsys, monkeypatch):
    lines = shown(capsys, monkeypatch, 120)
    assert ROWS[0] == tuple(lines[3].split())


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(120, []), (62, ["75%"]), (52, ["75%", "median"]), (20, ["75%", "median", "25%"])],
)
def test_a_narrow_terminal_drops_columns_in_their_order(capsys, monkeypatch, width, left_out):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    assert print_table(COLUMNS, ROWS, left=2, droppable=(5, 4, 3)) == left_out
    shown = capsys.readouterr().out
    assert all((name in shown) == (name not in left_out) for name in COLUMNS)
    assert "2,999" in shown


def test_outside_of_a_terminal_columns_mean_nothing(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "52")
    assert print_table(COLUMNS, ROWS, left=2, droppable=(5, 4, 3)) == []
    assert ROWS[0] == tuple(capsys.readouterr().out.splitlines()[3].split())


def test_a_heading_may_have_two_lines(capsys):
    print_table(("set\x1b", ("noise", "AUROC")), [("a", "97.8")])
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert (first.split(), second.split()) == (["noise"], [r"set\x1b", "AUROC"])
