"""The hospital's Flower ClientApp, thin: request -> policy -> ledger -> train -> reply.

A deployed node names its site file in the node configuration (`site="/path/site.yaml"`). In a simulation, nodes have no
configuration, so the runner names a folder of sites in the environment and the partition says which one; a coordinator
can set neither.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import budget, dataset, figures, policy, proposal, replies
from client.train import train
from privacy import noise, statistics
from privacy.accounting import Event
from shared import logs, messages, weights
from shared.config import Site, read
from shared.device import device_for
from shared.errors import DataError, FederationError, FedsynthError, PrivacyError
from shared.network import shapes

SITES_VARIABLE = "FEDSYNTH_SIMULATED_SITES"
SEED_VARIABLE = noise.SEED_VARIABLE

LOG = logging.getLogger("fedsynth.client")

app = ClientApp()


@app.train()  # type: ignore[untyped-decorator]  # flwr is untyped for us
def on_train(message: Message, context: Context) -> Message:
    """Answer a training request."""
    return Message(content=answer(message.content, context), reply_to=message)


@app.query()  # type: ignore[untyped-decorator]
def on_query(message: Message, context: Context) -> Message:
    """Answer whether a proposed release may go out, as far as this site's patients are concerned: one bit."""
    return Message(content=judge(message.content, context), reply_to=message)


def answer(content: RecordDict, context: Context) -> RecordDict:
    """An update, or a refusal that says why in words that carry no data."""

    def do(site: Site, work: Path) -> RecordDict:
        with _randomness(context, site.name, content):
            return messages.pack_reply(_work(content, site, work, run=str(context.run_id)))

    return _guarded(context, do)


def judge(content: RecordDict, context: Context) -> RecordDict:
    """Pass or fail, or a refusal to say."""

    def do(site: Site, work: Path) -> RecordDict:
        with noise.operating_system_only():
            return messages.pack_verdict(proposal.answer(content, site, work))

    return _guarded(context, do)


def _guarded(context: Context, do: Callable[[Site, Path], RecordDict]) -> RecordDict:
    """What `do` answers, or a refusal whose words carry no data."""
    name = "unknown"
    about = {"site": name, "run": str(context.run_id)}
    try:
        logs.begin_app()
        site, work = locate(context)
        name = about["site"] = site.name
        policy.refuse_seeds(context.node_config, context.run_config)
        return do(site, work)
    except DataError as error:  # its text may speak of local files, so it stays here
        LOG.error("%s", error, extra=about)
        return messages.pack_refusal(messages.Refusal(name, "the site's data cannot be used; its own log says why"))
    except FedsynthError as error:
        LOG.error("%s", error, extra=about)
        return messages.pack_refusal(messages.Refusal(name, f"{type(error).__name__}: {error}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may quote data: it neither travels nor is logged
        where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        LOG.error("%s at %s", type(error).__name__, " < ".join(reversed(where)), extra=about)
        reason = f"the site's app failed with {type(error).__name__}; its own log says where"
        return messages.pack_refusal(messages.Refusal(name, reason))


def _randomness(context: Context, site: str, content: RecordDict) -> AbstractContextManager[None]:
    """The operating system's, and no other. From a seed only where a simulation says so; a deployed node refuses that."""
    seed = os.environ.get(SEED_VARIABLE)
    if seed is None:
        return noise.operating_system_only()
    if "site" in context.node_config:
        raise PrivacyError(f"a hospital's app takes no seed; unset {SEED_VARIABLE}")
    return noise.rehearsal(hashlib.sha256(f"{seed}\0{site}\0{messages.request_id(content)}".encode()).digest())


def _work(content: RecordDict, site: Site, work: Path, run: str) -> messages.TrainReply:
    experiment, number, noise_multiplier, arrays = messages.unpack_request(content)
    policy.check(site, experiment, noise_multiplier)
    # Asked before: the same answer again, which costs nothing
    request = messages.request_id(content)
    if (kept := replies.find(work, request)) is not None:
        return kept
    device = device_for(experiment.performance)
    model = weights.load_base(experiment.base, experiment.network, experiment.classes)
    received = messages.tensors(arrays, shapes(model.trainable(experiment.training.trainable)), "the request's arrays")
    model.load_state_dict(received, strict=False)
    cohort = dataset.load(work / "cohort")
    # Spend before you act: from here on the budget counts as used, whatever happens
    event = Event(noise_multiplier, experiment.privacy.sampling_rate, experiment.training.steps)
    asked = statistics.asked(experiment.privacy.statistics, number)
    priced = [(f"{experiment.name}, round {number}, {name}", Event(z, 1.0, 1)) for name, z in asked.items()]
    priced.append((f"{experiment.name}, round {number}", event))
    epsilon = budget.charge(site, work, cohort, experiment, priced, run)
    replies.drop(work)
    told = figures.measure(model.to(device), cohort, experiment, asked)
    update = train(
        model.to(device),
        cohort,
        experiment,
        noise_multiplier=noise_multiplier,
        expected_patients=experiment.expected_patients,
    )
    reply = messages.TrainReply(site.name, update, epsilon, experiment.training.steps, statistics=told, request=request)
    if noise.rehearsed():
        return dataclasses.replace(reply, epsilon=math.inf)  # noise that can be repeated protects nobody
    if noise_multiplier > 0:
        replies.keep(work, reply)
    return reply


def locate(context: Context) -> tuple[Site, Path]:
    """The site's settings and its work folder (the one that the node names, or the folder of its file)."""
    if "site" in context.node_config:
        path = Path(str(context.node_config["site"]))
    elif SITES_VARIABLE in os.environ:
        folders = sorted(p.parent for p in Path(os.environ[SITES_VARIABLE]).glob("*/site.yaml"))
        partition = int(context.node_config["partition-id"])
        if partition >= len(folders):
            raise FederationError(
                f"there is no site for partition {partition}; the simulation has {len(folders)} sites"
            )
        path = folders[partition] / "site.yaml"
    else:
        raise FederationError("this node has no site; start it with --node-config 'site=\"/path/site.yaml\"'")
    return read(path, Site), Path(str(context.node_config.get("work", path.parent)))
