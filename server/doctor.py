"""What stands between this coordinator and a federation that works: each thing looked at in turn, and how to mend it.

TLS is tried as a hospital will: a whole handshake with the server's own key and certificate, in memory, under the address that is
in every kit. Nothing is changed; where the server runs, one empty request is sent to it, which it refuses.

Left out: whether the hospitals' firewalls let the address through, and their clocks: `fedsynth client doctor` says so there.
"""

from __future__ import annotations

import datetime
import errno
import http.client
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from server.superlink import jobs, provision
from server.superlink.federation import FederationFile
from shared import checks
from shared.checks import Finding
from shared.crypto import keys
from shared.errors import FedsynthError
from shared.journal import journal, verifier

SECRETS = ("ca.key", "server.key", "sites", "kits", "state", journal.KEY)
TIMEOUT_S = 5.0


def examine(federation: FederationFile, folder: Path) -> Iterator[Finding]:
    """Look at everything; a bad finding does not stop the next."""
    looks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("file modes", lambda: iter([checks.modes(folder, SECRETS)])),
        ("certificates", lambda: _certificates(folder)),
        ("TLS", lambda: _tls(federation, folder)),
        ("address", lambda: _address(federation, folder)),
        ("port", lambda: _port(federation, folder)),
        ("sites", lambda: _sites(folder)),
        ("journal", lambda: _journal(folder)),
        ("proxy", _proxy),
        ("machine", lambda: checks.machine(folder)),
    ]
    for what, look in looks:
        try:
            yield from look()
        except FedsynthError as error:
            yield Finding(what, "bad", str(error))


def _certificates(folder: Path) -> Iterator[Finding]:
    for name, what, mend in (
        ("ca.pem", "the certificate authority", "provision a new federation in time, and send new kits"),
        ("server.pem", "the server's certificate", "run `fedsynth server provision` again"),
    ):
        until = keys.load_certificate((folder / name).read_text(encoding="utf-8")).not_valid_after_utc
        if said := keys.warning(what, until):
            yield Finding("certificates", "bad" if until <= keys.now() else "warning", said, mend)
        else:
            yield Finding("certificates", "good", f"{what}: {(until - keys.now()).days} days left")
    if (folder / "ca.key").exists():
        yield Finding("certificates", "good", "ca.key lies here; only a renewal needs it, it is safer elsewhere")


def _tls(federation: FederationFile, folder: Path) -> Iterator[Finding]:
    try:
        version = handshake(folder, federation.host)
    except ssl.SSLCertVerificationError as error:
        yield Finding("TLS", "bad", f"a hospital would refuse the server's certificate: {error.verify_message}",
                      "run `fedsynth server provision` again; the address in the kits is that of federation.yaml")  # fmt: skip
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or "no reason was given"
        yield Finding("TLS", "bad", f"server.pem and server.key cannot be used: {str(reason).lower().replace('_', ' ')}",
                      "move both away and run `fedsynth server provision` again")  # fmt: skip
    else:
        yield Finding("TLS", "good", f"{version}, the chain holds and names {federation.host}")


def handshake(folder: Path, host: str) -> str:
    """The TLS version that a hospital with this folder's authority and the server would agree on, tried in memory. ssl.SSLError."""
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.load_cert_chain(folder / "server.pem", folder / "server.key")
    theirs.load_verify_locations(folder / "ca.pem")
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = ours.wrap_bio(up, down, server_side=True)
    site = theirs.wrap_bio(down, up, server_hostname=host)
    waiting = [site, server]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    return site.version() or "TLS"


