"""The page of a review, served on this machine alone (127.0.0.1), by the standard library's server.

Everything asks for a reader's token; a request under another host's name is refused, so that no page elsewhere can reach it
through the browser. What is sent about an image is its pixels, and how many are left: never which it is.

Left out: TLS and other machines. Readers elsewhere come through a tunnel that the coordinator opens (ssh -L).
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from server.pages.review import ARTEFACTS, Review
from server.pages.review_page import PAGE
from shared.errors import DataError

LARGEST = 4096  # bytes of an answer


def make_server(review: Review, port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound and not running yet; port 0: any that is free."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "fedsynth", ""
        timeout = 30

        def log_message(self, *_: Any) -> None:
            """Silent: addresses hold the readers' tokens."""

        def do_GET(self) -> None:
            reader, path = self._reader()
            if reader is None:
                return
            if path == "/":
                self._send(PAGE.encode(), "text/html; charset=utf-8")
            elif path == "/next":
                self._send(json.dumps(_next(review, reader)).encode(), "application/json")
            elif path.startswith("/image/") and path[7:] in review.truth:
                self._send((review.folder / "images" / f"{path[7:]}.png").read_bytes(), "image/png")
            else:
                self._refuse(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            reader, path = self._reader()
            if reader is None:
                return
            length = self.headers.get("Content-Length", "")
            if path != "/answer" or not length.isdigit() or int(length) > LARGEST:
                self._refuse(HTTPStatus.BAD_REQUEST)
                return
            try:
                tree = json.loads(self.rfile.read(int(length)))
                answer = review.check(tree | {"reader": reader} if isinstance(tree, dict) else tree)
            except (ValueError, DataError):
                self._refuse(HTTPStatus.BAD_REQUEST)
                return
            with lock:
                review.add(answer)
            self._send(json.dumps(_next(review, reader)).encode(), "application/json")

        def _reader(self) -> tuple[str | None, str]:
            """Who asks for what; none after a refusal has been sent."""
            parts = urlsplit(self.path)
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            token = parse_qs(parts.query).get("token", [""])[0]
            reader = review.reader(token) if host in ("127.0.0.1", "localhost") else None
            if reader is None:
                self._refuse(HTTPStatus.FORBIDDEN)
            return reader, parts.path

        def _refuse(self, status: HTTPStatus) -> None:
            self._send(status.phrase.encode(), "text/plain", status)

        def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("X-Content-Type-Options", "nosniff")
            policy = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
            self.send_header("Content-Security-Policy", policy + "; frame-ancestors 'none'; form-action 'none'")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    return server


def _next(review: Review, reader: str) -> dict[str, Any]:
    """The first image of this reader's that has no answer, and what was said about the one before it."""
    said = {a.image: a for a in review.answers() if a.reader == reader}
    order = review.order(reader)
    left = [image for image in order if image not in said]
    image = left[0] if left else None
    before = order[order.index(image) - 1] if image and order.index(image) else (order[-1] if not image else None)
    found: dict[str, Any] = {
        "reader": reader,
        "image": image,
        "done": len(said),
        "total": len(order),
        "artefacts": ARTEFACTS,
        "before": None,
    }
    if before in said:
        a = said[before]
        found["before"] = {"image": a.image, "real": a.real, "score": a.score, "artefacts": a.artefacts}
    return found
