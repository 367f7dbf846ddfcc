"""FID: the Frechet distance in the features of Inception-v3, by the very weights that define it (Heusel et al. 2017).

The weights come in no package: name their file with `--inception-weights`. They need the extra `inception`.
"""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from torch import nn

from server.metrics.base import Held
from server.metrics.features import FrechetDistance, Space
from shared.errors import ConfigError, WeightsError

INCEPTION_SHA256 = "6726825d"  # start of the digest of pt_inception-2015-12-05-6726825d.pth, the FID weights


class Fid(FrechetDistance):
    name = "FID"
    reading = "Distance to real images, Inception-v3 features. Lower is nearer."
    option = "inception_weights"

    def space_of(self, held: Held) -> Space:
        path = held.file(self.option, self.name)
        return held.once("inception", lambda: Space("inception", inception(path), held))


def inception(weights: Path) -> nn.Module:
    """The Inception-v3 of FID as torchmetrics builds it, with its original resize: (N, 3, H, W) uint8 -> (N, 2048).

    Raises WeightsError where the file is absent or is not the file that defines FID, ConfigError without the extra.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 - as in features.py

    if not weights.is_file():
        raise WeightsError(f"no Inception weights at {weights}; give the path of pt_inception-2015-12-05-6726825d.pth")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not digest.startswith(INCEPTION_SHA256):
        raise WeightsError(
            f"{weights} has sha256 {digest[:8]}..., not {INCEPTION_SHA256}...; only the original weights may be called FID"
        )
    try:
        torch.load(
            weights, map_location="cpu", weights_only=True
        )  # torch-fidelity unpickles: first see that it is tensors
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{weights} holds more than tensors; fetch the original file again") from error
    try:
        metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights), antialias=False)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "FID needs the extra `inception`; install it with: pip install 'fedsynth[inception]'"
        ) from error
    network: nn.Module = metric.inception
    return network
