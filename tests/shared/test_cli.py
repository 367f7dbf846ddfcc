"""One command, every room, errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.journal import journal

FEDSYNTH = str(Path(sys.executable).parent / "fedsynth")
COMMANDS = [
    [],
    ["simulate"],
    ["pretrain"],
    ["evaluate"],
    ["verify"],
    ["detect"],
    ["journal", "verify"],
    ["journal", "show"],
    ["client", "ingest"],
    ["client", "deidentify"],
    ["privacy", "plan"],
    ["privacy", "audit"],
    ["privacy", "ledger", "show"],
    ["privacy", "ledger", "verify"],
    ["server", "release"],
    ["server", "report"],
    ["server", "review"],
    ["server", "status"],
    ["server", "watch"],
    ["server", "doctor"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "fedsynth")
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    done = subprocess.run([FEDSYNTH, *command, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "fedsynth" in done.stdout.split("Usage:")[1][10:]  # beyond the usage line: an example


def test_an_error_of_ours_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [FEDSYNTH, "server", "report", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("fedsynth: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_journal_is_checked_without_loading_what_trains(tmp_path: Path) -> None:
    journal.write(tmp_path, "run_stopped", run="demo")
    program = f"""
import sys
from shared.cli import main
sys.argv = ["fedsynth", "journal", "verify", {str(tmp_path)!r}]
try:
    main()
except SystemExit as end:
    print(end.code, [name for name in ("torch", "flwr", "client.cli", "scipy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
