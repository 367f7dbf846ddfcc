"""Serve a federation: Flower's SuperLink, with two doors instead of one.

Flower offers everything on one port: the nodes' API, the API that registers nodes and starts runs, and the one that hands
out tasks. The second asks nobody who they are, so whoever reaches the port could admit themselves. Here instead:

    outer door   address of federation.yaml, TLS; the nodes' API alone, and only for keys that are approved, not revoked and
                 not expired at this moment. Flower then checks the signature of every request, and inbox.py whose answer it holds.
    inner door   127.0.0.1, a port of its own, no TLS; the API of the server's own app processes, which need a secret
                 (to be given a task) or that task's token
    no door      registering nodes and starting runs: this process does so itself, for what lies in its folder (mode 0700)

State is on disk (FOLDER/state), so a restart keeps nodes and messages. No telemetry, no installing at run time.

Left out: several servers for one federation.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ctypes
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import uvicorn
from cryptography.hazmat.primitives import serialization
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app

from server.superlink import heartbeats, inbox, jobs, provision
from server.superlink.federation import FederationFile
from shared import flower, ports
from shared.crypto import keys
from shared.errors import FederationError
from shared.journal import journal

LOG = logging.getLogger("fedsynth.server")
POLL_S = 1.0
WARN_EVERY_S = 24 * 3600.0
KNOCK = "/v1/fleet/"  # a node asks whether it is admitted; Flower has nothing there
AT_ONCE = 4
M_MMAP_THRESHOLD = -3  # of malloc.h
BODY_LIMIT = 64 * 1024 * 1024
PROXIES = ("http_proxy", "https_proxy", "all_proxy")

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Doors:
    """An ASGI app before Flower's: which request may pass at all. `admitted`: the public keys as Flower sends them."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.admitted: set[bytes] = set()

    def outer(self) -> App:
        async def door(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                return
            status = self._refuse(scope) or (204 if scope["path"] == KNOCK else 0)
            if status:
                await _answer(send, status)
            else:
                await self.app(scope, receive, send)

        return door

    def inner(self) -> App:
        async def door(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan" or scope["path"].startswith("/v1/runtime/"):
                await self.app(scope, receive, send)
            else:
                await _answer(send, 404)

        return door

    def _refuse(self, scope: Scope) -> int:
        """0, or the status of the refusal."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/fleet/"):
            return 404
        found: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.lower(), []).append(value)
        length = found.get(b"content-length", [b"x"])[0]
        if not length.isdigit() or int(length) > BODY_LIMIT:
            return 413
        sent = found.get(FLEET_HTTP_PUBLIC_KEY_HEADER.encode(), [])
        try:
            known = len(sent) == 1 and base64.b64decode(sent[0], validate=True) in self.admitted
        except binascii.Error:
            known = False
        return 0 if known else 403


async def _answer(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def serve(federation: FederationFile, folder: Path) -> None:
    """Run until SIGTERM or Ctrl-C. FederationError when the port is taken or the certificate has expired."""
    certificate = keys.load_certificate((folder / "server.pem").read_text(encoding="utf-8"))
    if certificate.not_valid_after_utc <= keys.now():
        raise FederationError("the server's certificate has expired; run `fedsynth server provision` again")
    state = keys.private_folder(folder / "state")
    lock = jobs.Lock(state / "serving")  # one server a folder; `server run` looks at it
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    os.environ.update(flower.SETTINGS | {"FLWR_HOME": str(keys.private_folder(state / "flower"))})
    os.umask(0o077)
    _give_memory_back()
    inner_port = ports.free()
    secret = state / "tasks.secret"
    secret.unlink(missing_ok=True)
    keys.write_secret(secret, secrets.token_bytes(32))
    inbox.guard()
    app = create_app(_config(folder, inner_port, secret.read_bytes()), SuperLinkLifespan)
    links = app.state.linkstate_factory.state()
    doors = Doors(app)
    outer = uvicorn.Config(
        doors.outer(),
        host=federation.listen,
        port=federation.port,
        ssl_certfile=folder / "server.pem",
        ssl_keyfile=folder / "server.key",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    servers, worker = [], None
    try:
        _reconcile(folder, links, doors)
        inner = uvicorn.Config(doors.inner(), host="127.0.0.1", port=inner_port, access_log=False, log_config=None)
        servers.append(_start(inner))
        servers.append(_start(outer))
        worker = Worker(inner_port, secret)
        journal.write(folder, "serving", federation=federation.name, address=federation.address)
        LOG.info("serving %s at %s", federation.name, federation.address)
        _loop(folder, links, doors, outer, worker, stop)
    finally:
        for server in reversed(servers):
            server.should_exit = True
        if worker:
            worker.end()
        lock.release()


def _give_memory_back() -> None:
    """Parts of messages go back to the system when they are done with: glibc would keep them, more with every site."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 256 * 1024)


def _loop(folder: Path, links: Any, doors: Doors, outer: uvicorn.Config, worker: Worker, stop: threading.Event) -> None:
    """Once a second: who is admitted, which runs are wanted, which certificate is served."""
    board = jobs.Board(folder / "runs", links)
    warned, failed, served = -math.inf, -math.inf, (folder / "server.pem").stat().st_mtime_ns
    while not stop.wait(POLL_S):
        try:
            names = _reconcile(folder, links, doors)
            heartbeats.keep(folder, links, names)
            board.step(names)
        except OSError as error:  # a disk without room: what could not be written is written when there is some
            if time.monotonic() - failed > 60.0:
                failed = time.monotonic()
                LOG.error("cannot write to %s (%s); trying again every second", folder, error.strerror)
        worker.keep()
        if time.monotonic() - warned > WARN_EVERY_S:
            warned = time.monotonic()
            for line in provision.warnings(folder):
                LOG.warning("%s", line)
        if (renewed := (folder / "server.pem").stat().st_mtime_ns) != served and outer.ssl:
            served = renewed
            outer.ssl.load_cert_chain(folder / "server.pem", folder / "server.key")
            LOG.info("the server's certificate was renewed")


def _config(folder: Path, port: int, secret: bytes) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=port,
        insecure=False,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(folder / "state" / "superlink.db"),
        isolation="process",  # we start the process that starts apps ourselves, with its secret
        runtime_dependency_install=False,
    )


class Listener(uvicorn.Server):
    """A server that works at few requests at a time: each holds its message several times over, and the database takes turns."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = AT_ONCE
        await super().startup(sockets)


def _start(config: uvicorn.Config) -> uvicorn.Server:
    """Start a server in a thread and wait until it listens."""
    server = Listener(config)
    thread = threading.Thread(target=_run, args=(server,), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    if not server.started:
        raise FederationError(f"cannot listen on {config.host}:{config.port}; is the port taken, or the address wrong?")
    return server


def _run(server: uvicorn.Server) -> None:
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that it could not bind; `_start` says it in our words
        LOG.error("a door could not be opened")


class Worker:
    """The process that starts the server's apps; started again when it ends by itself."""

    def __init__(self, port: int, secret: Path) -> None:
        folder = Path(sys.executable).parent
        self._environment = {k: v for k, v in os.environ.items() if k.lower() not in PROXIES}  # it speaks to 127.0.0.1
        self._environment |= {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
        self._command = [str(folder / "flower-superexec"), "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
        self._command += ["--superexec-auth-secret-file", str(secret), "--parent-pid", str(os.getpid())]
        self._process = self._begin()

    def keep(self) -> None:
        if self._process.poll() is not None:
            LOG.warning("the process that starts apps ended by itself; starting it again")
            self._process = self._begin()

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(3)  # it holds nothing, and its apps end with it
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _begin(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, env=self._environment)  # noqa: S603 - our own program and arguments


def _reconcile(folder: Path, state: Any, doors: Doors) -> dict[int, str]:
    """Make Flower's list of nodes the folder's list of sites; returns the admitted ones, node -> site."""
    admitted, names = set[bytes](), dict[int, str]()
    for member in provision.members(folder):
        key = keys.node_public_key(member.public_key).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        node = state.get_node_id_by_public_key(key)
        if member.admitted:
            admitted.add(key)
            if node is None:
                node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0, name=member.site)
                LOG.info("admitted %s", member.site, extra={"site": member.site})
            names[node] = member.site
        elif member.revoked is not None and node is not None:
            state.delete_node(NOOP_FLWR_AID, node)
            LOG.info("shut out %s", member.site, extra={"site": member.site})
    doors.admitted = admitted
    return names
