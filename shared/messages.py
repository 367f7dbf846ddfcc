"""What travels: settings and tensors <-> Flower records. These keys and no others.

    train, server -> site   arrays: the trainable tensors*    config: experiment (JSON), round, noise-multiplier
    reply, site -> server   arrays: the update, same tensors  metrics: epsilon, steps       config: site, request, ledger
                            and patient-count, mean-loss where the experiment asked for them and the site's file shares them
    proposal, server -> site  arrays: the trainable tensors   images: proposed, heldout, heldout-patient, heldout-label
                              config: experiment (JSON)
    verdict, site -> server                                   config: site, passed (one bit, see client/proposal.py)
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
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from shared.config import SITE_NAME, Experiment, validate
from shared.errors import MessageError
from shared.refusals import SETTINGS, WORDS
from shared.refusals import Refusal as Refusal  # noqa: PLC0414 - callers have one place for messages

Shapes = Mapping[str, tuple[int, ...]]
VECTOR = "tensors"
BASE_NAME = r"[a-z0-9][a-z0-9-]{0,39}"
REQUEST = {"experiment", "round", "noise-multiplier"}
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)(\{[ -|]{1,200}\}) *\n", re.DOTALL
)  # of an array's bytes, as numpy writes it
LEDGER = re.compile(r"0:|([1-9][0-9]{0,8}):([0-9a-f]{64})")
LONGEST = 300  # characters of a stranger's words


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

    `bytes`: size of the update on the wire. `statistics`: noisy figures by name, see privacy/statistics.py. `request`: what is
    answered, by `request_id`. `ledger`: how many records the site's ledger holds, and the hash of the last; (0, "") is none.
    How much an update counts is the coordinator's to say (`federation.weights`), never the site's.
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
class Verdict:
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
            "arrays": _record(proposal.tensors),
            "images": ArrayRecord({name: Array(np.ascontiguousarray(x)) for name, x in images.items()}),
            "config": ConfigRecord({"experiment": proposal.experiment.model_dump_json()}),
        }
    )


def unpack_proposal(content: RecordDict) -> tuple[Experiment, ArrayRecord, dict[str, np.ndarray]]:
    """Settings, tensors still unchecked (their shapes follow from the settings), and the images, checked."""
    _only(content, {"arrays", "images", "config"}, "the proposal")
    experiment = _experiment(_config(content, {"experiment"}), "the proposal")
    record = content["images"]
    if not isinstance(record, ArrayRecord):
        raise MessageError("the proposal has no images")
    _only(record, {"proposed", "heldout", "heldout-patient", "heldout-label"}, "the proposal's images")
    size, counts = experiment.network.image_size, [_count(record[name]) for name in ("proposed", "heldout")]
    kinds = {
        "proposed": ("uint8", (counts[0], size, size)),
        "heldout": ("uint8", (counts[1], size, size)),
        "heldout-patient": ("int64", (counts[1],)),
        "heldout-label": ("int64", (counts[1],)),
    }
    images = {name: decoded(record[name], *kind, f"the proposal's `{name}`") for name, kind in kinds.items()}
    return experiment, _arrays(content), images


def pack_verdict(verdict: Verdict) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"site": verdict.site, "passed": verdict.passed})})


def unpack_verdict(content: RecordDict) -> Verdict | Refusal:
    """A site's bit, or its refusal to say."""
    _only(content, {"config"}, "the verdict")
    config = content["config"]
    if isinstance(config, ConfigRecord) and "refused" in config:
        return _refusal(content)
    config = _config(content, {"site", "passed"})
    if not isinstance(config["passed"], bool):
        raise MessageError("the verdict is neither yes nor no")
    return Verdict(_site(config), config["passed"])


def pack_request(request: TrainRequest) -> RecordDict:
    config = ConfigRecord(
        {
            "experiment": request.experiment.model_dump_json(),
            "round": request.round,
            "noise-multiplier": request.noise_multiplier,
        }
    )
    return RecordDict({"arrays": _record(request.tensors), "config": config})


def request_id(content: RecordDict) -> str:
    """SHA-256 of everything that a request says: settings, round, noise, and the tensors' names, kinds, shapes and bytes."""
    config, arrays = _config(content, REQUEST), _arrays(content)
    said = [str(config["experiment"]), config["round"], float(str(config["noise-multiplier"])).hex()]
    digest = hashlib.sha256(json.dumps(said).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype, list(array.shape), len(array.data)]).encode())
        digest.update(array.data)
    return digest.hexdigest()


def unpack_request(content: RecordDict) -> tuple[Experiment, int, float, ArrayRecord]:
    """The settings of a request and its arrays, still unchecked: their shapes follow from the settings."""
    _only(content, {"arrays", "config"}, "the request")
    config = _config(content, REQUEST)
    experiment = _experiment(config, "the request")
    number, noise = config["round"], config["noise-multiplier"]
    if type(number) is not int or not 1 <= number <= experiment.training.rounds:
        raise MessageError(f"the request is for round {number}, the experiment has {experiment.training.rounds}")
    if not isinstance(noise, float) or not math.isfinite(noise) or noise < 0:
        raise MessageError(f"the request's noise multiplier is {noise}, it must be finite and not negative")
    return experiment, number, noise, _arrays(content)


