"""Start what starts the app's processes, one for every message (warm.py), without a network (isolation.py).

In containers the app runs beside its node, not below it: the node has a network and no patients, the app has patients and no
network. Both mount one folder, the door, in which the node puts a socket and, new at every start, a secret; nothing else joins
them. `fedsynth client app` is the app's side, and `fedsynth client serve --door` the node's.

Left out: an app on another machine than its node; the door is a Unix socket.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from client.link import isolation
from client.link.supervise import end
from shared import flower, ports
from shared.config import Site, read
from shared.errors import DataError, FederationError

LOG = logging.getLogger("fedsynth.client")
SOCKET, SECRET = "node.sock", "tasks.secret"
POLL_S = 1.0


def start(door: Path, port: int, *, isolated: bool, apart: bool = False) -> subprocess.Popen[bytes]:
    """The process that starts apps. `port`: where it finds the node; `apart`: leads a group of processes of its own."""
    environment = dict(os.environ)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # the app talks to the node alone
        for spelling in (name, name.lower()):
            environment.pop(spelling, None)
    program = [
        sys.executable,
        "-P",
        "-m",
        "client.link.warm",
        f"127.0.0.1:{port}",
        str(door / SECRET),
        str(os.getpid()),
    ]
    command = isolation.command(door / SOCKET, port, program) if isolated else program
    return subprocess.Popen(command, env=environment, start_new_session=apart)  # noqa: S603 - our own program


def run(site_file: Path, work: Path, door: Path) -> None:
    """The app's side, until SIGTERM or Ctrl-C: waits for a node, and begins anew with every new secret.

    DataError without patients; FederationError where there is a network that cannot be taken away, whatever the policy says.
    """
    read(site_file, Site)
    if not any((work / "cohort").glob("*.npz")):
        raise DataError(f"no patients in {work / 'cohort'}; run `fedsynth client ingest` first")
    if not isolation.available():
        raise FederationError(
            "there is a network here, and it cannot be taken away from the app; start this container without one "
            "(`network_mode: none`)"
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    home = Path(tempfile.mkdtemp(prefix="fedsynth-"))
    os.environ.update(flower.SETTINGS | {"FLWR_HOME": str(home)})
    try:
        while not stop.is_set():
            if secret := _secret(door):
                _once(door, secret, stop)
            stop.wait(POLL_S)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _once(door: Path, secret: bytes, stop: threading.Event) -> None:
    LOG.info("the app works for the node at %s", door)
    process = start(door, ports.free(), isolated=True, apart=True)
    try:
        while process.poll() is None and _secret(door) == secret and not stop.wait(POLL_S):
            pass
    finally:
        end(process)


def _secret(door: Path) -> bytes:
    """Empty while there is no node."""
    try:
        return (door / SECRET).read_bytes()
    except FileNotFoundError:
        return b""
