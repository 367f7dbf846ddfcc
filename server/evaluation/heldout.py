"""Images of patients kept from every site, for evaluation only, and what is remembered of them between evaluations.

Left out: where they come from (see `gallery` for folders).
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from shared.errors import DataError
from shared.files import replace, write_arrays


@dataclass(frozen=True)
class Heldout:
    """Images of patients kept from every site, for evaluation only.

    x_NHW (N, H, W) uint8, square, at least 16 pixels wide · patient_N (N,) int, whose image · label_N (N,) int
    """

    x_NHW: np.ndarray
    patient_N: np.ndarray
    label_N: np.ndarray

    def save(self, path: Path) -> None:
        """Write as compressed NPZ, whole or not at all."""
        patient_N, label_N = (np.asarray(each, np.int64) for each in (self.patient_N, self.label_N))
        write_arrays(path, x_NHW=self.x_NHW, patient_N=patient_N, label_N=label_N)

    @staticmethod
    def load(path: Path) -> Heldout:
        """Read what `save` wrote. DataError where it is absent, damaged or holds anything else."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Heldout(arrays["x_NHW"], arrays["patient_N"], arrays["label_N"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path.name} is not a file of held-out images; make it again") from error

    def check(self) -> None:
        """DataError where the images cannot serve: not uint8 squares, or fewer than two patients or four images."""
        x, n = self.x_NHW, len(self.x_NHW)
        if x.dtype != np.uint8 or x.ndim != 3 or x.shape[1] != x.shape[2] or x.shape[1] < 16:
            raise DataError(
                f"held-out images are {x.dtype} {x.shape}; they must be uint8 (N, H, H) with H of 16 or more"
            )
        if self.patient_N.shape != (n,) or self.label_N.shape != (n,):
            raise DataError(f"{n} held-out images need as many patients and labels")
        patients = len(np.unique(self.patient_N))
        if patients < 2 or n < 4:
            raise DataError(
                f"{patients} held-out patient(s) with {n} image(s): floors and intervals compare patients, so hold out two or more"
            )

    def sha256(self) -> str:
        """Digest of the pixels and of whose they are."""
        digest = hashlib.sha256(str(self.x_NHW.shape).encode())
        digest.update(np.ascontiguousarray(self.x_NHW).data)
        digest.update(np.unique(self.patient_N, return_inverse=True)[1].astype("<i8").tobytes())
        return digest.hexdigest()


class Memo:
    """Arrays that are dear to compute, kept in a folder under the digest of everything they follow from.

    folder   none: nothing is kept. The files hold features of real images: they are for the owner alone, and belong where
             those images may lie
    key      what all arrays follow from; a change of it, or of a name, is another file
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder, self.key = folder, key

    def __call__(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array, read where it is known and whole, otherwise made and kept."""
        if self.folder is None:
            return make()
        path = self.folder / f"{hashlib.sha256(f'{self.key} {name}'.encode()).hexdigest()}.npy"
        try:
            with path.open("rb") as file:
                return np.asarray(np.load(file, allow_pickle=False))
        except (OSError, ValueError, EOFError):
            pass
        array = make()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        buffer = BytesIO()
        np.save(buffer, array, allow_pickle=False)
        replace(path, buffer.getvalue())
        return array
