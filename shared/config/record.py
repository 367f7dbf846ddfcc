"""What every record of settings is made of.

Left out: the records themselves (`shared.config.experiment`, `shared.config.pacs`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}$")]  # host:port of the coordinator
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Record(BaseModel):
    """A frozen record in which an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def upgraded(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """What an older version of ours wrote, in today's names."""
        return tree
