"""What a service says while it runs: our own lines on standard error, with the time; Flower's own below warnings are its affair.

As text, or with FEDSYNTH_LOG=json one JSON object a line, for a collector of logs: time (UTC), level and message, and the site, run
and round where the line is about one (`extra=` of the call). It is the same sentence in both; there is no patient data in either.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from shared.errors import ConfigError

VARIABLE = "FEDSYNTH_LOG"
ABOUT = ("site", "run", "round")


def begin() -> None:
    """Show lines of `fedsynth` from INFO, everything else from WARNING. Flower prints its own lines itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("fedsynth").setLevel(logging.INFO)
    logging.getLogger("flwr").propagate = False


def begin_app() -> None:
    """The same in an app's process, which Flower starts; as text it has always said its warnings by itself."""
    if os.environ.get(VARIABLE, "text") != "text":
        begin()


def _formatter() -> logging.Formatter:
    match os.environ.get(VARIABLE, "text"):
        case "text":
            return logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
        case "json":
            return _Json()
        case other:
            raise ConfigError(f"{VARIABLE} is {other!r}; set it to text or json")


class _Json(logging.Formatter):
    """One object a line, a traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        said = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        said |= {name: getattr(record, name) for name in ABOUT if getattr(record, name, None) is not None}
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)
