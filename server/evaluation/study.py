"""What labelled images are studied for beside their figures: imaging biomarkers by class, and downstream utility.

`study` gives a plain tree for JSON, so that a run's record, its summary, the pages and the cards carry the same:
{"biomarkers": {...} or none, "utility": {...} or none, "notes": [sentences]}. What could not be measured is a note.

Left out: how either is measured (see `biomarkers` and `utility`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from server.evaluation.biomarkers import NAMES, Biomarkers, biomarkers
from server.evaluation.heldout import Heldout
from server.evaluation.utility import utility
from shared.errors import DataError

BIOMARKER_HEADS = ("Biomarker", "Class", "Real", "Synthetic", "KS", "KS real against real")
UTILITY_HEADS = ("Classifier", "By patient", "Trained on synthetic", "Trained on real", "Synthetic less real", "Chance")


def study(
    heldout: Heldout,
    x_NHW: np.ndarray,
    label_N: np.ndarray,
    classes: Sequence[str],
    *,
    bootstrap: int,
    seed: int,
    with_utility: bool,
    markers: Collection[str] = NAMES,
    real_Nd: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Study drawn images (N, H, W) uint8 with labels (N,) against held-out patients whose labels mean the same.

    markers   the biomarkers that apply to these images: the modality says which
    """
    tree: dict[str, Any] = {"biomarkers": None, "utility": None, "notes": []}
    try:
        if not markers:
            raise DataError("none of them applies to this modality")
        found = biomarkers(heldout, x_NHW, label_N, classes, bootstrap=bootstrap, seed=seed)
        tree["biomarkers"] = found.to_dict() | {"markers": _of(markers, found)}
        tree["notes"] += found.notes
    except DataError as error:
        tree["notes"].append(f"Biomarkers were not measured: {error}.")
    if with_utility:
        try:
            taught = utility(
                heldout,
                x_NHW,
                label_N,
                classes,
                bootstrap=bootstrap,
                seed=seed,
                real_Nd=real_Nd,
                progress=progress,
            )
            tree["utility"] = taught.to_dict()
            tree["notes"] += taught.notes
        except DataError as error:
            tree["notes"].append(f"Downstream utility was not measured: {error}.")
    return tree


def _of(markers: Collection[str], found: Biomarkers) -> dict[str, dict[str, Any]]:
    every = found.to_dict()["markers"]
    return {label: {name: each[name] for name in each if name in markers} for label, each in every.items()}


def biomarker_rows(tree: Mapping[str, Any]) -> list[list[str]]:
    """Cells under BIOMARKER_HEADS, biomarker by biomarker; empty where none was measured."""
    markers: Mapping[str, Any] = (tree.get("biomarkers") or {}).get("markers") or {}
    names = list(next(iter(markers.values()), {}))
    return [
        [name, label, _shown(m["real"]), _shown(m["synthetic"]), _interval(m), f"{m['floor']:.2f}"]
        for name in names
        for label, m in ((label, found[name]) for label, found in markers.items())
    ]


def utility_rows(tree: Mapping[str, Any]) -> list[list[str]]:
    """Cells under UTILITY_HEADS, classifier by classifier; empty where it was not measured."""
    scores: Mapping[str, Any] = (tree.get("utility") or {}).get("scores") or {}
    return [
        [
            name,
            metric,
            *(_interval(t[side], sign) for side, sign in (("synthetic", ""), ("real", ""), ("gap", "+"))),
            f"{t['chance']:.2f}",
        ]
        for name, metrics in scores.items()
        for metric, t in metrics.items()
    ]


def utility_words(tree: Mapping[str, Any]) -> str:
    """How the classifiers were trained and tested, with the numbers of this study."""
    p = (tree.get("utility") or {}).get("protocol") or {}
    return (
        f"Classifiers that saw {p['synthetic_images']} synthetic images alone, tested on {p['real_patients']} real patients "
        f"({p['real_images']} images, {p['classes']} classes), beside classifiers trained on the same real patients by "
        f"{p['folds']}-fold cross-validation; {p['seeds']} seeds. Intervals: 95 %, over patients and seeds."
        if p
        else ""
    )


def biomarker_words(tree: Mapping[str, Any]) -> str:
    """What the biomarkers are, and how many images have none."""
    found = tree.get("biomarkers") or {}
    refused = found.get("real_refused", 0) + found.get("synthetic_refused", 0)
    left_out = f" {refused} image(s) without brain-like foreground are left out." if refused else ""
    return (
        "Medians, and Kolmogorov and Smirnov's statistic with its 95 % interval: 0 is the same distribution, 1 is disjoint. Areas "
        f"of one skull-stripped T1 slice by thresholding, not volumes.{left_out}"
        if found
        else ""
    )


def markdown(tree: Mapping[str, Any]) -> str:
    """Both tables with their words, for a card; what was not measured is said."""
    parts = []
    for title, words, heads, rows in (
        ("Biomarkers of the slices", biomarker_words(tree), BIOMARKER_HEADS, biomarker_rows(tree)),
        ("Downstream utility", utility_words(tree), UTILITY_HEADS, utility_rows(tree)),
    ):
        lines = [" | ".join(row) for row in ([*heads], ["---"] * len(heads), *rows)]
        table = "\n".join(f"| {line} |" for line in lines)
        parts.append(f"## {title}\n\n" + (f"{words}\n\n{table}" if rows else "Not measured."))
    return "\n\n".join(parts + list(tree.get("notes", [])))


def _interval(m: Mapping[str, float], sign: str = "") -> str:
    return f"{m['value']:{sign}.2f} ({m['low']:{sign}.2f} to {m['high']:{sign}.2f})"


def _shown(value: float) -> str:
    return f"{value:.0f}" if value > 1 else f"{value:.3f}"
