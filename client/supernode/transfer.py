"""The bytes of one message, part by part, from whoever announced it: never more than is permitted, and not waited for for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

from shared.errors import FedsynthError, MessageError

OBJECTS = 100_000  # of one message
PATIENCE_S = 600.0  # for what was announced: by the app, or by the server, which may still be storing it


def collect(
    tree: Any, get: Callable[[str], bytes], *, limit: int, large: FedsynthError, short: FedsynthError
) -> dict[str, bytes]:
    """Every part of the message whose parts are listed in `tree` (Flower's ObjectTree).

    get     one part by its name; ObjectUnavailableError while it is not there yet
    limit   bytes of the whole message; more raise `large`, and no further part is fetched
    short   raised when a part has not come after PATIENCE_S
    """
    contents: dict[str, bytes] = {}
    deadline, size = time.monotonic() + PATIENCE_S, 0
    for part in iterate_object_tree(tree):
        if part.object_id not in contents:
            contents[part.object_id] = _waited(get, part.object_id, deadline, short)
            size += len(contents[part.object_id])
        if size > limit or len(contents) > OBJECTS:
            raise large
    return contents


def stored(tree: Any, store: Any, *, limit: int) -> dict[str, bytes]:
    """Every part of the app's message, from Flower's store. MessageError when they are too many or do not come."""
    short = MessageError("the app announced a reply and did not send all of it")

    def get(name: str) -> bytes:
        data: bytes | None = store.get(name)
        if data is None:
            raise short
        if not data:
            raise ObjectUnavailableError(name)
        return data

    large = MessageError("the app's reply is larger than the policy permits")
    return collect(tree, get, limit=limit, large=large, short=short)


def _waited(get: Callable[[str], bytes], name: str, deadline: float, short: FedsynthError) -> bytes:
    wait_s = 0.02
    while True:
        try:
            return get(name)
        except ObjectUnavailableError:
            if time.monotonic() > deadline:
                raise short from None
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, 1.0)
