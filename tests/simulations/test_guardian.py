"""Nothing that a simulation started outlives it, by whatever signal it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulations.guardian import marked

PROGRAM = """
import subprocess, sys, time
detached = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"]
for _ in range(2):
    subprocess.Popen(detached, start_new_session=True)
time.sleep(float(sys.argv[1]))
"""
PARENT = """
import signal, subprocess, sys
from simulations import guardian
for number in (signal.SIGHUP, signal.SIGINT):  # a script in the background, or nohup, has them ignored
    signal.signal(number, signal.SIG_DFL)
process = subprocess.Popen(guardian.command(sys.argv[1], [sys.executable, "-c", sys.argv[2], "300"]), start_new_session=True)
process.wait()
"""


def gone(mark: str, patience_s: float = 40.0) -> bool:
    deadline = time.monotonic() + patience_s
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not marked(mark)


def come(mark: str, count: int, patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while len(marked(mark)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(marked(mark)) >= count


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_the_parent_ends_what_it_started_and_what_was_detached(
    sign: signal.Signals, tmp_path: Path
) -> None:
    mark = f"FEDSYNTH_TEST={tmp_path}"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, mark, PROGRAM], stderr=subprocess.DEVNULL)
    come(mark, 3)
    parent.send_signal(sign)
    parent.wait(timeout=30)
    assert gone(mark)


def test_a_program_that_ends_by_itself_leaves_nothing_and_its_status(tmp_path: Path) -> None:
    mark = f"FEDSYNTH_TEST={tmp_path}"
    words = [sys.executable, "-m", "simulations.guardian", str(os.getpid()), mark, sys.executable, "-c"]
    done = subprocess.run(
        [*words, f"import sys; sys.argv = ['', '0.1']\n{PROGRAM}\nsys.exit(3)"], check=False, timeout=60
    )
    assert done.returncode == 3
    assert marked(mark) == []