def _address(federation: FederationFile, folder: Path) -> Iterator[Finding]:
    try:
        found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(federation.host, federation.port)})
    except OSError:
        yield Finding("address", "bad", f"{federation.host} has no entry in the name service",
                      "ask for one; the hospitals connect to this name")  # fmt: skip
        return
    said = f"{federation.host} is {', '.join(found)}" if found != [federation.host] else federation.host
    if jobs.serving(folder):
        try:
            socket.create_connection((federation.host, federation.port), TIMEOUT_S).close()
        except OSError:
            yield Finding("address", "warning", f"{said}, and cannot be reached from here on port {federation.port}",
                          "look at firewall and router; some cannot be seen through from inside: try from a hospital")  # fmt: skip
            return
    yield Finding("address", "good", said)


def _port(federation: FederationFile, folder: Path) -> Iterator[Finding]:
    place = federation.listen if federation.listen != "0.0.0.0" else "127.0.0.1"  # noqa: S104 - compared, not bound
    if not jobs.serving(folder):
        family = socket.AF_INET6 if ":" in federation.listen else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((federation.listen, federation.port))
            except OSError as error:
                why = {
                    errno.EADDRINUSE: "is taken by another program",
                    errno.EACCES: "needs a right that this user lacks",
                }
                said = why.get(error.errno or 0, f"cannot be used: {error.strerror}")
                yield Finding("port", "bad", f"port {federation.port} {said}", "free it, or choose another `address`")
                return
        yield Finding("port", "warning", f"{federation.port} is free: no server runs in this folder",
                      "start it with `fedsynth server serve`")  # fmt: skip
        return
    try:
        status = _knock(folder, federation, "::1" if place == "::" else place)
    except (OSError, http.client.HTTPException):
        yield Finding("port", "bad", f"the server runs and does not answer on {federation.port}",
                      "look at its log, then start it again")  # fmt: skip
        return
    if status == http.client.FORBIDDEN:
        yield Finding("port", "good", f"{federation.port} answers, and refuses who shows no approved key")
    else:
        yield Finding(
            "port", "bad", f"{federation.port} answers {status}, not as fedsynth does", "look who listens there"
        )


def _knock(folder: Path, federation: FederationFile, place: str) -> int:
    """The status with which the server refuses a request that shows no key, through TLS for the kits' address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.pem")
    with socket.create_connection((place, federation.port), TIMEOUT_S) as plain:
        line = http.client.HTTPConnection(federation.host, federation.port)
        with context.wrap_socket(plain, server_hostname=federation.host) as line.sock:
            line.request("POST", "/v1/fleet/", body=b"")
            return line.getresponse().status


def _sites(folder: Path) -> Iterator[Finding]:
    admitted = [m for m in provision.members(folder) if m.admitted]
    if not admitted:
        yield Finding("sites", "warning", "none is admitted", "`fedsynth server approve` admits one")
        return
    for m in provision.members(folder):
        if m.revoked is None and (said := keys.warning(f"the approval of {m.site}", m.until)):
            yield Finding("sites", "warning", said, f"approve the request of {m.site} again, and send the new kit")
    yield Finding("sites", "good", f"{len(admitted)} admitted: {', '.join(m.site for m in admitted)}")


def _journal(folder: Path) -> Iterator[Finding]:
    if not (folder / journal.FILE).exists() and not (folder / journal.CHECKPOINT).exists():
        yield Finding("journal", "good", "none yet")
        return
    found = verifier.verify_journal(folder)
    if found.state != "whole":
        yield Finding("journal", "bad", found.said, "keep the folder as it is, and find out who changed it")
        return
    last = journal.read(folder)[-1]["time"]
    if datetime.datetime.fromisoformat(last) > keys.now() + datetime.timedelta(minutes=1):
        yield Finding("clock", "bad", f"the journal's last entry is of {last}: the clock was set back", "set the clock")
    yield Finding("journal", "good", found.said)


def _proxy() -> Iterator[Finding]:
    found = sorted(name for name in urllib.request.getproxies() if name != "no")
    said = (
        f"set for {', '.join(found)} and not used: the server connects to nobody"
        if found
        else "none in the environment"
    )
    yield Finding("proxy", "good", said)
