"""Compare two sets of images from anywhere, by the same figures, floors and intervals as a federation's rounds.

Both sets are brought to one size, and at most a stated number of images of each is used, spread over its patients: the time
of floors and intervals grows with the cube of that number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from server.evaluation import image_sets
from server.evaluation.evaluate import Evaluator
from server.evaluation.heldout import Heldout
from server.evaluation.image_sets import Gallery
from server.evaluation.study import study
from server.metrics.base import METRICS, Description, Figure
from shared.config.experiment import Evaluation
from shared.errors import DataError


@dataclass(frozen=True)
class Comparison:
    """What came of it: figures by name, how they were made, what must be known to read them, and the images themselves.

    extras        figures with a floor but without an interval
    descriptions  how the figures of each metric are shown and read
    studied       biomarkers and downstream utility (see `study`), none where the sets have no class in common
    """

    real: Gallery
    synthetic: Gallery
    figures: dict[str, Figure]
    extras: dict[str, dict[str, float]]
    descriptions: dict[str, Description]
    protocol: dict[str, Any]
    notes: list[str]
    studied: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For scripts: no path, no patient."""
        return {
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "without_interval": self.extras,
            "biomarkers": self.studied["biomarkers"],
            "utility": self.studied["utility"],
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
    metrics: Sequence[str] = Evaluation().metrics,
    inception_weights: Path | None = None,
    lpips_weights: Path | None = None,
    with_radiomics: bool = False,
    with_utility: bool = False,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Figures of the set `synthetic` against the set `real`; see `gallery` for what a set is.

    patients   how to know the patients of `real`: "auto", "folder", "image", or a CSV
    images     at most so many of either set
    size       pixels a side; none: the smaller of the two sets' own, between 16 and 256
    metrics    names of what is measured; those of plug-ins that are loaded are added

    with_utility   also train classifiers on either set; the sets must have two class names in common

    DataError where a set cannot be read or is too small, or lacks classes that utility needs.
    """
    entries = image_sets.survey(real, patients), image_sets.survey(synthetic)
    found = [len(e) for e in entries]
    chosen = [image_sets.choose(e, images, seed) for e in entries]
    sides = [image_sets.side(c) for c in chosen]
    pixels = size or min(max(min(sides), image_sets.SMALLEST), image_sets.LARGEST)
    total = sum(len(c) for c in chosen)
    tell = progress or (lambda done, of: None)
    a = image_sets.load(chosen[0], pixels, lambda done, _: tell(done, total))
    b = image_sets.load(chosen[1], pixels, lambda done, _: tell(len(chosen[0]) + done, total))
    if len(b.x_NHW) < 2:
        raise DataError("the synthetic set holds a single image; at least 2 are needed")
    if with_utility and len(_common(a, b)) < 2:
        raise DataError(
            f"the sets have {len(_common(a, b))} class name(s) in common; downstream utility needs two. Label both alike: "
            "class/patient/image, or `label` in metadata.jsonl"
        )
    heldout = Heldout(a.x_NHW, a.patient_N, a.label_N)
    evaluator = Evaluator(
        heldout,
        bootstrap=bootstrap,
        seed=seed,
        metrics=[*metrics, *METRICS.plugged()],
        options={
            "inception_weights": inception_weights,
            "lpips_weights": lpips_weights,
            "radiomics": with_radiomics,
        },
        samples=len(b.x_NHW),
        cache=cache,
    )
    found_all, told = evaluator(b.x_NHW, b.patient_N if b.patients_known else None), evaluator.descriptions
    figures = {name: figure for name, figure in found_all.items() if told[name].has_interval}
    extras = {n: {"value": f.value, "floor": f.floor} for n, f in found_all.items() if n not in figures}
    studied = _studied(a, b, heldout, evaluator, bootstrap, seed, with_utility)
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
    notes = _notes(a, b, found, sides, pixels, images) + studied["notes"]
    return Comparison(a, b, figures, extras, told, protocol, notes, studied)


def _common(a: Gallery, b: Gallery) -> list[str]:
    return [name for name in a.classes if name in b.classes]


def _studied(
    a: Gallery, b: Gallery, heldout: Heldout, evaluator: Evaluator, bootstrap: int, seed: int, with_utility: bool
) -> dict[str, Any]:
    """Biomarkers and utility in the classes that both sets name."""
    classes = _common(a, b)
    # Without a common name there are no classes to compare: every image of either set is one
    names = classes or [""]
    label_N, label_M = (
        np.array([names.index(name) if name in names else -1 for name in g.classes])[g.label_N]
        if classes
        else 0 * g.label_N
        for g in (a, b)
    )
    return study(
        Heldout(heldout.x_NHW, heldout.patient_N, label_N),
        b.x_NHW,
        label_M,
        [name or "all" for name in names],
        bootstrap=bootstrap,
        seed=seed,
        with_utility=with_utility,
        real_Nd=evaluator.features,
    )


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
        if used.not_finite:
            notes.append(
                f"{used.not_finite} {name} image(s) hold pixels that are no numbers and are left out: figures flatter the set."
            )
        if used.empty:
            notes.append(f"{used.empty} {name} image(s) are nearly black or flat; they are counted like the others.")
    n = np.unique(a.patient_N).size
    if n < 20:
        notes.append(f"{n} real patients are few: floors and intervals are rough.")
    return notes
