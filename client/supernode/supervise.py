"""Keep a node running: start it, start it again after a failure (2 s, 4 s, ... 5 min), end it on SIGTERM."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from shared import flower
from shared.errors import FederationError

LOG = logging.getLogger("fedsynth.client")
FIRST_WAIT_S, LONGEST_WAIT_S, STEADY_S = 2.0, 300.0, 600.0


def supervise(site: Path, work: Path, attempts: int | None = None, door: Path | None = None) -> None:
    """Keep a node running until SIGTERM or Ctrl-C. FederationError after `attempts` failures one after another.

    door   where its app meets it, when that runs elsewhere (starter.py)
    """
    command = [sys.executable, "-P", "-m", "client.supernode.serve", str(site.resolve()), str(work.resolve())]
    command += [str(door.resolve())] if door is not None else []
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    wait_s, failures = FIRST_WAIT_S, 0
    while not stop.is_set():
        began = time.monotonic()
        process = subprocess.Popen(command, start_new_session=True, env=os.environ | flower.SETTINGS)  # noqa: S603 - ourselves
        try:
            while process.poll() is None and not stop.wait(0.2):
                pass
        finally:
            end(process)
        if stop.is_set():
            return
        if time.monotonic() - began > STEADY_S:
            wait_s, failures = FIRST_WAIT_S, 0
        failures += 1
        if attempts is not None and failures >= attempts:
            raise FederationError(f"the node failed {failures} times; the lines above say why")
        LOG.warning("the node ended; starting it again in %.0f s", wait_s)
        stop.wait(wait_s)
        wait_s = min(wait_s * 2, LONGEST_WAIT_S)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the node politely, then whatever it left running."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
