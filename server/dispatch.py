"""One question to every node; the answers come back one at a time, as they arrive.

| what happens                                        | what is told of the node                                       |
|-----------------------------------------------------|----------------------------------------------------------------|
| it answers                                          | the answer, opened and checked by `opened`                     |
| its answer cannot be put together, or opened        | so, whatever the library says of it                            |
| its answer names more bytes than one may hold       | so, before they are held                                       |
| a message comes along that answers no question      | it is nobody's answer                                          |
| its app failed                                      | so                                                             |
| its node is killed, or its line cut                 | so, once its heartbeats are missed (a minute)                  |
| it does not answer in time                          | so; an answer that comes later has expired                     |
| it drops the question while that is handed out      | so, and nobody else is touched                                 |
| it answers under the name of another site           | so (over a network, where nodes are authenticated)             |

What is told is in our words; a stranger's come cut and escaped (shared/messages.py). Only the server's own link may raise.

Left out: who is asked, and what the answers mean (strategy.py, publish/propose.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from shared.errors import MessageError
from shared.parts import arrays_of_at_most

POLL_S = 0.2
UNREADABLE = "a reply that cannot be opened"
Names = Mapping[int, str]


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

    def opened(self, unpack: Callable[[RecordDict], R], known: Names | None) -> R:
        """What the node says. MessageError when it says nothing that can be used; its text is the reason.

        known   the site of each node, where nodes are authenticated; none in a simulation
        """
        if self.message is None:
            raise MessageError(self.reason)
        try:
            if self.message.has_error():
                raise MessageError(_failure(self.message.error.code))
            reply = unpack(self.message.content)
        except MessageError:
            raise
        except Exception as error:  # a library's own, about a stranger's bytes: its text stays here
            raise MessageError(UNREADABLE) from error
        if known is not None and reply.site != known.get(self.node):
            raise MessageError("a reply under the name of another site")
        return reply


def ask(
    grid: Grid,
    nodes: list[int],
    content: RecordDict,
    kind: str,
    *,
    patience_s: float,
    largest: int,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Answer]:
    """Exactly one Answer a node. `patience_s` counts from the moment in which all have been asked.

    largest   bytes of one array of an answer
    """
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
            found = _pulled(grid, name, largest)
            if found is not None:
                came = True
                yield Answer(waiting.pop(name), *found)
        if not came:
            sleep(POLL_S)
    for node in sorted(waiting.values()):
        yield Answer(node, None, f"no reply within {patience_s:g} s")


def _pulled(grid: Grid, name: str, largest: int) -> tuple[Message | None, str] | None:
    """The answer to the question `name`, or why there will be none; none at all while it has not come.

    Other messages may come along: whoever is admitted can hand some in. They answer nothing that was asked.
    """
    try:
        with arrays_of_at_most(largest):
            came = [m for m in grid.pull_messages([name]) if m.metadata.reply_to_message_id == name]
    except httpx.TransportError:
        raise  # the server's own link is down, which no site can bring about
    except Exception as error:  # Flower puts a stranger's bytes together here, and anything may come of that
        if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
            raise  # the run was stopped, or this process is not its worker any more
        return None, UNREADABLE
    return (came[0], "") if came else None


def _failure(code: int) -> str:
    match code:
        case ErrorCode.NODE_UNAVAILABLE:
            return "its node was not heard of any more; it ended, or its line is cut"
        case ErrorCode.MESSAGE_UNAVAILABLE:
            return "its reply did not come whole"
        case _:
            return "the app at the site failed; its own log says why"
