"""The run's own record of what happened: one JSON line an event, appended and flushed. No patient data.

{"seconds": 12.3, "event": "site_replied", "round": 2, "site": "north", "epsilon": 3.1, "bytes": 1040}
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Events:
    """Appends to one file; `seconds` count from the first start of the run, also after a resume.

    also   told every event and its fields once it is written: the journal, and who else watches
    """

    def __init__(self, path: Path, *also: Callable[[str, dict[str, Any]], None]) -> None:
        self.path, self._also = path, also
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = read(path)
        self._offset = float(earlier[-1]["seconds"]) if earlier else 0.0
        self._start = time.monotonic()

    def write(self, event: str, **fields: Any) -> None:
        seconds = round(self._offset + time.monotonic() - self._start, 2)
        finite = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in fields.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seconds": seconds, "event": event, **finite}) + "\n")
        for tell in self._also:
            tell(event, finite)


def read(path: Path) -> list[dict[str, Any]]:
    """All events of a file, oldest first; a torn last line is left out."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
