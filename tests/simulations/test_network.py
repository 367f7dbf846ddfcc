"""A federation over a network: one server and three sites, processes of their own, TLS and node keys, loopback.

From `provision` to `release`, and what must be refused on the way. Nothing is installed at run time and nothing leaves 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import shutil
import signal
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from rich.console import Console

from client.supernode import approval, connection, isolation, journal, node
from client.supernode.serve import run as node_run
from server.cli import app as server_app
from server.superlink import provision
from server.superlink.run import run
from server.superlink.serve import serve
from shared import ports
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.crypto import bundle, keys
from shared.errors import FederationError, ReleaseRefused
from shared.journal import journal as journals
from shared.journal import verifier
from simulations.guardian import marked
from simulations.testbed.loopback import Loopback, command, federation

TINY = """
name: tiny
data: phantoms
base: none
model: {image_size: 32, channels: [16, 32], groups: 4, latents: 4, encoder_channels: 8}
cohort: {sites: 3, patients_per_site: 6, heldout_patients: 6, slices_per_patient: 6}
training: {trainable: appearance, rounds: 1, steps: 2}
privacy: {epsilon: 4, max_nsr: 100}
evaluation: {samples: 24, sampler_steps: 2, bootstrap: 20}
release: {images_per_class: 2, sampler_steps: 2, minimum_sites: 2, gate: {required: [privacy, sites]}}
"""
NAMES = ("north", "south", "east")


pytestmark = pytest.mark.in_order


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("network")
    (folder / "tiny.yaml").write_text(TINY)
    with federation(folder, read(folder / "tiny.yaml", Experiment)) as net:
        net.serve()
        for name in NAMES:  # one as a hospital starts it, one with its app apart, as in containers
            apart = name == "south" and isolation.available()
            door = keys.private_folder(folder / "door") if apart else None
            net.join(name, supervised=name == "north", door=door)
        run(net.federation, net.experiment, net.work("heldout"), Console(quiet=True))
        yield net


def test_three_sites_train_and_the_release_is_written(net: Loopback) -> None:
    out = net.federation / "runs" / "tiny"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sites_total"] == summary["sites_contributed"] == 3
    assert all(3 < epsilon <= 4 for epsilon in summary["epsilon_per_patient"].values())
    for name in ("report.html", "release/SHA256SUMS", "release/MODEL_CARD.md"):
        assert (out / name).stat().st_size > 0, name
    for name in NAMES:
        kinds = [e["kind"] for e in journal.read(net.work(name))]
        assert kinds == ["joined", "approved", "started", "asked", "sent"]
        assert (net.work(name) / "ledger.jsonl").exists()


def test_both_sides_journals_are_whole_and_tell_the_same_story(net: Loopback) -> None:
    ours = {e["kind"]: e for e in journals.read(net.federation)}
    assert ours["round_finished"]["contributed"] == sorted(NAMES)
    assert {"site_approved", "run_asked", "run_started", "release_passed", "released"} <= set(ours)
    for name in NAMES:
        asked = next(e for e in journal.read(net.work(name)) if e["kind"] == "asked")
        for what in ("bundle", "configuration"):
            assert asked[what] == ours["run_launched"][what], "the site ran what the coordinator says that it sent"
        assert verifier.verify_journal(net.work(name)).state == "whole"
    assert verifier.verify_journal(net.federation).state == "whole"


def test_outside_there_is_the_nodes_door_and_nothing_else(net: Loopback) -> None:
    """Nobody registers a node, starts a run, reads a log or takes a task from outside, whatever key is shown."""
    kit = net.kit("north")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=kit.ca)
    key = node.private_key(net.work("north")).public_key()
    header = {FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key)).decode()}
    paths = ["control/register-node", "control/start-run", "control/list-runs", "control/stream-logs"]
    paths += ["runtime/acquire-task", "runtime/push-messages", "../docs", "fleet/../control/start-run"]
    with httpx.Client(verify=context, headers=header) as client:
        for path in paths:
            assert client.post(f"https://{kit.address}/v1/{path}", content=b"").status_code == 404, path
        assert client.get(f"https://{kit.address}/openapi.json").status_code == 404
        unsigned = client.post(f"https://{kit.address}/v1/fleet/pull-messages", content=b"")
        assert unsigned.status_code >= 400
    with pytest.raises(httpx.TransportError):  # TLS alone
        httpx.post(f"http://{kit.address}/v1/fleet/activate-node")


def test_a_task_is_given_only_to_who_knows_the_secret(net: Loopback) -> None:
    """Another user of the coordinator's machine can reach the inner door, and is given nothing."""
    words = [
        (Path("/proc") / str(p) / "cmdline").read_bytes().decode() for p in marked(f"FEDSYNTH_LOOPBACK={net.folder}")
    ]
    ports = {int(port) for text in words for port in re.findall("127\\.0\\.0\\.1:([0-9]+)", text)}
    listening = reach(ports)
    assert listening
    for port in listening:
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        with RuntimeHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, [version]) as client:
            with pytest.raises(httpx.HTTPStatusError) as refused:
                client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            assert refused.value.response.status_code in (401, 403)


def reach(ports: set[int]) -> list[int]:
    """Those that listen in this network namespace: the sites' doors do not."""
    open_ = []
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                open_.append(port)
    return open_


def test_a_good_line_says_nothing(net: Loopback) -> None:
    assert connection.probe(net.kit("north"), node.private_key(net.work("north"))) == []


