"""What every record of settings is made of.

Left out: the records themselves (`shared.config.experiment`, `shared.config.pacs`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.errors import ConfigError
from shared.modalities.base import modality

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _modality(name: str) -> str:
    try:
        return modality(name).name
    except ConfigError as error:
        raise ValueError(str(error)) from error


ModalityName = Annotated[str, AfterValidator(_modality)]  # unknown: an error that lists what there is


class Record(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
