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
| bytes that are no reply, whatever they raise   | rejected, the site named; the round goes on                             |
| an epsilon below what the round costs, other   | rejected, the site named: the statement is false                        |
| steps, a figure that cannot be                 |                                                                         |
| a ledger shorter than one that was shown       | rejected until its hospital has decided (ledgers.py)                    |
| an update longer than any honest one can be    | rejected, the site named                                                |
| two replies under one name                     | the first counts                                                        |
| fewer than `federation.minimum_sites`          | asked again, `federation.attempts` times; then the run ends             |
| the server is killed                           | started again, it goes on after the last checkpoint                     |

The engine is Flower's grid; its `Strategy.start` is not used, because it waits for all replies and holds them all.

A reply says nothing about its own weight; the experiment does (`federation.weights`).

Left out: a choice of sites for each round, secure aggregation; an honest reply about other patients than it should be.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import MessageType
from flwr.serverapp import Grid

from privacy.accounting import Event, epsilon
from privacy.noisy_statistics import asked, possible
from server.aggregation.base import Tensors, aggregator
from server.aggregation.server_optimizer import ServerOptimizer
from server.dispatch import POLL_S, Answer, Names, ask
from server.events import Events
from server.ledgers import Ledgers, Shown
from shared import messages, wire
from shared.config.experiment import Experiment
from shared.errors import FederationError, MessageError

SLACK = 0.99  # of the least epsilon: two machines may discretise a little differently
LARGEST_EPSILON = 1e6
HEADROOM = 4096  # bytes around an array's numbers


@dataclass(frozen=True)
class CollectedRound:
    """What a reply is held against.

    shapes    of the tensors that were sent
    request   what is to be answered, by `messages.request_id`
    ledgers   what each site's ledger was when it was asked
    """

    number: int
    shapes: wire.Shapes
    request: str
    ledgers: Mapping[str, Shown]


class Strategy:
    """The rounds of one run.

    tensors           the global trainable tensors, changed in place
    sites             how many sites the experiment has; that many nodes are waited for, `join_timeout_s` at most
    minimum_sites     a round needs as many good replies
    largest           no honest update is longer than this (L2); infinite when there is no such bound
    ledgers           how far each site's ledger had come
    names             the site of each node, where nodes are authenticated; a reply under another name is not used. None in a
                      simulation
    rehearsal         sites draw noise that can be repeated, and state an infinite epsilon
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
        ledgers: Ledgers,
        names: Callable[[], Names | None] = lambda: None,
        rehearsal: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.experiment, self.settings = experiment, experiment.federation
        self.tensors, self.noise_multiplier = tensors, noise_multiplier
        self.sites, self.minimum_sites, self.largest = sites, minimum_sites, largest
        self.events, self.optimizer, self.after_round = events, optimizer, after_round
        self.ledgers, self.rehearsal = ledgers, rehearsal
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
        shapes = {name: tuple(t.shape) for name, t in self.tensors.items()}
        this = CollectedRound(number, shapes, messages.request_id(content), self.ledgers.standing())
        updates, seen = aggregator(self.settings), set[str]()
        answers = ask(
            grid,
            nodes,
            content,
            MessageType.TRAIN,
            patience_s=self.settings.deadline_s,
            largest=4 * sum(t.numel() for t in self.tensors.values()) + HEADROOM,
            clock=self._clock,
            sleep=self._sleep,
        )
        for answer in answers:
            try:
                reply = self._open(answer, this, seen)
                updates.add(reply)
            except MessageError as error:
                self._failed(number, answer.node, str(error))
                continue
            seen.add(reply.site)
            self.ledgers.keep(reply.site, reply.ledger)
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

    def _open(self, answer: Answer, this: CollectedRound, seen: set[str]) -> messages.TrainReply:
        """A checked reply. MessageError: what is wrong with it."""
        reply = answer.opened(
            lambda content: messages.unpack_reply(content, this.shapes, self._asked(this.number)), self._names()
        )
        self._met[answer.node] = reply.site
        if isinstance(reply, messages.Refusal):
            raise MessageError(reply.reason)
        if self.experiment.sites and reply.site not in {site.name for site in self.experiment.sites}:
            raise MessageError("it is no site of the experiment")
        if reply.site in seen:
            raise MessageError("a second reply under the same name")
        if reply.request != this.request:
            raise MessageError("an answer to another request; a round's answer holds for that round alone")
        self._check_numbers(reply, this.number)
        self.ledgers.check(reply.site, reply.ledger, this.ledgers)
        return reply

    def _check_numbers(self, reply: messages.TrainReply, number: int) -> None:
        """MessageError unless an honest site can have said this of its round."""
        experiment = self.experiment
        if reply.steps != experiment.training.steps:
            raise MessageError(f"it states {reply.steps} steps; {experiment.training.steps} were asked for")
        least = self._least(number)
        if math.isinf(least) and math.isfinite(reply.epsilon):
            raise MessageError(f"it states epsilon {reply.epsilon:.4g} for a round that protects nobody")
        if math.isfinite(least) and not SLACK * least <= reply.epsilon <= LARGEST_EPSILON:
            raise MessageError(f"it states epsilon {reply.epsilon:.4g}; the round alone costs {least:.4g}")
        for name, value in reply.statistics.items():
            if not possible(experiment.privacy.statistics, name, value):
                raise MessageError(f"it states {name} {value:.4g}, which cannot be")
        if (length := _norm(reply.update)) > self.largest:
            raise MessageError(f"an update of length {length:.3g}; an honest one is at most {self.largest:.3g}")

    def _least(self, number: int) -> float:
        """Epsilon per patient of one round alone, which whoever answers has spent: on record before it computed."""
        privacy, steps = self.experiment.privacy, self.experiment.training.steps
        if self.noise_multiplier <= 0 or self.rehearsal:
            return math.inf
        figures = [Event(z, 1.0, 1) for z in asked(privacy.statistics, number).values()]
        return epsilon([*figures, Event(self.noise_multiplier, privacy.sampling_rate, steps)], privacy.delta)

    def _failed(self, number: int, node: int, reason: str) -> None:
        site = (self._met | dict(self._names() or {})).get(node, f"node {node}")
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
