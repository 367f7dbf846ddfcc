"""Text in the pixels: looked for in every slice that is kept, and a series that shows any is withheld whole.

Each slice is looked at three times, enlarged twice: over its full range of values (text that is brighter than any tissue),
in the display window (text among the tissue), and with its local contrast evened out (faint text). RapidOCR finds lines
and reads each of them in four ways (upright, upside down, and both mirrored). A line counts as text when one reading
has at least two letters or digits at a confidence of `SURE`, or of `SURE_TALL` when it is taller than a fifth of the picture
(folds and orbits look like one or two huge letters). What was read is never kept, written or said.

Measured (`python -m simulations.benchmarks.text`): of 300 single lines at a contrast of 25/255 or more, 274 found. In a black
corner 68 of 75, outlined 73 of 75, on a box 75 of 75; over the texture of anatomy 17 of 30 at 25 and 50, 41 of 45 above. On 300
clean slices text was seen in none. It is a net with holes: text over anatomy, single characters and handwriting may pass. A
series is withheld for one line of any slice. About 0.2 to 0.5 s of a core for a clean slice of 256 x 256.
Networks: PP-OCRv6 (Apache-2.0), inside the wheel of rapidocr; nothing is downloaded. Threads: OMP_NUM_THREADS, else all cores.

Left out: removing text (a series with text is not used), text that runs through several slices, and reading headers.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from client.intake.volumes import FOREGROUND
from client.rebuild.manifest import Reason, Withheld
from client.rebuild.redaction import guarded
from shared.errors import DataError

CHARACTERS = 2
SURE, SURE_TALL = 0.7, 0.95  # of the recogniser, in [0, 1]
TALL = 0.2  # of the picture's shorter side
ENLARGE = 2
TILE, OVERLAP = 1024, 128  # larger pictures are cut; a line of text that two tiles share is seen in part by both
SPREAD = 8.0  # pixels: the scale of the local contrast
LEAST_DEVIATION = 2.0  # of 255: flatter surroundings are not stretched further
NETWORKS = {"Det.model_path": "PP-OCRv6_det_small.onnx", "Rec.model_path": "PP-OCRv6_rec_small.onnx"}


@dataclass(frozen=True)
class Line:
    """Where text may stand, never what it says.

    box         corners (4, 2) as x, y in pixels of the slice
    confidence  of the best reading with at least CHARACTERS letters or digits; 0 when there is none
    tall        whether it is taller than TALL of the picture
    """

    box: np.ndarray
    confidence: float
    tall: bool

    @property
    def counts(self) -> bool:
        return self.confidence >= (SURE_TALL if self.tall else SURE)


def check(slices: Iterable[np.ndarray], window: tuple[float, float] | None = None) -> None:
    """Raise Withheld(TEXT) at the first slice (H, W) that shows text; values of any type and range.

    window   values shown as black and as white; none: from the slice itself
    """
    for slice_HW in slices:
        if any(line.counts for picture in pictures(slice_HW, window) for line in lines(picture)):
            raise Withheld(Reason.TEXT)


def check_volume(volume_RAS: np.ndarray, levels: np.ndarray, window: tuple[float, float], along: int) -> None:
    """The same for a volume of which the axial `levels` are kept.

    along   axis of the slices as they were acquired. If that is not the third, text was written into other slices than are
            kept, and each of those holds a part of it: then all slices along that axis are looked at as well
    """
    check((volume_RAS[::-1, ::-1, level].T for level in levels), window)
    if along != 2:
        check((np.rot90(each) for each in np.moveaxis(volume_RAS, along, 0)), window)


def pictures(slice_HW: np.ndarray, window: tuple[float, float] | None = None) -> Iterator[np.ndarray]:
    """The slice as uint8 (H, W): full range, display window, local contrast. A slice of one value has no picture."""
    values = np.asarray(slice_HW, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return
    yield _shown(values, low, high).astype(np.uint8)
    black, white = window or window_of(values)
    yield _shown(values, black, white).astype(np.uint8)
    dark = _shown(values, low, white if white > low else high)  # also what the window shows as black
    mean = ndimage.gaussian_filter(dark, SPREAD)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(dark**2, SPREAD) - mean**2, 0) + LEAST_DEVIATION**2)
    yield np.clip(128 + 60 * (dark - mean) / deviation, 0, 255).astype(np.uint8)


def window_of(values: np.ndarray) -> tuple[float, float]:
    """1st and 99th percentile of the foreground, as the pictures of a cohort are scaled; else the full range."""
    low, high = np.percentile(values, [2, 98])
    foreground = values[values > low + FOREGROUND * (high - low)]
    black, white = np.percentile(foreground, [1, 99]) if len(foreground) else (0.0, 0.0)
    return (float(black), float(white)) if white > black else (float(values.min()), float(values.max()))


def _shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(np.clip((values - low) / (high - low), 0, 1) * 255, dtype=np.float32)


def lines(picture: np.ndarray) -> list[Line]:
    """Every line of one picture (H, W) uint8 that the detector finds. Raises Withheld(UNREADABLE) when it fails."""
    engine = _engine()
    return guarded(Reason.UNREADABLE, lambda: [line for tile in _tiles(picture) for line in _read(engine, *tile)])


def _tiles(picture: np.ndarray) -> Iterator[tuple[np.ndarray, int, int, float]]:
    """(part, left, top, height above which a line is tall)."""
    height, width = picture.shape
    for top in range(0, max(height - OVERLAP, 1), TILE - OVERLAP):
        for left in range(0, max(width - OVERLAP, 1), TILE - OVERLAP):
            yield picture[top : top + TILE, left : left + TILE], left, top, TALL * min(height, width)


def _read(engine: Any, picture: np.ndarray, left: int, top: int, tall: float) -> list[Line]:
    from rapidocr.utils.process_img import get_rotate_crop_image  # noqa: PLC0415

    size = (picture.shape[1] * ENLARGE, picture.shape[0] * ENLARGE)
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))
    enlarged = np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
    found = engine(enlarged, use_det=True, use_cls=False, use_rec=False)
    if getattr(found, "boxes", None) is None:
        return []
    boxes = np.asarray(found.boxes, dtype=np.float32)
    crops = [get_rotate_crop_image(enlarged, box.copy()) for box in boxes]
    ways = [np.ascontiguousarray(way) for c in crops for way in (c, c[::-1, ::-1], c[:, ::-1], c[::-1])]
    read = engine.recognize_txt(ways)
    sure = [score if _legible(text) else 0.0 for text, score in zip(read.txts, read.scores, strict=True)]
    sides = np.linalg.norm(boxes - np.roll(boxes, 1, axis=1), axis=2) / ENLARGE
    return [
        Line(box / ENLARGE + (left, top), float(max(sure[4 * n : 4 * n + 4])), bool(sides[n].min() > tall))
        for n, box in enumerate(boxes)
    ]


def _legible(text: str) -> bool:
    return sum(character.isalnum() for character in text) >= CHARACTERS


@functools.cache
def _engine() -> Any:
    """RapidOCR with the networks of its wheel; loaded once, when the first picture is looked at."""
    from rapidocr import RapidOCR  # noqa: PLC0415  (half a second, and a client that trains never needs it)

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
    return RapidOCR(
        params={
            **{key: str(path) for key, path in _networks().items()},
            "Global.log_level": "critical",
            "Global.max_side_len": TILE * ENLARGE,
            "Det.limit_side_len": 32,  # the pictures are already as large as they shall be
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _networks() -> dict[str, Path]:
    """Files of the networks. Named to the engine, which would otherwise fetch what it misses."""
    try:
        import onnxruntime  # noqa: F401, PLC0415
        import rapidocr  # noqa: PLC0415
    except ImportError as error:
        raise DataError(f"text in the pixels cannot be looked for: {error.name} is missing; install it") from None
    folder = Path(str(rapidocr.__file__)).parent / "models"
    missing = [name for name in NETWORKS.values() if not (folder / name).is_file()]
    if missing:
        raise DataError(f"the network {missing[0]} is not inside the installed rapidocr; install the pinned version")
    return {key: folder / name for key, name in NETWORKS.items()}


def models() -> dict[str, str]:
    """Name -> SHA-256 of each network, for the manifest. Raises DataError where text cannot be looked for at all."""
    return {
        path.stem.lower().replace("-", "_"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _networks().values()
    }
