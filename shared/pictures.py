"""Grey levels of samples of any depth: one rule, for the pictures that a hospital ingests and for sets that are compared.

8-bit samples are grey levels already and stay as they are. Deeper samples have no agreed white; of all that belongs together, the
pictures of one person (or of a set where nobody knows the people), this is decided together, so that dark slices stay dark:

| samples                                              | black to white                                      |
|------------------------------------------------------|-----------------------------------------------------|
| integers from 0 to 255 in a wider type               | 0 to 255: they are bytes                            |
| 16-bit integers that are all multiples of 257        | 0 to 65535: bytes over the whole range              |
| floats from 0 to 1, or from -1 to 1 (a little beyond)| 0 to 1, or -1 to 1                                  |
| floats from 0 to 255                                 | 0 to 255                                            |
| everything else (12 bits, raw scanner values)        | their 0.5 to their 99.5 percentile                  |

So the same pixels are the same grey in whatever type they come. What a picture hides is not shown: transparent pixels are
black, and EXIF's turn is done.

Left out: colour (its luminance is taken), windows of DICOM and volumes (`client.readers.volumes`), 16-bit colour (read as 8).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RULE = (
    "8-bit samples as they are; deeper ones as bytes or fractions where they are such, else from the 0.5 to the 99.5 percentile of "
    "all pictures of a patient"
)
Levels = tuple[float, float]
DEEP = ("I", "F")  # how Pillow's modes of more than 8 bits begin
BYTES: Levels = (0.0, 255.0)
BEYOND = 0.5  # of a generator that draws from 0 to 1, or from -1 to 1, and was not clipped
KEPT = 4096  # samples of a picture that percentiles are taken of
DARK, SEEN = 16, 0.001  # levels; share of the pixels that must reach it, or the picture is nearly black
CONTRAST = 8  # levels between the darkest and the brightest pixel, or the picture is flat


class TooLarge(ValueError):
    """More pixels than are accepted; none was unpacked."""


class Range:
    """What samples of one person or set have in common, told picture by picture. Samples must be finite."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf
        self._whole = self._wide = True
        self._kept: list[np.ndarray] = []

    def add(self, x_HW: np.ndarray) -> None:
        self._low, self._high = min(self._low, float(x_HW.min())), max(self._high, float(x_HW.max()))
        self._whole = self._whole and x_HW.dtype.kind in "iu"
        self._wide = self._wide and self._whole and x_HW.dtype.itemsize > 1 and not (x_HW % 257).any()
        flat = x_HW.reshape(-1)
        self._kept.append(flat[:: max(1, len(flat) // KEPT)].astype(np.float64))

    @property
    def levels(self) -> Levels:
        """The values that become black and white."""
        low, high = self._low, self._high
        if self._whole and self._wide and high > 255:
            return 0.0, 65535.0
        if not self._whole and high <= 1 + BEYOND and low >= -1 - BEYOND:
            return (0.0 if low >= 0 else -1.0), 1.0
        if low >= 0 and high <= 255:
            return BYTES
        black, white = np.quantile(np.concatenate(self._kept), [0.005, 0.995])
        return (float(black), float(white)) if white > black else (min(0.0, low), max(high, 1.0))


def scaled(x_HW: np.ndarray, levels: Levels = BYTES) -> np.ndarray:
    """(H, W) float32 in [0, 255]."""
    low, high = levels
    return np.clip((x_HW.astype(np.float64) - low) * (255 / (high - low)), 0, 255).astype(np.float32)


def problem(x_HW: np.ndarray) -> str | None:
    """Why a picture in [0, 255] shows nothing: "not-finite", "black", "flat"; none where it shows something."""
    if not np.isfinite(x_HW).all():
        return "not-finite"
    if (x_HW >= DARK).mean() < SEEN:
        return "black"
    return "flat" if float(x_HW.max()) - float(x_HW.min()) < CONTRAST else None


def deep(path: Path, *, formats: tuple[str, ...] | None = None) -> bool:
    """Whether a picture holds samples of more than 8 bits, by its header alone."""
    with Image.open(path, formats=formats) as image:
        return image.mode.startswith(DEEP)


def read(path: Path, *, formats: tuple[str, ...] | None = None, limit: int | None = None) -> np.ndarray:
    """The samples (H, W) of a picture: uint8, or of its own depth. Comments and all else beside them are dropped.

    formats   of Pillow that are accepted; none: all     limit   pixels; TooLarge above it
    """
    with Image.open(path, formats=formats) as image:
        if limit is not None and image.width * image.height > limit:
            raise TooLarge
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith(DEEP):
            x_HW = np.asarray(turned)
            hidden = image.info.get("transparency")
            return np.where(x_HW == hidden, x_HW.dtype.type(0), x_HW) if isinstance(hidden, int) else x_HW
        if "transparency" not in image.info and not turned.mode.endswith(("A", "a")):
            return np.asarray(turned.convert("L"))
        shown = turned.convert("RGBA")
        black = Image.new("RGBA", shown.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, shown).convert("L"))
