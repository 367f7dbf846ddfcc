"""One image of a set that somebody wants compared: its samples, its grey levels, its size.

Grey levels are those of `shared.pictures`, DICOM's of its own window where it states one.

Left out: which files are a set, and whose they are (`server.measure.gallery`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image

from shared import pictures
from shared.pictures import Levels

PICTURES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True)
class Entry:
    """One image that is not read yet. `frame`: its place in a DICOM or NPZ file. `patient`: none where nobody knows."""

    path: Path
    label: str
    patient: str | None
    frame: int = 0


def read(entry: Entry) -> np.ndarray | None:
    """One image (H, W) uint8 by itself, or none where it cannot be read as a grey image."""
    found = of(entry)
    if found is None or not np.isfinite(found[0]).all():
        return None
    return grey(*found)


def scales(entries: Iterable[Entry]) -> dict[str | None, Levels]:
    """Black and white of what is deeper than 8 bits and has no window, by patient; under none: of whoever is not known."""
    met: dict[str | None, pictures.Range] = {}
    for entry in entries:
        found = None if _is_bytes(entry.path) else of(entry)
        if found is not None and found[1] is None and found[0].dtype != np.uint8 and np.isfinite(found[0]).all():
            met.setdefault(entry.patient, pictures.Range()).add(found[0])
    return {patient: one.levels for patient, one in met.items()}


def _is_bytes(path: Path) -> bool:
    """Whether a picture holds 8-bit samples, by its header alone."""
    try:
        return path.suffix.lower() in PICTURES and not pictures.deep(path)
    except Exception:  # noqa: BLE001 - as in `of`
        return False


def grey(x_HW: np.ndarray, levels: Levels | None) -> np.ndarray:
    """(H, W) uint8. levels: none: bytes as they are, everything else by its own range."""
    if x_HW.dtype == np.uint8 and levels is None:
        return x_HW
    if levels is None:
        met = pictures.Range()
        met.add(x_HW)
        levels = met.levels
    return np.asarray(pictures.scaled(x_HW, pictures.BYTES if x_HW.dtype == np.uint8 else levels).round(), np.uint8)


def of(entry: Entry) -> tuple[np.ndarray, Levels | None] | None:
    """The samples (H, W), and the window that the file itself states; none where it cannot be read as a grey image."""
    try:
        if entry.path.suffix.lower() in PICTURES:
            return pictures.read(entry.path), None
        if entry.path.suffix.lower() == ".npz":
            return _row(entry), None
        return _frame(entry)
    except Exception:  # noqa: BLE001 - decoders raise whatever they like, and their words may quote the file
        return None


def _frame(entry: Entry) -> tuple[np.ndarray, Levels | None] | None:
    d = pydicom.dcmread(entry.path)
    x = d.pixel_array
    if int(d.SamplesPerPixel) != 1:
        return None
    x_HW = x[entry.frame] if x.ndim == 3 else x
    if d.get("PhotometricInterpretation") == "MONOCHROME1":  # white is the lowest value
        return (1 << int(d.BitsStored)) - 1 - x_HW.astype(np.int64), None
    slope, intercept = float(d.get("RescaleSlope") or 1), float(d.get("RescaleIntercept") or 0)
    if (slope, intercept) != (1, 0):
        x_HW = x_HW * slope + intercept
    if d.get("WindowWidth") in (None, ""):
        return x_HW, None
    centre, width = (float(np.atleast_1d(d[k].value)[0]) for k in ("WindowCenter", "WindowWidth"))
    low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2  # PS3.3 C.11.2.1.2
    return x_HW.astype(np.float64), (low, max(high, low + 1e-9))


_OPEN: dict[Path, np.ndarray] = {}  # the last NPZ file: its images are read one after the other


def _row(entry: Entry) -> np.ndarray:
    if entry.path not in _OPEN:
        _OPEN.clear()
        with entry.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            _OPEN[entry.path] = arrays["x_NHW" if "x_NHW" in arrays else "x"]
    return np.asarray(_OPEN[entry.path][entry.frame])


def fit(x_HW: np.ndarray, size: int) -> np.ndarray:
    height, width = x_HW.shape
    if (height, width) == (size, size):
        return np.ascontiguousarray(x_HW)
    longer = max(height, width)
    square = np.zeros((longer, longer), np.uint8)
    top, left = (longer - height) // 2, (longer - width) // 2
    square[top : top + height, left : left + width] = x_HW
    return np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