def test_a_proxy_of_the_environment_is_used_and_sees_no_plain_text(
    net: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bytes] = []

    def carry(listener: socket.socket) -> None:
        """An HTTP proxy that knows CONNECT alone."""
        peer, _ = listener.accept()
        heard.append(peer.recv(4096))
        host, _, port = heard[0].split(b" ")[1].decode().rpartition(":")
        with peer, socket.create_connection((host, int(port))) as server:
            peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=copy, args=(server, peer))
            back.start()
            copy(peer, server)
            back.join(10)

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                heard.append(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=carry, args=(listener,))
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert connection.probe(net.kit("north"), node.private_key(net.work("north"))) == []
        thread.join(10)
    assert heard[0].startswith(b"CONNECT " + net.kit("north").address.encode())
    assert b"/v1/fleet/" not in b"".join(heard)


def test_an_unknown_key_is_refused(net: Loopback) -> None:
    with pytest.raises(FederationError, match="does not admit this node"):
        connection.probe(net.kit("north"), ec.generate_private_key(ec.SECP384R1()))


def test_a_node_with_another_sites_key_is_refused(net: Loopback, tmp_path: Path) -> None:
    """South's files with north's key: the kit, which is bound to a key, does not let it start."""
    shutil.copytree(net.work("south"), tmp_path / "work")
    stolen = tmp_path / "work" / "node" / node.KEY
    stolen.unlink()
    keys.write_secret(stolen, (net.work("north") / "node" / node.KEY).read_bytes())
    with pytest.raises(FederationError, match="the kit is for another key than this node's"):
        node_run(net.file("south"), tmp_path / "work")


def test_a_server_of_another_authority_is_refused(net: Loopback, tmp_path: Path) -> None:
    other = provision.FederationFile(name="others", address=net.kit("north").address)
    list(provision.provision(other, tmp_path / "others"))
    kit = net.kit("north").model_copy(update={"ca": (tmp_path / "others" / "ca.pem").read_text()})
    with pytest.raises(FederationError, match="certificate does not hold"):
        connection.probe(kit, node.private_key(net.work("north")))


def test_an_expired_certificate_is_refused_by_both_sides(
    net: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late_one = provision.FederationFile(name="late", address=f"127.0.0.1:{ports.free()}")
    folder = tmp_path / "late"
    with monkeypatch.context() as past:
        long_ago = keys.now() - datetime.timedelta(days=500)
        past.setattr(keys, "now", lambda: long_ago)
        list(provision.provision(late_one, folder))
    with pytest.raises(FederationError, match="has expired"):
        serve(late_one, folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", late_one.port)) as listener:

        def greet() -> None:
            with (
                contextlib.suppress(OSError),
                listener.accept()[0] as peer,
                context.wrap_socket(peer, server_side=True),
            ):
                pass

        thread = threading.Thread(target=greet)
        thread.start()
        late = {"address": late_one.address, "ca": (folder / "ca.pem").read_text()}
        with pytest.raises(FederationError, match="certificate has expired"):
            connection.probe(net.kit("north").model_copy(update=late), node.private_key(net.work("north")))
        thread.join(10)


def test_a_second_run_goes_on_without_the_site_that_does_not_approve_and_without_the_revoked_one(net: Loopback) -> None:
    """East withdraws its approval of the code; then the coordinator shuts south out: 2 of 3, and south is out at once."""
    withdrawn = approval.withdraw(net.work("east"), bundle.sha256(bundle.build()))
    assert withdrawn == 1
    gate = net.experiment.release.gate.model_copy(update={"required": ("privacy", "sites", "copies and membership")})
    release = net.experiment.release.model_copy(update={"gate": gate})
    again = net.experiment.model_copy(update={"name": "again", "release": release})
    with contextlib.suppress(
        ReleaseRefused
    ):  # what the sites say of six patients each is chance; that they say it is not
        run(net.federation, again, net.work("heldout"), Console(quiet=True))
    out = net.federation / "runs" / "again"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["sites_contributed"], summary["sites_total"]) == (2, 3)
    events = [json.loads(text) for text in (out / "server" / "events.jsonl").read_text().splitlines()]
    failed = [e for e in events if e["event"] == "site_failed"]
    assert [e["site"] for e in failed] == ["east"]
    assert "has not approved the code of this run" in failed[0]["reason"]
    assert [e["kind"] for e in journal.read(net.work("east"))][-2:] == ["refused", "refused"]  # the round, the release
    said = json.loads((out / "server" / "sites_say.json").read_text())["sites"]
    assert set(said) == {"north", "south"}
    assert all(isinstance(bit, bool) for bit in said.values())
    assert [e["kind"] for e in journal.read(net.work("north"))][-4:] == ["asked", "sent"] * 2
    command(server_app, "revoke", net.folder / "fed.yaml", "south")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            connection.probe(net.kit("south"), node.private_key(net.work("south")))
        except FederationError as error:
            assert "does not admit this node" in str(error)
            break
        time.sleep(0.5)
    else:
        pytest.fail("the revoked site is still admitted")
    assert net.processes["south"].wait(60) == FederationError.exit_code, "its node ends by itself, and says why"
    assert "does not admit this node" in net.log("south")


def test_everything_ends_when_it_is_told_to(net: Loopback) -> None:
    running = {name: process for name, process in net.processes.items() if process.poll() is None}
    assert {"server", "north", "east"} <= running.keys()
    for process in running.values():
        process.send_signal(signal.SIGTERM)
    codes = {name: process.wait(40) for name, process in running.items()}
    assert codes == dict.fromkeys(running, 0)
    deadline = time.monotonic() + 15
    while (left := marked(f"FEDSYNTH_LOOPBACK={net.folder}")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
