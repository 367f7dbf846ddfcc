"""Text in the pixels: looked for in every slice that is kept, and a series that shows any is withheld whole.

Each slice is looked at in five ways: over its full range of values (text that is brighter than any tissue), in the display window
(text among the tissue), with its local contrast evened out (faint text), and as its bright and its dark strokes alone, without
what is wider than a stroke (text over anatomy). RapidOCR finds places and reads each in four ways (upright, upside down, and
both mirrored). Folds and vessels read as letters too, but not as the same ones when the place is moved a little: each place with
at least two letters or digits is read nine more times, and counts as text when the readings are confident and agree (`Line.counts`;
two letters must agree more than four, because chance makes them often). What was read is never kept, written or said.

Measured (`python -m simulations.benchmarks.text`): of 300 lines at a contrast of 25/255 or more in a corner, brighter than the
anatomy, outlined or on a box, 297 found; the three have letters of 6 to 9 pixels with an outline. Added to the anatomy, or at
its mean brightness: 17 of 30 at 25, all of 120 above. Of 440 clean slices of eleven sources one was withheld, and that one shows a
picture agency's name. In all 144 slices of two whole heads no text was seen. One letter, letters under 5 pixels and handwriting
may pass. A series is withheld for one line of any slice. About 1 to 2 s of a core for a clean slice of 256 x 256.
Networks: PP-OCRv6 (Apache-2.0), inside the wheel of rapidocr; nothing is downloaded. Threads: OMP_NUM_THREADS, else all cores.

Left out: removing text (a series with text is not used), text that runs through several slices, and reading headers.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.readers.volumes import FOREGROUND
from shared.errors import DataError

CHARACTERS = 2
FOUND, READ = 0.3, 0.55  # of the detector and of the first reading, in [0, 1]: below, a place is not looked at again
# Letters or digits (6: or more) -> the least mean of confidence x likeness over the readings
SURE = {2: 0.9, 3: 0.75, 4: 0.65, 5: 0.65, 6: 0.5}
LOWEST = 5.0  # pixels: two letters of less height cannot be told from a vessel
NUDGES = (  # a place is read again: right, down and wider (all sides) in heights of it, degrees, times its size
    (0.08, 0, 0, 0, 1), (-0.08, 0, 0, 0, 1), (0, 0.08, 0, 0, 1), (0, -0.08, 0, 0, 1), (0, 0, 0, 2.5, 1),
    (0, 0, 0, -2.5, 1), (0, 0, 0, 0, 1.1), (0, 0, 0.1, 0, 1), (0, 0, 0.2, 0, 1),
)  # fmt: skip
ENLARGE, ENLARGE_FULL = 2, 3
TILE, OVERLAP = 1024, 128  # larger pictures are cut; a line of text that two tiles share is seen in part by both
SPREAD, SPREAD_STROKES = 4.0, 12.0  # pixels: the scale of the local contrast
LEAST_DEVIATION = 2.0  # of 255: flatter surroundings are not stretched further
STROKE = 7  # pixels: what is wider in both directions is no stroke
WAYS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (  # upright, upside down, mirrored, both
    lambda x: x, lambda x: x[::-1, ::-1], lambda x: x[:, ::-1], lambda x: x[::-1],
)  # fmt: skip
NETWORKS = {"Det.model_path": "PP-OCRv6_det_small.onnx", "Rec.model_path": "PP-OCRv6_rec_small.onnx"}


@dataclass(frozen=True)
class Line:
    """Where text may stand, never what it says.

    box         corners (4, 2) as x, y in pixels of the slice
    characters  how many letters or digits the reading has
    sure        confidence x likeness to the first reading, in [0, 1]: the mean over the readings of the nudged place
    """

    box: np.ndarray
    characters: int
    sure: float

    @property
    def counts(self) -> bool:
        """As sure as a text of so few characters must be, and large enough."""
        height = np.linalg.norm(self.box - np.roll(self.box, 1, axis=0), axis=1).min()
        if self.characters == CHARACTERS and height < LOWEST:
            return False
        return self.sure >= SURE[min(max(self.characters, CHARACTERS), max(SURE))]


def check(slices: Iterable[np.ndarray], window: tuple[float, float] | None = None) -> None:
    """Raise Withheld(TEXT) at the first slice (H, W) that shows text; values of any type and range.

    window   values shown as black and as white; none: from the slice itself
    """
    for slice_HW in slices:
        if any(line.counts for line in lines(slice_HW, window)):
            raise Withheld(Reason.TEXT)


def check_volume(volume_RAS: np.ndarray, levels: np.ndarray, window: tuple[float, float], along: int) -> None:
    """The same for a volume of which the axial `levels` are kept.

    along   axis of the slices as they were acquired. If that is not the third, text was written into other slices than are
            kept, and each of those holds a part of it: then all slices along that axis are looked at as well
    """
    check((volume_RAS[::-1, ::-1, level].T for level in levels), window)
    if along != 2:
        check((np.rot90(each) for each in np.moveaxis(volume_RAS, along, 0)), window)


def pictures(slice_HW: np.ndarray, window: tuple[float, float] | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """The slice in five ways, as uint8 (H, W), and how much each is to be enlarged. A slice of one value has none."""
    values = np.asarray(slice_HW, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return
    full = _shown(values, low, high)
    yield full.astype(np.uint8), ENLARGE_FULL
    black, white = window or window_of(values)
    yield _shown(values, black, white).astype(np.uint8), ENLARGE
    top = white if white > low else high
    dark = _shown(values, low, top)  # also what the window shows as black
    mean = ndimage.gaussian_filter(dark, SPREAD)
    deviation = np.sqrt(np.maximum(ndimage.gaussian_filter(dark**2, SPREAD) - mean**2, 0) + LEAST_DEVIATION**2)
    yield np.clip(128 + 60 * (dark - mean) / deviation, 0, 255).astype(np.uint8), ENLARGE
    least = (top - low) / (high - low)  # one 255th of the window, in `full`
    for strokes in (ndimage.white_tophat(full, size=STROKE), ndimage.black_tophat(full, size=STROKE)):
        power = np.sqrt(ndimage.gaussian_filter(strokes**2, SPREAD_STROKES))
        yield np.clip(60 * strokes / np.maximum(power, least), 0, 255).astype(np.uint8), ENLARGE


def window_of(values: np.ndarray) -> tuple[float, float]:
    """1st and 99th percentile of the foreground, as the pictures of a cohort are scaled; else the full range."""
    low, high = np.percentile(values, [2, 98])
    foreground = values[values > low + FOREGROUND * (high - low)]
    black, white = np.percentile(foreground, [1, 99]) if len(foreground) else (0.0, 0.0)
    return (float(black), float(white)) if white > black else (float(values.min()), float(values.max()))


def _shown(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(np.clip((values - low) / (high - low), 0, 1) * 255, dtype=np.float32)


def lines(slice_HW: np.ndarray, window: tuple[float, float] | None = None) -> Iterator[Line]:
    """Every line that the detector finds in the pictures of a slice (H, W). Raises Withheld(UNREADABLE) when it fails."""
    engine = _engine()
    for picture, enlarge in pictures(slice_HW, window):
        for tile in _tiles(picture):
            yield from guarded(Reason.UNREADABLE, lambda: _read(engine, *tile, enlarge))  # noqa: B023


def _tiles(picture: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """(part, left, top)."""
    height, width = picture.shape
    for top in range(0, max(height - OVERLAP, 1), TILE - OVERLAP):
        for left in range(0, max(width - OVERLAP, 1), TILE - OVERLAP):
            yield picture[top : top + TILE, left : left + TILE], left, top


def _read(engine: Any, picture: np.ndarray, left: int, top: int, enlarge: int) -> list[Line]:
    from rapidocr.utils.process_img import get_rotate_crop_image  # noqa: PLC0415

    size = (picture.shape[1] * enlarge, picture.shape[0] * enlarge)
    grey = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))
    enlarged = np.ascontiguousarray(np.repeat(grey[:, :, None], 3, axis=2))
    found = engine(enlarged, use_det=True, use_cls=False, use_rec=False)
    if getattr(found, "boxes", None) is None:
        return []
    boxes = np.asarray(found.boxes, dtype=np.float32)
    crops = [get_rotate_crop_image(enlarged, box.copy()) for box in boxes]
    read = engine.recognize_txt([np.ascontiguousarray(way(crop)) for crop in crops for way in WAYS])
    lines = []
    for n, box in enumerate(boxes):
        score, first, way = max(
            (score if len(_letters(text)) >= CHARACTERS else 0.0, _letters(text), which)
            for which, (text, score) in enumerate(list(zip(read.txts, read.scores, strict=True))[4 * n : 4 * n + 4])
        )
        if score < READ:
            continue
        nudged = (get_rotate_crop_image(enlarged, each) for each in _nudged(box, size))
        again = engine.recognize_txt([np.ascontiguousarray(WAYS[way](crop)) for crop in nudged])
        like = [
            other * SequenceMatcher(None, first, _letters(text)).ratio() if len(_letters(text)) >= CHARACTERS else 0.0
            for text, other in zip(again.txts, again.scores, strict=True)
        ]
        lines.append(Line(box / enlarge + (left, top), len(first), float(np.mean([score, *like]))))
    return lines


def _nudged(box: np.ndarray, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The corners (4, 2) moved, turned and resized by each of NUDGES, inside a picture of `size` (width, height)."""
    centre = box.mean(axis=0)
    height = np.linalg.norm(box - np.roll(box, 1, axis=0), axis=1).min()
    for right, down, wider, degrees, scale in NUDGES:
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        corners = scale * (box - centre) + wider * height * np.sign(box - centre)
        moved = corners @ np.array([[cosine, sine], [-sine, cosine]]) + centre + height * np.array([right, down])
        yield np.clip(moved, 0, np.array(size) - 1).astype(np.float32)


def _letters(text: str) -> str:
    """Letters and digits alone, in capitals."""
    return "".join(filter(str.isalnum, text)).upper()


@functools.cache
def _engine() -> Any:
    """RapidOCR with the networks of its wheel; loaded once, when the first picture is looked at."""
    from rapidocr import RapidOCR  # noqa: PLC0415  (half a second, and a client that trains never needs it)

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
    return RapidOCR(
        params={
            **{key: str(path) for key, path in _networks().items()},
            "Global.log_level": "critical",
            "Global.max_side_len": TILE * ENLARGE_FULL,
            "Det.box_thresh": FOUND,
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
