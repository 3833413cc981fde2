"""Tables in LaTeX: whatever names hold, a real LaTeX sets it as it is."""

import shutil
import subprocess

import pytest
from helpers.recorded_run import make_run

from gradscore.ablation import compare
from gradscore.escapes import to_latex
from gradscore.methods import make_specs
from gradscore.tables import write_rows

UGLY = "_a%b&c#d$e~f^g\\h{i}j -- ?` ''q'' <x> |y| \"z\" ∞ [*] \\\\ %"


def test_characters_with_a_meaning_are_set_as_they_are():
    assert to_latex("p = ∞") == r"p = $\infty$"
    assert to_latex('"a"') == r"\symbol{34}a\symbol{34}"  # also without the encoding T1
    assert to_latex("?`''") == "?{`}{'}{'}"  # no ligatures
    assert to_latex("a_b%") == r"a\_b\%"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("packages", ["", r"\usepackage[T1]{fontenc}"])
def test_a_table_of_ugly_names_compiles(tmp_path, packages):
    run = make_run(tmp_path / "run")
    specs = make_specs(["gradnorm", "msp"], p=(1.0, float("inf")))
    rows = compare([run, run], specs, replicates=0)
    for place, row in enumerate(rows):
        row["run"] = f"{UGLY}{place // (len(rows) // 2)}"
        if row["ood"] != "mean":
            row["ood"] += UGLY
    write_rows(tmp_path / "table.tex", rows)
    write_rows(tmp_path / "plain.tex", [{UGLY: UGLY, "b": 1.5}])
    text = (
        r"\documentclass{article}%s\usepackage{booktabs}\begin{document}\input{%s}\end{document}"
    )
    for name in ("table", "plain"):
        (tmp_path / "all.tex").write_text(text % (packages, name))
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
