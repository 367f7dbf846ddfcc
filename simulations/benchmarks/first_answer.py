"""python -m simulations.benchmarks.first_answer [--runs 5] [--limit 0.3]

How long a command takes to answer: CPU-seconds, user and system, of the help of every command and of one wrong key in each kind of
settings file. The median of the runs; the exit code is 1 when one is above the limit. CPU-seconds are longer where other work
shares the cores' caches and clock: measure on an idle machine.

Left out: the answers of commands that work, which take what their work takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from shared import cli

FEDSYNTH = Path(sys.executable).parent / "fedsynth"
WRONG = (
    "simulate bad.yaml",
    "pretrain bad.yaml",
    "privacy audit bad.yaml",
    "client ingest bad.yaml --work work",
    "client doctor bad.yaml",
    "server run federation.yaml bad.yaml",
    "server doctor bad.yaml",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=0.3, help="CPU-seconds")
    options = parser.parse_args()
    table = Table("command", "median", "least", "most")
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bad.yaml").write_text("name: brains\nno_such_key: 1\n", encoding="utf-8")
        (folder / "federation.yaml").write_text("name: brains\naddress: fed.example.org:9443\n", encoding="utf-8")
        helps = [f"{words} --help".strip() for words in _commands(cli.build())]
        for line, code in [(line, 0) for line in helps] + [(line, 2) for line in WRONG]:
            times = [seconds(line, folder, code) for _ in range(options.runs)]
            middle = statistics.median(times)
            slowest = max(slowest, middle)
            table.add_row(f"fedsynth {line}", *(f"{t:.2f}" for t in (middle, min(times), max(times))))
    Console().print(table)
    sys.exit(slowest > options.limit)


def seconds(line: str, folder: Path, code: int) -> float:
    """CPU-seconds of one call, which must end with the exit code."""
    process = subprocess.Popen(
        [FEDSYNTH, *line.split()], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == code, f"`fedsynth {line}` ended with {process.returncode}"
    return usage.ru_utime + usage.ru_stime


def _commands(group: click.Group, before: str = "") -> Iterator[str]:
    """Every command by its words, groups too."""
    yield before
    for name, listed in group.commands.items():
        if listed.hidden:
            continue
        command = listed if before else cli.load(name)
        words = f"{before} {name}".strip()
        if isinstance(command, click.Group):
            yield from _commands(command, words)
        else:
            yield words


if __name__ == "__main__":
    main()
