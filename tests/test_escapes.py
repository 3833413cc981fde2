"""What others wrote reaches neither a terminal, nor a spreadsheet, nor a page as they wrote it."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gradscore.cli import cli
from gradscore.cli.console import notice, print_facts, print_table, say
from gradscore.data import open_set
from gradscore.data.manifest import Manifest, read_manifest, write_manifest
from gradscore.errors import DataError
from gradscore.escapes import LONGEST, from_cell, message, printable, to_cell, to_markdown
from gradscore.evaluation import Evaluation
from gradscore.run import RunStore
from gradscore.scoring import Scores
from gradscore.tables import write_evaluation, write_rows, write_scores

HOSTILE = [
    "\x1b[31mred\x1b[0m.png",
    "\x1b]0;title\x07.png",
    "a\nError: forged.png",
    "a\r\nb.png",
    "a\u2028b.png",
    "\u202egnp.exe",
    "\u2066x\u2069.png",
    "\x9b31m.png",
    "tab\there.png",
    "back\\slash\\n.png",
    "[red]a[/red].png",
    ":warning:.png",
    "=HYPERLINK(1).png",
    "+1.png",
    "-1.png",
    "@SUM.png",
    "\uff1d1.png",
    "'quoted.png",
    "''twice.png",
    "'=1.png",
    'a,"b".png',
    "a|b*_c_`d`<e>&f~g$.png",
    "žluťoučký 馬.png",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_what_is_printed_is_one_line_that_no_terminal_obeys(capsys, name):
    print_table(("path", name), [(name, "1")], left=1, title=name)
    print_facts({name: name})
    notice(name)
    say(name)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert all(line.isprintable() for line in text.split("\n"))
    assert text.count(printable(name)) == 7
    assert len(captured.err.splitlines()) == 1


def test_very_long_messages_keep_both_ends():
    told = message("begin" + "x" * 10**6 + "end")
    assert len(told) < LONGEST + 10
    assert told.startswith("begin")
    assert told.endswith("end")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_cells_come_back_as_they_were_and_are_no_formulas(name):
    cell = to_cell(name)
    assert from_cell(cell) == name
    assert cell.isprintable()
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))


@pytest.mark.parametrize("cell", ["'tis.png", "plain", "'\\q", "'\\x1", "'\\U99999999", "a\\nb"])
def test_cells_of_others_are_read_as_they_are(cell):
    assert from_cell(cell) == cell


def test_scores_hold_a_line_an_image_whatever_it_is_called(tmp_path):
    n = len(HOSTILE)
    index = np.arange(n)
    names = np.array(HOSTILE, dtype=object)
    scores = Scores("a", index, names, np.full(n, -1), index, {"msp": np.full(n, -0.5)})
    write_scores(tmp_path / "s.csv", [scores])
    text = (tmp_path / "s.csv").read_text(encoding="utf-8")
    assert len(text.split("\n")) == n + 2
    rows = list(csv.DictReader(text.splitlines()))
    assert {(row["label"], row["msp"]) for row in rows} == {("-1", "-0.5")}  # numbers stay numbers
    assert [from_cell(row["path"]) for row in rows] == HOSTILE
    assert not any(row["path"].startswith(("=", "+", "-", "@")) for row in rows)


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_lists_and_written_scores_are_read_back_with_the_same_paths(tmp_path, ending):
    labels = np.arange(len(HOSTILE))
    write_manifest(tmp_path / f"l{ending}", Manifest(tmp_path, HOSTILE, labels))
    read = read_manifest(tmp_path / f"l{ending}")
    assert (list(read.paths), read.labels.tolist()) == (HOSTILE, labels.tolist())
    names = np.array(HOSTILE, dtype=object)
    write_scores(
        tmp_path / f"s{ending}",
        [Scores("a", labels, names, labels, labels, {"msp": labels.astype(float)})],
    )
    assert list(read_manifest(f"{tmp_path}/s{ending}@{tmp_path}").paths) == HOSTILE


def test_tables_are_escaped_for_their_format(tmp_path):
    row = {"method": "=m", "layers": "a|b\\", "ood": "<b>\x1b\n", "p": -1.5}
    figures = dict.fromkeys(("auroc", "fpr95", "aupr_in", "aupr_out"), 0.5)
    write_rows(tmp_path / "t.csv", [row])
    assert (tmp_path / "t.csv").read_text() == (
        "method,layers,ood,p\n'=m,a|b\\,'<b>\\x1b\\n,-1.5\n"
    )
    write_evaluation(tmp_path / "t.md", Evaluation([row | figures]))
    head, _, last = (tmp_path / "t.md").read_text().splitlines()[-3:]
    assert head == r"| method | \<b\>\\x1b\\n AUROC | \<b\>\\x1b\\n FPR95 |"
    assert last == "| =m | 50.0 | 50.0 |"
    write_rows(tmp_path / "u.md", [row])
    assert (tmp_path / "u.md").read_text().splitlines()[-1] == (
        r"| =m | a\|b\\ | \<b\>\\x1b\\n | -1.5 |"
    )
    write_evaluation(tmp_path / "t.tex", Evaluation([row | figures]))
    text = (tmp_path / "t.tex").read_text()
    assert r"{\textless{}b\textgreater{}\textbackslash{}x1b\textbackslash{}n}" in text
    write_rows(tmp_path / "t.json", [row])
    assert (tmp_path / "t.json").read_text().isascii()
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == [row]
    assert to_markdown("max_logit one-hot") == "max_logit one-hot"


def test_a_hostile_name_in_a_list_forges_no_line(tmp_path):
    name = "x\x1b]0;pwned\x07\n\u202eError: all is well.png"
    (tmp_path / name).write_bytes(b"no image")
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    into = ["--model", "digits", "--run", str(tmp_path / "run"), "--layers", "last"]
    asked = ["extract", "--data", f"a={tmp_path}", "--on-error", "skip", *into]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0, done.output
    assert "pwned" in done.output
    assert all(line.isprintable() for line in done.output.split("\n"))
    assert not any(line.startswith("Error") for line in done.output.splitlines())


def test_names_that_are_no_text_go_through_a_run_and_a_list(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    Image.new("L", (8, 8)).save(images / name)
    (images / b"bad\xe9.png".decode(errors="surrogateescape")).write_bytes(b"no image")
    run, table = tmp_path / "run", tmp_path / "s.csv"
    asked = ["extract", "--model", "digits", "--data", f"a={images}", "--on-error", "skip"]
    done = CliRunner().invoke(cli, [*asked, "--layers", "last", "--run", str(run)])
    assert done.exit_code == 0, done.output
    assert "bad\\udce9.png" in done.output
    assert [path for block in RunStore(run).blocks("a") for path in block["path"]] == [name]
    done = CliRunner().invoke(cli, ["score", "--run", str(run), "-o", str(table)])
    assert done.exit_code == 0, done.output
    with open(table, newline="", encoding="utf-8") as file:
        assert from_cell(next(csv.DictReader(file))["path"]) == name
    asked = ["score", "--run", str(run), "-o", str(table.with_suffix(".parquet"))]
    assert CliRunner().invoke(cli, asked).exit_code == 0
    write_manifest(images / "list.csv", Manifest(images, [name], np.array([0])))
    assert open_set(images / "list.csv")[0].size == (8, 8)
    with pytest.raises(DataError, match="Expected file names in UTF-8"):
        write_manifest(images / "list.parquet", Manifest(images, [name], np.array([0])))
