"""The door for images opens to listed peers alone, and only for what was asked for."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset

from client.deidentification import redaction
from client.pacs import archive, dimse, spool, storage_scp
from shared import ports
from shared.config.pacs import Dimse
from shared.errors import DataError

TURNED_AWAY = ("rejected", "no association", "broken off")  # a busy machine may see the end before the rejection
MR = "1.2.840.10008.5.1.4.1.1.4"
DIMSE = {"host": "127.0.0.1", "port": 104, "called_ae": "ARCHIVE", "calling_ae": "US", "listen_port": 11112}


@pytest.fixture
def door() -> Iterator[Callable[..., tuple[storage_scp.Receiver, int]]]:
    opened = []

    def start(**way: Any) -> tuple[storage_scp.Receiver, int]:
        port = ports.free()
        settings = Dimse.model_validate(DIMSE | {"listen_port": port} | way)
        made = storage_scp.Receiver(settings, 5, archive.Pace(1000))
        made.start()
        opened.append(made)
        return made, port

    yield start
    for made in opened:
        made.stop()


def send(port: int, ds: FileDataset, *, calling: str = "ARCHIVE", called: str = "US", source: str = "127.0.0.1",
         secure: ssl.SSLContext | None = None) -> int | str:  # fmt: skip
    """The status of a C-STORE, or why there was none."""
    ae = dimse.Caller(ae_title=calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = 5
    ae.add_requested_context(MR, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title=called, bind_address=(source, 0),
                               tls_args=(secure, "127.0.0.1") if secure else None)  # fmt: skip
    if not association.is_established:
        return "rejected" if association.is_rejected else "no association"
    status = association.send_c_store(ds)
    association.release()
    return int(status.Status) if "Status" in status else "broken off"


def turned_away(port: int, source: str) -> bool:
    """Whether a connection from this address is closed before a word is said."""
    with socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0)) as connection:
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


def test_n03_the_door_takes_only_what_was_asked_for_from_whom_it_was_asked(
    door: Any, make_slice: Callable[..., FileDataset]
) -> None:
    here, port = door()
    ds = make_slice(0)
    got: list[bytes] = []
    assert send(port, ds) == storage_scp.REFUSED  # nothing was asked for
    with here.expecting(frozenset({"1.2.3"}), got.append):
        assert send(port, ds) == storage_scp.REFUSED  # something else was
    with here.expecting(frozenset({ds.SOPInstanceUID}), got.append):
        assert send(port, ds, calling="STRANGER") in TURNED_AWAY
        assert send(port, ds, called="SOMEBODY") in TURNED_AWAY
        assert turned_away(port, "127.0.0.2")
        assert not got
        assert send(port, ds) == storage_scp.SUCCESS
    assert len(got) == 1 and ds.SOPInstanceUID.encode() in got[0]
    assert send(port, ds) == storage_scp.REFUSED and len(got) == 1


def test_a_title_counts_only_at_its_own_address(door: Any, make_slice: Callable[..., FileDataset]) -> None:
    here, port = door(peers={"ARCHIVE": "127.0.0.1", "NODE": "127.0.0.2"})
    ds, got = make_slice(0), []
    with here.expecting(frozenset({ds.SOPInstanceUID}), got.append):
        assert send(port, ds, calling="NODE", source="127.0.0.1") == storage_scp.REFUSED
        assert send(port, ds, calling="ARCHIVE", source="127.0.0.2") == storage_scp.REFUSED
        assert not got
        assert send(port, ds, calling="NODE", source="127.0.0.2") == storage_scp.SUCCESS


def test_a_failure_to_keep_an_image_reaches_the_one_who_asked(
    door: Any, make_slice: Callable[..., FileDataset]
) -> None:
    here, port = door()
    ds = make_slice(0)

    def put(_: bytes) -> None:
        raise spool.NoRoom("no room")

    with pytest.raises(spool.NoRoom), here.expecting(frozenset({ds.SOPInstanceUID}), put):
        assert send(port, ds) == storage_scp.OUT_OF_RESOURCES


def test_with_tls_both_sides_show_a_certificate(tls: Path, door: Any, make_slice: Callable[..., FileDataset]) -> None:
    here, port = door(certificate=tls / "us.pem", key=tls / "us.key", ca=tls / "ca.pem")
    ds, got = make_slice(0), []
    right = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    right.load_cert_chain(tls / "pacs.pem", tls / "pacs.key")
    wrong = ssl.create_default_context(cafile=str(tls / "ca.pem"))
    wrong.load_cert_chain(tls / "stranger.pem", tls / "stranger.key")
    with here.expecting(frozenset({ds.SOPInstanceUID}), got.append), redaction.redacted():
        assert send(port, ds) in TURNED_AWAY
        assert send(port, ds, secure=wrong) in TURNED_AWAY
        assert not got
        assert send(port, ds, secure=right) == storage_scp.SUCCESS


def test_a_port_that_is_taken_is_said(door: Any) -> None:
    _, port = door()
    with pytest.raises(DataError, match=f"cannot listen on 127.0.0.1 port {port}"):
        storage_scp.Receiver(Dimse.model_validate(DIMSE | {"listen_port": port}), 5, archive.Pace(1)).start()
