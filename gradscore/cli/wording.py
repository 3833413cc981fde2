"""Python's arguments as the command line's options.

The library's messages name its own arguments, in backquotes: ``limit=N`` and the like. On the
command line they are options.
"""

import ast
import re
import shlex
from contextlib import suppress

_ARGUMENT = re.compile(r"`([a-z_]+)=([^`]+)`")
_FIELD = re.compile(r"'([a-z]+)': ('[^']*'|\([^)]*\)|[^,}]+)")


def as_options(text: object) -> str:
    """Return a message with the arguments that it names written as options.

    >>> as_options("choose `batch_size='auto'`; give `preprocessing={'resize': 8, 'crop': 8}`")
    'choose --batch-size auto; give --resize 8 --crop 8'
    """
    return _ARGUMENT.sub(_option, str(text))


def _option(match: re.Match) -> str:
    name, value = match.groups()
    if name == "preprocessing":
        return " ".join(_written(*field) for field in _FIELD.findall(value)) or match[0]
    return _written(name, value)


def _written(name: str, value: str) -> str:
    if value[0] in "\"'":
        with suppress(ValueError, SyntaxError):
            value = shlex.quote(str(ast.literal_eval(value)))
    return f"--{name.replace('_', '-')} {value}"
