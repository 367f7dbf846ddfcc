"""Who is asked, who is waited for, how updates combine.

FedAvg (McMahan et al. 2017, algorithm 1) of updates with public weights: x <- x + sum_k w_k u_k / sum_k w_k. Every site is
asked in every round. A reply is checked and added as it is read; a site that refuses, fails or sends something wrong is named
in the record, and the round stands if enough sites remain.

Left out: robust rules and FedProx, deadlines per site, secure aggregation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from privacy.statistics import asked
from server.events import Events
from shared import messages
from shared.config import Experiment
from shared.errors import FederationError, MessageError

Tensors = dict[str, Tensor]


class PatientFedAvg(FedAvg):  # type: ignore[misc]  # flwr is untyped for us
    """Flower strategy; `Strategy.start` calls it once a round.

    tensors           the global trainable tensors, updated in place of the arrays that Flower passes around
    first_round       1, or the round to go on with after an interruption
    sites             how many sites the experiment has; that many nodes are waited for, `join_timeout_s` at most
    minimum_sites     fewer good replies in a round end the run with FederationError
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
        first_round: int,
        events: Events,
        after_round: Callable[[int, Tensors], None],
        join_timeout_s: float = 180.0,
        names: Callable[[], dict[int, str]] = dict,
    ) -> None:
        super().__init__(fraction_evaluate=0.0)
        self.experiment = experiment
        self.tensors = tensors
        self.noise_multiplier = noise_multiplier
        self.sites, self.minimum_sites, self.first_round = sites, minimum_sites, first_round
        self.events, self.after_round = events, after_round
        self.join_timeout_s = join_timeout_s
        self.names = names

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One request for every node."""
        number = self.first_round + server_round - 1
        nodes = self.nodes(grid)
        self.events.write("round_started", round=number, asked=len(nodes))
        content = messages.pack_request(
            messages.TrainRequest(self.experiment, number, self.noise_multiplier, self.tensors)
        )
        return [Message(content=content, message_type=MessageType.TRAIN, dst_node_id=node) for node in nodes]

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        """Add up the good replies as they are read."""
        number = self.first_round + server_round - 1
        expected = {name: tuple(t.shape) for name, t in self.tensors.items()}
        total: Tensors | None = None
        weight, seen = 0.0, set[str]()
        for message in replies:
            reply = self._open(message, expected, number, seen)
            if reply is None:
                continue
            seen.add(reply.site)
            weight += reply.weight
            scaled = {name: reply.weight * u for name, u in reply.update.items()}
            total = scaled if total is None else {name: t.add_(scaled[name]) for name, t in total.items()}
            told = {"statistics": reply.statistics} if reply.statistics else {}
            self.events.write(
                "site_replied", round=number, site=reply.site, epsilon=reply.epsilon, bytes=reply.bytes, **told
            )
        if total is None or len(seen) < self.minimum_sites:
            raise FederationError(
                f"round {number}: {len(seen)} of {self.sites} sites contributed, the experiment requires {self.minimum_sites}"
            )
        for name, t in self.tensors.items():
            t.add_(total[name] / weight)
        self.events.write("round_finished", round=number, contributed=sorted(seen))
        self.after_round(number, self.tensors)
        return ArrayRecord(), MetricRecord()

    def _open(
        self, message: Message, expected: messages.Shapes, number: int, seen: set[str]
    ) -> messages.TrainReply | None:
        """A checked reply, or none after the reason has been recorded."""
        node = message.metadata.src_node_id
        names = self.names()
        known = names.get(node)
        site, reason = known or f"node {node}", "the app at the site failed; its own log says why"
        if not message.has_error():
            try:
                reply = messages.unpack_reply(message.content, expected, self._asked(number))
                if names and reply.site != known:
                    raise MessageError("a reply under the name of another site")
                site = reply.site
                if isinstance(reply, messages.TrainReply) and site not in seen:
                    return reply
                reason = reply.reason if isinstance(reply, messages.Refusal) else "a second reply under the same name"
            except MessageError as error:
                reason = str(error)
        self.events.write("site_failed", round=number, site=site, reason=reason)
        return None

    def _asked(self, number: int) -> set[str]:
        """Names of the noisy figures that this round's replies hold."""
        return set(asked(self.experiment.privacy.statistics, number))

    def nodes(self, grid: Grid) -> list[int]:
        """All nodes, once all sites have joined or the time for it is over."""
        deadline = time.monotonic() + self.join_timeout_s
        while len(nodes := sorted(grid.get_node_ids())) < self.sites and time.monotonic() < deadline:
            time.sleep(0.5)
        if len(nodes) < self.minimum_sites:
            raise FederationError(
                f"{len(nodes)} of {self.sites} sites joined within {self.join_timeout_s:.0f} s, "
                f"the experiment requires {self.minimum_sites}"
            )
        return nodes
