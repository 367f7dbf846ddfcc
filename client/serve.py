"""Serve as a hospital's node: Flower's SuperNode inside the hospital's boundary. It only ever connects outwards.

The line is probed first, so that what is wrong is said in one sentence. Then Flower's own loop runs, with every message through
boundary.py. The app's processes start from here, by default without a network (isolation.py). supervise.py keeps it alive.

An HTTP proxy is taken from the environment (HTTPS_PROXY, NO_PROXY). Only the kit's authority is trusted, so a proxy that opens
TLS breaks the connection: it must let this one through.

Left out: graphics cards shared between nodes.
"""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import start_client_internal as flower
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client import isolation, journal, line, node
from client.boundary import Boundary
from shared import keys, logs
from shared.config import Site, read
from shared.errors import DataError, FederationError, FedsynthError

LOG = logging.getLogger("fedsynth.client")


def run(site_file: Path, work: Path) -> None:
    """The node itself; ends with the process. FederationError before it connects, when something is wrong."""
    site, kit, key = read(site_file, Site), node.load_kit(work), node.private_key(work)
    if kit.site != site.name:
        raise FederationError(f"the kit is for {kit.site}, {site_file} is {site.name}; join again")
    if kit.node != keys.node_fingerprint(key.public_key()):
        raise FederationError("the kit is for another key than this node's; join again with a kit for the present one")
    if not any((work / "cohort").glob("*.npz")):  # looked for, not read: this process needs no patient
        raise DataError(f"no patients in {work / 'cohort'}; run `fedsynth client ingest` first")
    isolated = site.policy.app_network == "none"
    if isolated and not isolation.available():
        raise FederationError(
            "this machine does not let the service take the network away from the app (user namespaces are off); allow "
            "them, or, in a container without a network of its own, set `policy.app_network: host`"
        )
    for warning in line.probe(kit, key):
        LOG.warning("%s", warning)
    place = Path(tempfile.mkdtemp(prefix="fedsynth-"))  # mode 0700, a short name for the socket, new at every start
    os.environ["FLWR_HOME"] = str(place / "flower")
    try:
        _connect(site, site_file, kit, key, work, place, isolated=isolated)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _connect(
    site: Site,
    site_file: Path,
    kit: keys.Kit,
    key: ec.EllipticCurvePrivateKey,
    work: Path,
    place: Path,
    *,
    isolated: bool,
) -> None:
    """Start the door for the app, the app's starter, and Flower's loop."""
    secret = secrets.token_bytes(32)
    keys.write_secret(place / "tasks.secret", secret)
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    boundary = Boundary(site, work, states.objectstore_factory.store())
    _check_seam()
    flower.http_request_response = boundary.around(flower.http_request_response)
    port = _free_port()
    where: dict[str, Any] = {"uds": str(place / "node.sock")} if isolated else {"host": "127.0.0.1", "port": port}
    app = create_app(state_factory=states, superexec_auth_secret=secret)
    door = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, **where))
    thread = threading.Thread(target=door.run, daemon=True)
    thread.start()
    while thread.is_alive() and not door.started:
        time.sleep(0.05)
    if not door.started:
        raise FederationError("the node could not open the door for its app")
    starter = _starter(place, port, isolated=isolated)

    def stop() -> None:
        door.should_exit = True
        starter.terminate()

    add_exit_handler(stop)
    journal.write(work, "started", site=site.name, server=kit.address, app_network=site.policy.app_network)
    LOG.info("%s is connecting to %s", site.name, kit.address)
    flower.start_client_internal(
        state_factory=states,
        server_address=kit.address,
        node_config={"site": str(site_file), "work": str(work)},
        root_certificates=kit.ca.encode(),
        insecure=False,
        authentication_keys=(key, key.public_key()),
        isolation="process",  # we start the process that starts apps ourselves, with its secret and without a network
        runtime_api_address=f"127.0.0.1:{port}",
        superexec_auth_secret=secret,
    )
    stop()
    raise FederationError("the connection ended; the lines above say why")


def _check_seam() -> None:
    """FederationError when Flower's connection is not opened where the boundary stands: then nothing would be checked."""
    source = inspect.getsource(flower._init_connection)
    if "with http_request_response(" not in source or not callable(getattr(flower, "http_request_response", None)):
        raise FederationError("this version of Flower connects in another way; install the version in constraints.txt")


def _starter(place: Path, port: int, *, isolated: bool) -> subprocess.Popen[bytes]:
    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):  # the app talks to the node alone
        for spelling in (name, name.lower()):
            environment.pop(spelling, None)
    program = [str(folder / "flower-superexec"), "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
    program += ["--superexec-auth-secret-file", str(place / "tasks.secret"), "--parent-pid", str(os.getpid())]
    command = isolation.command(place / "node.sock", port, program) if isolated else program
    return subprocess.Popen(command, env=environment)  # noqa: S603 - our own program and arguments


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(arguments: list[str]) -> int:
    """The node's process."""
    logs.begin()
    os.umask(0o077)
    try:
        run(Path(arguments[0]), Path(arguments[1]))
    except FedsynthError as error:
        LOG.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
