"""What travels: settings and tensors <-> Flower records. These keys and no others.

    train, server -> site   arrays: the trainable tensors*    config: experiment (JSON), round, noise-multiplier
    reply, site -> server   arrays: the update, same tensors  metrics: epsilon, steps       config: site, request, ledger
                            and patient-count, mean-loss where the experiment asked for them and the site's file shares them
    proposal, server -> site  arrays: the trainable tensors   images: proposed, heldout, heldout-patient, heldout-label
                              config: experiment (JSON)
    verdict, site -> server                                   config: site, passed (one bit, see client/release_check.py)
    refusal, site -> server                                   config: site, refused, about (see refusals.py)
    * end to end in one array, in the order of their names; where each begins follows from the settings, on both sides

Everything is checked on arrival: names, sizes, dtypes, finite values. An array's bytes are compared with the one form that they can
have, and no library decodes them. A stranger's words are cut and escaped. Not among the metrics, because none of them is
differentially private: the exact loss and patient count, gradient norms, timings.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from shared.config.experiment import Experiment
from shared.config.loading import validate
from shared.config.site import SITE_NAME
from shared.errors import MessageError
from shared.refusals import SETTINGS, WORDS
from shared.refusals import Refusal as Refusal  # noqa: PLC0414 - callers have one place for messages
from shared.wire import Shapes, arrays_in, config_of, count, decoded, only, tensors, vector

BASE_NAME = r"[a-z0-9][a-z0-9-]{0,39}"
REQUEST = {"experiment", "round", "noise-multiplier"}
LEDGER = re.compile(r"0:|([1-9][0-9]{0,8}):([0-9a-f]{64})")


@dataclass(frozen=True)
class TrainRequest:
    """One round's work for one site. `noise_multiplier` 0 means training without privacy."""

    experiment: Experiment
    round: int
    noise_multiplier: float
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class TrainReply:
    """A site's answer. `epsilon`: per patient, all that the site's ledger holds; inf without privacy.

    `bytes`: size of the update on the wire. `statistics`: noisy figures by name, see privacy/noisy_statistics.py. `request`:
    what is answered, by `request_id`. `ledger`: how many records the site's ledger holds, and the hash of the last; (0, "") is
    none. How much an update counts is the coordinator's to say (`federation.weights`), never the site's.
    """

    site: str
    update: dict[str, Tensor]
    epsilon: float
    steps: int
    bytes: int = 0
    statistics: Mapping[str, float] = field(default_factory=dict)
    request: str = ""
    ledger: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Proposal:
    """A release that a site is asked about, before anybody else sees it.

    proposed_SHW  (S, H, W) uint8, the images that would be published
    tensors       of the model that drew them
    heldout_NHW   (N, H, W) uint8, patients whom no site trained on, with whose each is and its class: the control
    """

    experiment: Experiment
    tensors: dict[str, Tensor]
    proposed_SHW: np.ndarray
    heldout_NHW: np.ndarray
    heldout_patient_N: np.ndarray
    heldout_label_N: np.ndarray


@dataclass(frozen=True)
class Vote:
    """A site's one bit."""

    site: str
    passed: bool


def pack_proposal(proposal: Proposal) -> RecordDict:
    images = {
        "proposed": proposal.proposed_SHW,
        "heldout": proposal.heldout_NHW,
        "heldout-patient": proposal.heldout_patient_N.astype(np.int64),
        "heldout-label": proposal.heldout_label_N.astype(np.int64),
    }
    return RecordDict(
        {
            "arrays": vector(proposal.tensors),
            "images": ArrayRecord({name: Array(np.ascontiguousarray(x)) for name, x in images.items()}),
            "config": ConfigRecord({"experiment": proposal.experiment.model_dump_json()}),
        }
    )


def unpack_proposal(content: RecordDict) -> tuple[Experiment, ArrayRecord, dict[str, np.ndarray]]:
    """Settings, tensors still unchecked (their shapes follow from the settings), and the images, checked."""
    only(content, {"arrays", "images", "config"}, "the proposal")
    experiment = _experiment(config_of(content, {"experiment"}), "the proposal")
    record = content["images"]
    if not isinstance(record, ArrayRecord):
        raise MessageError("the proposal has no images")
    only(record, {"proposed", "heldout", "heldout-patient", "heldout-label"}, "the proposal's images")
    size, counts = experiment.model.image_size, [count(record[name]) for name in ("proposed", "heldout")]
    kinds = {
        "proposed": ("uint8", (counts[0], size, size)),
        "heldout": ("uint8", (counts[1], size, size)),
        "heldout-patient": ("int64", (counts[1],)),
        "heldout-label": ("int64", (counts[1],)),
    }
    images = {name: decoded(record[name], *kind, f"the proposal's `{name}`") for name, kind in kinds.items()}
    return experiment, arrays_in(content), images


def pack_verdict(verdict: Vote) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"site": verdict.site, "passed": verdict.passed})})


def unpack_verdict(content: RecordDict) -> Vote | Refusal:
    """A site's bit, or its refusal to say."""
    only(content, {"config"}, "the verdict")
    config = content["config"]
    if isinstance(config, ConfigRecord) and "refused" in config:
        return _refusal(content)
    config = config_of(content, {"site", "passed"})
    if not isinstance(config["passed"], bool):
        raise MessageError("the verdict is neither yes nor no")
    return Vote(_site(config), config["passed"])


