"""What a service says, as text for people and as JSON for collectors of logs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from shared import logs
from shared.errors import ConfigError

SAY = """
import logging
from shared import logs
logs.begin()
log = logging.getLogger("fedsynth.server")
log.info("round %d: north replied", 3, extra={"site": "north", "run": "brains", "round": 3})
log.debug("not shown")
try:
    raise ValueError("two\\nlines")
except ValueError:
    log.exception("it failed")
"""


def said(kind: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAY], env=os.environ | {logs.VARIABLE: kind}, capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()


def test_json_lines_name_site_run_and_round() -> None:
    first, second = map(json.loads, said("json"))
    assert first | {"time": ""} == {
        "time": "", "level": "INFO", "logger": "fedsynth.server", "message": "round 3: north replied",
        "site": "north", "run": "brains", "round": 3,
    }  # fmt: skip
    assert first["time"].endswith("+00:00")
    assert "ValueError" in second["traceback"]
    assert "site" not in second


def test_text_lines_say_the_same() -> None:
    assert said("text")[0].endswith("INFO    round 3: north replied")


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "xml")
    with pytest.raises(ConfigError, match="'xml'; set it to text or json"):
        logs.begin()
    assert not any(isinstance(h.formatter, logs._Json) for h in logging.getLogger().handlers)
