"""What readers' judgements come to: confusion tables, accuracy, agreement, scores, each with a 95 % interval.

accuracy     share of images that were called right; 0.5 is chance. Wilson's interval (1927), for readers together a bootstrap
             over images, because readers see the same ones
kappa        agreement of readers beyond chance on "real or not": Cohen (1960) for two, Fleiss (1971) for more, over the images
             that all of them judged; bootstrap over images. 1 is full agreement, 0 is chance; none where nobody disagrees in
             what they say at all
scores       mean anatomy score of real and of synthetic images, and their difference; bootstrap over images
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from server.reports.review import ARTEFACTS, Answer, Review

BOOTSTRAP, SEED = 1000, 0
Interval = dict[str, float | None]


def results(review: Review) -> dict[str, Any]:
    """Everything that a review has come to so far, for scripts and the report. No image, no patient."""
    answers = review.answers()
    by_reader = {name: [a for a in answers if a.reader == name] for name in review.tokens}
    judged = {name: {a.image: a for a in found} for name, found in by_reader.items() if found}
    common = sorted(set.intersection(*(set(found) for found in judged.values()))) if judged else []
    called_RN = np.array([[judged[name][image].real for image in common] for name in judged], dtype=bool)
    return {
        "images": len(review.truth),
        "readers": {name: _reader(found, review.truth) for name, found in by_reader.items() if found},
        "everybody": _reader(answers, review.truth, together=True) if len(judged) > 1 else None,
        "agreement": {
            "measure": "Cohen's kappa" if len(judged) == 2 else "Fleiss' kappa",
            "images": len(common),
            "kappa": _bootstrapped(
                len(common), lambda i: cohen(*called_RN[:, i]) if len(judged) == 2 else fleiss(called_RN[:, i])
            ),
        }
        if len(judged) > 1 and common
        else None,
    }


def _reader(answers: Sequence[Answer], truth: dict[str, bool], *, together: bool = False) -> dict[str, Any]:
    counts = {
        f"{'real' if real else 'synthetic'}_called_{'real' if called else 'synthetic'}": sum(
            truth[a.image] == real and a.real == called for a in answers
        )
        for real in (True, False)
        for called in (True, False)
    }
    right = [truth[a.image] == a.real for a in answers]
    return {
        "answers": len(answers),
        "confusion": counts,
        "accuracy": _over_images(answers, right) if together else wilson(sum(right), len(right)),
        "score": {
            kind: _over_images(
                [a for a in answers if truth[a.image] == real], [a.score for a in answers if truth[a.image] == real]
            )
            for kind, real in (("real", True), ("synthetic", False))
        },
        "artefacts": {
            mark: {
                kind: sum(mark in a.artefacts for a in answers if truth[a.image] == real)
                for kind, real in (("real", True), ("synthetic", False))
            }
            for mark in ARTEFACTS
        },
    }


def wilson(right: int, total: int) -> Interval:
    """A share with Wilson's 95 % interval."""
    if total == 0:
        return {"value": None, "low": None, "high": None}
    z, p = 1.959964, right / total
    centre, scale = p + z * z / (2 * total), 1 + z * z / total
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return {"value": p, "low": max(0.0, (centre - half) / scale), "high": min(1.0, (centre + half) / scale)}


def cohen(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Cohen's kappa of two readers' yes and no; NaN where chance alone agrees on everything."""
    observed = float((a_N == b_N).mean())
    p, q = float(a_N.mean()), float(b_N.mean())
    chance = p * q + (1 - p) * (1 - q)
    return (observed - chance) / (1 - chance) if chance < 1 else math.nan


def fleiss(called_RN: np.ndarray) -> float:
    """Fleiss' kappa of R readers' yes and no on N images."""
    return fleiss_counts(np.stack([called_RN.sum(0), (~called_RN).sum(0)], axis=1))


def fleiss_counts(counts_NK: np.ndarray) -> float:
    """Fleiss' kappa (1971) from how many readers chose each of K categories; NaN where all chose one and the same."""
    n = counts_NK.sum(1)[0]
    agree_N = (np.square(counts_NK).sum(1) - n) / (n * (n - 1))
    chance = float(np.square(counts_NK.sum(0) / counts_NK.sum()).sum())
    return (float(agree_N.mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def _over_images(answers: Sequence[Answer], values: Sequence[float]) -> Interval:
    """A mean, with a bootstrap over images: all answers to one image together."""
    images = sorted({a.image for a in answers})
    index = {image: i for i, image in enumerate(images)}
    rows = np.array([index[a.image] for a in answers], dtype=int)
    total = np.bincount(rows, np.asarray(values, float), minlength=len(images))
    count = np.bincount(rows, minlength=len(images))
    return _bootstrapped(len(images), lambda i: float(total[i].sum() / count[i].sum()))


def _bootstrapped(n: int, measure: Callable[[np.ndarray], float]) -> Interval:
    """The figure over all n images, and the 2.5 and 97.5 percentiles over resamples; none where it is not defined."""
    if n == 0:
        return {"value": None, "low": None, "high": None}
    rng = np.random.default_rng(SEED)
    value = measure(np.arange(n))
    spread = np.array([measure(rng.integers(n, size=n)) for _ in range(BOOTSTRAP)])
    spread = spread[np.isfinite(spread)]
    if not math.isfinite(value) or not len(spread):
        return {"value": None, "low": None, "high": None}
    low, high = np.quantile(spread, [0.025, 0.975])
    return {"value": value, "low": min(value, float(low)), "high": max(value, float(high))}
