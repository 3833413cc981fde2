"""What README and docs tell a reader to type works as it stands, and reads well."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from helpers.commands import call

import gradscore
from gradscore.cli import cli
from gradscore.methods import METHODS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLLOWED = ("engineer.md", "researcher.md")
"""Pages whose every block is run, one after the other."""
MOST_WORDS = 25
BLOCK = re.compile(r"```(python|sh)(?: title=\"([^\"]+)\")?\n(.*?)```", re.DOTALL)
each = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path):
    """Return language, file name and text of each block of code."""
    return BLOCK.findall(path.read_text())


def command_lines(text):
    """Return the commands of a shell block, in words."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def test_first_python_comes_by_line_15():
    text = DOCUMENTS[0].read_text()
    assert text[: text.index("```python")].count("\n") < 15


@pytest.mark.parametrize(
    "path", [p for p in DOCUMENTS if p.name not in FOLLOWED], ids=lambda path: path.name
)
def test_python_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for language, _, code in blocks(path):
        if language == "python":
            exec(compile(code, str(path), "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_tutorial_runs_from_its_first_block_to_its_last(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    known, methods = set(sys.modules), set(METHODS)
    names = {}
    try:
        for language, file, text in blocks(ROOT / "docs" / name):
            if file:
                (tmp_path / file).write_text(text)
            elif language == "python":
                exec(compile(text, name, "exec"), names)
            else:
                for words in command_lines(text):
                    assert words[0] == "gradscore"
                    code = call(*words[1:])
                    assert code == 0, (words, capsys.readouterr().err)
    finally:
        for own in {"mynet", "mymethods"} & (sys.modules.keys() - known):
            del sys.modules[own]
        for own in METHODS.keys() - methods:
            del METHODS[own]


@each
def test_every_option_of_the_shell_examples_exists(path):
    text = path.read_text()
    commands = [
        words for lang, _, code in blocks(path) if lang == "sh" for words in command_lines(code)
    ]
    inline = re.findall(r"`(gradscore [a-z][^`]*)`", text.replace("\n", " "))
    commands += [shlex.split(line) for line in inline]
    for words in commands:
        if words[0] != "gradscore":
            continue
        command = cli
        for word in words[1:]:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
        assert command is not cli, words
        known = {opt for parameter in command.params for opt in parameter.opts}
        known |= {opt for parameter in command.params for opt in parameter.secondary_opts}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}, words


def sentences(text):
    """Return the sentences of a document's prose: no code, no table, no heading."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    kept = []
    for line in text.splitlines():
        if line.startswith("|") or line.startswith("#") or line.startswith("    "):
            kept.append(".")
        elif not line.strip() or re.match(r"(- |\d+\. )", line):
            kept += [".", re.sub(r"^(- |\d+\. )", "", line)]
        else:
            kept.append(line)
    joined = re.sub(r"`[^`]*`", "code", " ".join(kept))
    return re.split(r"(?<=[.!?])\s+", joined)


@each
def test_no_sentence_is_long(path):
    long = [s for s in sentences(path.read_text()) if len(s.split()) > MOST_WORDS]
    assert long == []


def test_a_long_sentence_would_be_found():
    text = f"# Title\n\n{'word ' * 26}.\n\n- {'word ' * 20}.\n\n```sh\n{'word ' * 40}\n```\n"
    assert [len(s.split()) > MOST_WORDS for s in sentences(text)].count(True) == 1


@each
def test_every_link_within_the_project_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_every_command_and_every_public_name_is_documented():
    commands = (ROOT / "docs" / "commands.md").read_text()
    for name, command in cli.commands.items():
        for inner in getattr(command, "commands", {"": None}):
            assert f"| `{' '.join(('gradscore', name, inner)).strip()}` |" in commands
    reference = (ROOT / "docs" / "reference.md").read_text()
    for name in gradscore.__all__:
        assert f"::: {gradscore._HOME[name]}.{name}\n" in reference


@pytest.mark.parametrize("name", ["README.md", "docs/methods.md"])
def test_tables_of_methods_name_every_method(name):
    lines = (ROOT / name).read_text().splitlines()
    cells = "\n".join(line for line in lines if line.startswith("|"))
    assert {f"`{method}`" for method in METHODS} <= set(re.findall("`[a-z_]+`", cells))


def test_every_page_is_in_the_navigation():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    pages = {page for entry in settings["nav"] for page in entry.values()}
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert settings["strict"] is True
    assert settings["theme"]["font"] is False  # nothing is fetched by a reader's browser


def test_the_citation_names_paper_and_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == gradscore.__version__
    assert citation["preferred-citation"]["year"] == 2021
