"""The hospital's boundary: every message that arrives at the node or leaves it passes here, outside the app's process.

Flower's node talks to its server through eight functions. They are wrapped:

    arriving   the run's bundle must be approved, byte for byte, before anything else of the run is looked at; then the
               request is opened and checked against the policy. A refusal is answered from here, and the app never starts
    leaving    the app's reply is opened, checked and *built anew* from what was checked: the tensors that were asked for,
               float32, finite, in their shapes; the site's name; the policy's metrics. What is not in that list cannot
               survive, whatever the app put beside it. An update leaves only when the round is on the ledger

Also gone: the app's running time, which Flower sends along and which tells the number of patients; the text of an app's
errors, which may quote data; replies that nobody asked for.

What this cannot do: tell an update with noise from one without, or see what an app hides in the values of the tensors
themselves. That is what approving the bundle is for. The time of a reply is visible to whoever waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.run import RunNotRunningException

from client import budget, dataset, policy
from client.link import approval, journal, line, node, parcel
from privacy import ledger, statistics
from shared import bundle, messages, weights
from shared.config import Experiment, Site
from shared.errors import FederationError, FedsynthError, MessageError, PolicyError
from shared.journal import configuration
from shared.network import shapes

LOG = logging.getLogger("fedsynth.client")


@dataclass
class Asked:
    """A request that was let in, kept until its reply leaves."""

    message: Message
    experiment: Experiment
    round: int
    noise_multiplier: float
    shapes: messages.Shapes
    proposal: bool = False  # not a round, but a release that the site is asked about: one bit may leave
    request: str = ""  # what the reply must say that it answers


class Boundary:
    """Wraps the node's connection. `store`: where Flower keeps the bytes of the app's replies."""

    def __init__(self, site: Site, work: Path, store: Any) -> None:
        self.site, self.work, self.store = site, work, store
        self.limit = site.policy.megabytes * 1_000_000
        self._asked: dict[str, Asked] = {}
        self._objects: dict[str, bytes] = {}
        self._bundles: dict[int, Any] = {}
        self._shapes: dict[str, messages.Shapes] = {}

    def around(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """The same function that opens a connection, with all that passes checked; it ends when the server shuts the node out."""

        def refused() -> None:
            line.admitted(node.load_kit(self.work), node.private_key(self.work))

        @contextmanager
        def checked(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*arguments, **named) as connection, line.interrupted(refused):
                node_id, receive, *others = connection
                yield self.wrap((node_id, line.patient(receive, refused), *others))

        return checked

    def wrap(self, connection: tuple[Any, ...]) -> tuple[Any, ...]:
        node_id, receive, send, get_run, get_fab, pull_object, push_object, confirm = connection

        def deliver(request: Message, content: RecordDict) -> None:
            reply = Message(content, reply_to=request)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            wanted, session = send(reply, get_object_tree(reply), 0.0)
            parts = get_all_nested_objects(reply)
            for name in [n for n in parts if n in wanted]:  # children first
                push_object(request.metadata.run_id, session, name, parts[name].deflate())

        def checked_receive() -> tuple[Message, Any] | None:
            got = receive()
            if got is None:
                return None
            message, tree = got
            try:
                self._admit(message, tree, get_run, get_fab, pull_object)
                return message, tree
            except (httpx.HTTPError, RunNotRunningException):
                raise  # of the line, not of the request
            except ObjectPullError:
                journal.write(self.work, "dropped", reason="a request that the server took back")
                return None
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a request, it goes no further
                reason = f"{type(error).__name__}: {error}" if isinstance(error, FedsynthError) else "unreadable"
                run = str(message.metadata.run_id)
                LOG.error("refused a request: %s", reason, extra={"site": self.site.name, "run": run})
                journal.write(self.work, "refused", run=run, reason=reason)
                confirm(message.metadata.run_id, message.metadata.message_id)
                deliver(message, messages.pack_refusal(messages.Refusal(self.site.name, reason)))
                return None

        def checked_send(message: Message, tree: Any, _seconds: float) -> tuple[set[str], str]:
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                journal.write(self.work, "dropped", reason="a reply that nobody asked for")
                raise PolicyError("the app sent a reply that nobody asked for; it was dropped")
            reply = self._examine(message, tree, asked)
            sent: dict[str, Any]
            if isinstance(reply, messages.Verdict):
                content, sent = messages.pack_verdict(reply), {"passed": reply.passed}
            elif isinstance(reply, messages.TrainReply):
                content, sent = messages.pack_reply(reply), {"epsilon": reply.epsilon, "tensors": len(reply.update)}
            else:
                content, sent = messages.pack_refusal(reply), {"refused": reply.reason}
            journal.write(self.work, "sent", run=str(asked.message.metadata.run_id), round=asked.round, **sent)
            deliver(asked.message, content)
            LOG.info("sent %s", ", ".join(f"{name} {value}" for name, value in sent.items()), extra=self._about(asked))
            return set(), ""  # nothing of the app's own message is left to send

        def checked_bundle(digest: str, run_id: int) -> Any:
            found = self._bundles.get(run_id)
            if found is None or digest != bundle.sha256(found.content):
                raise PolicyError("a bundle that was not approved was asked for")
            return found

        def cached_object(run_id: int, name: str) -> bytes:
            data = self._objects.pop(name, None)
            return data if data is not None else pull_object(run_id, name)

        def no_object(*_: Any) -> None:
            raise PolicyError("nothing leaves but what was built at the boundary")

        return node_id, checked_receive, checked_send, get_run, checked_bundle, cached_object, no_object, confirm

    def _admit(self, message: Message, tree: Any, get_run: Any, get_fab: Any, pull_object: Any) -> None:
        """Raise what is wrong with a request; remember it when nothing is."""
        run_id = message.metadata.run_id
        run = get_run(run_id)
        known = message.metadata.message_type in (MessageType.TRAIN, MessageType.QUERY)
        if not known or run.primary_task_type == TaskType.AGENT_APP:
            raise PolicyError(
                f"{self.site.name} only trains and judges releases; this is `{str(message.metadata.message_type)[:40]}`"
            )
        self._check_bundle(run, get_fab)
        contents = parcel.collect(
            tree,
            lambda name: bytes(pull_object(run_id, name)),
            limit=self.limit,
            large=PolicyError(f"the request is larger than {self.site.name} permits (`policy.megabytes`)"),
            short=FederationError("the server announced a request and did not send all of it"),
        )
        opened = inflate_object_from_contents(tree.object_id, dict(contents), keep_object_contents=True)
        if not isinstance(opened, Message) or not opened.has_content():
            raise MessageError("the request holds nothing")
        if message.metadata.message_type == MessageType.QUERY:
            self._admit_proposal(message, opened.content, contents)
            return
        experiment, number, noise_multiplier, arrays = messages.unpack_request(opened.content)
        policy.check(self.site, experiment, noise_multiplier)
        expected = self._expected(experiment)
        messages.tensors(arrays, expected, "the request's arrays")
        self._objects = contents
        request = messages.request_id(opened.content)
        asked = Asked(message, experiment, number, noise_multiplier, expected, request=request)
        self._asked = {message.metadata.message_id: asked}
        journal.write(
            self.work,
            "asked",
            run=str(run_id),
            experiment=experiment.name,
            round=number,
            epsilon=experiment.privacy.epsilon,
            bundle=run.fab_hash,
            configuration=configuration(experiment),
        )
        LOG.info("asked to train for %s, round %d", experiment.name, number, extra=self._about(asked))

    def _about(self, asked: Asked) -> dict[str, Any]:
        return {"site": self.site.name, "run": str(asked.message.metadata.run_id), "round": asked.round}

    def _admit_proposal(self, message: Message, content: RecordDict, contents: dict[str, bytes]) -> None:
        """A release that the site is asked about; how often it answers is counted in the app, on the site's own record."""
        if not self.site.release_checks:
            raise PolicyError(f"{self.site.name} does not judge releases (`release_checks`)")
        experiment, arrays, _ = messages.unpack_proposal(content)
        expected = self._expected(experiment)
        messages.tensors(arrays, expected, "the proposal's arrays")
        self._objects = contents
        self._asked = {message.metadata.message_id: Asked(message, experiment, 0, 0.0, expected, proposal=True)}
        journal.write(
            self.work, "asked", run=str(message.metadata.run_id), experiment=experiment.name, about="a release"
        )

    def _check_bundle(self, run: Any, get_fab: Any) -> None:
        """The run's bundle is approved now, and the bytes are those. PolicyError otherwise; the bytes are kept to be read."""
        found = self._bundles.get(run.run_id)
        if found is None:
            found = get_fab(run.fab_hash, run.run_id)
        digest = bundle.sha256(found.content)
        if digest != run.fab_hash or len(found.content) > bundle.LIMIT:
            raise PolicyError("the app bundle is not the one that the run names")
        lacking = approval.missing(self.site, self.work, digest)
        if lacking:
            approval.quarantine(self.work, digest, found.content)
            raise PolicyError(
                f"{self.site.name} has not approved the app bundle {digest[:12]} ({lacking} of {self.site.policy.signatures} "
                "signatures are missing); its people look at it with `fedsynth client approve`"
            )
        self._bundles = {run.run_id: found}

    def _expected(self, experiment: Experiment) -> messages.Shapes:
        """Names and shapes of the tensors that may travel."""
        key = experiment.model_dump_json(include={"base", "network", "classes", "training"})
        if key not in self._shapes:
            model = weights.load_base(experiment.base, experiment.network, experiment.classes)
            self._shapes = {key: shapes(model.trainable(experiment.training.trainable))}
        return self._shapes[key]

    def _examine(
        self, message: Message, tree: Any, asked: Asked
    ) -> messages.TrainReply | messages.Verdict | messages.Refusal:
        """What may leave in place of the app's reply."""
        try:
            if message.has_error():
                journal.write(
                    self.work, "failed", run=str(asked.message.metadata.run_id), reason="the app's process ended"
                )
                return messages.Refusal(self.site.name, "the site's app failed; its own log says why")
            opened = inflate_object_from_contents(tree.object_id, self._collect(tree))
            if not isinstance(opened, Message) or not opened.has_content():
                raise MessageError("the app's reply holds nothing")
            if asked.proposal:
                verdict = messages.unpack_verdict(opened.content)
                if isinstance(verdict, messages.Refusal):
                    return policy.refusal(self.site, verdict)
                return messages.Verdict(self.site.name, verdict.passed)
            figures = statistics.asked(asked.experiment.privacy.statistics, asked.round)
            reply = messages.unpack_reply(opened.content, asked.shapes, figures)
            if isinstance(reply, messages.Refusal):
                return policy.refusal(self.site, reply)
            if reply.request != asked.request:
                raise MessageError("the app's reply answers another request")
            policy.check_reply(self.site, asked.experiment, reply)
            self._on_the_ledger(asked, figures)
            return reply
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a reply, it does not leave
            reason = f"{type(error).__name__}: {error}" if isinstance(error, FedsynthError) else "unreadable reply"
            LOG.error("kept back the app's reply: %s", reason, extra=self._about(asked))
            journal.write(self.work, "kept back", run=str(asked.message.metadata.run_id), reason=reason)
            return messages.Refusal(
                self.site.name, "the site's boundary kept the app's reply back; its journal says why"
            )

    def _collect(self, tree: Any) -> dict[str, bytes]:
        """The bytes of the app's reply. MessageError when they are too many or do not come."""
        short = MessageError("the app announced a reply and did not send all of it")

        def get(name: str) -> bytes:
            data: bytes | None = self.store.get(name)
            if data is None:
                raise short
            if not data:
                raise ObjectUnavailableError(name)
            return data

        large = MessageError("the app's reply is larger than the policy permits")
        return parcel.collect(tree, get, limit=self.limit, large=large, short=short)

    def _on_the_ledger(self, asked: Asked, figures: dict[str, float]) -> None:
        """PolicyError unless the ledger holds what this round of this experiment costs: its steps, and each figure."""
        path = dataset.records(self.site, self.work) / budget.LEDGER_FILE
        purpose = f"{asked.experiment.name}, round {asked.round}"
        costs = {f"{purpose}, {name}": (noise, 1) for name, noise in figures.items()}
        costs[purpose] = (asked.noise_multiplier, asked.experiment.training.steps)
        on_record = {
            (r.get("purpose"), (r.get("noise_multiplier"), r.get("steps")))
            for r in (ledger.verify(path) if path.exists() else [])
        }
        if not costs.items() <= on_record:
            raise PolicyError("the app sent an update for a round that is not on the ledger")
