"""Count the package's modules, code lines, longest functions, and the way of one score.

    python benchmarks/code_lines.py [FOLDER]

A code line is one that holds code: no blank line, no comment, no docstring. The core path is what
a fresh process has loaded of the package after one call of ``gradient_norms``.
"""

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
CORE_PATH = """
import sys, torch, gradscore
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
gradscore.gradient_norms(model, torch.rand(2, 1, 2, 2))
names = [name for name in sys.modules if name.partition(".")[0] == "gradscore"]
print(*(sys.modules[name].__file__ for name in names), sep="\\n")
"""


def code_lines(path: Path) -> int:
    """Return how many lines of a module hold code."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    lines = {
        line
        for token in tokens
        if token.type not in SKIPPED | {tokenize.ENDMARKER}
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - set(docstring_lines(ast.parse(path.read_text()))))


def docstring_lines(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of strings that stand alone: docstrings of modules, names and functions."""
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            yield from range(node.lineno, node.end_lineno + 1)


def functions(path: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield each function's name, lines, parameters, and lines of its docstring."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            count = len(a.posonlyargs + a.args + a.kwonlyargs)
            documented = len((ast.get_docstring(node) or "").splitlines())
            yield node.name, node.end_lineno - node.lineno + 1, count, documented


def main() -> None:
    """Print the counts of the package, or of one folder of it."""
    package = ROOT / "gradscore"
    top = package / sys.argv[1] if len(sys.argv) > 1 else package
    modules = sorted(top.rglob("*.py"))
    sizes = {path: len(path.read_text().splitlines()) for path in modules}
    middle = sorted(sizes.values())[len(sizes) // 2]
    print(f"modules {len(modules)}, lines {sum(sizes.values())}, median {middle}")
    print(f"code lines {sum(map(code_lines, modules))}")
    found = [(path, *function) for path in modules for function in functions(path)]
    public = [doc for _, name, _, _, doc in found if not name.startswith("_")]
    print(f"public functions {len(public)}, docstring lines each {sum(public) / len(public):.2f}")
    print("longest functions, with lines and parameters:")
    for path, name, lines, parameters, _ in sorted(found, key=lambda row: -row[2])[:8]:
        print(f"  {path.relative_to(ROOT)}:{name} {lines} {parameters}")
    print("most parameters:")
    for path, name, lines, parameters, _ in sorted(found, key=lambda row: -row[3])[:8]:
        print(f"  {path.relative_to(ROOT)}:{name} {lines} {parameters}")
    done = subprocess.run(
        [sys.executable, "-c", CORE_PATH], capture_output=True, text=True, check=True, cwd=ROOT
    )
    path = [Path(line) for line in done.stdout.splitlines() if line.endswith(".py")]
    lines = sum(len(file.read_text().splitlines()) for file in path)
    print(f"core path of gradient_norms: {len(path)} files, {lines} lines")


if __name__ == "__main__":
    main()
