"""A free port of this machine."""

from __future__ import annotations

import socket


def free() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on just now. Another program may take it before its user does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
