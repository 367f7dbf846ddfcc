"""What every page of ours that is served has in common: this machine alone, a token, no resource from anywhere else.

| who asks                                         | what happens                                                               |
|--------------------------------------------------|----------------------------------------------------------------------------|
| another machine                                  | nothing listens there: the address is 127.0.0.1, unless it was chosen      |
| a page elsewhere, through the browser (rebinding) | 403: the request names another host than this machine                     |
| another user of this machine                     | 403 without the token, which is in the address that was printed            |
| a script that slipped into the page              | the browser runs only the one whose hash is in the policy                  |
| a method that the page does not have             | 405                                                                        |

Left out: TLS. People elsewhere come through a tunnel (ssh -L), which keeps the name of this machine.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

HERE = ("127.0.0.1", "localhost", "[::1]")
ADDRESS = "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """GET alone; a page that takes answers adds `do_POST`."""

    server_version, sys_version = "fedsynth", ""
    timeout = 30
    policy = "default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"

    def log_message(self, *_: Any) -> None:
        """Silent: addresses hold tokens."""

    def asked(self) -> tuple[str, str]:
        """The path and the token; the path is empty where the request names another host, and nothing may be answered."""
        parts = urlsplit(self.path)
        host = re.sub(r":\d*$", "", self.headers.get("Host", ""))
        return (parts.path if host in HERE else "", parse_qs(parts.query).get("token", [""])[0])

    def refuse(self, status: HTTPStatus) -> None:
        self.reply(status.phrase.encode(), "text/plain", status)

    def reply(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", self.policy)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _no_such_method(self) -> None:
        self.close_connection = True  # what it may have sent is not read
        self.refuse(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_CONNECT = do_TRACE = _no_such_method


def policy(page: str) -> str:
    """The policy under which a browser runs the styles and the scripts of this page, and loads from nowhere but here."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in found
        )

    own = f"img-src 'self'; connect-src 'self'; style-src {hashes('style')}; script-src {hashes('script')}"
    return f"{Handler.policy}; {own}"


def bind(handler: type[Handler], port: int, address: str = ADDRESS) -> ThreadingHTTPServer:
    """A server that is bound and not running yet; port 0: any that is free."""
    server = ThreadingHTTPServer((address, port), handler)
    server.daemon_threads = True
    return server


def same(one: str, other: str) -> bool:
    """Whether two tokens are the same, in a time that does not tell how much of them is."""
    return secrets.compare_digest(one.encode(), other.encode())
