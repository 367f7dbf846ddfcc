"""The gate's checks that look at images: degenerate generators fail them, real images of other patients pass.

Left out: how good images are; `server.evaluation.evaluate` measures that, and it is published whatever it says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from server.evaluation.heldout import Heldout
from server.metrics import similarity
from shared.config.gate import Gate

SEEN = 500  # drawn images that the central checks look at, spread over all
BOOTSTRAP = 200
SEED = 0


@dataclass(frozen=True)
class Check:
    """One check and its verdict.

    value, low, high   its figure with a 95 % interval; none where it is not a number
    threshold          what the figure is held against, in words
    limits             lower and upper limit of the figure, for the plot
    """

    name: str
    passed: bool
    detail: str
    threshold: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limits: tuple[float | None, float | None] = (None, None)


def classes(
    x_NHW: np.ndarray, label_N: np.ndarray, counts: Mapping[str, int], heldout: Heldout, settings: Gate
) -> Check:
    """Every class is there, and told apart where real patients' classes are."""
    name, words = "classes", f"at least {settings.classes:g} of the way from chance to real images"
    empty = [label for label, count in counts.items() if count == 0]
    if empty or not counts:
        return Check(name, False, f"no image of the class {empty[0]}" if empty else "no class", words)
    present = sorted(set(heldout.label_N.tolist()) & set(label_N.tolist()))
    chance = 1 / max(len(present), 1)
    if len(present) < 2:
        return Check(name, True, "one class: nothing to tell apart", words)
    kept_N = np.isin(heldout.label_N, present)
    x_real, y_real, patient = heldout.x_NHW[kept_N], heldout.label_N[kept_N], heldout.patient_N[kept_N]
    real, drawn = _features(x_real), _features(x_NHW)
    other = real @ real.T
    other[patient[:, None] == patient[None, :]] = -np.inf
    hit_real = y_real[other.argmax(1)] == y_real
    value, low, _ = _balanced(hit_real, y_real, patient, present)
    if low <= chance:
        return Check(
            name,
            True,
            f"real classes cannot be told apart here ({value:.2f}, chance {chance:.2f}): nothing is asked",
            words,
        )
    limit = chance + settings.classes * (value - chance)
    hit = y_real[(drawn @ real.T).argmax(1)] == label_N
    inside = np.isin(label_N, present)
    found, low, high = _balanced(hit[inside], label_N[inside], np.arange(int(inside.sum())), present)
    detail = f"drawn classes are recognised in {found:.2f} of cases, real ones in {value:.2f}, chance is {chance:.2f}"
    return Check(name, found >= limit, detail, f"{limit:.2f} or more", found, low, high, (limit, None))


def diversity(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """Drawn images may not be clearly more alike than patients are."""
    rng = np.random.default_rng(SEED)
    small, real = similarity.shrink(x_NHW), similarity.shrink(heldout.x_NHW)
    drawn_K = similarity.ms_ssim(small, small, similarity.pairs(np.arange(len(small)), rng, 400))
    real_K = similarity.ms_ssim(real, real, similarity.pairs(heldout.patient_N, rng, 400))
    value = float(drawn_K.mean() - real_K.mean())
    spread = [_resampled(drawn_K, rng) - _resampled(real_K, rng) for _ in range(BOOTSTRAP)]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    detail = f"MS-SSIM of two drawn images less that of two patients: {value:+.3f} ({low:+.3f} to {high:+.3f})"
    ok = math.isfinite(value) and low <= settings.collapse
    return Check(
        "diversity", ok, detail, f"lower end {settings.collapse:g} or less", value, low, high, (None, settings.collapse)
    )


def sharpness(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """Fine detail neither lost nor made of noise."""
    rng = np.random.default_rng(SEED)
    drawn_N, real_N = detail_power(x_NHW), detail_power(heldout.x_NHW)
    value = float(np.median(drawn_N) / np.median(real_N))
    spread = [
        np.median(rng.choice(drawn_N, len(drawn_N))) / np.median(rng.choice(real_N, len(real_N)))
        for _ in range(BOOTSTRAP)
    ]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    least, most = settings.sharpness, 1 / settings.sharpness
    detail = f"power of fine detail, drawn over real: {value:.3g} ({low:.3g} to {high:.3g})"
    return Check(
        "sharpness", bool(least <= value <= most), detail, f"{least:g} to {most:g}", value, low, high, (least, most)
    )


def likeness(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """At least remotely like a held-out patient."""
    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(len(heldout.x_NHW))[:SEEN])
    real, patient = similarity.shrink(heldout.x_NHW[kept]), np.unique(heldout.patient_N[kept], return_inverse=True)[1]
    near = similarity.nearest(similarity.shrink(x_NHW), real, patient).max(1)
    own = similarity.nearest(real, real, patient)
    own[np.arange(len(patient)), patient] = -np.inf
    floor = float(own.max(1).mean())
    value = float(near.mean()) / floor
    spread = [_resampled(near, rng) / floor for _ in range(BOOTSTRAP)]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    detail = f"NN-SSIM to held-out patients {near.mean():.3f}, other real patients {floor:.3f}: {value:.2f} of it"
    ok = floor > 0 and value >= settings.likeness
    return Check(
        "likeness", bool(ok), detail, f"{settings.likeness:g} or more", value, low, high, (settings.likeness, None)
    )


def detail_power(x_NHW: np.ndarray) -> np.ndarray:
    """Power of each image (N,) at more than a quarter of the sampling rate, per pixel."""
    x = x_NHW.astype(np.float64) / 255
    power = np.abs(np.fft.fft2(x - x.mean((1, 2), keepdims=True))) ** 2
    f = np.fft.fftfreq(x.shape[1])
    return np.asarray(power[:, np.hypot(f[:, None], f[None, :]) > 0.25].sum(1) / x[0].size ** 2)


def _features(x_NHW: np.ndarray) -> np.ndarray:
    """Averaged to 16 x 16, centred, unit norm: correlation as an inner product."""
    n, height, _ = x_NHW.shape
    block = height // 16
    small = x_NHW[:, : 16 * block, : 16 * block].reshape(n, 16, block, 16, block).mean((2, 4)).reshape(n, -1)
    small -= small.mean(1, keepdims=True)
    return np.asarray(small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-12))


def _balanced(
    hit_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, present: list[int]
) -> tuple[float, float, float]:
    """Mean over classes of the share of hits, with a 95 % bootstrap over groups within each class."""
    rng = np.random.default_rng(SEED)
    per_class = []
    for label in present:
        mine = label_N == label
        groups, inverse = np.unique(group_N[mine], return_inverse=True)
        hits, sizes = np.bincount(inverse, hit_N[mine]), np.bincount(inverse)
        drawn = rng.integers(len(groups), size=(BOOTSTRAP, len(groups)))
        per_class.append((float(hit_N[mine].mean()), hits[drawn].sum(1) / sizes[drawn].sum(1)))
    spread = np.mean([s for _, s in per_class], axis=0)
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(np.mean([v for v, _ in per_class])), float(low), float(high)


def _resampled(values: np.ndarray, rng: np.random.Generator) -> float:
    return float(values[rng.integers(len(values), size=len(values))].mean())
