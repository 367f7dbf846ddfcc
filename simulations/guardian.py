"""Nothing outlives a simulation: `python -m simulations.guardian MARK PROGRAM...` runs PROGRAM, and ends all that came of it.

The processes of a simulation carry a mark ("NAME=value") in their environment. Ray detaches its daemons, so neither the process
group nor the parents find them all; the mark does. This process ends them when PROGRAM ends, when it is told to (SIGTERM, SIGINT,
SIGHUP), and when the process that started it ends, by whatever signal: Linux says so with a signal of its own, also after SIGKILL.

Left out: SIGKILL of this process itself, after which PROGRAM alone ends; and systems other than Linux.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PATIENCE_S = ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0))


def command(mark: str, program: list[str]) -> list[str]:
    """The command that runs `program` guarded, for the present process."""
    return [sys.executable, "-P", "-m", "simulations.guardian", str(os.getpid()), mark, *program]


def marked(mark: str) -> list[int]:
    """Processes, other than this one, whose environment holds `mark`. Those that have ended and wait to be noticed hold nothing."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def end(mark: str) -> None:
    """End every process that carries the mark: politely, then not. Also those that are started meanwhile."""
    for sign, patience_s in PATIENCE_S:
        told: set[int] = set()
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and (members := marked(mark)):
            for pid in set(members) - told:
                with suppress(ProcessLookupError):
                    os.kill(pid, sign)
                told.add(pid)
            time.sleep(0.1)


def _die_with_parent(sign: int, parent: int) -> None:
    """Have `sign` sent when the parent ends; at once where it has ended before we could ask."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, sign, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), sign)


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit status."""
    parent, mark, program = int(arguments[0]), arguments[1], arguments[2:]

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    name, _, value = mark.partition("=")
    mine = os.getpid()
    try:
        _die_with_parent(signal.SIGTERM, parent)
        child = subprocess.Popen(
            program,
            env=os.environ | {name: value},
            preexec_fn=lambda: _die_with_parent(signal.SIGKILL, mine),  # noqa: PLW1509 - one thread, and nothing but a system call
        )
        return child.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # once told is enough: what follows takes seconds
        end(mark)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
