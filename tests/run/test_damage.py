"""Commands killed at random moments, and damage of every kind: nothing is lost or hidden."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "damage.py"
COUNTS = {"kill": 3, "flip": 4, "systematic": 1, "command": 2, "change": 8, "hostile": 12}


@pytest.mark.slow
def test_killed_commands_and_damaged_files_lose_and_hide_nothing(tmp_path):
    record = tmp_path / "damage.csv"
    asked = [word for kind, count in COUNTS.items() for word in (f"--{kind}", str(count))]
    command = [sys.executable, SCRIPT, "--trials", tmp_path / "t.csv", *asked, "-o", record]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(record, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"]: int(row["trials"]) for row in rows} == COUNTS
    for failure in ("different", "executed", "outside", "hung", "traceback", "lost"):
        assert {row[failure] for row in rows} == {"0"}
