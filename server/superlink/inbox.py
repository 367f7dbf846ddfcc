"""What a node may hand in: the answer to what it was asked, in its own name, of at most so many bytes.

Flower looks whose key signed a request, and not whose name the message inside it bears. So whoever is admitted could hand in an
order in the server's name, which the server's own app would then be given together with the next site's answer, and one that cannot
be read takes that answer with it; or, knowing a node's number, an order to another hospital.

| what is handed in                                      | what happens                        |
|--------------------------------------------------------|-------------------------------------|
| one message, from the node that sends it, a reply, to the server | it is Flower's to look further |
| any other number of messages, sender, receiver, or no reply      | 403, nothing is stored         |
| times that are no numbers                              | 403                                 |
| more than PARTS parts                                  | 403                                 |
| parts of more than LIMIT bytes together                | 413 for the rest; the answer never comes whole, and is named so |
| a part of no answer (without a session)                | 403                                 |

Left out: what an answer says (server/dispatch.py, shared/messages.py); how many requests a second.
"""

from __future__ import annotations

import math
import threading
from typing import Any

from fastapi import HTTPException
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.servicer.fleet import fleet_handlers

PARTS = 10_000  # of two megabytes each, as our nodes cut them
LIMIT = 2 * 1024**3  # bytes of one answer
SESSIONS = 10_000  # answers under way whose bytes are counted; four requests at a time may pass the limit together


def guard(limit: int = LIMIT) -> None:
    """Put the checks before Flower's own handlers, in this process."""
    store, keep = fleet_handlers.push_messages, fleet_handlers.push_object
    sizes, lock = dict[str, int](), threading.Lock()

    def push_messages(request: Any, state: Any) -> Any:
        if not _is_an_answer(request):
            raise HTTPException(403, "a node hands in its own answers alone")
        return store(request=request, state=state)

    def push_object(request: Any, state: Any) -> Any:
        name, size = request.session_id, len(request.object_content)
        if not name:
            raise HTTPException(403, "a part belongs to an answer")
        if sizes.get(name, 0) + size > limit:
            raise HTTPException(413, "an answer is not as large as that")
        done = keep(request=request, state=state)
        if done.stored:  # of an answer that is under way: whoever makes up a name leaves no trace
            with lock:
                sizes[name] = sizes.pop(name, 0) + size  # the newest last
                if len(sizes) > SESSIONS:
                    del sizes[next(iter(sizes))]
        return done

    fleet_handlers.push_messages, fleet_handlers.push_object = push_messages, push_object


def _is_an_answer(request: Any) -> bool:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        return False
    about = request.messages_list[0].metadata
    return (
        about.src_node_id == request.node.node_id
        and about.dst_node_id == SUPERLINK_NODE_ID
        and bool(about.reply_to_message_id)
        and math.isfinite(about.created_at)
        and math.isfinite(about.ttl)
        and sum(1 for _ in iterate_object_tree(request.message_object_trees[0])) <= PARTS
    )
