"""Start what starts the app's processes, one for every message (prefork.py), shut in (isolation.py).

In containers the app runs beside its node, not below it: the node has a network and no patients, the app has patients and no
network. Both mount one folder, the door, in which the node puts a socket and, new at every start, a secret; nothing else joins
them. `fedsynth client app` is the app's side, and `fedsynth client serve --door` the node's. There the container is what shuts the
app in, and within it the app is shut in once more, as far as the container lets it.

Left out: an app on another machine than its node; the door is a Unix socket.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from client.supernode import isolation, prefork, view
from client.supernode.supervise import end
from shared import flower, ports
from shared.config.loading import read
from shared.config.site import Site
from shared.errors import DataError, FederationError

LOG = logging.getLogger("fedsynth.client")
SOCKET, SECRET = "node.sock", "tasks.secret"
POLL_S = 1.0
NEITHER = (
    "this machine has neither user namespaces nor Landlock, so the app could read this hospital's keys and scans and approve "
    "code; allow one of them, run in containers (client/compose.yaml), or name `policy.signers` and set `policy.app_files: host`"
)


def start(enclosure: isolation.Enclosure, secret: bytes) -> subprocess.Popen[bytes]:
    """The process that starts apps, and leads a group of processes of its own. `secret`: what it fetches tasks with."""
    program = [sys.executable, "-P", "-m", "client.supernode.prefork", f"127.0.0.1:{enclosure.port}"]
    words = isolation.command(enclosure, program)
    process = subprocess.Popen(words, stdin=subprocess.PIPE, env=view.environment(), start_new_session=True)  # noqa: S603
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # ended already: whoever waits for it sees that
        pipe.write(secret)
    return process


def watch(process: subprocess.Popen[bytes], enclosure: isolation.Enclosure, over: Callable[[], bool]) -> bool:
    """Wait until it has ended or is `over`: False; or until it must start anew, between two rounds: True.

    What an app sees is the cohort that was there at the start; where another took its place, only a new start shows it.
    """
    began = identity(enclosure.seen)
    while not over():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
            return False
        if identity(enclosure.seen) not in (began, None) and not working(process.pid):
            LOG.info("the cohort or the site file was replaced; the app's processes start anew")
            return True
    return False


def seen(site_file: Path, work: Path) -> tuple[str, ...]:
    """What an app reads of its hospital."""
    return str(site_file), str(work / "cohort")


def keeps(site: Site, work: Path) -> str:
    """What keeps an app from this hospital's files, by `isolation.files`; "host": nothing, by the hospital's own word.

    FederationError where no app may start.
    """
    if site.policy.app_files == "host":
        if not site.policy.signers:
            raise FederationError(
                "`policy.app_files: host` lets the app approve code by itself; name keys that are kept elsewhere in "
                "`policy.signers`"
            )
        return "host"
    view.check([work / "cohort"], [path for path in (work, site.records, site.data) if path is not None])
    if not (found := isolation.files()):
        raise FederationError(NEITHER)
    return found


def identity(places: Iterable[str]) -> list[tuple[int, int]] | None:
    """Which files and folders these are, whatever their names; none while one is missing."""
    try:
        return [(state.st_dev, state.st_ino) for state in map(os.stat, places)]
    except OSError:
        return None


def working(starter: int) -> bool:
    """Whether an app runs that this process has started."""
    parents, apps = dict[int, int](), list[int]()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            before, _, after = entry.read_text(errors="replace").rpartition(")")
            parents[pid := int(entry.parent.name)] = int(after.split()[1])
            apps += [pid] if before.partition("(")[2] == prefork.APP else []
    for pid in apps:
        while pid > 1 and pid != starter:
            pid = parents.get(pid, 0)  # noqa: PLW2901 - one step up
        if pid == starter:
            return True
    return False


def run(site_file: Path, work: Path, door: Path) -> None:
    """The app's side, until SIGTERM or Ctrl-C: waits for a node, and begins anew with every new secret.

    DataError without patients; FederationError where there is a network that cannot be taken away, or something to see that
    cannot be hidden, whatever the policy says.
    """
    site = read(site_file, Site)
    if not any((work / "cohort").glob("*.npz")):
        raise DataError(f"no patients in {work / 'cohort'}; run `fedsynth client ingest` first")
    if not isolation.available():
        raise FederationError(
            "there is a network here, and it cannot be taken away from the app; start this container without one "
            "(`network_mode: none`)"
        )
    files = _keeps(site, work)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    home = Path(tempfile.mkdtemp(prefix="fedsynth-"))
    scratch = home / "app"
    scratch.mkdir()
    os.environ.update(flower.SETTINGS | {"FLWR_HOME": str(home)})
    try:
        while not stop.is_set():
            if secret := _secret(door):
                enclosure = isolation.Enclosure(
                    files, str(scratch), seen(site_file, work), str(door / SOCKET), ports.free()
                )
                _once(enclosure, door, secret, stop)
            stop.wait(POLL_S)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _keeps(site: Site, work: Path) -> str:
    """As `keeps`, in a container of its own, which may be all there is: then nothing else of the hospital may be there."""
    try:
        return keeps(site.model_copy(update={"policy": site.policy.model_copy(update={"app_files": "own"})}), work)
    except FederationError:
        for path in (work / "node", site.data, site.records):
            if path is not None and path.is_dir() and any(path.iterdir()):
                raise
    LOG.info("the container alone keeps the app from files: its kernel has neither user namespaces nor Landlock to add")
    return "host"


def _once(enclosure: isolation.Enclosure, door: Path, secret: bytes, stop: threading.Event) -> None:
    LOG.info("the app works for the node at %s", door)
    process = start(enclosure, secret)
    try:
        watch(process, enclosure, lambda: stop.is_set() or _secret(door) != secret)
    finally:
        end(process)


def _secret(door: Path) -> bytes:
    """Empty while there is no node."""
    try:
        return (door / SECRET).read_bytes()
    except FileNotFoundError:
        return b""
