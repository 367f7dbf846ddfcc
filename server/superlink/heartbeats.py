"""When each site was last heard of: FOLDER/state/seen.json, kept by the running server for whoever asks how things are.

A site is heard of when Flower has checked the signature of its activation or heartbeat (every 30 s or so), not when somebody shows
its public key.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.supercore.constant import NodeStatus

from shared.files import write_bytes

FILE = "seen.json"


def keep(folder: Path, links: Any, names: dict[int, str]) -> None:
    """Write down who is connected and since when not. `links`: Flower's list of nodes; `names`: the site of each admitted one."""
    before = read(folder)
    found = {site: entry | {"connected": False} for site, entry in before.items()}
    for node in links.get_node_info(node_ids=list(names)) if names else []:
        site, entry = names[node.node_id], dict(before.get(names[node.node_id], {}))
        connected = node.status == NodeStatus.ONLINE
        if connected:  # Flower keeps until when it will wait for the next heartbeat
            heard = node.online_until - HEARTBEAT_PATIENCE * node.heartbeat_interval
            entry["seen"] = datetime.fromtimestamp(heard, UTC).isoformat(timespec="seconds")
        if connected or site not in found or not found[site]["connected"]:
            found[site] = entry | {"connected": connected}
    if found != before:
        write_bytes(folder / "state" / FILE, json.dumps(found, sort_keys=True).encode())


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Site -> {"connected": whether, "seen": when, if ever}; empty before the first server."""
    try:
        found: dict[str, dict[str, Any]] = json.loads((folder / "state" / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
