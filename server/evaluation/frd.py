"""FRD, the Frechet radiomics distance (Konz et al. 2026, https://arxiv.org/abs/2412.01496), by its authors' package.

Version 1, log of the squared distance, as `frd-score` computes it. It needs `frd-score` and `pyradiomics`, which its authors
ask to be installed by hand, and takes about a second an image: so it stands beside one floor, from one patient-disjoint
split, and has no interval.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from server.evaluation.heldout import Heldout
from shared.errors import ConfigError


def frd(heldout: Heldout, x_NHW: np.ndarray, seed: int) -> dict[str, float]:
    """{"value", "floor"}: FRD of drawn images, and of one half of the held-out patients against the other half."""
    try:
        frd_score = importlib.import_module("frd_score")
        importlib.import_module("radiomics")
    except ImportError as error:
        raise ConfigError(
            "FRD needs the packages frd-score and pyradiomics; install both (pyradiomics from its own repository), or leave "
            "--radiomics out"
        ) from error
    patients = np.unique(heldout.patient_N)
    half = np.isin(heldout.patient_N, np.random.default_rng(seed).permutation(patients)[: (len(patients) + 1) // 2])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        real = _files(Path(folder) / "real", heldout.x_NHW)
        drawn = _files(Path(folder) / "drawn", x_NHW)
        halves = [[path for path, there in zip(real, side, strict=True) if there] for side in (half, ~half)]
        value = float(frd_score.compute_frd([real, drawn], frd_version="v1"))
        floor = float(frd_score.compute_frd(halves, frd_version="v1"))
    return {"value": value, "floor": floor}


def _files(folder: Path, x_NHW: np.ndarray) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{i:06d}.png" for i in range(len(x_NHW))]
    for path, x_HW in zip(paths, x_NHW, strict=True):
        Image.fromarray(x_HW).save(path)
    return [str(path) for path in paths]
