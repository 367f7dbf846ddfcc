"""The appearance alone: how a hospital frames and tones its images, a few dozen numbers (shared/models/appearance.py)."""

from __future__ import annotations

from torch import nn

from shared.adapters.base import Adapter
from shared.errors import ConfigError
from shared.models.base import GenerativeModel


class AppearanceAdapter(Adapter):
    """The part `appearance` of a model that has one."""

    name = "appearance"

    def chosen(self, model: GenerativeModel) -> dict[str, nn.Parameter]:
        parts = model.parts()
        if "appearance" not in parts:
            raise ConfigError(
                f"the model `{model.settings.kind}` has no appearance to train (`training.trainable`); its parts are "
                f"{', '.join(parts)}: train them all with `full`"
            )
        return parts["appearance"]
