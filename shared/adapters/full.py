"""Everything that a model lets be trained on patients."""

from __future__ import annotations

from torch import nn

from shared.adapters.base import Adapter
from shared.models.base import GenerativeModel


class FullAdapter(Adapter):
    """All parts."""

    name = "full"

    def chosen(self, model: GenerativeModel) -> dict[str, nn.Parameter]:
        return {name: p for part in model.parts().values() for name, p in part.items()}
