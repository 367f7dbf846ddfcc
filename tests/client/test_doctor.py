"""The doctor names what is wrong and how to mend it."""

from __future__ import annotations

import datetime
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client import dataset, doctor
from client.deidentification import pseudonym
from client.supernode import approval, connection, isolation, journal, node
from privacy.accounting import Event
from privacy.ledger import Ledger, ReservedPlan
from server.superlink import provision
from server.superlink.serve import Doors, _start
from shared import checks
from shared.config.site import Site
from shared.crypto import bundle, keys
from shared.errors import FederationError


def findings(site: Site, work: Path) -> dict[str, str]:
    return {f.what: f.state for f in doctor.examine(site, work)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site with everything in place, but for a server."""
    monkeypatch.setattr(isolation, "available", lambda: True)
    monkeypatch.setattr(isolation, "files", lambda: "namespaces")
    monkeypatch.setattr(connection, "look", lambda *_: ([], "TLSv1.3"))
    monkeypatch.setattr(checks, "kept", lambda: True)
    monkeypatch.setattr(checks, "gpu", lambda: checks.Finding("GPU", "good", "a card"))
    for name in ("https_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = Site(name="north", data=tmp_path, face_removal="none")
    dataset.save(dataset.Patient("p", 0, np.zeros((2, 16, 16), np.uint8)), tmp_path / "cohort")
    pseudonym.load_or_make(tmp_path / dataset.KEY_FILE)
    dataset.register(made, tmp_path, image_size=16, classes=())
    federation = provision.FederationFile(name="brains", address="127.0.0.1:9")
    list(provision.provision(federation, tmp_path / "brains"))
    kit = provision.approve(federation, tmp_path / "brains", node.request(made, tmp_path))
    node.join(kit, made, tmp_path)
    approval.approve(made, tmp_path, bundle.build())
    return made


def test_a_site_in_order_is_good_all_over(site: Site) -> None:
    assert set(findings(site, site.data).values()) == {"good"}


@pytest.mark.parametrize("mark", ["beside the ledger", "in the node's journal"])
def test_attack_07_a_ledger_that_is_gone_is_bad_and_not_a_new_one(site: Site, mark: str) -> None:
    path = site.data / dataset.LEDGER_FILE
    book = Ledger(path, cohort=dataset.cohort_id(site.data), cap=8.0, delta=1e-5)
    drawn = book.draw(ReservedPlan("0" * 64, "t", ((Event(20.0, 1.0, 1),),)), 1, run="7")
    assert findings(site, site.data)["ledger"] == "good"
    path.unlink()
    if mark == "in the node's journal":
        (site.data / "ledger.mark").unlink()
        assert findings(site, site.data)["ledger"] == "good"  # nobody knows of it
        journal.write(site.data, "asked", ledger_records=drawn.mark.records, ledger_hash=drawn.mark.hash)
    assert findings(site, site.data)["ledger"] == "bad"


def test_a_new_site_is_told_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "available", lambda: False)
    monkeypatch.setattr(isolation, "files", lambda: "")
    site = Site(name="north", data=tmp_path, face_removal="none")
    bad = {f.what: f.text for f in doctor.examine(site, tmp_path) if f.state == "bad"}
    assert set(bad) == {"cohort", "key", "kit", "code", "app's network", "app's files", "line"}
    for what, remedy in {
        "cohort": "client ingest",
        "key": "client request",
        "kit": "client join",
        "code": "client approve",
    }.items():
        assert remedy in bad[what]


def test_pain18_each_fault_is_found_by_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    key = site.data / "node" / "node.key"
    key.chmod(0o644)
    assert findings(site, site.data)["key"] == "bad"
    key.chmod(0o600)
    approval.withdraw(site.data, bundle.sha256(bundle.build()))
    assert [w for w, s in findings(site, site.data).items() if s == "bad"] == ["code"]

    def unreachable(*_: object) -> tuple[list[str], str]:
        raise FederationError("the server cannot be reached")

    monkeypatch.setattr(connection, "look", unreachable)
    assert findings(site, site.data)["line"] == "bad"
    open_site = site.model_copy(update={"policy": site.policy.model_copy(update={"app_network": "host"})})
    assert findings(open_site, site.data)["app's network"] == "warning"


def test_a_node_without_patients_is_not_asked_for_them(site: Site, tmp_path: Path) -> None:
    for path in (site.data / "cohort").glob("*.npz"):
        path.unlink()
    assert findings(site, site.data)["cohort"] == "bad"
    door = tmp_path / "door"
    door.mkdir(mode=0o700)
    assert {f.state for f in doctor.examine(site, site.data, door)} == {"good"}
    door.chmod(0o755)
    assert [f.what for f in doctor.examine(site, site.data, door) if f.state == "bad"] == ["app's door"]


def test_a_server_that_is_not_there_is_explained(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(FederationError, match="cannot be reached; is it running"):
        connection.probe(node.load_kit(site.data), node.private_key(site.data))


def test_a_good_line_is_described_with_its_tls_its_certificate_and_its_clock(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real connection, through the server's own door."""
    monkeypatch.undo()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    key = node.private_key(site.data)
    doors = Doors(None)  # type: ignore[arg-type]
    doors.admitted = {public_key_to_bytes(key.public_key())}
    files = {"ssl_certfile": tmp_path / "brains" / "server.pem", "ssl_keyfile": tmp_path / "brains" / "server.key"}
    server = _start(
        uvicorn.Config(doors.outer(), host="127.0.0.1", port=port, lifespan="off", log_config=None, ws="none", **files)
    )
    kit = node.load_kit(site.data).model_copy(update={"address": f"127.0.0.1:{port}"})
    try:
        warnings, said = connection.look(kit, key)
        assert warnings == []
        assert re.fullmatch(
            rf"TLSv1\.[23] to 127\.0\.0\.1:{port}, its certificate good for 36\d days, clocks \d+ s apart", said
        )
        real = keys.now()
        monkeypatch.setattr(keys, "now", lambda: real + datetime.timedelta(seconds=200))
        assert "differ by 2" in connection.probe(kit, key)[0]
    finally:
        server.should_exit = True
