"""The hospital's Flower ClientApp, thin: request -> door -> train -> reply.

A deployed node names its site file in the node configuration (`site="/path/site.yaml"`), and `ledger="node"`: it has charged for
the request before this process saw it (link/boundary.py), and keeps the reply. In a simulation, nodes have no configuration, so the
runner names a folder of sites in the environment and the partition says which one; then this process stands at the door itself
(admission.py). A coordinator can set none of these.

Once a request is admitted there is always an answer of the same kind, size and wording, whoever the patients are: one who cannot be
used contributes nothing, and where training fails as a whole, what leaves is noise alone. What happened is in this site's log.
"""

from __future__ import annotations

from shared import libraries  # noqa: F401 - first of all, see there

# isort: split

import dataclasses
import hashlib
import logging
import math
import os
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import admission, budget, dataset, policy, private_statistics, release_check, reply_cache
from client.answers import Answers
from client.dataset import Patient
from client.train import train
from privacy import noise
from shared import logs, messages, plugins
from shared.config.loading import read
from shared.config.site import Site
from shared.errors import FederationError, FedsynthError, PrivacyError
from shared.models.device import device_for

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
            return messages.pack_reply(_round(content, site, work, str(context.run_id), charged=_charged(context)))

    return _guarded(context, do)


def judge(content: RecordDict, context: Context) -> RecordDict:
    """Pass or fail, or a refusal to say."""

    def do(site: Site, work: Path) -> RecordDict:
        with noise.operating_system_only():
            return messages.pack_verdict(_judge(content, site, work, charged=_charged(context)))

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
    except FedsynthError as error:  # its text may speak of local files, so it stays here
        LOG.error("%s", error, extra=about)
        return messages.pack_refusal(policy.refusal(name, error))
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may quote data: it neither travels nor is logged
        _note(error, about)
        return messages.pack_refusal(policy.refusal(name, error))


def _note(error: BaseException, about: dict[str, str]) -> None:
    """An error's kind and place to this site's log, without its text."""
    where = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    LOG.error("%s at %s", type(error).__name__, " < ".join(reversed(where)), extra=about)


def _charged(context: Context) -> bool:
    """Whether this hospital's node stands at the door and has charged for the request."""
    return bool(context.node_config.get("ledger") == "node")


def _randomness(context: Context, site: str, content: RecordDict) -> AbstractContextManager[None]:
    """The operating system's, and no other. From a seed only where a simulation says so; a deployed node refuses that."""
    seed = os.environ.get(SEED_VARIABLE)
    if seed is None:
        return noise.operating_system_only()
    if "site" in context.node_config:
        raise PrivacyError(f"a hospital's app takes no seed; unset {SEED_VARIABLE}")
    return noise.rehearsal(hashlib.sha256(f"{seed}\0{site}\0{messages.request_id(content)}".encode()).digest())


def _round(content: RecordDict, site: Site, work: Path, run: str, *, charged: bool) -> messages.TrainReply:
    asked = admission.round_of(content, site)
    epsilon, ledger = math.inf, (0, "")  # where the node has charged, it says what is on record
    if not charged:
        found = admission.spend(asked, site, work, run)
        ledger = budget.end(site, work)
        if isinstance(found, messages.TrainReply):
            return dataclasses.replace(found, ledger=ledger)
        epsilon = found[0].epsilon
    # From here on the round is paid for, and nothing that depends on a patient may keep it from being answered
    update, told = _computed(asked, site, work)
    reply = messages.TrainReply(
        site.name,
        update,
        epsilon,
        asked.experiment.training.steps,
        statistics=told,
        request=asked.request,
        ledger=ledger,
    )
    if noise.rehearsed():
        return dataclasses.replace(reply, epsilon=math.inf)  # noise that can be repeated protects nobody
    if not charged and asked.noise_multiplier > 0:
        reply_cache.keep(work, reply)
    return reply


def _computed(
    asked: admission.AdmittedRound, site: Site, work: Path
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The update and the noisy figures: of the cohort, or, where that fails under privacy, of nobody: noise alone."""
    experiment = asked.experiment
    device = device_for(experiment.performance)

    def attempt(cohort: list[Patient]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        model = admission.model_of(experiment, asked.received).to(device)
        told = private_statistics.measure(model, cohort, experiment, asked.figures)
        update = train(
            model,
            cohort,
            experiment,
            noise_multiplier=asked.noise_multiplier,
            expected_patients=experiment.expected_patients,
        )
        return update, told

    try:
        return attempt(dataset.load_usable(work / "cohort", experiment.model.image_size))
    except (Exception, MemoryError) as error:
        if asked.noise_multiplier == 0 or isinstance(error, PrivacyError):
            raise
        _note(error, {"site": site.name})
        LOG.error("the round is answered with noise alone", extra={"site": site.name})
        return attempt([])


def _judge(content: RecordDict, site: Site, work: Path, *, charged: bool) -> messages.Vote:
    asked = admission.question_of(content, site)
    if not charged and (before := admission.count(asked, site, work)) is not None:
        return before
    try:
        found = release_check.judge(asked, dataset.load_usable(work / "cohort", asked.experiment.model.image_size))
    except (Exception, MemoryError) as error:  # noqa: BLE001 - a third answer would tell more than the bit: it is a no
        _note(error, {"site": site.name})
        found = {"passed": False}
    if charged:
        LOG.info("a proposed release was judged: %s", found, extra={"site": site.name})
    else:
        Answers(dataset.records(site, work)).answered(asked.digest, **found)
    return messages.Vote(site.name, bool(found["passed"]))


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
        plugins.load_from_environment()
    else:
        raise FederationError("this node has no site; start it with --node-config 'site=\"/path/site.yaml\"'")
    return read(path, Site), Path(str(context.node_config.get("work", path.parent)))
