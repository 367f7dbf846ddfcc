"""The coordinator's live page: what `fedsynth server status` says, with the drawn samples, while it happens. It can change nothing.

    /               the page
    /facts          the same as JSON (status.py)
    /samples/RUN/N  drawn images of a round: rows are classes, the first that were drawn

Real images are never sent. Who may ask is said in loopback.py.

Left out: several federations on one page.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zipfile
from collections.abc import Callable
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np

from server.reports import loopback
from server.reports.report.plots import by_class, mosaic
from server.reports.watch_page import PAGE
from server.status import Status
from shared.errors import FedsynthError

COLUMNS = 9  # images of a class in a row
FRESH_S = 1.0  # how long one look at the folder answers everybody


def make_server(
    look: Callable[[], Status], runs: Path, token: str, port: int = 0, address: str = loopback.ADDRESS
) -> ThreadingHTTPServer:
    """A server that is bound and not running yet. `look`: how things are; `runs`: the folder of the runs' folders."""
    view = _View(look, runs)

    class Handler(loopback.Handler):
        policy = loopback.policy(PAGE)

        def do_GET(self) -> None:
            path, given = self.asked()
            if not path or not loopback.same(given, token):
                self.refuse(HTTPStatus.FORBIDDEN)
            elif path == "/":
                self.reply(PAGE.encode(), "text/html; charset=utf-8")
            elif path == "/facts":
                self.reply(view.facts(), "application/json")
            elif (found := re.fullmatch(r"/samples/([a-z0-9][a-z0-9-]{0,39})/(\d{1,6})", path)) and (
                picture := view.samples(found[1], int(found[2]))
            ):
                self.reply(picture, "image/png")
            else:
                self.refuse(HTTPStatus.NOT_FOUND)

    return loopback.bind(Handler, port, address)


class _View:
    """What all who ask share: one look at a time, one drawing of each picture."""

    def __init__(self, look: Callable[[], Status], runs: Path) -> None:
        self._look, self._runs, self._lock = look, runs, threading.Lock()
        self._facts, self._when = b"", -FRESH_S
        self._pictures: dict[tuple[str, int], bytes] = {}

    def facts(self) -> bytes:
        with self._lock:
            if time.monotonic() - self._when >= FRESH_S:
                try:
                    found = self._look().to_dict()
                except (FedsynthError, OSError) as error:  # a file half written, or a paper that somebody moved
                    found = {"error": str(error)}
                self._facts, self._when = json.dumps(found, allow_nan=False).encode(), time.monotonic()
            return self._facts

    def samples(self, run: str, number: int) -> bytes | None:
        with self._lock:
            if (run, number) not in self._pictures:
                path = self._runs / run / "server" / "samples" / f"round-{number:03d}.npz"
                try:
                    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                        x_NHW, label_N = arrays["x_NHW"], arrays["label_N"]
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                    return None
                labels = [int(label) for label in np.unique(label_N)]
                self._pictures[run, number] = mosaic(by_class(x_NHW, label_N, labels, COLUMNS, None), COLUMNS)
            return self._pictures[run, number]
