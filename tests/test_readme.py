"""What the README tells a newcomer to type works as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from gradscore.cli import cli

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_first_python_comes_by_line_15():
    assert TEXT[: TEXT.index("```python")].count("\n") < 15


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code):
    exec(compile(code, str(README), "exec"), {})


def test_every_option_of_the_shell_examples_exists():
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(gradscore [a-z][^`]*)`", TEXT)
    commands = [shlex.split(line, comments=True) for line in lines if "gradscore " in line]
    seen = 0
    for words in commands:
        if words[0] != "gradscore":
            continue
        command = cli
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
        assert command is not cli, words
        known = {opt for parameter in command.params for opt in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}, words
        seen += 1
    assert seen >= 5
