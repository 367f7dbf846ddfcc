"""Only the configured service is asked, over TLS, and what it answers badly is told in fixed words."""

from __future__ import annotations

import json
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from client.deidentification import redaction
from client.pacs import multipart
from client.pacs.archive import Series, Unanswered
from client.pacs.dicomweb import DicomwebArchive
from shared.config.pacs import Pacs
from shared.errors import DataError

Write = Callable[..., list[Path]]
WORD = "QZJX"


class Web(ThreadingHTTPServer):
    """A DICOMweb service that has nothing, and notes what it was asked."""

    daemon_threads = True
    answer: Callable[[BaseHTTPRequestHandler], None]

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class Asked(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        status, headers, body = self.server.reply(self)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in headers and "Connection" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """Starts a service; gives its address and the list of what it is asked."""
    servers = []

    def start(
        reply: Callable[[Any], tuple[int, dict[str, str], bytes]] = lambda _: (200, {}, b"[]"),
        tls: ssl.SSLContext | None = None,
    ) -> tuple[str, list[Any]]:
        server = Web(("127.0.0.1", 0), Asked)
        server.asked, server.reply = [], reply  # type: ignore[attr-defined]
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/dicom-web", server.asked  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def reach(url: str, **way: Any) -> Pacs:
    pacs = {"patients": "p", "tries": 1, "requests_per_second": 1000, "timeout_s": 5, "dicomweb": {"url": url, **way}}
    return Pacs.model_validate(pacs)


def server_context(tls: Path, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "pacs.pem", tls / "pacs.key")
    if mutual:
        context.load_verify_locations(tls / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_only_a_service_whose_certificate_our_authority_signed_is_asked(tls: Path, web: Any) -> None:
    url, asked = web(tls=server_context(tls, mutual=False))
    DicomwebArchive(reach(url, ca=tls / "ca.pem")).ping()
    assert len(asked) == 1
    for ca in ({"ca": tls / "stranger.pem"}, {}):
        with pytest.raises(Unanswered, match="TLS certificate") as caught:
            DicomwebArchive(reach(url, **ca)).ping()
        assert caught.value.final and caught.value.__context__ is None
    with pytest.raises(Unanswered, match="TLS certificate"):  # the right authority, another name
        DicomwebArchive(reach(url.replace("127.0.0.1", "localhost"), ca=tls / "ca.pem")).ping()
    assert len(asked) == 1


def test_a_service_that_wants_our_certificate_gets_it(tls: Path, tmp_path: Path, web: Any) -> None:
    url, asked = web(tls=server_context(tls, mutual=True))
    ours = {"ca": tls / "ca.pem", "certificate": tls / "us.pem", "key": tls / "us.key"}
    DicomwebArchive(reach(url, **ours)).ping()
    assert len(asked) == 1
    for lacking in (
        {"ca": tls / "ca.pem"},
        ours | {"certificate": tls / "stranger.pem", "key": tls / "stranger.key"},
    ):
        with pytest.raises(Unanswered):
            DicomwebArchive(reach(url, **lacking)).ping()
    assert len(asked) == 1
    (tmp_path / "us.key").write_bytes((tls / "us.key").read_bytes())
    (tmp_path / "us.key").chmod(0o644)
    with pytest.raises(DataError, match="`key` names can be read by others"):
        DicomwebArchive(reach(url, **ours | {"key": tmp_path / "us.key"}))


def test_the_token_is_read_for_each_request_and_never_said(
    tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url, asked = web(lambda request: (200 if request.headers["Authorization"] == "Bearer second" else 401, {}, b"[]"))
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(f"{WORD}-first\n")
    service = DicomwebArchive(reach(url, token_file=token))
    with pytest.raises(Unanswered, match=r"token or certificate \(HTTP 401\)") as caught:
        service.find(f"{WORD}-PATIENT", "MR")
    token.write_text("second\n")
    assert service.find(f"{WORD}-PATIENT", "MR") == []
    assert f"{WORD}-PATIENT" in asked[-1][0] and asked[0][1]["Authorization"] == f"Bearer {WORD}-first"
    monkeypatch.setenv("PACS_TOKEN", "second")
    DicomwebArchive(reach(url, token_variable="PACS_TOKEN")).ping()
    spoken = caplog.text + "".join(str(record.__dict__) for record in caplog.records) + repr(caught.value)
    assert WORD not in spoken and "second" not in spoken and redaction.WITHHELD in caplog.text


@pytest.mark.parametrize("damage", ["missing", "empty", "two lines", "readable by others", "no variable"])
def test_a_token_in_doubt_is_refused_without_its_name_or_content(tmp_path: Path, damage: str) -> None:
    token = tmp_path / WORD
    if damage != "missing":
        token.touch(mode=0o600)
        token.write_text({"empty": " \n", "two lines": f"{WORD}\n{WORD}\n"}.get(damage, WORD))
    if damage == "readable by others":
        token.chmod(0o644)
    way = {"token_variable": WORD} if damage == "no variable" else {"token_file": token}
    with pytest.raises(DataError) as caught:
        DicomwebArchive(reach("https://h", **way))
    assert WORD not in str(caught.value) and caught.value.__context__ is None


def test_nobody_is_followed_to_another_address(web: Any) -> None:
    other, asked_there = web()
    url, asked = web(lambda _: (302, {"Location": f"{other}/studies?PatientID={WORD}"}, b""))
    with pytest.raises(Unanswered, match="another address") as caught:
        DicomwebArchive(reach(url)).find(WORD, "MR")
    assert asked and not asked_there and WORD not in repr(caught.value)


@pytest.mark.parametrize(("reply", "said"), [
    ((500, {}, WORD.encode()), "HTTP status 500"), ((200, {}, b"{" + WORD.encode()), "could not be read"),
    ((200, {}, b'[{"0020000D": {"vr": "UI", "Value": ["../QZJX"]}}]'), "no valid UID"),
    ((200, {}, b'[{"0020000D": {"vr": "UI"}}]'), "no valid UID"),
])  # fmt: skip
def test_a_bad_answer_is_told_in_fixed_words(web: Any, reply: tuple[int, dict[str, str], bytes], said: str) -> None:
    url, _ = web(lambda _: reply)
    with pytest.raises(Unanswered, match=said) as caught:
        DicomwebArchive(reach(url)).find(WORD, "MR")
    assert WORD not in repr(caught.value) and url not in str(caught.value) and caught.value.__context__ is None


def test_no_answer_in_time_is_told(web: Any) -> None:
    url, _ = web(lambda _: (time.sleep(0.6), (200, {}, b"[]"))[1])
    pacs = reach(url).model_copy(update={"timeout_s": 0.2})
    with pytest.raises(Unanswered, match="timeout_s"):
        DicomwebArchive(pacs).ping()


def test_a_service_that_gives_its_answers_in_pages_is_asked_for_all_of_them(web: Any) -> None:
    """Three studies, two a page; a service that ignores the offset would answer the same page for ever."""
    for heeds_offset in (True, False):

        def reply(request: Any, heeds_offset: bool = heeds_offset) -> tuple[int, dict[str, str], bytes]:
            if "/instances" in request.path or "/series" in request.path:
                return 200, {}, b"[]"
            start = int(request.path.split("offset=")[1].split("&")[0]) if heeds_offset else 0
            page = [{"0020000D": {"vr": "UI", "Value": [f"1.2.{n}"]}} for n in range(start, min(start + 2, 3))]
            return 200, {}, json.dumps(page).encode()

        url, asked = web(reply)
        DicomwebArchive(reach(url)).find("A", "MR")
        studies = {path.split("/studies/")[1].split("/")[0] for path, _ in asked if "/series" in path}
        assert studies == ({"1.2.0", "1.2.1", "1.2.2"} if heeds_offset else {"1.2.0", "1.2.1"})


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_a_multipart_message_is_cut_at_its_delimiters_however_it_arrives(size: int) -> None:
    bodies = [b"first\r\n--", b"", b"\r\n\r\n--edg\r\n", bytes(range(256)) * 3]
    parts = b"".join(b"\r\n--edge\r\nContent-Type: application/dicom\r\n\r\n" + body for body in bodies)
    kind = 'multipart/related; type="application/dicom"; boundary="edge"'
    for message in (parts + b"\r\n--edge--\r\n", b"a preamble" + parts + b"\r\n--edge--", parts[2:] + b"\r\n--edge--"):
        chunks = [message[start : start + size] for start in range(0, len(message), size)]
        assert list(multipart.bodies(kind, chunks)) == bodies
    for broken in (parts[:-100], parts, parts + b"\r\n--edge", b""):
        with pytest.raises(EOFError):
            list(multipart.bodies(kind, [broken]))
    with pytest.raises(ValueError):
        list(multipart.bodies("application/dicom", [parts]))


def test_an_answer_that_breaks_off_does_not_pass_for_a_whole_one(tmp_path: Path, web: Any, write_series: Write) -> None:
    (one,) = write_series(tmp_path / "data")[:1]
    body = b"--edge\r\nContent-Type: application/dicom\r\n\r\n" + one.read_bytes()
    kind = {
        "Content-Type": "multipart/related; boundary=edge",
        "Connection": "close",
    }  # no length: it ends when it ends
    for end, whole in ((b"\r\n--edge--", True), (b"", False)):
        url, _ = web(lambda _, end=end: (200, kind, body + end))
        got: list[bytes] = []
        service = DicomwebArchive(reach(url))
        if whole:
            service.fetch(Series("1.2", "1.3", frozenset()), got.append)
            assert got == [one.read_bytes()]
        else:
            with pytest.raises(Unanswered, match="broke off"):
                service.fetch(Series("1.2", "1.3", frozenset()), got.append)
            assert not got
