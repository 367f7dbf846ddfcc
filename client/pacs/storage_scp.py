"""The door that a PACS sends images to: a C-STORE provider (PS3.4, annex B) with a list of who may come in.

A connection from an address that is not listed is closed before a byte is read. An association from a title that is not
listed, or to another title than ours, is rejected (PS3.8, 9.3.4). An instance is taken only from a listed title at its
own listed address, and only while it is one that was asked for.

Left out: transfer of anything outwards; more than one request at a time.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context
from pynetdicom.transport import ThreadedAssociationServer

from client.pacs.archive import Pace, Put
from client.pacs.credentials import context
from shared.config.pacs import Dimse
from shared.errors import DataError

VERIFICATION = "1.2.840.10008.1.1"
SUCCESS, REFUSED, OUT_OF_RESOURCES = 0x0000, 0x0124, 0xA700  # PS3.7, C.5; PS3.4, B.2.3


def _acknowledge_at_once(event: Any) -> None:
    """Let TCP not wait 40 ms before it acknowledges: an archive that sends in small pieces waits for that at each image."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


# Linux forgets the option whenever it sees fit, so it is set again after each message
PROMPT: list[Any] = [
    (kind, _acknowledge_at_once) for kind in (evt.EVT_DATA_SENT, evt.EVT_DATA_RECV) if hasattr(socket, "TCP_QUICKACK")
]


class Receiver:
    """Listens from `start` to `stop`; instances go to the `put` of the `expecting` that is open, all others are refused."""

    def __init__(self, way: Dimse, timeout_s: float, pace: Pace) -> None:
        self._way, self._pace, self._timeout_s = way, pace, timeout_s
        peers = way.peers or {way.called_ae: way.host}
        self._peers = {(title, address) for title, host in peers.items() for address in _addresses(host)}
        self._lock = threading.Lock()
        self._wanted: frozenset[str] = frozenset()
        self._put: Put | None = None
        self._problem: BaseException | None = None
        self._server: _Server | None = None

    def start(self) -> None:
        """Open the door. DataError when the port cannot be had."""
        way = self._way
        ae = AE(ae_title=way.calling_ae)
        ae.require_called_aet = True
        ae.require_calling_aet = sorted({title for title, _ in self._peers})
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = self._timeout_s
        contexts = [build_context(VERIFICATION)]
        contexts += [build_context(cx.abstract_syntax, ALL_TRANSFER_SYNTAXES) for cx in AllStoragePresentationContexts]
        tls = None
        if way.certificate and way.key and way.ca:
            tls = context(ssl.Purpose.CLIENT_AUTH, way.ca, way.certificate, way.key)
        handlers = [(evt.EVT_C_STORE, self._store), *PROMPT]
        place = (way.listen_host, way.listen_port)
        try:
            server = _Server(ae, place, way.calling_ae, contexts, tls, evt_handlers=handlers)
        except OSError as error:
            raise DataError(f"cannot listen on {way.listen_host} port {way.listen_port}: {error.strerror}") from None
        server.allowed = frozenset(address for _, address in self._peers)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            for association in self._server.active_associations:
                association.abort()
            self._server.shutdown()
            self._server = None

    @contextmanager
    def expecting(self, wanted: frozenset[str], put: Put) -> Iterator[None]:
        """Take these instances while the block runs; a failure of `put` is raised at its end."""
        with self._lock:
            self._wanted, self._put, self._problem = wanted, put, None
        try:
            yield
        finally:
            with self._lock:
                self._wanted, self._put, problem = frozenset(), None, self._problem
        if problem is not None:
            raise problem

    def _store(self, event: Any) -> int:
        peer = event.assoc.requestor
        if (peer.ae_title.strip(), _plain(peer.address)) not in self._peers:
            return REFUSED
        with self._lock:
            if self._put is None or str(event.request.AffectedSOPInstanceUID) not in self._wanted:
                return REFUSED
            try:
                self._put(event.encoded_dataset())
            except BaseException as error:  # noqa: BLE001  (it belongs to the thread that waits, which raises it)
                self._problem = self._problem or error
                return OUT_OF_RESOURCES
        self._pace.wait()
        return SUCCESS


class _Server(ThreadedAssociationServer):
    allowed: frozenset[str] = frozenset()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next connection, from a listed address and with TLS where it is on; any other is closed at once."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        try:
            if _plain(address[0]) not in self.allowed:
                raise OSError("not a listed address")
            if self.ssl_context:
                connection.settimeout(self.ae.acse_timeout)  # nobody may hold the door by saying nothing
                connection = self.ssl_context.wrap_socket(connection, server_side=True)
                connection.settimeout(None)
        except OSError:
            connection.close()
            raise  # the base class drops the request
        return connection, address

    def shutdown(self) -> None:
        BaseServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The base class would print the traceback."""


def _addresses(host: str) -> set[str]:
    """The addresses of a host that the settings name."""
    try:
        return {_plain(str(found[4][0])) for found in socket.getaddrinfo(host, None)}
    except OSError:
        raise DataError(f"the host {host} of the site file has no address") from None


def _plain(address: str) -> str:
    """An address in its canonical form; IPv4 inside IPv6 as IPv4."""
    parsed = ipaddress.ip_address(address.split("%", maxsplit=1)[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
