"""The page of a review, on this machine alone (loopback.py). Everything asks for a reader's token.

What is sent about an image is its pixels, and how many are left: never which it is.
"""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from server.reports import loopback
from server.reports.review import ARTEFACTS, Review
from server.reports.review_page import PAGE
from shared.errors import DataError

LARGEST = 4096  # bytes of an answer


def make_server(review: Review, port: int = 0) -> ThreadingHTTPServer:
    """A server that is bound and not running yet; port 0: any that is free."""
    lock = threading.Lock()

    class Handler(loopback.Handler):
        policy = loopback.policy(PAGE)

        def do_GET(self) -> None:
            reader, path = self._reader()
            if reader is None:
                return
            if path == "/":
                self.reply(PAGE.encode(), "text/html; charset=utf-8")
            elif path == "/next":
                self.reply(json.dumps(_next(review, reader)).encode(), "application/json")
            elif path.startswith("/image/") and path[7:] in review.truth:
                self.reply((review.folder / "images" / f"{path[7:]}.png").read_bytes(), "image/png")
            else:
                self.refuse(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            reader, path = self._reader()
            if reader is None:
                return
            length = self.headers.get("Content-Length", "")
            if path != "/answer" or not length.isdigit() or int(length) > LARGEST:
                self.refuse(HTTPStatus.BAD_REQUEST)
                return
            try:
                tree = json.loads(self.rfile.read(int(length)))
                answer = review.check(tree | {"reader": reader} if isinstance(tree, dict) else tree)
            except (ValueError, DataError):
                self.refuse(HTTPStatus.BAD_REQUEST)
                return
            with lock:
                review.add(answer)
            self.reply(json.dumps(_next(review, reader)).encode(), "application/json")

        def _reader(self) -> tuple[str | None, str]:
            """Who asks for what; none after a refusal has been sent."""
            path, token = self.asked()
            reader = review.reader(token) if path else None
            if reader is None:
                self.refuse(HTTPStatus.FORBIDDEN)
            return reader, path

    return loopback.bind(Handler, port)


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
