"""Which node is which site, as a server with authenticated nodes writes it down; nothing in a simulation."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "nodes.json"


def names(out: Path) -> dict[int, str]:
    """Node -> site, from the run's folder; empty where nodes are not authenticated."""
    path = out / FILE
    return {int(n): str(s) for n, s in json.loads(path.read_text(encoding="utf-8")).items()} if path.exists() else {}
