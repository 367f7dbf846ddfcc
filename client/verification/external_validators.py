"""Other people's validators, where they are installed: dciodvfy (Debian's dicom3tools) and dicomqc (a Python package).

Both read what was rebuilt, never the source; only their counts of errors are used. dicomqc's warnings are left aside: it
warns of every pseudonym that is not of the form it suggests.

Left out: every file of a large folder for dciodvfy; at most 50 are looked at, spread evenly over the names.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from client.verification.findings import Verification

SAMPLE = 50
TIMEOUT_S = 600


def run(folder: Path, files: Sequence[Path], result: Verification) -> None:
    """Add what they report to `result`, or that they are not installed."""
    _dciodvfy(files, result)
    _dicomqc(folder, files, result)


def _dciodvfy(files: Sequence[Path], result: Verification) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        result.skipped.append("dciodvfy: not installed (Debian package dicom3tools)")
        return
    chosen = [files[number * len(files) // SAMPLE] for number in range(SAMPLE)] if len(files) > SAMPLE else files
    for path in chosen:
        said = subprocess.run([program, str(path)], capture_output=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
        if said.returncode or b"Error" in said.stderr + said.stdout:
            result.add(path.name, "dciodvfy")
    result.ran.append(f"dciodvfy on {len(chosen)} of {len(files)} files")


def _dicomqc(folder: Path, files: Sequence[Path], result: Verification) -> None:
    if importlib.util.find_spec("dicomqc") is None:
        result.skipped.append("dicomqc: not installed (pip install dicomqc)")
        return
    if not files:
        return
    with tempfile.TemporaryDirectory() as aside:
        report = Path(aside) / "report.json"
        command = [
            sys.executable,
            "-m",
            "dicomqc.cli",
            "scan",
            str(folder),
            "--json",
            str(report),
            "--uid-checks",
            "--quiet",
        ]
        subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
        try:
            summary = json.loads(report.read_text(encoding="utf-8"))["summary"]
        except (OSError, ValueError, KeyError):
            result.skipped.append("dicomqc: it gave no report")
            return
    if summary["errors"] or summary["files_failed"] or summary["files_scanned"] != len(files):
        result.add("manifest.jsonl" if not files else files[0].name, "dicomqc")
    result.ran.append(f"dicomqc on {summary['files_scanned']} files")
