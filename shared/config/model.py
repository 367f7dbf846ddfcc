"""The part `model` of an experiment, and which kinds there are. A kind's settings live in the kind's own file.

Left out: the kinds (shared/models/).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo

from shared.config.loading import explain
from shared.config.record import Record
from shared.errors import ConfigError
from shared.plugins import Registry

DEFAULT = "pixel-diffusion"
MODELS: Registry[Any] = Registry("shared.models", "GenerativeModel", "model.kind")
ADAPTERS: Registry[Any] = Registry("shared.adapters", "Adapter", "training.trainable")


class ModelSettings(Record):
    """What every kind has.

    kind            the name of the model's file in shared/models
    image_size      pixels a side of an image
    image_channels  1 for grey images, 3 for colour
    """

    kind: str
    image_size: Literal[16, 32, 64, 128, 256] = 64
    image_channels: Annotated[int, Field(ge=1, le=4)] = 1


def settings_of(tree: object) -> ModelSettings:
    """The settings of a kind, from plain values; ValueError names the first key that is wrong."""
    if isinstance(tree, ModelSettings):
        return tree
    if not isinstance(tree, dict):
        raise ValueError("must hold keys and values, `kind` among them")
    try:
        kind = MODELS[str(tree.get("kind", DEFAULT))].Settings
    except ConfigError as error:
        raise ValueError(str(error)) from error
    try:
        found: ModelSettings = kind.model_validate({"kind": DEFAULT, **tree})
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from error
    return found


def settings_last(record: type[Record], tree: object, info: ValidationInfo) -> ModelSettings:
    """The field `model`, declared last of a record: a slip elsewhere in the file is said at once, without loading torch."""
    whole = set(record.model_fields) - {"model"} <= set(info.data)
    return settings_of(tree) if whole else ModelSettings(kind=DEFAULT)


def unless_unknown(record: type[Record], tree: Any) -> Any:
    """An unknown key of a record is an error by itself: no kind of model is loaded for its sake. ValueError for the old key."""
    if isinstance(tree, dict) and "network" in tree:
        raise ValueError("`network` is called `model` now: the same keys, and `kind: pixel-diffusion`")
    known = not isinstance(tree, dict) or set(tree) <= set(record.model_fields)
    return tree if known else {**tree, "model": ModelSettings(kind=DEFAULT)}
