"""A site was seen when Flower checked its signature; whoever is gone keeps the last time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NodeStatus
from flwr.supercore.object_store import ObjectStoreFactory

from server.superlink import heartbeats

T0 = 1_800_000_000.0


def links(status: str, heard: float) -> Any:
    node = SimpleNamespace(
        node_id=7, status=status, online_until=heard + HEARTBEAT_PATIENCE * 30.0, heartbeat_interval=30.0
    )
    return SimpleNamespace(get_node_info=lambda node_ids: [node])


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(T0 + seconds, UTC).isoformat()


def test_the_last_heartbeat_is_kept_after_a_site_is_gone(tmp_path: Path) -> None:
    assert heartbeats.read(tmp_path) == {}
    heartbeats.keep(tmp_path, links(NodeStatus.REGISTERED, T0), {7: "north"})
    assert heartbeats.read(tmp_path) == {"north": {"connected": False}}
    heartbeats.keep(tmp_path, links(NodeStatus.ONLINE, T0 + 10), {7: "north"})
    assert heartbeats.read(tmp_path) == {"north": {"connected": True, "seen": stamp(10)}}
    heartbeats.keep(tmp_path, links(NodeStatus.OFFLINE, T0 + 90), {7: "north"})
    assert heartbeats.read(tmp_path) == {"north": {"connected": False, "seen": stamp(10)}}
    heartbeats.keep(tmp_path, links(NodeStatus.OFFLINE, T0 + 90), {})  # shut out
    assert heartbeats.read(tmp_path) == {"north": {"connected": False, "seen": stamp(10)}}


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # Flower's own
def test_flowers_own_record_says_what_is_read_here(tmp_path: Path) -> None:
    """The two numbers that `seen` takes apart are those of the installed Flower."""
    manager: Any = SimpleNamespace()
    state = LinkStateFactory(str(tmp_path / "links.db"), manager, ObjectStoreFactory()).state()
    node = state.create_node("a", "a", b"key", 0)
    state.activate_node(node, 30.0)
    heartbeats.keep(tmp_path, state, {node: "north"})
    found = heartbeats.read(tmp_path)["north"]
    assert found["connected"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(found["seen"])).total_seconds()) < 5
    state.deactivate_node(node)
    heartbeats.keep(tmp_path, state, {node: "north"})
    assert heartbeats.read(tmp_path)["north"] == {"connected": False, "seen": found["seen"]}
