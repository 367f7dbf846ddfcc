"""A node that is not ours: it has a site's key, speaks Flower's protocol to a real server, and answers what it likes.

The boundary of an honest node would not let such an answer leave; here it is the server that must not take it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_connection import http_request_response

from client.supernode import transfer
from shared.crypto import keys
from shared.errors import FederationError


class Rogue:
    """An open connection of such a node."""

    def __init__(self, connection: tuple[Any, ...]) -> None:
        _, self._receive, self._send, _, _, self._pull, self._push, self._confirm = connection

    def asked(self, patience_s: float) -> Message:
        """The next request, whole."""
        deadline = time.monotonic() + patience_s
        while (got := self._receive()) is None:
            if time.monotonic() > deadline:
                raise FederationError(f"nothing was asked within {patience_s:g} s")
            time.sleep(1.0)  # as often as our own node asks
        message, tree = got
        run = message.metadata.run_id
        short = FederationError("the request did not come whole")
        contents = transfer.collect(tree, partial(self._pull, run), limit=sys.maxsize, large=short, short=short)
        self._confirm(run, message.metadata.message_id)
        opened = inflate_object_from_contents(tree.object_id, contents, keep_object_contents=True)
        whole = Message(opened.content, reply_to=message)  # a request under the metadata that its reply must name
        whole.metadata.__dict__.update(message.metadata.__dict__)
        return whole

    def answer(self, request: Message, content: RecordDict) -> None:
        """Send `content` as the answer."""
        reply = Message(content, reply_to=request)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted, session = self._send(reply, get_object_tree(reply), 0.0)
        parts = get_all_nested_objects(reply)
        for name in [n for n in parts if n in wanted]:  # children first
            self._push(request.metadata.run_id, session, name, parts[name].deflate())


@contextlib.contextmanager
def rogue(kit: keys.Kit, key: ec.EllipticCurvePrivateKey) -> Iterator[Rogue]:
    """Connect with the kit and key of a site whose own node does not run."""
    with http_request_response(kit.address, False, kit.ca.encode(), (key, key.public_key())) as connection:
        yield Rogue(connection)
