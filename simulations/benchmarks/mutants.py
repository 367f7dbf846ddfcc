"""python -m simulations.benchmarks.mutants [--only rules] [--list]

Is every refusal of the hospital's door held by a test? In a copy of the source the refusals are taken out, one at a time: each
statement that raises, each `return False` and `return Reason.…`, each part of an `a or b` that leads to one, each entry of a
table of gates. Then the tests that came by that refusal are run until one fails: some must. Prints the survivors; exit code 1 when
there is one. Rules of the allow-list are taken out one by one by the tests named e04.

Which tests come by a refusal is learnt in one run of a copy that notes it. The others cannot see it missing, because it never ran
in them; what a fixture shared by several tests came by counts for the first of them.

Left out: other mutations (a changed number, a turned comparison); refusals of the PACS, the line and the proof.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
ENGINE = (
    *(
        f"deidentification/{name}"
        for name in ("acceptance", "defacing", "deidentify", "elements", "enhanced", "export")
    ),
    *(f"deidentification/{name}" for name in ("manifest", "pixels", "pseudonym", "reader", "redaction", "rules")),
    *(f"readers/{name}" for name in ("dicom", "images", "ingest", "inventory", "labels", "masks", "nifti", "persons")),
    *(f"readers/{name}" for name in ("resume", "series", "tables", "text", "volumes", "whose")),
    *(f"modalities/{name}" for name in ("base", "ct", "mr")),
)
TESTS = (
    *(
        "test_deidentify",
        "deidentification/test_enhanced",
        "test_bad_input",
        "deidentification/test_manifest",
        "test_leaks",
    ),
    *(
        f"deidentification/test_suite_{name}"
        for name in ("headers", "files", "pixels", "refusals", "subjects", "geometry")
    ),
    *(f"readers/test_{name}" for name in ("images", "ingest", "labels", "persons", "persons_table")),
    *(f"deidentification/test_{name}" for name in ("series", "volumes", "ct", "defacing")),
    *("readers/test_resume", "deidentification/test_text", "test_cli"),
)
ROOMS = ("client", "privacy", "server", "shared", "simulations", "tests")
LIBRARIES = ("highdicom", "nibabel", "nilearn.datasets", "pydantic", "pydicom", "scipy.ndimage", "scipy.sparse", "SimpleITK",
             "torch", "typer", "typer.testing", "yaml")  # fmt: skip
LIMIT_S = (
    600  # of the tests of one mutant; one that waits for ever, as for a pipe that it should not have opened, is noticed
)
MARKS = 900  # file descriptor, high so that no test's own files take its number
NOTE = f"""import os
def note(number):
    said = f"{{number}}\\t{{os.environ.get('PYTEST_CURRENT_TEST', '')}}\\n".encode()
    try:
        os.write({MARKS}, said)
    except OSError:  # a process that a test started
        with open(os.environ["FEDSYNTH_MARKS"], "ab") as file:
            file.write(said)
