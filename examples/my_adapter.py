"""An adapter of your own in one file: a hospital trains and sends the biases of a model, and nothing else.

A bias is one number a channel, so there are few of them, and the noise of differential privacy grows with their number (Bu et al.
2022, arXiv 2210.00036, after BitFit, Ben Zaken et al. 2022, arXiv 2106.10199). Put this file beside your experiment and name it:

    plugins: [my_adapter.py]
    training: {trainable: bias}

To make it part of fedsynth, move the class into shared/adapters/bias.py: the file bears the name of the adapter. A hospital then
permits it by that name, in the `policy` of its own file: `parts: [appearance, bias]`.
"""

from __future__ import annotations

from torch import nn

from shared.adapters.base import Adapter
from shared.errors import ConfigError
from shared.models.base import GenerativeModel


class BiasAdapter(Adapter):
    """Biases, of those parts that the model lets be trained on patients. All other parameters stay as they are."""

    name = "bias"

    def chosen(self, model: GenerativeModel) -> dict[str, nn.Parameter]:
        trainable = {name: p for part in model.parts().values() for name, p in part.items()}
        biases = {name: p for name, p in trainable.items() if name.endswith(".bias")}
        if not biases:
            raise ConfigError(f"the model `{model.name}` has no bias to train (`training.trainable`); try `full`")
        return biases
