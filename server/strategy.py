"""Who is asked, who is waited for: the rounds of a run.

Every site is asked in every round. Replies are taken one at a time as they arrive, checked, and added; a site that refuses, fails,
sends something wrong or nothing in time is named in the record, and the round stands if enough sites remain. A round with too few
is asked again: a site that had already answered sends the same reply again and is not charged for it.

| what happens                                   | what follows                                                            |
|------------------------------------------------|-------------------------------------------------------------------------|
| a site is not there when a round begins        | waited for once, `federation.join_timeout_s`; then rounds go on         |
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
from collections.abc import Callable

from flwr.app import MessageType
from flwr.serverapp import Grid

from privacy.statistics import asked
from server.aggregate import ServerOptimizer, Tensors, aggregator
from server.asking import POLL_S, Answer, ask
from server.events import Events
from shared import messages
from shared.config import Experiment
from shared.errors import FederationError, MessageError


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
        self._awaited = sites
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
        updates, seen = aggregator(self.settings), set[str]()
        answers = ask(
            grid,
            nodes,
            content,
            MessageType.TRAIN,
            patience_s=self.settings.deadline_s,
            clock=self._clock,
            sleep=self._sleep,
        )
        for answer in answers:
            try:
                reply = self._open(answer, expected, number, request, seen)
                updates.add(reply)
            except MessageError as error:
                self._failed(number, answer.node, str(error))
                continue
            seen.add(reply.site)
            told = {"statistics": reply.statistics} if reply.statistics else {}
            self.events.write(
                "site_replied", round=number, site=reply.site, epsilon=reply.epsilon, bytes=reply.bytes, **told
            )
        if len(seen) < self.minimum_sites:
            raise FederationError(
                f"round {number}: {len(seen)} of {self.sites} sites contributed, the experiment requires {self.minimum_sites}"
            )
        self.optimizer.step(updates.result())
        self.events.write("round_finished", round=number, contributed=sorted(seen))
        self.after_round(number, self.tensors)

    def _open(
        self, answer: Answer, expected: messages.Shapes, number: int, request: str, seen: set[str]
    ) -> messages.TrainReply:
        """A checked reply. MessageError: what is wrong with it."""
        reply = answer.opened(
            lambda content: messages.unpack_reply(content, expected, self._asked(number)), self._names()
        )
        self._met[answer.node] = reply.site
        if isinstance(reply, messages.Refusal):
            raise MessageError(reply.reason)
        if reply.site in seen:
            raise MessageError("a second reply under the same name")
        if reply.request != request:
            raise MessageError("an answer to another request; a round's answer holds for that round alone")
        if (length := _norm(reply.update)) > self.largest:
            raise MessageError(f"an update of length {length:.3g}; an honest one is at most {self.largest:.3g}")
        return reply

    def _failed(self, number: int, node: int, reason: str) -> None:
        site = (self._met | self._names()).get(node, f"node {node}")
        self.events.write("site_failed", round=number, site=site, reason=reason)

    def _asked(self, number: int) -> set[str]:
        """Names of the noisy figures that this round's replies hold."""
        return set(asked(self.experiment.privacy.statistics, number))

    def nodes(self, grid: Grid) -> list[int]:
        """All nodes, once all sites have joined or the time for it is over. A site that was waited for in vain is not waited
        for again until it has been there once more."""
        deadline = self._clock() + self.settings.join_timeout_s
        while len(nodes := sorted(grid.get_node_ids())) < self._awaited and self._clock() < deadline:
            self._sleep(POLL_S)
        self._awaited = min(self.sites, len(nodes))
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
