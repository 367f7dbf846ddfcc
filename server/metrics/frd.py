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

from server.metrics.base import Drawn, Figure, Held, Metric
from shared.errors import ConfigError


class Frd(Metric):
    name, better, digits = "FRD", "lower", 2
    reading = "Distance of radiomic features, log of the square. Lower is nearer."
    has_interval = False
    option = "radiomics"

    def fit(self, held: Held) -> None:
        try:
            self.package = importlib.import_module("frd_score")
            importlib.import_module("radiomics")
        except ImportError as error:
            raise ConfigError(
                "FRD needs the packages frd-score and pyradiomics; install both (pyradiomics from its own repository), or leave "
                "--radiomics out"
            ) from error
        self.held = held

    def __call__(self, drawn: Drawn) -> Figure:
        x_NHW, patient_N, rng = self.held.x_NHW, self.held.patient_N, np.random.default_rng(self.held.seed)
        patients = np.unique(patient_N)
        half = np.isin(patient_N, rng.permutation(patients)[: (len(patients) + 1) // 2])
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            real = _files(Path(folder) / "real", x_NHW)
            other = _files(Path(folder) / "drawn", drawn.x_MHW)
            halves = [[path for path, there in zip(real, side, strict=True) if there] for side in (half, ~half)]
            value = float(self.package.compute_frd([real, other], frd_version="v1"))
            floor = float(self.package.compute_frd(halves, frd_version="v1"))
        return Figure(value, floor, value, value)


def _files(folder: Path, x_NHW: np.ndarray) -> list[str]:
    folder.mkdir()
    paths = [folder / f"{i:06d}.png" for i in range(len(x_NHW))]
    for path, x_HW in zip(paths, x_NHW, strict=True):
        Image.fromarray(x_HW).save(path)
    return [str(path) for path in paths]
