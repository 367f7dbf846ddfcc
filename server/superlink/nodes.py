"""Which node is which site, as a server with authenticated nodes writes it down; no file in a simulation.

A file that names nobody is not the same as none: then no node is known, and no reply is anybody's.
"""

from __future__ import annotations

import json
from pathlib import Path

FILE = "nodes.json"


def names(out: Path) -> dict[int, str] | None:
    """Node -> site, from the run's folder; none where nodes are not authenticated."""
    path = out / FILE
    if not path.exists():
        return None
    return {int(n): str(s) for n, s in json.loads(path.read_text(encoding="utf-8")).items()}
