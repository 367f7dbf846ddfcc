"""Where the brain is: a network, or the zeros around a brain that was stripped before.

deepbet 1.0.2 (Fisch et al. 2024, https://doi.org/10.1016/j.compbiomed.2024.108845; MIT, weights in its wheel) was trained on
T1-weighted heads of adults. Other contrasts, infants, tumours and operated heads are outside what its authors tested;
whatever it says is checked (`client.deidentification.defacing`), and doubt withholds the series.

The mask is used as it comes, at probability one half, with its holes filled: neither eroded (the cortex would go) nor
dilated (bone and skin would come back).

Left out: graphics cards, so that a hospital gets the same mask on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded

Masker = Callable[[np.ndarray], np.ndarray]  # a volume (right, anterior, superior) to a mask of its shape


def deepbet(volume_RAS: np.ndarray) -> np.ndarray:
    """Every voxel that the network calls brain. Raises Withheld(NO_BRAIN)."""

    def run() -> np.ndarray:
        return np.asarray(_network().run_model(np.array(volume_RAS, dtype=np.float32)) > 0.5)

    return guarded(Reason.NO_BRAIN, run)


@cache
def _network() -> Any:
    from deepbet import BrainExtraction  # noqa: PLC0415  (two networks; a site without heads never needs them)

    return BrainExtraction(no_gpu=True)


def models() -> dict[str, str]:
    """Name -> SHA-256 of each network that decides here, for the manifest's header."""
    wheel = distribution("deepbet")
    return {
        f"deepbet_{name}": hashlib.sha256(
            Path(str(wheel.locate_file(f"data/models/{name}.pt"))).read_bytes()
        ).hexdigest()
        for name in ("bbox_model", "model")
    }


def solid(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest connected piece without holes, and the fraction of the mask that it held. Raises Withheld(NO_BRAIN)."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if not sizes.any():
        raise Withheld(Reason.NO_BRAIN)
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax())), float(sizes.max() / sizes.sum())


def background(volume_RAS: np.ndarray) -> np.ndarray:
    """Voxels that hold exactly the value of the volume's eight corners; none when the corners differ."""
    corners = volume_RAS[np.ix_(*((0, size - 1) for size in volume_RAS.shape))]
    same: np.ndarray = volume_RAS == corners.flat[0]
    return same if (corners == corners.flat[0]).all() else np.zeros_like(same)
