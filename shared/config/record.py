"""What every record of settings is made of.

Left out: the records themselves (`shared.config.experiment`, `shared.config.pacs`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.errors import ConfigError
from shared.modalities.base import modality

Positive = Annotated[int, Field(gt=0)]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]  # host:port of the coordinator
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

    @classmethod
    def upgraded(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """What an older version of ours wrote, in today's names."""
        return tree
