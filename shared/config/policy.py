"""What one hospital permits beyond its budget: the part `policy` of its site file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.config.model import ADAPTERS, MODELS
from shared.config.record import Positive, PositiveFloat, Record


class Policy(Record):
    """What one hospital permits, beyond its budget. Only its own file can say so; nothing that arrives widens it.

    rounds          the most of one run
    steps           the most of one run, over all its rounds
    models          kinds of model that may be trained, by name; empty: any that the approved code holds
    parts           what may be trained of it, and leave, by the name of its adapter; empty: any that the approved code holds
    bases           bases that may be trained on, by name; empty: any that is installed here
    megabytes       the most that one message may hold, in either direction
    signatures      how many different signers must have approved an app bundle before it may run
    signers         fingerprints (64 hexadecimal digits) of the Ed25519 keys that may approve; empty: the node's own key
    largest_norm    the largest `privacy.max_grad_norm`
    learning_rate   the largest `training.learning_rate`
    weight          the largest absolute value of a received weight
    pictures        the most slices times draws of one patient in a step: what a step costs, in time and memory
    parameters      the most numbers that a model may have
    smallest_noise  the smallest noise multiplier of a step or a figure; without a cap on epsilon it does not apply
    smallest_rate   the smallest sampling rate: a hostile plan hides its cost in events that hardly ever happen
    answer_every_s  answers leave at whole multiples of so many seconds after their request came, so that the time of an answer does
                    not tell how long it took; none: at once. Choose more than a round takes
    app_network     "none": the app's process has no network but the node that started it, by Linux namespaces; the node does
                    not start where that is impossible. "host": it has the machine's network, for a container that has none
    app_files       "own": the app's process sees its patients, this file and its libraries, by Linux namespaces or Landlock; the
                    node does not start where neither can be had. "host": it may open what the service may, approvals and keys
                    too; only with `signers` whose keys are kept elsewhere
    """

    rounds: Positive = 100
    steps: Positive = 10_000
    models: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    megabytes: Positive = 1000
    largest_norm: PositiveFloat = 1e3
    learning_rate: PositiveFloat = 1e2
    weight: PositiveFloat = 1e4
    pictures: Positive = 1024
    parameters: Positive = 200_000_000
    smallest_noise: PositiveFloat = 0.3
    smallest_rate: PositiveFloat = 1e-3
    answer_every_s: PositiveFloat | None = None
    signatures: Positive = 1
    signers: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    app_network: Literal["none", "host"] = "none"
    app_files: Literal["own", "host"] = "own"

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "trainable" in tree:
            raise ValueError("`trainable` is called `parts` now, and the part `adapter` is called `appearance`")
        return tree

    @model_validator(mode="after")
    def _known(self) -> Policy:
        for key, room, named in (("models", MODELS, self.models), ("parts", ADAPTERS, self.parts)):
            unknown = sorted(set(named) - set(room.names()))
            if unknown:
                raise ValueError(f"`{key}` names `{unknown[0]}`; there are {', '.join(room.names())}")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Policy:
        if self.signatures > max(1, len(set(self.signers))):
            raise ValueError(
                f"{self.signatures} signatures cannot come from {len(set(self.signers))} signers; name more"
            )
        return self
