"""Serve as a hospital's node: Flower's SuperNode inside the hospital's boundary. It only ever connects outwards.

The line is probed first, so that what is wrong is said in one sentence. Then Flower's own loop runs, with every message through
boundary.py. The app's processes start from here, by default shut in (isolation.py), or in a
container of their own (starter.py). supervise.py keeps it alive.

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
import signal
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
from flwr.supernode import fleet_http_connection as fleet
from flwr.supernode import start_client_internal as flower
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client.supernode import connection, isolation, journal, node, starter
from client.supernode.boundary import Boundary
from client.supernode.supervise import end
from shared import logs, ports
from shared.config.loading import read
from shared.config.site import Site
from shared.crypto import keys
from shared.errors import DataError, FederationError, FedsynthError

LOG = logging.getLogger("fedsynth.client")


def run(site_file: Path, work: Path, door: Path | None = None) -> None:
    """The node itself; ends with the process. FederationError before it connects, when something is wrong.

    door   the app is started elsewhere, where the patients are, and meets the node in this folder (starter.py)
    """
    site, kit, key = read(site_file, Site), node.load_kit(work), node.private_key(work)
    if kit.site != site.name:
        raise FederationError(f"the kit is for {kit.site}, {site_file} is {site.name}; join again")
    if kit.node != keys.node_fingerprint(key.public_key()):
        raise FederationError("the kit is for another key than this node's; join again with a kit for the present one")
    if door is None and not any((work / "cohort").glob("*.npz")):  # looked for, not read: this process needs no patient
        raise DataError(f"no patients in {work / 'cohort'}; run `fedsynth client ingest` first")
    isolated = site.policy.app_network == "none"
    if isolated and door is None and not isolation.available():
        raise FederationError(
            "this machine does not let the service take the network away from the app (user namespaces are off); allow "
            "them, or run the app in a container of its own, without a network (`fedsynth client app`)"
        )
    files = "apart" if door is not None else starter.keeps(site, work)
    for warning in connection.probe(kit, key):
        LOG.warning("%s", warning)
    place = Path(tempfile.mkdtemp(prefix="fedsynth-"))  # mode 0700, a short name for the socket, new at every start
    os.environ["FLWR_HOME"] = str(place / "flower")
    try:
        _connect(site, site_file, kit, key, work, place, door, isolated=isolated, files=files)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if door is not None:
            for name in (starter.SECRET, starter.SOCKET):
                (door / name).unlink(missing_ok=True)


def _connect(
    site: Site,
    site_file: Path,
    kit: keys.Kit,
    key: ec.EllipticCurvePrivateKey,
    work: Path,
    place: Path,
    door: Path | None,
    *,
    isolated: bool,
    files: str,
) -> None:
    """Open the door for the app, start what starts it unless that is done elsewhere, and Flower's loop."""
    secret, apart = secrets.token_bytes(32), door is not None
    meeting = place if door is None else door
    if apart:
        (meeting / starter.SECRET).unlink(missing_ok=True)
        keys.write_secret(meeting / starter.SECRET, secret)
    states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    boundary = Boundary(site, work, states.objectstore_factory.store())
    _check_seam()
    fleet.make_simple_http_retry_invoker = connection.enduring(fleet.make_simple_http_retry_invoker)
    flower.http_request_response = boundary.around(flower.http_request_response)
    port = ports.free()
    local = isolated or apart
    where: dict[str, Any] = {"uds": str(meeting / starter.SOCKET)} if local else {"host": "127.0.0.1", "port": port}
    app = create_app(state_factory=states, superexec_auth_secret=secret)
    api = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, **where))
    thread = threading.Thread(target=api.run, daemon=True)
    thread.start()
    while thread.is_alive() and not api.started:
        time.sleep(0.05)
    if not api.started:
        raise FederationError("the node could not open the door for its app")

    def stop() -> None:
        api.should_exit = True

    add_exit_handler(stop)
    if not apart:
        scratch = place / "app"
        scratch.mkdir()
        socket = str(place / starter.SOCKET) if isolated else None
        enclosure = isolation.Enclosure(files, str(scratch), starter.seen(site_file, work), socket, port)
        threading.Thread(target=_apps, args=(enclosure, secret, api), daemon=True).start()
    network = "apart" if apart else site.policy.app_network
    journal.write(work, "started", site=site.name, server=kit.address, app_network=network, app_files=files)
    LOG.info("%s is connecting to %s", site.name, kit.address)
    flower.start_client_internal(
        state_factory=states,
        server_address=kit.address,
        node_config={"site": str(site_file), "work": str(work), "ledger": "node"},
        root_certificates=kit.ca.encode(),
        insecure=False,
        authentication_keys=(key, key.public_key()),
        isolation="process",  # we start the process that starts apps ourselves, with its secret and without a network
        runtime_api_address=f"127.0.0.1:{port}",
        superexec_auth_secret=secret,
    )
    stop()
    raise FederationError("the connection ended; the lines above say why")


def _apps(enclosure: isolation.Enclosure, secret: bytes, api: uvicorn.Server) -> None:
    """Keep what starts apps running. A node that cannot start its app takes work and never answers: it ends, and supervise.py
    starts it anew."""
    again = True
    while again:
        process = starter.start(enclosure, secret)
        again = starter.watch(process, enclosure, lambda: api.should_exit)
        end(process)
    if not api.should_exit:
        LOG.error("the process that starts apps ended; so does the node")
        os.kill(os.getpid(), signal.SIGTERM)


def _check_seam() -> None:
    """FederationError when Flower's connection is not opened where the boundary stands: then nothing would be checked."""
    opens = "with http_request_response(" in inspect.getsource(flower._init_connection)
    tries = "= make_simple_http_retry_invoker()" in inspect.getsource(fleet.http_request_response)
    if not (opens and tries and callable(getattr(flower, "http_request_response", None))):
        raise FederationError("this version of Flower connects in another way; install the version in constraints.txt")


def main(arguments: list[str]) -> int:
    """The node's process."""
    logs.begin()
    os.umask(0o077)
    try:
        run(Path(arguments[0]), Path(arguments[1]), Path(arguments[2]) if arguments[2:] else None)
    except FedsynthError as error:
        LOG.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