def pack_reply(reply: TrainReply) -> RecordDict:
    records, last = reply.ledger
    return RecordDict(
        {
            "arrays": _record(reply.update),
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
    _only(content, {"arrays", "metrics", "config"}, "the reply")
    config = _config(content, {"site", "request", "ledger"})
    request, said = config["request"], config["ledger"]
    if not isinstance(request, str):
        raise MessageError("the reply does not say what it answers")
    if not isinstance(said, str) or (ledger := LEDGER.fullmatch(said)) is None:
        raise MessageError("the reply's `ledger` is not RECORDS:HASH")
    metrics = content["metrics"]
    if not isinstance(metrics, MetricRecord):
        raise MessageError("the reply has no metrics record")
    _only(metrics, {"epsilon", "steps", *statistics}, "the metrics")
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
    arrays = _arrays(content)
    update = tensors(arrays, shapes, "the update")
    size = sum(len(a.data) for a in arrays.values())
    mark = (int(ledger[1] or 0), str(ledger[2] or ""))
    return TrainReply(_site(config), update, epsilon, steps, size, figures, request, mark)


def tensors(arrays: ArrayRecord, shapes: Shapes, what: str) -> dict[str, Tensor]:
    """The one array that travels -> float32 tensors by name, when it holds as many finite float32 numbers as `shapes`."""
    _only(arrays, {VECTOR}, what)
    sizes = [math.prod(shapes[name]) for name in sorted(shapes)]
    value = decoded(arrays[VECTOR], "float32", (sum(sizes),), what)
    if not np.isfinite(value).all():
        raise MessageError(f"{what}: it holds a value that is not finite")
    parts = torch.from_numpy(value.copy()).split(sizes)
    return {name: part.view(shapes[name]) for name, part in zip(sorted(shapes), parts, strict=True)}


def decoded(array: Array, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The numbers of an array that must be of this kind and shape, read-only; nothing is allocated and no library decodes anything.

    What is declared is checked first, then the header, which can only be the one that numpy writes for it, then the length.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", dtype, shape):
        raise MessageError(f"{what}: expected {dtype} {shape}")
    says = str({"descr": kind.str, "fortran_order": False, "shape": shape})
    header = HEADER.match(array.data[:1024])
    if (
        header is None
        or header[2] != says.replace("}", ", }").encode()
        or int.from_bytes(header[1], "little") != header.end() - 10
        or len(array.data) != header.end() + math.prod(shape) * kind.itemsize
    ):
        raise MessageError(f"{what}: the bytes are not what they are declared to be")
    return np.frombuffer(array.data, kind, offset=header.end()).reshape(shape)


def _count(array: Array) -> int:
    """How many entries an array declares along its first axis. MessageError for none: there is something to look at."""
    count = array.shape[0] if array.shape else 0
    if type(count) is not int or count < 1:
        raise MessageError("an array of nothing")
    return count


def plain(text: object) -> str:
    """A stranger's words, cut, on one line of printable ASCII: everything else is escaped."""
    if not isinstance(text, str):
        return "something that is no text"
    return text[:LONGEST].encode("unicode_escape").decode("ascii")[:LONGEST]


def _site(config: ConfigRecord) -> str:
    name = config["site"]
    if not isinstance(name, str) or re.fullmatch(SITE_NAME, name) is None:
        raise MessageError("it bears no site's name")
    return name


def _record(values: Mapping[str, Tensor]) -> ArrayRecord:
    """All tensors end to end in the order of their names: an object on the wire costs requests, whatever its size."""
    parts = [values[name].detach().cpu().float().flatten() for name in sorted(values)]
    return ArrayRecord({VECTOR: torch.cat([torch.empty(0), *parts])})


def _only(record: Mapping[str, object], names: set[str], what: str) -> None:
    extra, missing = set(record.keys()) - names, names - set(record.keys())
    if extra:
        raise MessageError(f"{what} holds `{plain(sorted(extra)[0][:60])}`, which may not travel")
    if missing:
        raise MessageError(f"{what} lacks `{sorted(missing)[0]}`")


def _experiment(config: ConfigRecord, what: str) -> Experiment:
    """The settings in a message. A base is a name here, never a path: what a stranger writes opens no file."""
    try:
        tree = json.loads(str(config["experiment"]))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{what}'s experiment is not JSON") from error
    experiment = validate(tree, Experiment, source=f"{what}'s experiment")
    if not re.fullmatch(BASE_NAME, experiment.base):
        raise MessageError(f"{what} names a base by a path; what travels names a shipped base")
    return experiment


def _refusal(content: RecordDict) -> Refusal:
    config = _config(content, {"site", "refused", "about"})
    word, about = str(config["refused"]), str(config["about"])
    if word not in WORDS or about not in {"", *SETTINGS}:
        raise MessageError("a refusal in words that no site uses")
    return Refusal(_site(config), word, about)


def _config(content: RecordDict, names: set[str]) -> ConfigRecord:
    config = content["config"]
    if not isinstance(config, ConfigRecord):
        raise MessageError("the message has no config record")
    _only(config, names, "the config")
    return config


def _arrays(content: RecordDict) -> ArrayRecord:
    arrays = content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise MessageError("the message has no array record")
    return arrays
