"""Is the line to the coordinator good? What is wrong with it, in one sentence."""

from __future__ import annotations

import logging
import signal
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from types import FrameType
from typing import TypeVar

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import RunNotRunningException

from client.supernode import node
from shared.crypto import keys
from shared.errors import FederationError

LOG = logging.getLogger("fedsynth.client")
CLOCK_S, REFUSED_S = 60.0, 300.0  # Flower accepts a signature for 300 s
IDLE_S, IDLE_TIMES = 1.0, 60
T = TypeVar("T")


class NotAdmitted(FederationError):
    """The server is there, and does not let this node in."""


def probe(kit: keys.Kit, key: ec.EllipticCurvePrivateKey) -> list[str]:
    """Whether the server can be reached, is the kit's, and admits this key. FederationError says what is wrong.

    Returns warnings: what ends soon, and a clock that is wrong.
    """
    return look(kit, key)[0]


def look(kit: keys.Kit, key: ec.EllipticCurvePrivateKey) -> tuple[list[str], str]:
    """As `probe`, and in one sentence what the line is like."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=kit.ca)
    headers = {FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(public_key_to_bytes(key.public_key())).decode()}
    try:
        with (
            httpx.Client(verify=context, timeout=20) as line,
            line.stream("POST", f"https://{kit.address}/v1/fleet/", content=b"", headers=headers) as answer,
        ):
            tls = answer.extensions["network_stream"].get_extra_info("ssl_object")
            version, certificate = tls.version(), tls.getpeercert(True)
    except httpx.HTTPError as error:
        raise FederationError(f"{_explain(error)} ({kit.address})") from error
    if answer.status_code == httpx.codes.FORBIDDEN:
        raise NotAdmitted(
            f"{kit.address} does not admit this node: its key was not approved, was revoked, or its term is over; "
            "ask the coordinator"
        )
    if answer.status_code != httpx.codes.NO_CONTENT:
        raise FederationError(
            f"{kit.address} answered {answer.status_code}; something else than fedsynth listens there"
        )
    until = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    lines = [*node.warnings(kit), *filter(None, [keys.warning("the server's certificate", until)])]
    said = f"{version} to {kit.address}, its certificate good for {(until - keys.now()).days} days"
    if "date" in answer.headers:
        off = abs((parsedate_to_datetime(answer.headers["date"]) - keys.now()).total_seconds())
        said += f", clocks {off:.0f} s apart"
        if off >= REFUSED_S:
            raise FederationError(
                f"this machine's clock and the server's differ by {off:.0f} s, and the server refuses what is signed "
                f"{REFUSED_S:.0f} s off; set the clock"
            )
        if off > CLOCK_S:
            lines.append(f"this machine's clock and the server's differ by {off:.0f} s; at 300 s requests are refused")
    return lines, said


def admitted(kit: keys.Kit, key: ec.EllipticCurvePrivateKey) -> None:
    """NotAdmitted when the server has shut this node out; nothing where the line is down, because that may pass."""
    try:
        probe(kit, key)
    except NotAdmitted:
        raise
    except FederationError as error:
        LOG.warning("%s", error)


def patient(ask: Callable[[], T | None], refused: Callable[[], None]) -> Callable[[], T | None]:
    """`ask` for work every second, for a minute: Flower itself asks every three seconds, and a round waits for that.

    refused   called when the server refuses to say; Flower takes that for a run that has ended, and would ask for ever
    """

    def asks() -> T | None:
        for _ in range(IDLE_TIMES):
            try:
                found = ask()
            except RunNotRunningException:
                refused()
                raise
            if found is not None:
                return found
            time.sleep(IDLE_S)
        return None

    return asks


def enduring(make: Callable[[], RetryInvoker]) -> Callable[[], RetryInvoker]:
    """Flower's way to try again, which takes a line that was cut within TLS for a wrong certificate, and gives up."""

    def made() -> RetryInvoker:
        invoker = make()
        gives_up = invoker.should_giveup
        invoker.should_giveup = lambda error: not cut(error) and gives_up is not None and gives_up(error)
        return invoker

    return made


def cut(error: BaseException) -> bool:
    """Whether the other end went away in the middle: nothing is wrong with it, and it may come back."""
    return any(
        isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)) for cause in _causes(error)
    )


@contextmanager
def interrupted(refused: Callable[[], None]) -> Iterator[None]:
    """Flower interrupts its own process where the server refuses a heartbeat, and that would end as if it had been told to.

    refused   called first, in the main thread: raises when the server has shut this node out
    """

    def told(number: int, frame: FrameType | None) -> None:
        refused()
        if callable(before):
            before(number, frame)

    before = signal.signal(signal.SIGINT, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explain(error: httpx.HTTPError) -> str:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"the server's certificate does not hold: {cause.verify_message}. Either it is not the kit's server, or "
                "something on the way opens TLS"
            )
    if isinstance(error, httpx.ProxyError):
        return "the proxy does not let the connection through"
    if isinstance(error, httpx.TimeoutException):
        return "the server does not answer; is the address right, and does the firewall let it through?"
    return "the server cannot be reached; is it running, and does the firewall or proxy let it through?"
