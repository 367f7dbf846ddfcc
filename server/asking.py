"""One question to every node; the answers come back one at a time, as they arrive.

| what happens                                        | what is told of the node                                       |
|-----------------------------------------------------|----------------------------------------------------------------|
| it answers                                          | the answer, opened and checked by `opened`                     |
| its app failed                                      | so                                                             |
| its node is killed, or its line cut                 | so, once its heartbeats are missed (a minute)                  |
| it does not answer in time                          | so; an answer that comes later has expired                     |
| it drops the question while that is handed out      | so, and nobody else is touched                                 |
| it answers under the name of another site           | so (over a network, where nodes are authenticated)             |

Left out: who is asked, and what the answers mean (strategy.py, publish/propose.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from shared.errors import MessageError

POLL_S = 0.2


class Named(Protocol):
    """Whatever a site answers, it bears the site's name."""

    @property
    def site(self) -> str: ...


R = TypeVar("R", bound=Named)


@dataclass(frozen=True)
class Answer:
    """A node's message, or why there is none."""

    node: int
    message: Message | None
    reason: str = ""

    def opened(self, unpack: Callable[[RecordDict], R], known: Mapping[int, str]) -> R:
        """What the node says. MessageError when it says nothing that can be used; its text is the reason.

        known   the site of each node, where nodes are authenticated
        """
        if self.message is None:
            raise MessageError(self.reason)
        if self.message.has_error():
            if self.message.error.code == ErrorCode.NODE_UNAVAILABLE:
                raise MessageError("its node was not heard of any more; it ended, or its line is cut")
            raise MessageError("the app at the site failed; its own log says why")
        reply = unpack(self.message.content)
        if known and reply.site != known.get(self.node):
            raise MessageError("a reply under the name of another site")
        return reply


def ask(
    grid: Grid,
    nodes: list[int],
    content: RecordDict,
    kind: str,
    *,
    patience_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Answer]:
    """Exactly one Answer a node. `patience_s` counts from the moment in which all have been asked."""
    waiting: dict[str, int] = {}
    for node in nodes:
        question = Message(content=content, message_type=kind, dst_node_id=node, ttl=patience_s + 5.0)
        try:  # one at a time: a node that drops its question takes nobody else's with it
            names = [name for name in grid.push_messages([question]) if name]
        except ObjectPushError:
            names = []
        if names:
            waiting[names[0]] = node
        else:
            yield Answer(node, None, "the request could not be handed to it")
    deadline = clock() + patience_s
    while waiting and clock() < deadline:
        came = False
        for name in list(waiting):
            for message in grid.pull_messages([name]):
                came = True
                yield Answer(waiting.pop(name), message)
        if not came:
            sleep(POLL_S)
    for node in sorted(waiting.values()):
        yield Answer(node, None, f"no reply within {patience_s:g} s")
