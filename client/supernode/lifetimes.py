"""Processes that end together: with the one that started them, and with everything that they leave behind.

Left out: a process that leaves in the very moment in which its parent is killed, where there is no PID namespace to end it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GIVE_UP_S = 10.0


def end_with_parent() -> None:
    """The system kills this process when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt() -> None:
    """What the processes below this one leave behind when they end becomes a child of this one, and not of the system's first."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children(patience_s: float = 0.0) -> None:
    """Wait for all children, then kill what is left, and what that had started, until there is nothing. Needs `adopt`."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            if time.monotonic() > deadline + GIVE_UP_S:
                raise RuntimeError("a process that an app has left does not end")
            for child in _children() if time.monotonic() > deadline else []:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.005)
            continue
        return


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


def follow(child: int) -> int:
    """Hand signals on to a process and wait for its end; its exit code. What else ends meanwhile had lost its parent."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    while (ended := os.wait())[0] != child:
        pass
    code = os.waitstatus_to_exitcode(ended[1])
    return code if code >= 0 else 128 - code