def pack_request(request: TrainRequest) -> RecordDict:
    config = ConfigRecord(
        {
            "experiment": request.experiment.model_dump_json(),
            "round": request.round,
            "noise-multiplier": request.noise_multiplier,
        }
    )
    return RecordDict({"arrays": vector(request.tensors), "config": config})


def request_id(content: RecordDict) -> str:
    """SHA-256 of everything that a request says: settings, round, noise, and the tensors' names, kinds, shapes and bytes."""
    config, arrays = config_of(content, REQUEST), arrays_in(content)
    said = [str(config["experiment"]), config["round"], float(str(config["noise-multiplier"])).hex()]
    digest = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype, list(array.shape), len(array.data)]).encode())
        digest.update(array.data)
    return digest.hexdigest()


def unpack_request(content: RecordDict) -> tuple[Experiment, int, float, ArrayRecord]:
    """The settings of a request and its arrays, still unchecked: their shapes follow from the settings."""
    only(content, {"arrays", "config"}, "the request")
    config = config_of(content, REQUEST)
    experiment = _experiment(config, "the request")
    number, noise = config["round"], config["noise-multiplier"]
    if type(number) is not int or not 1 <= number <= experiment.training.rounds:
        raise MessageError(f"the request is for round {number}, the experiment has {experiment.training.rounds}")
    if not isinstance(noise, float) or not math.isfinite(noise) or noise < 0:
        raise MessageError(f"the request's noise multiplier is {noise}, it must be finite and not negative")
    return experiment, number, noise, arrays_in(content)


def pack_reply(reply: TrainReply) -> RecordDict:
    records, last = reply.ledger
    return RecordDict(
        {
            "arrays": vector(reply.update),
            "metrics": MetricRecord({"epsilon": reply.epsilon, "steps": reply.steps, **reply.statistics}),
            "config": ConfigRecord({"site": reply.site, "request": reply.request, "ledger": f"{records}:{last}"}),
        }
    )


def pack_refusal(refusal: Refusal) -> RecordDict:
    about = {"site": refusal.site, "refused": refusal.word, "about": refusal.setting}
    return RecordDict({"config": ConfigRecord(about)})


def unpack_reply(content: RecordDict, shapes: Shapes, statistics: Collection[str] = ()) -> TrainReply | Refusal:
    """Check a reply against the shapes and the figures that were asked for; MessageError names the first thing that is wrong."""
    if set(content.keys()) == {"config"}:
        return _refusal(content)
    only(content, {"arrays", "metrics", "config"}, "the reply")
    config = config_of(content, {"site", "request", "ledger"})
    request, said = config["request"], config["ledger"]
    if not isinstance(request, str):
        raise MessageError("the reply does not say what it answers")
    if not isinstance(said, str) or (ledger := LEDGER.fullmatch(said)) is None:
        raise MessageError("the reply's `ledger` is not RECORDS:HASH")
    metrics = content["metrics"]
    if not isinstance(metrics, MetricRecord):
        raise MessageError("the reply has no metrics record")
    only(metrics, {"epsilon", "steps", *statistics}, "the metrics")
    epsilon, steps = metrics["epsilon"], metrics["steps"]
    if not isinstance(epsilon, float) or math.isnan(epsilon) or epsilon < 0:
        raise MessageError("the reply's epsilon is not a number of at least 0")
    if not isinstance(steps, int) or steps < 0:
        raise MessageError("the reply's steps are not a whole number of at least 0")
    figures = {}
    for name in sorted(statistics):
        figures[name] = value = metrics[name]
        if not isinstance(value, float) or not math.isfinite(value):
            raise MessageError(f"the reply's {name} is not a finite number")
    arrays = arrays_in(content)
    update = tensors(arrays, shapes, "the update")
    size = sum(len(a.data) for a in arrays.values())
    mark = (int(ledger[1] or 0), str(ledger[2] or ""))
    return TrainReply(_site(config), update, epsilon, steps, size, figures, request, mark)


def _site(config: ConfigRecord) -> str:
    name = config["site"]
    if not isinstance(name, str) or re.fullmatch(SITE_NAME, name) is None:
        raise MessageError("it bears no site's name")
    return name


def _experiment(config: ConfigRecord, what: str) -> Experiment:
    """The settings in a message. A base is a name here, never a path: what a stranger writes opens no file."""
    try:
        tree = json.loads(str(config["experiment"]))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{what}'s experiment is not JSON") from error
    experiment = validate(tree, Experiment, source=f"{what}'s experiment")
    if not re.fullmatch(BASE_NAME, experiment.base):
        raise MessageError(f"{what} names a base by a path; what travels names a shipped base")
    if experiment.plugins:
        raise MessageError(f"{what} names plug-ins; a site runs what the approved bundle holds")
    return experiment


def _refusal(content: RecordDict) -> Refusal:
    config = config_of(content, {"site", "refused", "about"})
    word, about = str(config["refused"]), str(config["about"])
    if word not in WORDS or about not in {"", *SETTINGS}:
        raise MessageError("a refusal in words that no site uses")
    return Refusal(_site(config), word, about)
