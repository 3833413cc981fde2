"""Extraction killed with kill -9 at random moments, in real processes."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_killed_runs_are_sound_and_resume_to_the_same_bytes(tmp_path):
    record = tmp_path / "kills.csv"
    command = [sys.executable, SCRIPT, "--kills", "4", "--flips", "10", "--truncations", "5"]
    done = subprocess.run([*command, "-o", record], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(record, newline="") as file:
        outcomes = [row["outcome"] for row in csv.DictReader(file)]
    assert outcomes == ["byte-equal after resuming"] * 4 + ["found"] * 15
