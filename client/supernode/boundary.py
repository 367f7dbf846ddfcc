"""The hospital's boundary: every message that arrives at the node or leaves it passes here, outside the app's process.

Flower's node talks to its server through eight functions. They are wrapped:

    arriving   the run's bundle must be approved, byte for byte, before anything else of the run is looked at; then the
               request passes the door (admission.py): policy, cohort, ledger. What it costs is on the ledger before the app starts,
               and what was asked before is answered from here, byte for byte. A refusal is answered from here too
    leaving    the app's reply is opened, checked and *built anew* from what was checked: the tensors that were asked for,
               float32, finite, in their shapes; the site's name; the policy's metrics; what this process knows of the ledger. What
               is not in that list cannot survive, whatever the app put beside it. One request that was paid for lets one reply out

The ledger's high-water mark is in the node's journal as well: a ledger that lost its end is found out here (privacy/ledger.py).

Also gone: the app's running time, which Flower sends along and which tells the number of patients; the text of an app's
errors, which may quote data, and of our own, which may name files (shared/refusals.py); replies that nobody asked for.

What this cannot do: tell an update with noise from one without, or see what an app hides in the values of the tensors
themselves. That is what approving the bundle is for. When a reply leaves is visible to whoever waits for it; with
`policy.answer_every_s` that time is a multiple of so many seconds.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, inflate_object_from_contents
from flwr.supercore.run import RunNotRunningException

from client import admission, budget, dataset, policy, reply_cache
from client.answers import Answers
from client.dataset import Facts
from client.supernode import approval, connection, journal, node, transfer
from privacy.ledger import Drawn, Mark
from shared import messages
from shared.config.site import Site
from shared.crypto import bundle
from shared.errors import FederationError, MessageError, PolicyError, in_words
from shared.journal.journal import configuration
from shared.parts import arrays_of_at_most

LOG = logging.getLogger("fedsynth.client")


@dataclass
class Asked:
    """A message that was let in and paid for, kept until its reply leaves. `came_s`: when, on this machine's steady clock."""

    message: Message
    about: admission.AdmittedRound | admission.Question
    came_s: float
    drawn: Drawn | None = None
    facts: Facts | None = None


