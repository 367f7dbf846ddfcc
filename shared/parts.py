"""The parts of a message, put together by Flower: an array may name a part as often as it likes, and would be held as often.

Guarantee     while `arrays_of_at_most(n)` lasts, no array of more than n bytes is put together in this process; who names more
              gets a MessageError before anything is copied
Why           400 names of one megabyte are 400 MB, from one megabyte on the line, and a name costs two bytes

| edge case                                       | what happens                                           |
|-------------------------------------------------|--------------------------------------------------------|
| a part named twice, as zeros are                | it counts twice, as it would be held                   |
| a name of no part, a body that is no JSON       | whatever Flower, or Python, raises; the caller is ready|

Left out: the size of the parts themselves, which are bounded where they come in (server/superlink/serve.py,
client/supernode/transfer.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from shared.errors import MessageError


@contextmanager
def arrays_of_at_most(limit: int) -> Iterator[None]:
    """Flower's list of what can be put together holds an array that counts first; the old one afterwards."""

    class Counted:
        @staticmethod
        def inflate(content: bytes, children: dict[str, Any] | None = None) -> Array:
            parts = children or {}
            names = get_object_children_ids_from_object_content(content)
            sizes = [len(parts[name].data) for name in names]
            if sum(sizes[i] for i in json.loads(get_object_body(content, Array))["arraychunk_ids"]) > limit:
                raise MessageError(f"an array of more than {limit} bytes")
            return Array.inflate(content, children)

    name = Array.__qualname__
    before = inflatable_class_registry[name]
    inflatable_class_registry[name] = Counted
    try:
        yield
    finally:
        inflatable_class_registry[name] = before
