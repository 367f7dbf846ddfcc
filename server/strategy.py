"""Who is asked, who is waited for: the rounds of a run.

Every site is asked in every round. Replies are taken one at a time as they arrive, checked, and added; a site that refuses, fails,
sends something wrong or nothing in time is named in the record, and the round stands if enough sites remain. A round with too few
is asked again: a site that had already answered sends the same reply again and is not charged for it.

| what happens                                   | what follows                                                            |
|------------------------------------------------|-------------------------------------------------------------------------|
| a site never answers                           | `federation.deadline_s` ends the round without it                       |
| a reply comes after the deadline               | its message has expired; it is not added to a later round               |
| an answer to another round or another request  | rejected, the site named                                                |
| NaN, a wrong name, shape or kind of number     | rejected, the site named                                                |
| an update longer than any honest one can be    | rejected, the site named                                                |
| two replies under one name                     | the first counts                                                        |
| fewer than `federation.minimum_sites`          | asked again, `federation.attempts` times; then the run ends             |
| the server is killed                           | started again, it goes on after the last checkpoint                     |

The engine is Flower's grid; its `Strategy.start` is not used, because it waits for all replies and holds them all.

Left out: a choice of sites for each round, secure aggregation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from privacy.statistics import asked
from server.aggregate import ServerOptimizer, Tensors, aggregator
from server.events import Events
from shared import messages
from shared.config import Experiment
from shared.errors import FederationError, MessageError

POLL_S = 0.2


class Strategy:
    """The rounds of one run.

    tensors           the global trainable tensors, changed in place
    sites             how many sites the experiment has; that many nodes are waited for, `join_timeout_s` at most
    minimum_sites     a round needs as many good replies
    largest           no honest update is longer than this (L2); infinite when there is no such bound
    names             the site of each node, where nodes are authenticated; a reply under another name is not used
    """

    def __init__(
        self,
        experiment: Experiment,
        tensors: Tensors,
        *,
        noise_multiplier: float,
        sites: int,
        minimum_sites: int,
        largest: float,
        events: Events,
        optimizer: ServerOptimizer,
        after_round: Callable[[int, Tensors], None],
        names: Callable[[], dict[int, str]] = dict,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.experiment, self.settings = experiment, experiment.federation
        self.tensors, self.noise_multiplier = tensors, noise_multiplier
        self.sites, self.minimum_sites, self.largest = sites, minimum_sites, largest
        self.events, self.optimizer, self.after_round = events, optimizer, after_round
        self._clock, self._sleep, self._names = clock, sleep, names
        self._met: dict[int, str] = {}  # node -> the site that answered from it

    def run(self, grid: Grid, first: int, last: int) -> None:
        """Rounds `first` to `last`. Raises FederationError when a round cannot be met."""
        for number in range(first, last + 1):
            for attempt in range(1, self.settings.attempts + 1):
                try:
                    self._round(grid, number)
                    break
                except FederationError as error:
                    if attempt == self.settings.attempts:
                        raise
                    self.events.write("round_failed", round=number, attempt=attempt, reason=str(error))

    def _round(self, grid: Grid, number: int) -> None:
        nodes = self.nodes(grid)
        self.events.write("round_started", round=number, asked=len(nodes))
        content = messages.pack_request(
            messages.TrainRequest(self.experiment, number, self.noise_multiplier, self.tensors)
        )
        request = messages.request_id(content)
        expected = {name: tuple(t.shape) for name, t in self.tensors.items()}
        updates, seen, silent = aggregator(self.settings), set[str](), set(nodes)
        for message in self._replies(grid, [self._question(node, content) for node in nodes]):
            silent.discard(message.metadata.src_node_id)
            reply = self._open(message, expected, number, request, seen)
            if reply is None:
                continue
            try:
                updates.add(reply)
            except MessageError as error:
                self._failed(number, message.metadata.src_node_id, str(error))
                continue
            seen.add(reply.site)
            told = {"statistics": reply.statistics} if reply.statistics else {}
            self.events.write(
                "site_replied", round=number, site=reply.site, epsilon=reply.epsilon, bytes=reply.bytes, **told
            )
        for node in sorted(silent):
            self._failed(number, node, f"no reply within {self.settings.deadline_s:g} s")
        if len(seen) < self.minimum_sites:
            raise FederationError(
                f"round {number}: {len(seen)} of {self.sites} sites contributed, the experiment requires {self.minimum_sites}"
            )
        self.optimizer.step(updates.result())
        self.events.write("round_finished", round=number, contributed=sorted(seen))
        self.after_round(number, self.tensors)

    def _question(self, node: int, content: RecordDict) -> Message:
        return Message(
            content=content, message_type=MessageType.TRAIN, dst_node_id=node, ttl=self.settings.deadline_s + 5.0
        )

    def _replies(self, grid: Grid, questions: list[Message]) -> Iterator[Message]:
        """Replies as they arrive, one in memory at a time, until all have come or the time is over."""
        deadline = self._clock() + self.settings.deadline_s
        waiting = [name for name in grid.push_messages(questions) if name]
        while waiting and self._clock() < deadline:
            came = False
            for name in list(waiting):
                for message in grid.pull_messages([name]):
                    waiting.remove(name)
                    came = True
                    yield message
            if not came:
                self._sleep(POLL_S)

    def _open(
        self, message: Message, expected: messages.Shapes, number: int, request: str, seen: set[str]
    ) -> messages.TrainReply | None:
        """A checked reply, or none after the reason has been recorded."""
        node, reason = message.metadata.src_node_id, "the app at the site failed; its own log says why"
        if message.has_error():
            self._failed(number, node, reason)
            return None
        try:
            reply = messages.unpack_reply(message.content, expected, self._asked(number))
        except MessageError as error:
            self._failed(number, node, str(error))
            return None
        known = self._names()
        if known and reply.site != known.get(node):
            self._failed(number, node, "a reply under the name of another site")
            return None
        self._met[node] = reply.site
        if isinstance(reply, messages.Refusal):
            reason = reply.reason
        elif reply.site in seen:
            reason = "a second reply under the same name"
        elif reply.request != request:
            reason = "an answer to another request; a round's answer holds for that round alone"
        elif (length := _norm(reply.update)) > self.largest:
            reason = f"an update of length {length:.3g}; an honest one is at most {self.largest:.3g}"
        else:
            return reply
        self._failed(number, node, reason)
        return None

    def _failed(self, number: int, node: int, reason: str) -> None:
        site = (self._met | self._names()).get(node, f"node {node}")
        self.events.write("site_failed", round=number, site=site, reason=reason)

    def _asked(self, number: int) -> set[str]:
        """Names of the noisy figures that this round's replies hold."""
        return set(asked(self.experiment.privacy.statistics, number))

    def nodes(self, grid: Grid) -> list[int]:
        """All nodes, once all sites have joined or the time for it is over."""
        deadline = self._clock() + self.settings.join_timeout_s
        while len(nodes := sorted(grid.get_node_ids())) < self.sites and self._clock() < deadline:
            self._sleep(0.5)
        if len(nodes) < self.minimum_sites:
            raise FederationError(
                f"{len(nodes)} of {self.sites} sites joined within {self.settings.join_timeout_s:g} s, "
                f"the experiment requires {self.minimum_sites}"
            )
        return nodes


def largest_update(experiment: Experiment, noise_multiplier: float, parameters: int) -> float:
    """An L2 length that no honest update passes (but for a chance below 1e-6); infinite without privacy, where nothing is clipped.

    SGD moves by the learning rate times the released gradient: at most ten times the expected patients' clipped gradients, and
    the noise, whose length is at most sigma C (sqrt(d) + 6). Adam moves a coordinate by at most 10 learning rates a step (Kingma
    and Ba 2015, section 2.1, with beta 0.9 and 0.99).
    """
    training, privacy = experiment.training, experiment.privacy
    if noise_multiplier <= 0:
        return math.inf
    if training.optimizer == "adam":
        return training.steps * training.learning_rate * 10 * math.sqrt(parameters)
    noise = noise_multiplier * (math.sqrt(parameters) + 6) / (privacy.sampling_rate * experiment.expected_patients)
    return training.steps * training.learning_rate * privacy.max_grad_norm * (10 / privacy.sampling_rate + noise)


def _norm(update: Tensors) -> float:
    return math.sqrt(math.fsum(float(u.double().square().sum()) for u in update.values()))
