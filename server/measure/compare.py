"""Compare two sets of images from anywhere, by the same figures, floors and intervals as a federation's rounds.

Both sets are brought to one size, and at most a stated number of images of each is used, spread over its patients: the time
of floors and intervals grows with the cube of that number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from server.measure import gallery, radiomics
from server.measure.evaluate import Evaluator, Figure
from server.measure.gallery import Gallery
from server.measure.heldout import Heldout
from shared.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """What came of it: figures by name, how they were made, what must be known to read them, and the images themselves.

    extras   figures with a floor but without an interval
    """

    real: Gallery
    synthetic: Gallery
    figures: dict[str, Figure]
    extras: dict[str, dict[str, float]]
    protocol: dict[str, Any]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For scripts: no path, no patient."""
        return {
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "without_interval": self.extras,
            "protocol": self.protocol,
            "notes": self.notes,
        }


def compare(
    real: Path,
    synthetic: Path,
    *,
    patients: str = "auto",
    images: int = 1000,
    size: int | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    inception_weights: Path | None = None,
    lpips_weights: Path | None = None,
    with_radiomics: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Figures of the set `synthetic` against the set `real`; see `gallery` for what a set is.

    patients   how to know the patients of `real`: "auto", "folder", "image", or a CSV
    images     at most so many of either set
    size       pixels a side; none: the smaller of the two sets' own, between 16 and 256

    DataError where a set cannot be read or is too small.
    """
    entries = gallery.survey(real, patients), gallery.survey(synthetic)
    found = [len(e) for e in entries]
    chosen = [gallery.choose(e, images, seed) for e in entries]
    sides = [gallery.side(c) for c in chosen]
    pixels = size or min(max(min(sides), gallery.SMALLEST), gallery.LARGEST)
    total = sum(len(c) for c in chosen)
    told = progress or (lambda done, of: None)
    a = gallery.load(chosen[0], pixels, lambda done, _: told(done, total))
    b = gallery.load(chosen[1], pixels, lambda done, _: told(len(chosen[0]) + done, total))
    if len(b.x_NHW) < 2:
        raise DataError("the synthetic set holds a single image; at least 2 are needed")
    heldout = Heldout(a.x_NHW, a.patient_N, a.label_N)
    evaluator = Evaluator(
        heldout,
        bootstrap=bootstrap,
        seed=seed,
        inception_weights=inception_weights,
        lpips_weights=lpips_weights,
        samples=len(b.x_NHW),
        cache=cache,
    )
    figures = evaluator(b.x_NHW, b.patient_N if b.patients_known else None)
    extras = {"FRD": radiomics.frd(heldout, b.x_NHW, seed)} if with_radiomics else {}
    protocol = evaluator.protocol | {
        "pixels": pixels,
        "real_pixels": sides[0],
        "synthetic_pixels": sides[1],
        "real_images_found": found[0],
        "synthetic_images_found": found[1],
        "synthetic_images": len(b.x_NHW),
        "patients_known": a.patients_known,
        "seed": seed,
        "versions": {name: version(name) for name in ("fedsynth", "torch", "torchmetrics")},
    }
    return Comparison(a, b, figures, extras, protocol, _notes(a, b, found, sides, pixels, images))


def _notes(a: Gallery, b: Gallery, found: list[int], sides: list[int], pixels: int, images: int) -> list[str]:
    """Sentences without which the figures mislead."""
    notes = []
    if not a.patients_known:
        notes.append(
            "It is not known which real images belong to one patient, so every image counts as a patient of its own: floors are "
            "too low and intervals too narrow where patients have several images. Give --patients folder, or a CSV."
        )
    for name, side in zip(("real", "synthetic"), sides, strict=True):
        if side != pixels:
            notes.append(f"The {name} images were resized from about {side} to {pixels} pixels a side.")
    for name, total, used in zip(("real", "synthetic"), found, (a, b), strict=True):
        if total > images:
            notes.append(f"{len(used.x_NHW)} of {total} {name} images were used.")
        if used.unreadable:
            notes.append(f"{used.unreadable} {name} file(s) could not be read and are left out.")
    n = np.unique(a.patient_N).size
    if n < 20:
        notes.append(f"{n} real patients are few: floors and intervals are rough.")
    return notes
