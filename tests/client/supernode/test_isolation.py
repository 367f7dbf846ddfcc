"""The app's process reaches the node that started it, and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.supernode import isolation, prefork, starter, view
from shared.config.policy import Policy
from shared.config.site import Site
from shared.errors import DataError, FederationError

# What an app might try. Each line says what came of it
TRIES = """
import socket, sys
port, outside = int(sys.argv[1]), int(sys.argv[2])
def attempt(name, action):
    try:
        print(name, action())
    except OSError as error:
        print(name, "refused")
def ask(address):
    with socket.create_connection(address, timeout=5) as line:
        line.sendall(b"hello")
        return line.recv(100).decode()
attempt("node", lambda: ask(("127.0.0.1", port)))
attempt("machine", lambda: ask(("127.0.0.1", outside)))
attempt("internet", lambda: ask(("192.0.2.1", 80)))
attempt("names", lambda: socket.getaddrinfo("example.org", 80))
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt("datagram", lambda: datagram.sendto(b"x", ("192.0.2.1", 53)))
print("interfaces", sorted(name for _, name in socket.if_nameindex()))
"""


def test_it_is_available_wherever_a_user_may_make_a_network_namespace() -> None:
    """Another program's word for it: were ours wrong, hospitals would be refused, and the tests below skipped."""
    other = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, check=False)
    assert isolation.available() == (other.returncode == 0)


@pytest.fixture
def needs_namespaces() -> None:
    if not isolation.available():
        pytest.skip("this machine does not let a user make network namespaces")


def command(place: Path, program: list[str]) -> list[str]:
    """Without a network, and the files of the machine."""
    return isolation.command(isolation.Enclosure("host", str(place), door=str(place / "s"), port=4567), program)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="iso-") as folder:  # a socket's path is short
        yield Path(folder)


def answering(listener: socket.socket, word: bytes) -> None:
    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(word + b" heard " + peer.recv(100))

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.usefixtures("needs_namespaces")
def test_the_app_reaches_the_node_and_nothing_else(place: Path) -> None:
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(place / "s"))
    door.listen()
    machine = socket.create_server(("127.0.0.1", 0))
    with door, machine:
        answering(door, b"node")
        answering(machine, b"machine")
        (place / "tries.py").write_text(TRIES)
        outside = machine.getsockname()[1]
        program = [sys.executable, str(place / "tries.py"), "4567", str(outside)]
        free = subprocess.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {outside}), 5)"], check=False
        )
        assert free.returncode == 0  # without isolation the same machine's port is reached
        done = subprocess.run(
            command(place, program),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=view.environment(),
        )
    said = dict(text.split(" ", 1) for text in done.stdout.strip().splitlines())
    assert said["node"] == "node heard hello", done.stderr
    assert {said[name] for name in ("machine", "internet", "names", "datagram")} == {"refused"}
    assert said["interfaces"] == "['lo']"


@pytest.mark.usefixtures("needs_namespaces")
def test_the_programs_exit_code_is_ours(place: Path) -> None:
    program = [sys.executable, "-c", "raise SystemExit(7)"]
    done = subprocess.run(command(place, program), check=False, env=view.environment(), timeout=60)
    assert done.returncode == 7


@pytest.mark.usefixtures("needs_namespaces")
def test_a_place_without_a_network_is_known_as_one(place: Path) -> None:
    """As a container without a network, which forbids namespaces: the app may start there."""
    program = [sys.executable, "-c", "from client.supernode import isolation; print(isolation.alone())"]
    done = subprocess.run(
        command(place, program),
        capture_output=True,
        text=True,
        check=False,
        env=view.environment(),
        timeout=60,
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("alone", [True, False])
def test_where_namespaces_are_forbidden_only_a_place_without_a_network_will_do(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidding:
        def unshare(self, _: int) -> int:
            return -1

    monkeypatch.setattr(isolation.ctypes, "CDLL", lambda *_, **__: Forbidding())
    monkeypatch.setattr(isolation, "alone", lambda: alone)
    with contextlib.nullcontext() if alone else pytest.raises(OSError, match="no namespace"):
        isolation.enter(network=True)


def test_an_app_apart_is_refused_where_there_is_a_network(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "site.yaml").write_text("name: north\ndata: data\npolicy: {app_network: host}\n")
    with pytest.raises(DataError, match="client ingest"):
        starter.run(place / "site.yaml", place, place)
    (place / "cohort").mkdir()
    (place / "cohort" / "a.npz").touch()
    monkeypatch.setattr(isolation, "available", lambda: False)
    with pytest.raises(FederationError, match="network_mode: none"):
        starter.run(place / "site.yaml", place, place)


def test_an_app_apart_is_refused_where_it_would_see_more_than_its_patients_and_nothing_hides_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container that holds the patients alone it may start; outside one it must not, whatever the policy says."""
    policy = Policy(app_files="host", signers=("0" * 64,))
    site = Site(name="north", data=place / "scans", records=place / "records", policy=policy)
    monkeypatch.setattr(isolation, "files", lambda: "")
    assert starter._keeps(site, place) == "host"
    for name in ("scans", "records", "node"):
        (place / name).mkdir()
        assert starter._keeps(site, place) == "host"
        (place / name / "something").touch()
        with pytest.raises(FederationError, match="neither user namespaces nor Landlock"):
            starter._keeps(site, place)
        (place / name / "something").unlink()


def test_a_node_starts_where_the_app_can_be_kept_from_files_or_cannot_approve_code(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def site(**policy: object) -> Site:
        return Site(name="north", data=place, policy=Policy.model_validate(policy))

    for word in ("namespaces", "landlock"):
        monkeypatch.setattr(isolation, "files", lambda word=word: word)
        assert starter.keeps(site(), place) == word
    monkeypatch.setattr(isolation, "files", lambda: "")
    for policy in ({}, {"signers": ("0" * 64,)}):
        with pytest.raises(FederationError, match="run in containers"):
            starter.keeps(site(**policy), place)
    with pytest.raises(FederationError, match="approve code by itself"):
        starter.keeps(site(app_files="host"), place)
    assert starter.keeps(site(app_files="host", signers=("0" * 64,)), place) == "host"


@pytest.mark.parametrize("name", ["data", "records", "work"])
def test_nothing_starts_where_the_hospitals_files_lie_among_the_libraries(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the environment that holds the work folder too: showing the one would show the other."""
    (place / "lib" / "work").mkdir(parents=True)
    monkeypatch.setattr("sys.prefix", str(place))
    places = {"data": place / "d", "records": place / "r", "work": place / "w"} | {name: place / "lib" / "work"}
    site = Site(name="north", data=places["data"], records=places["records"])
    with pytest.raises(FederationError, match="move one of the two elsewhere"):
        starter.keeps(site, places["work"])


def test_a_cohort_that_was_replaced_is_noticed_and_a_running_app_too(place: Path) -> None:
    (place / "cohort").mkdir()
    began = starter.identity([str(place / "cohort")])
    assert starter.identity([str(place / "cohort")]) == began
    (place / "new").mkdir()
    (place / "cohort").rmdir()
    assert starter.identity([str(place / "cohort")]) is None
    (place / "new").rename(place / "cohort")
    assert starter.identity([str(place / "cohort")]) not in (began, None)
    program = (
        f"import ctypes, time; ctypes.CDLL(None).prctl(15, {prefork.APP.encode()!r}); print(flush=True); time.sleep(60)"
    )
    assert not starter.working(os.getpid())
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as app:
        assert app.stdout is not None
        app.stdout.readline()
        assert starter.working(os.getpid()) and not starter.working(app.pid + 1)
        app.kill()
