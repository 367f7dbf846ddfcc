"""python -m simulations.benchmarks.mutants [--only rules]

Is every refusal of the de-identification engine held by a test? Each statement that raises in the engine's files is taken out,
one at a time, in a copy of the source, and the engine's tests are run against the copy: some test must fail. Rules of the
allow-list are taken out one by one in tests/test_client_deidentify.py itself. Prints the survivors; exit code 1 when there is one.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ("deidentify", "gates", "rules", "pixels", "enhanced", "reader", "export", "pseudonym")
TESTS = ("deidentify", "enhanced", "bad_input", "leaks", "suite_headers", "suite_files", "images", "ingest", "cli")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ENGINE)
    options = parser.parse_args()
    found = [
        (name, *mutant) for name in ENGINE if options.only in (None, name) for mutant in mutants(_path(ROOT, name))
    ]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skip = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=skip)
        if not _tests_pass(copy):
            raise SystemExit("the engine's tests fail as it is; mend that first")
        for name, line, text in track(found, "taking out refusals"):
            whole = _path(ROOT, name).read_text(encoding="utf-8")
            _path(copy, name).write_text(text, encoding="utf-8")
            if _tests_pass(copy):
                survivors.append(f"client/rebuild/{name}.py:{line}  {whole.splitlines()[line - 1].strip()}")
            _path(copy, name).write_text(whole, encoding="utf-8")
    for survivor in survivors:
        Console().print(survivor, highlight=False)
    Console().print(f"{len(found)} refusals taken out, {len(found) - len(survivors)} noticed by a test")
    sys.exit(bool(survivors))


def mutants(path: Path) -> Iterator[tuple[int, str]]:
    """The line of each `raise` and the source with `pass` in its place. Bare re-raises are control flow and stay."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            yield node.lineno, "".join([*lines[:first], " " * node.col_offset + "pass\n", *lines[last:]])


def _path(root: Path, name: str) -> Path:
    return root / "client" / "rebuild" / f"{name}.py"


def _tests_pass(copy: Path) -> bool:
    files = [f"tests/test_client_{name}.py" for name in TESTS if (copy / f"tests/test_client_{name}.py").exists()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
