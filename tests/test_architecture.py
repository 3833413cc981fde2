"""Floors hold, heavy packages stay where they belong, nothing loads before it is needed."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gradscore"
FLOORS = (
    "errors escapes files numpy_files strict_json choices",
    "norms objective metrics resampling influence columns selection results outputs graph copies"
    " gaussians kernels",
    "rules closed_form",
    "reference network",
    "capture",
    "layers",
    "engine",
    "scorer verification models data run",
    "extraction",
    "methods",
    "scoring score_table recorded accuracy evaluation ablation naming pivot tables palette",
    "choosing",
    "interop",
    "detector",
    "plots",
    "reporting",
    "cli __main__",
)
"""From the ground up; a name of each line may use those of the same line and of those before."""
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}
SOLE_IMPORTERS = {
    "h5py": ("run",),
    "triton": ("closed_form", "rules"),
    "numba": ("closed_form",),
    "click": ("cli",),
    "matplotlib": ("plots",),
    "pytorch_ood": ("interop",),
}
HEAVY = ("torch", "h5py", "timm", "matplotlib", "torchvision", "sklearn", "numpy", "pyarrow")
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 300, 80, 10
LARGE = (
    *("extract", "verify", "closed_form_kernel", "product_norms_kernel", "gram_kernel"),
    *("deviation_of_rows", "deviation_of_tile", "near_uniform_rows", "near_one_hot_rows"),
)
"""Functions that may be larger: the public `extract`, kernels, and a command with its options."""


def place(path):
    """Return the first name below the package: a module, or a folder of modules."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """Yield the dotted name of everything that a module imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            if node.module == "gradscore":
                yield from (f"gradscore.{alias.name}" for alias in node.names)


def breaches(path, names):
    """Return the imports among ``names`` that climb to a floor above ``path``."""
    here = place(path)
    if here == "__init__":
        return []
    inner = {name.split(".")[1] for name in names if name.startswith("gradscore.")}
    return sorted(there for there in inner if there in FLOOR and FLOOR[there] > FLOOR[here])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_to_its_floor_and_its_size(path):
    names = list(imported(path))
    assert place(path) in FLOOR or place(path) == "__init__", f"{path} has no floor"
    assert breaches(path, names) == []
    assert len(path.read_text().splitlines()) <= MOST_LINES
    assert oversized(ast.parse(path.read_text())) == []
    for package, homes in SOLE_IMPORTERS.items():
        if place(path) not in homes:
            assert package not in {name.split(".")[0] for name in names}


def oversized(tree):
    """Return the functions of a module with too many lines or parameters."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in LARGE:
            given = node.args
            every = (*given.posonlyargs, *given.args, *given.kwonlyargs)
            parameters = [one.arg for one in every if one.arg not in ("self", "cls")]
            lines = node.end_lineno - node.lineno + 1
            if lines > MOST_FUNCTION_LINES or len(parameters) > MOST_PARAMETERS:
                found.append(node.name)
    return found


def test_an_oversized_function_would_be_found():
    long = "def long():\n" + "    pass\n" * MOST_FUNCTION_LINES
    many = f"def many(self, {', '.join('abcdefghijk')}): pass\n"
    assert oversized(ast.parse(long + many + "def fine(a): pass")) == ["long", "many"]


def circles(used):
    """Return the names that use themselves by way of others, of each name and what it uses."""

    def reached(name):
        seen, waiting = set(), [name]
        while waiting:
            new = used.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    return sorted(name for name in used if name in reached(name))


def test_no_names_import_each_other():
    used = {}
    for path in MODULES:
        names = {name.split(".")[1] for name in imported(path) if name.startswith("gradscore.")}
        used.setdefault(place(path), set()).update(names - {place(path)})
    assert circles(used) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def hiding(tree, folder, modules):
    """Return what a folder's ``__init__`` binds by the name of a module, and is not that."""
    bound = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != f"gradscore.{folder}":
            bound += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.append(node.name)
    return sorted(modules & {*bound})


@pytest.mark.parametrize("folder", [path.parent.name for path in PACKAGE.glob("*/__init__.py")])
def test_a_folder_hides_none_of_its_modules(folder):
    modules = {path.stem for path in (PACKAGE / folder).glob("*.py")}
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    assert hiding(tree, folder, modules) == []


def test_a_hidden_module_would_be_found():
    code = "from gradscore.cli.demo import demo\nfrom gradscore.cli import other\ndef run(): pass"
    assert hiding(ast.parse(code), "cli", {"demo", "run", "other"}) == ["demo", "run"]


def strangers(names):
    """Return the imports among ``names`` that are neither torch, Python's own nor ground floor."""
    inner = {name.split(".")[1] for name in names if name.startswith("gradscore.")}
    outer = {name.split(".")[0] for name in names} - {"gradscore", "torch"}
    return sorted({i for i in inner if FLOOR[i] > 1} | (outer - set(sys.stdlib_module_names)))


def test_the_reference_shares_nothing_with_what_is_checked_against_it():
    assert strangers(list(imported(PACKAGE / "reference.py"))) == []


def test_a_reference_that_shares_would_be_found():
    names = ["gradscore.capture.batch_check", "gradscore.norms", "copy", "numpy"]
    assert strangers(names) == ["capture", "numpy"]


def test_a_climbing_import_would_be_found():
    assert breaches(PACKAGE / "norms.py", ["gradscore.engine", "gradscore.errors"]) == ["engine"]


def loaded_by(code):
    """Return which heavy packages a fresh interpreter holds after running ``code``."""
    probe = f"{code}\nimport sys; print(*[n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1].split()


def test_importing_the_package_or_asking_for_help_loads_nothing_heavy():
    assert loaded_by("import gradscore") == []
    help_only = "from gradscore.cli import cli\ncli.main(['--help'], standalone_mode=False)"
    assert loaded_by(help_only) == []


def test_a_heavy_import_would_be_found():
    assert "numpy" in loaded_by("import numpy")


def test_every_public_name_resolves_and_is_hidden_by_no_module():
    import gradscore

    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    for name in gradscore.__all__:
        assert getattr(gradscore, name) is not None
        assert name not in modules
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        gradscore.absent  # noqa: B018


def test_contributing_names_every_floor_and_no_file_that_is_not_there():
    root = PACKAGE.parent
    text = (root / "CONTRIBUTING.md").read_text()
    drawn = text.partition("From the ground up")[2].partition("Tests mirror")[0]
    assert FLOOR.keys() - {"__main__"} <= set(re.findall(r"\w+", drawn))
    there = [
        f"/{path}"
        for folder in (PACKAGE, root / "tests", root / "docs")
        for path in folder.rglob("*.*")
    ]
    for name in re.findall(r"`([\w/]+\.(?:py|css|js|md))`", text):
        assert (root / name).exists() or any(path.endswith(f"/{name}") for path in there), name