"""


@dataclass(frozen=True)
class Mutant:
    """Module, line and what was taken out; the source without it; the numbers of the refusals that would have to be reached."""

    module: str
    line: int
    what: str
    source: str
    reached_by: frozenset[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="modules whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()
    found = [mutant for name in ENGINE if (options.only or "") in name for mutant in mutants(name)]
    console = Console()
    if options.list:
        for mutant in found:
            console.print(f"client/{mutant.module}.py:{mutant.line}  {mutant.what}", highlight=False, markup=False)
        return
    for library in LIBRARIES:  # once, not in every process
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "copy"
        skip = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, place, ignore=skip)
        files = [f"tests/client/{name}.py" for name in TESTS]
        came_by = _learn(place, files)
        for mutant in track(found, "taking out refusals"):
            near = sorted(set().union(*(came_by[number] for number in mutant.reached_by)), key=_turn)
            _path(place, mutant.module).write_text(mutant.source, encoding="utf-8")
            if not near or _pytest(place, ["-x", *near]) == 0:
                said = "" if near else "  (no test comes by)"
                survivors.append(f"client/{mutant.module}.py:{mutant.line}  {mutant.what}{said}")
                console.print(survivors[-1], highlight=False, markup=False)
            shutil.copy(_path(ROOT, mutant.module), _path(place, mutant.module))
    console.print(f"{len(found)} refusals taken out, {len(found) - len(survivors)} noticed by a test")
    sys.exit(bool(survivors))


def mutants(module: str) -> Iterator[Mutant]:
    """Every refusal of a module taken out, with the source that is left."""
    tree = ast.parse(_path(ROOT, module).read_text(encoding="utf-8"))
    number = {id(node): _number(module, node) for node in ast.walk(tree) if _refuses(node)}
    parents = {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def without(node: ast.AST, field: str, index: int, by: ast.AST | None = None) -> str:
        changed = copy.deepcopy(tree)
        twin = list(ast.walk(changed))[list(ast.walk(tree)).index(node)]
        if by is not None:
            getattr(twin, field)[index] = by
        else:
            for name in (field,) if field != "keys" else ("keys", "values"):
                del getattr(twin, name)[index]
        return ast.unparse(ast.fix_missing_locations(changed))

    for node in ast.walk(tree):
        if id(node) in number:
            parent = parents[id(node)]
            field, block = next((f, v) for f, v in ast.iter_fields(parent) if isinstance(v, list) and node in v)
            left = without(parent, field, block.index(node), ast.Pass())
            yield Mutant(module, getattr(node, "lineno", 0), ast.unparse(node), left, frozenset({number[id(node)]}))
        if isinstance(node, ast.If) and isinstance(node.test, ast.BoolOp) and isinstance(node.test.op, ast.Or):
            inside = frozenset(number[id(each)] for each in node.body if id(each) in number)
            for index, part in enumerate(node.test.values if inside else ()):
                yield Mutant(
                    module, part.lineno, f"or {ast.unparse(part)}", without(node.test, "values", index), inside
                )
        if isinstance(node, ast.Dict) and node.keys and all(_reason(key) for key in node.keys):
            for index, key in enumerate(node.keys):
                assert key is not None
                yield Mutant(module, key.lineno, f"gate {ast.unparse(key)}", without(node, "keys", index),
                             frozenset(number.values()))  # fmt: skip


def _refuses(node: ast.AST) -> bool:
    """Bare re-raises, assertions for ourselves, and abstract errors are no refusals."""
    if isinstance(node, ast.Raise):
        return node.exc is not None and "AssertionError" not in ast.unparse(node.exc)
    if isinstance(node, ast.Return) and node.value is not None:
        return ast.unparse(node.value) == "False" or _reason(node.value)
    return False


def _reason(node: ast.expr | None) -> bool:
    if node is None:
        return False
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason"
    return named and ast.unparse(node) != "Reason.OK"


def _number(module: str, node: ast.AST) -> int:
    return ENGINE.index(module) * 10_000 + getattr(node, "lineno", 0)


def _learn(place: Path, files: list[str]) -> dict[int, set[str]]:
    """Number of each refusal -> the tests that come by it, from one run of a copy that notes them; then the copy is as it was."""
    marks = place / "marks"
    (place / "shared" / "noted.py").write_text(NOTE, encoding="utf-8")

    class Noting(ast.NodeTransformer):
        def __init__(self, module: str) -> None:
            self.module = module

        def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
            visited = super().generic_visit(node)
            if not _refuses(node):
                return visited
            call = f"__import__('shared.noted').noted.note({_number(self.module, node)})"
            return [*ast.parse(call).body, visited]

    for module in ENGINE:
        tree = Noting(module).visit(ast.parse(_path(ROOT, module).read_text(encoding="utf-8")))
        assert isinstance(tree, ast.Module)
        _path(place, module).write_text(ast.unparse(ast.fix_missing_locations(tree)), encoding="utf-8")
    os.dup2(os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), MARKS)
    if _pytest(place, files, FEDSYNTH_MARKS=str(marks)) != 0:
        raise SystemExit("the tests fail as they are; mend that first")
    for module in ENGINE:
        shutil.copy(_path(ROOT, module), _path(place, module))
    found: dict[int, set[str]] = defaultdict(set)
    for line in marks.read_text(encoding="utf-8").splitlines():
        number, _, said = line.partition("\t")
        if said:
            found[int(number)].add(said.rsplit(" (", 1)[0])
    return found


def _path(root: Path, module: str) -> Path:
    return root / "client" / f"{module}.py"


def _turn(test: str) -> int:
    """Tests of the engine itself are quick, those of whole commands slow."""
    return TESTS.index(test.partition("::")[0].removeprefix("tests/client/").removesuffix(".py"))


def _pytest(place: Path, arguments: list[str], **more: str) -> int:
    """The exit code of the tests of a copy, in a process in which libraries are loaded already and nothing of ours is."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        os.chdir(place)
        os.environ |= {"PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1", **more}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(place))
        for name in [name for name in sys.modules if name.split(".")[0] in ROOMS]:
            del sys.modules[name]
        signal.alarm(0 if more else LIMIT_S)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code = pytest.main(["-q", "-p", "no:randomly", "-p", "no:cacheprovider", *arguments])
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
