"""Start the app's process for a message by forking one that has loaded the libraries.

Flower starts a new Python for every message, and torch, Opacus and diffusers take it longer to load than a small round takes to
train. Here they are loaded once:

    SuperExec    Flower's own loop, which asks the node for work; in this process
    nursery      its child: has loaded what the app needs, holds no data, has one thread, waits
    app          one fork of the nursery a message; its code is loaded from the approved bundle, because the nursery forgets ours

What is forked shares no memory that either could change. Random numbers that protect patients are keyed by the operating system
when they are drawn (privacy/noise.py), never before a fork. The token of a task travels in a pipe, not on a command line.

All three are shut in (isolation.py). The secret that a task is fetched with arrives on standard input, which the nursery and the
apps do not have; they have nothing open but their output. An app finds nothing of the one before it, neither a process nor a file:
Flower takes a folder of a bundle's name for that bundle, whoever filled it.

`python -m client.supernode.prefork NODE` ends when the nursery does; then the node starts anew (serve.py).

Left out: telling the node at once that an app was killed; Flower notices within a minute, by its heartbeats.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import inspect
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec as flower
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.utils import disable_process_dumping

from client.supernode import lifetimes, view

APP = "flwr-clientapp"  # the name of an app's process, as where Flower starts it
OURS = {"client", "server", "shared", "privacy"}
PR_SET_NAME = 15
PATIENCE_S = 5.0  # for an app to end once it has answered


class Nursery:
    """Flower's executor: what it launches is forked by `nurse`, at the other end of `line`."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def get_eligible_capacity(self, supported: set[TaskType], **_: Any) -> tuple[set[TaskType], set[str]]:
        return supported & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        try:
            self._line.sendall(json.dumps(dataclasses.asdict(spec)).encode() + b"\n")
        except OSError:
            return LaunchResult.failed("the process that starts apps is gone")
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Nothing to maintain."""

    def close(self) -> None:
        self._line.close()


def main(arguments: list[str]) -> int:
    """SuperExec's side; the nursery is forked before any thread is started."""
    address = arguments[0]
    if "get_executor(" not in inspect.getsource(flower.run_superexec):
        raise RuntimeError("this version of Flower starts apps in another way; install the version in constraints.txt")
    lifetimes.end_with_parent()
    disable_process_dumping(strict=False)
    ours, theirs = socket.socketpair()
    nursery = os.fork()
    if nursery == 0:
        ours.close()
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a file descriptor is wanted, not its text
            os.dup2(nothing.fileno(), 0)  # before anything else: our side alone reads the secret
        nurse(theirs)
        os._exit(0)
    theirs.close()
    threading.Thread(target=_outlive, args=(nursery,), daemon=True).start()
    flower.get_executor = lambda *_, **__: Nursery(ours)
    flower.run_superexec(runtime_api_address=address, insecure=True, superexec_auth_secret=sys.stdin.buffer.read())
    return 0


def _outlive(nursery: int) -> None:
    """End when the nursery has."""
    os.waitpid(nursery, 0)
    os.kill(os.getpid(), signal.SIGTERM)


def nurse(line: socket.socket) -> None:
    """Load what the app needs, forget what is ours, and fork an app for every spec that arrives; ends when the line does."""
    lifetimes.end_with_parent()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # a process that has touched a GPU cannot fork: only look
    importlib.import_module("client.app")
    from flwr.supernode.runtime.run_clientapp import run_clientapp  # noqa: PLC0415 - here, before the forks

    forget()
    assert threading.active_count() == 1, "only a process with one thread may fork"
    warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # BLAS's own, which it ends before a fork
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for an app
    lifetimes.adopt()
    place: Path | None = None
    with line.makefile("rb") as asks:
        for ask in asks:
            lifetimes.end_children(PATIENCE_S)
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
            place = Path(tempfile.mkdtemp(prefix="app-"))
            if os.fork() == 0:
                os.environ |= view.places(place)
                tempfile.tempdir = None  # as if nobody had asked yet where it is
                lifetimes.end_with_parent()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the line too, on which other tasks' tokens travel
                ctypes.CDLL(None).prctl(PR_SET_NAME, APP.encode(), 0, 0, 0)
                sys.argv = [APP]
                spec = json.loads(ask)
                names = ("runtime_api_address", "token", "insecure", "parent_pid")
                run_clientapp(**{name: spec[name] for name in names})  # ends with the process
                os._exit(1)


def forget() -> None:
    """Our own modules: an app takes them from its bundle, as if this process had never seen them."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
