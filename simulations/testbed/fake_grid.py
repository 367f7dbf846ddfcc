"""Flower's grid as the strategy sees it, in memory: questions in, replies out, in any order and at any time.

Left out: transport, processes, and everything between them; loopback.py has those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from unittest.mock import patch

from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

Site = Callable[
    [RecordDict, int], RecordDict | Error | None
]  # the request, how often it was asked -> an answer, or silence


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class MemoryGrid:
    """A federation of `sites`, node -> what it answers.

    delay_s   node -> how long its answer takes; may be changed between rounds, as may `absent`, the nodes that are not connected
    """

    def __init__(self, sites: dict[int, Site], clock: Clock, delay_s: dict[int, float] | None = None) -> None:
        self.sites, self.clock, self.delay_s = sites, clock, delay_s or {}
        self.absent = set[int]()
        self.ready: dict[str, tuple[float, Message]] = {}
        self.asked: dict[int, int] = dict.fromkeys(sites, 0)
        self.questions: list[RecordDict] = []
        self.kinds: list[str] = []

    def get_node_ids(self) -> list[int]:
        return [node for node in self.sites if node not in self.absent]

    def push_messages(self, questions: Iterable[Message]) -> list[str]:
        names = []
        for question in questions:
            node = question.metadata.dst_node_id
            self.asked[node] += 1
            self.questions.append(question.content)
            self.kinds.append(question.metadata.message_type)
            name = f"{node}-{self.asked[node]}"
            question.metadata.__dict__["_message_id"] = name
            answer = self.sites[node](question.content, self.asked[node])
            if answer is not None:
                kind = {"error": answer} if isinstance(answer, Error) else {"content": answer}
                self.ready[name] = (self.clock() + self.delay_s.get(node, 0.0), Message(**kind, reply_to=question))
            names.append(name)
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        found = [name for name in names if name in self.ready and self.ready[name][0] <= self.clock()]
        return [self.ready.pop(name)[1] for name in found]


def inside_a_run() -> patch.multiple:  # type: ignore[name-defined]
    """Flower's messages can only be made inside a run; this pretends to be in one."""
    return patch.multiple(TaskIdentity, _run_id=1, _node_id=1, _task_id=1)