class Boundary:
    """Wraps the node's connection. `store`: where Flower keeps the bytes of the app's replies."""

    def __init__(self, site: Site, work: Path, store: Any) -> None:
        self.site, self.work, self.store = site, work, store
        self.limit = site.policy.megabytes * 1_000_000
        self._asked: dict[str, Asked] = {}
        self._objects: dict[str, bytes] = {}
        self._bundles: dict[int, Any] = {}
        self._mark: Mark | None = None

    def around(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """The same function that opens a connection, with all that passes checked; it ends when the server shuts the node out."""

        def refused() -> None:
            connection.admitted(node.load_kit(self.work), node.private_key(self.work))

        @contextmanager
        def checked(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*arguments, **named) as opened, connection.interrupted(refused):
                node_id, receive, *others = opened
                yield self.wrap((node_id, connection.patient(receive, refused), *others))

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
            came_s = time.monotonic()
            try:
                known = self._admit(message, tree, get_run, get_fab, pull_object, came_s)
                if known is None:
                    return message, tree
                content, sent = self._packed(known)
            except (httpx.HTTPError, RunNotRunningException):
                raise  # of the line, not of the request
            except ObjectPullError:
                journal.write(self.work, "dropped", reason="a request that the server took back")
                return None
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a request, it goes no further
                reason = in_words(error)
                run = str(message.metadata.run_id)
                LOG.error("refused a request: %s", reason, extra={"site": self.site.name, "run": run})
                journal.write(self.work, "refused", run=run, reason=reason)
                content, sent = self._packed(policy.refusal(self.site.name, error))
            confirm(message.metadata.run_id, message.metadata.message_id)
            self._wait(came_s)
            deliver(message, content)
            if "refused" not in sent:
                journal.write(self.work, "sent", run=str(message.metadata.run_id), **sent)
            return None

        def checked_send(message: Message, tree: Any, _seconds: float) -> tuple[set[str], str]:
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                journal.write(self.work, "dropped", reason="a reply that nobody asked for")
                raise PolicyError("the app sent a reply that nobody asked for; it was dropped")
            content, sent = self._packed(self._examine(message, tree, asked))
            self._wait(asked.came_s)
            journal.write(self.work, "sent", **self._run(asked), **sent)
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

    def _wait(self, came_s: float) -> None:
        """Until the next whole multiple of `policy.answer_every_s` since the request came."""
        every_s = self.site.policy.answer_every_s
        if every_s is not None:
            passed_s = time.monotonic() - came_s
            time.sleep(math.ceil(passed_s / every_s) * every_s - passed_s)

    def _admit(
        self, message: Message, tree: Any, get_run: Any, get_fab: Any, pull_object: Any, came_s: float
    ) -> messages.TrainReply | messages.Vote | None:
        """Let a request in, paid for, and remember it; or give the answer that is known already. Raises what is wrong with it."""
        run_id = message.metadata.run_id
        run = get_run(run_id)
        if (
            message.metadata.message_type not in (MessageType.TRAIN, MessageType.QUERY)
            or run.primary_task_type == TaskType.AGENT_APP
        ):
            raise PolicyError(
                f"{self.site.name} only trains and judges releases; this is `{str(message.metadata.message_type)[:40]}`"
            )
        self._check_bundle(run, get_fab)
        contents = transfer.collect(
            tree,
            lambda name: bytes(pull_object(run_id, name)),
            limit=self.limit,
            large=PolicyError(f"the request is larger than {self.site.name} permits (`policy.megabytes`)"),
            short=FederationError("the server announced a request and did not send all of it"),
        )
        opened = self._opened(tree, contents, "the request")
        run_name, name = str(run_id), message.metadata.message_id
        if message.metadata.message_type == MessageType.QUERY:
            question = admission.question_of(opened.content, self.site)
            before = admission.count(question, self.site, self.work)
            journal.write(self.work, "asked", run=run_name, experiment=question.experiment.name, about="a release")
            if before is not None:
                return before
            asked = Asked(message, question, came_s)
        else:
            round_ = admission.round_of(opened.content, self.site)
            found = admission.spend(round_, self.site, self.work, run_name, self._marks())
            mark = found[0].mark if isinstance(found, tuple) else None
            journal.write(
                self.work,
                "asked",
                run=run_name,
                experiment=round_.experiment.name,
                round=round_.number,
                epsilon=round_.experiment.privacy.epsilon,
                bundle=run.fab_hash,
                configuration=configuration(round_.experiment),
                **({} if mark is None else {"ledger_records": mark.records, "ledger_hash": mark.hash}),
            )
            if not isinstance(found, tuple):
                return found
            self._mark = mark
            asked = Asked(message, round_, came_s, *found)
        self._objects, self._asked = contents, {name: asked}
        LOG.info("asked about %s", asked.about.experiment.name, extra=self._about(asked))
        return None

    def _marks(self) -> list[Mark]:
        """What the node's journal knows of the ledger: one that lost its end no longer runs through it."""
        self._mark = self._mark or journal.ledger_mark(self.work)
        return [] if self._mark is None else [self._mark]

    def _run(self, asked: Asked) -> dict[str, Any]:
        number = asked.about.number if isinstance(asked.about, admission.AdmittedRound) else 0
        return {"run": str(asked.message.metadata.run_id), "round": number}

    def _about(self, asked: Asked) -> dict[str, Any]:
        return {"site": self.site.name, **self._run(asked)}

    def _check_bundle(self, run: Any, get_fab: Any) -> None:
        """The run's bundle is approved now, and the bytes are those. PolicyError otherwise."""
        found = self._bundles.get(run.run_id)
        if found is None:
            found = get_fab(run.fab_hash, run.run_id)
        approval.admit(self.site, self.work, run, found.content)
        self._bundles = {run.run_id: found}

    def _examine(
        self, message: Message, tree: Any, asked: Asked
    ) -> messages.TrainReply | messages.Vote | messages.Refusal:
        """What may leave in place of the app's reply."""
        try:
            if message.has_error():
                journal.write(self.work, "failed", **self._run(asked), reason="the app's process ended")
                return self._failed(asked)
            opened = self._opened(tree, transfer.stored(tree, self.store, limit=self.limit), "the app's reply")
            if isinstance(asked.about, admission.Question):
                verdict = messages.unpack_verdict(opened.content)
                if isinstance(verdict, messages.Refusal):
                    return self._failed(asked)
                Answers(dataset.records(self.site, self.work)).answered(asked.about.digest, verdict.passed)
                return messages.Vote(self.site.name, verdict.passed)
            reply = messages.unpack_reply(opened.content, asked.about.shapes, asked.about.figures)
            if isinstance(reply, messages.Refusal):
                return self._failed(asked)
            if reply.request != asked.about.request:
                raise MessageError("the app's reply answers another request")
            policy.check_reply(self.site, asked.about.experiment, reply)
            if asked.drawn is None or asked.facts != dataset.facts(self.work):
                raise PolicyError(
                    "the cohort was made anew while the app trained: the ledger may not know whom it trained on"
                )
            reply = dataclasses.replace(reply, epsilon=asked.drawn.epsilon)
            if asked.about.noise_multiplier > 0:
                reply_cache.keep(self.work, reply)
            return reply
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a reply, it does not leave
            reason = in_words(error)
            LOG.error("kept back the app's reply: %s", reason, extra=self._about(asked))
            journal.write(self.work, "kept back", run=str(asked.message.metadata.run_id), reason=reason)
            return self._failed(asked)

    def _failed(self, asked: Asked) -> messages.Vote | messages.Refusal:
        """In place of a reply that may not leave; about a release it is a no: a third answer would tell more than the bit."""
        if isinstance(asked.about, admission.Question):
            Answers(dataset.records(self.site, self.work)).answered(asked.about.digest, False)
            return messages.Vote(self.site.name, False)
        return messages.Refusal(self.site.name, "failed")

    def _opened(self, tree: Any, contents: dict[str, bytes], what: str) -> Message:
        """A message from its parts. MessageError when it holds nothing, or more than the policy permits."""
        with arrays_of_at_most(self.limit):
            opened = inflate_object_from_contents(tree.object_id, dict(contents), keep_object_contents=True)
        if not isinstance(opened, Message) or not opened.has_content():
            raise MessageError(f"{what} holds nothing")
        return opened

    def _packed(
        self, reply: messages.TrainReply | messages.Vote | messages.Refusal
    ) -> tuple[RecordDict, dict[str, Any]]:
        """What is sent, and what the journal says of it. An update goes with the ledger's end as it is now."""
        if isinstance(reply, messages.Vote):
            return messages.pack_verdict(reply), {"passed": reply.passed}
        if isinstance(reply, messages.TrainReply):
            reply = dataclasses.replace(reply, ledger=budget.end(self.site, self.work))
            return messages.pack_reply(reply), {"epsilon": reply.epsilon, "tensors": len(reply.update)}
        return messages.pack_refusal(reply), {"refused": reply.reason}
