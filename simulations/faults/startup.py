"""Nodes and servers that must not start, each with one line that says why: wrong papers, wrong clocks, nothing there.

Every case is a real process, started as a hospital or a coordinator starts it, beside a federation that runs.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from client.supernode import node
from server.superlink import provision
from server.superlink.federation import FederationFile
from shared import ports
from shared.config.experiment import Experiment
from shared.crypto import keys
from shared.errors import FederationError
from simulations.testbed.loopback import Loopback

FEDSYNTH = "from shared.cli import main; main()"
CLOCK = """
import datetime, sys
from flwr.supercore import date
from shared.crypto import keys
ahead = datetime.timedelta(seconds=float(sys.argv.pop(1)))
true_date, true_keys = date.now, keys.now
date.now, keys.now = lambda: true_date() + ahead, lambda: true_keys() + ahead
from client.supernode.serve import main
sys.exit(main(sys.argv[1:]))
"""


def refusal(net: Loopback, name: str, why: str, *program: object, patience_s: float = 300.0) -> str:
    """Start a process that must end by itself with an error, and say `why` in one line; that line. FederationError otherwise."""
    process = net.start(name, *program)
    try:
        code = process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise FederationError(f"did not end within {patience_s:g} s") from None
    said = [line for line in net.log(name).splitlines() if line.strip()]
    if code == 0 or len(said) != 1 or why not in said[0]:
        raise FederationError(f"ended with {code} and said {len(said)} lines: {' / '.join(said)[-500:]}")
    return said[0]


@contextlib.contextmanager
def copy(net: Loopback, site: str, name: str) -> Iterator[Path]:
    """A copy of a site's work folder, to spoil."""
    work = net.folder / "spoiled" / name
    shutil.copytree(net.work(site), work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def start_node(net: Loopback, site: str, work: Path) -> tuple[object, ...]:
    """The words that start a site's node on another work folder."""
    return ("-P", "-m", "client.supernode.serve", net.file(site), work)


def put_kit(work: Path, kit: keys.Kit) -> None:
    (work / "node" / node.KIT).write_text(kit.model_dump_json())


def put_key(work: Path, pem: bytes) -> None:
    path = work / "node" / node.KEY
    path.unlink()
    keys.write_secret(path, pem)


def new_key() -> tuple[bytes, str]:
    """A node key that nobody approved, and its fingerprint."""
    made = ec.generate_private_key(ec.SECP384R1())
    pem = made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return pem, keys.node_fingerprint(made.public_key())


def another_sites_key(net: Loopback, site: str, other: str) -> str:
    """The site's kit, the key of another site."""
    with copy(net, site, "other-key") as work:
        put_key(work, (net.work(other) / "node" / node.KEY).read_bytes())
        return refusal(net, "other-key", "the kit is for another key", *start_node(net, site, work))


def wrong_key(net: Loopback, site: str) -> str:
    """The site's kit, a key that was made anew."""
    with copy(net, site, "wrong-key") as work:
        put_key(work, new_key()[0])
        return refusal(net, "wrong-key", "the kit is for another key", *start_node(net, site, work))


def unknown_node(net: Loopback, site: str) -> str:
    """A key of its own making, and a kit that was changed to name it: the server does not know it."""
    with copy(net, site, "unknown-node") as work:
        pem, fingerprint = new_key()
        put_key(work, pem)
        put_kit(work, net.kit(site).model_copy(update={"node": fingerprint}))
        return refusal(net, "unknown-node", "does not admit this node", *start_node(net, site, work))


def wrong_authority(net: Loopback, site: str) -> str:
    """A kit with the certificate authority of another federation."""
    other = net.folder / "others"
    list(provision.provision(FederationFile(name="others", address=net.kit(site).address), other))
    with copy(net, site, "wrong-ca") as work:
        put_kit(work, net.kit(site).model_copy(update={"ca": (other / "ca.pem").read_text()}))
        return refusal(net, "wrong-ca", "certificate does not hold", *start_node(net, site, work))


def expired_server(net: Loopback) -> str:
    """A server whose certificate has expired must not serve."""
    _late(net)
    return refusal(net, "late-server", "has expired", "-c", FEDSYNTH, "server", "serve", net.folder / "late.yaml")


def expired_line(net: Loopback, site: str) -> str:
    """A node that meets an expired certificate must not connect."""
    address, folder = _late(net)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def greet(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as peer, context.wrap_socket(peer, server_side=True):
            pass

    with (
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))) as listener,
        copy(net, site, "late") as work,
    ):
        threading.Thread(target=greet, args=(listener,), daemon=True).start()
        late = {"address": address, "ca": (folder / "ca.pem").read_text()}
        put_kit(work, net.kit(site).model_copy(update=late))
        return refusal(net, "late-node", "certificate has expired", *start_node(net, site, work))


def changed_configuration(net: Loopback, wanted: Experiment) -> str:
    """The coordinator asks for the run that goes on, under its name, with other settings."""
    steps = wanted.training.steps + 1
    tree = wanted.model_dump(mode="json") | {"training": {**wanted.training.model_dump(mode="json"), "steps": steps}}
    path = net.folder / "changed.yaml"
    path.write_text(yaml.safe_dump(tree))
    return refusal(
        net, "changed", "a run with other settings", "-c", FEDSYNTH, "server", "run",
        net.folder / "fed.yaml", path, "--heldout", net.work("heldout"),
    )  # fmt: skip


def nobody_there(net: Loopback, site: str) -> str:
    """No server at the address."""
    with copy(net, site, "nobody") as work:
        put_kit(work, net.kit(site).model_copy(update={"address": f"127.0.0.1:{ports.free()}"}))
        return refusal(net, "nobody", "cannot be reached", *start_node(net, site, work))


def wrong_clock(net: Loopback, site: str, ahead_s: float = 400.0) -> str:
    """The hospital's clock is ahead by more than the server accepts."""
    with copy(net, site, "clock") as work:
        return refusal(net, "clock", "set the clock", "-P", "-c", CLOCK, ahead_s, net.file(site), work)


def _late(net: Loopback) -> tuple[str, Path]:
    """A federation that was provisioned too long ago: its address and folder."""
    path, folder = net.folder / "late.yaml", net.folder / "late"
    if not path.exists():
        address = f"127.0.0.1:{ports.free()}"
        path.write_text(f"name: late\naddress: {address}\nlisten: 127.0.0.1\n")
        long_ago = keys.now() - datetime.timedelta(days=500)
        with patch.object(keys, "now", lambda: long_ago):
            list(provision.provision(FederationFile(name="late", address=address), folder))
    return path.read_text().split()[3], folder
