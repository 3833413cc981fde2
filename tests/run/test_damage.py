"""Commands killed at random moments, and damage of every kind: nothing is lost or hidden."""

import csv
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context

import damage
import pytest

COUNTS = {"kill": 3, "flip": 4, "systematic": 1, "command": 2, "change": 8, "hostile": 12}


def tried(told, words):
    """Run the script in a fork, in which all is loaded already; return its exit code."""

    def run():
        with told.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            sys.argv = ["damage.py", *map(str, words)]
            damage.main()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        process = get_context("fork").Process(target=run)
        process.start()
    process.join(600)
    process.kill()
    return process.exitcode


@pytest.mark.slow
def test_killed_commands_and_damaged_files_lose_and_hide_nothing(tmp_path):
    record = tmp_path / "damage.csv"
    asked = [word for kind, count in COUNTS.items() for word in (f"--{kind}", str(count))]
    words = ("--trials", tmp_path / "t.csv", *asked, "-o", record)
    assert tried(tmp_path / "told", words) == 0, (tmp_path / "told").read_text()
    with open(record, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"]: int(row["trials"]) for row in rows} == COUNTS
    for failure in ("different", "executed", "outside", "hung", "traceback", "lost"):
        assert {row[failure] for row in rows} == {"0"}
