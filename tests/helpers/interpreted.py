"""Checks of Triton's kernels in an interpreter of their own, which is told how to run them."""

import json
import os
import subprocess
import sys

EVERY_CHECK = """
import json, sys, traceback, warnings
failed = {}
for name, check in json.loads(sys.stdin.read()).items():
    try:
        with warnings.catch_warnings():
            exec(check)
    except Exception:
        failed[name] = traceback.format_exc()
print(json.dumps(failed))
"""


def failures(prologue, checks, **environment):
    """Return the traceback of each check that fails, all run in one process.

    Args:
        prologue: Code that comes before the checks, and that they see.
        checks: Code by name.
        environment: ``TRITON_INTERPRET`` above all: triton, if imported, was told in time.
    """
    done = subprocess.run(
        [sys.executable, "-c", prologue + EVERY_CHECK],
        input=json.dumps(checks),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
