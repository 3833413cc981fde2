"""A function of a script in a fresh process, which no other measurement has touched."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_fresh_process(script: Path, function: str, *arguments: Any) -> dict[str, Any]:
    """Return what a function of a script gives in a process of its own.

    So neither the memory that another measurement left mapped nor its threads reach this one.

    Args:
        script: The file in which the function stands.
        function: Its name.
        arguments: What JSON can hold.

    Returns:
        The mapping that it returned, or ``note`` alone with how the process ended.
    """
    code = "import importlib, json, sys; folder, module, name, *given = json.loads(sys.argv[1]); "
    code += "sys.path.insert(0, folder); run = getattr(importlib.import_module(module), name); "
    code += "print('found', json.dumps(run(*given)))"
    told = json.dumps([str(script.parent), script.stem, function, *arguments])
    done = subprocess.run(
        [sys.executable, "-c", code, told], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("found "):
            return json.loads(line.removeprefix("found "))
    last = done.stderr.strip().splitlines()[-1:]
    return {"note": f"The process ended with {done.returncode}: {''.join(last)}"[:120]}
