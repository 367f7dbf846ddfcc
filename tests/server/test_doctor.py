"""The coordinator's doctor names each fault by itself, and how to mend it."""

from __future__ import annotations

import datetime
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from typer.testing import CliRunner

from client.supernode import node
from server import doctor
from server.cli import app
from server.superlink import jobs, provision
from server.superlink.serve import Doors, _start
from shared import checks
from shared.config.site import Site
from shared.crypto import keys
from shared.journal import journal


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> provision.FederationFile:
    """A federation with one site, in order but for a server; the machine is looked at elsewhere."""
    monkeypatch.setattr(checks, "machine", lambda _: iter([]))
    made = provision.FederationFile(name="brains", address=f"127.0.0.1:{free_port()}", listen="127.0.0.1")
    folder = tmp_path / "brains"
    list(provision.provision(made, folder))
    site = Site(name="north", data=tmp_path, face_removal="none")
    provision.approve(made, folder, node.request(site, tmp_path))
    return made


def states(federation: provision.FederationFile, folder: Path) -> dict[str, str]:
    found = list(doctor.examine(federation, folder))
    assert all(f.mend for f in found if f.state == "warning"), "whoever reads it must know what to do"
    order = ("good", "warning", "bad")
    return {f.what: max((o.state for o in found if o.what == f.what), key=order.index) for f in found}


@contextmanager
def serving(federation: provision.FederationFile, folder: Path) -> Iterator[None]:
    """The outer door as `server serve` opens it, with nothing behind."""
    keys.private_folder(folder / "state")
    lock = jobs.Lock(folder / "state" / "serving")
    server = _start(
        uvicorn.Config(
            Doors(None).outer(),  # type: ignore[arg-type]
            host=federation.listen,
            port=federation.port,
            ssl_certfile=folder / "server.pem",
            ssl_keyfile=folder / "server.key",
            lifespan="off",
            log_config=None,
            ws="none",
        )
    )
    try:
        yield
    finally:
        server.should_exit = True
        lock.release()


def test_a_federation_in_order_is_good_but_for_the_server_that_is_not_started(
    federation: provision.FederationFile, tmp_path: Path
) -> None:
    assert {w for w, s in states(federation, tmp_path / "brains").items() if s != "good"} == {"port"}


def test_a_running_server_is_asked_through_tls_and_found_good(
    federation: provision.FederationFile, tmp_path: Path
) -> None:
    with serving(federation, tmp_path / "brains"):
        found = states(federation, tmp_path / "brains")
    assert set(found.values()) == {"good"}


def test_another_program_on_the_port_is_found(federation: provision.FederationFile, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", federation.port)):
        assert states(federation, tmp_path / "brains")["port"] == "bad"


def test_a_server_that_does_not_answer_is_found(federation: provision.FederationFile, tmp_path: Path) -> None:
    keys.private_folder(tmp_path / "brains" / "state")
    lock = jobs.Lock(tmp_path / "brains" / "state" / "serving")
    assert states(federation, tmp_path / "brains")["port"] == "bad"
    with socket.create_server(("127.0.0.1", federation.port)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        assert states(federation, tmp_path / "brains")["port"] == "bad"
        listener.shutdown(socket.SHUT_RDWR)
    lock.release()


def test_a_certificate_for_another_address_of_another_authority_or_key_is_found(
    federation: provision.FederationFile, tmp_path: Path
) -> None:
    folder = tmp_path / "brains"
    moved = federation.model_copy(update={"address": f"localhost:{federation.port}"})
    said = {f.what: f for f in doctor.examine(moved, folder)}
    assert said["TLS"].state == "bad" and "a hospital would refuse" in said["TLS"].text
    other = tmp_path / "other"
    list(provision.provision(federation, other))
    mine = (folder / "server.pem").read_bytes()
    (folder / "server.pem").write_bytes((other / "server.pem").read_bytes())
    assert "cannot be used" in next(f.text for f in doctor.examine(federation, folder) if f.what == "TLS")
    (folder / "server.pem").write_bytes(mine)
    (folder / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    assert states(federation, folder)["TLS"] == "bad"


def test_what_ends_soon_is_a_warning_and_what_has_ended_is_bad(
    federation: provision.FederationFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = keys.now()
    monkeypatch.setattr(keys, "now", lambda: now + datetime.timedelta(days=provision.SERVER_DAYS - 10))
    assert states(federation, tmp_path / "brains")["certificates"] == "warning"
    monkeypatch.setattr(keys, "now", lambda: now + datetime.timedelta(days=provision.SITE_DAYS - 10))
    found = states(federation, tmp_path / "brains")
    assert (found["certificates"], found["sites"]) == ("bad", "warning")


def test_an_open_key_an_altered_journal_and_a_clock_set_back_are_found(
    federation: provision.FederationFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "brains"
    (folder / "server.key").chmod(0o644)
    assert states(federation, folder)["file modes"] == "bad"
    (folder / "server.key").chmod(0o600)
    now = keys.now()
    with monkeypatch.context() as past:
        past.setattr(keys, "now", lambda: now - datetime.timedelta(hours=3))
        assert states(federation, folder)["clock"] == "bad"
    path = folder / journal.FILE
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))
    assert {w for w, s in states(federation, folder).items() if s == "bad"} == {"journal"}


def test_a_name_that_nobody_knows_is_found(federation: provision.FederationFile, tmp_path: Path) -> None:
    unknown = federation.model_copy(update={"address": f"fed.invalid:{federation.port}"})
    assert states(unknown, tmp_path / "brains")["address"] == "bad"


def test_the_command_prints_a_table_or_json_and_fails_on_something_bad(
    federation: provision.FederationFile, tmp_path: Path
) -> None:
    file = tmp_path / "fed.yaml"
    file.write_text(f"name: brains\naddress: {federation.address}\nlisten: 127.0.0.1\n")
    done = CliRunner().invoke(app, ["doctor", str(file)])
    assert done.exit_code == 0 and "start it with `fedsynth server serve`" in done.stdout
    (tmp_path / "brains").chmod(0o755)
    done = CliRunner().invoke(app, ["doctor", str(file), "--json"])
    assert done.exit_code == 1
    assert {f["what"] for f in json.loads(done.stdout) if f["state"] == "bad"} >= {"file modes"}
    (tmp_path / "brains").chmod(0o700)
    done = CliRunner().invoke(app, ["doctor", str(tmp_path / "nowhere.yaml")])
    assert done.exit_code != 0
