"""Downstream utility: does a classifier that has seen synthetic images alone know real patients?

TSTR        trained on all synthetic images, tested on all real patients
TRTR        trained on real patients and tested on others: cross-validation over the same real patients, every one tested once by a
            model that has not seen them. Whoever evaluates has no training patients of any site, so this "real" is the
            evaluation set itself: its folds hold few patients, and with more of them TRTR would be higher
chance      what guessing scores: one over the classes, or 0.5

Two architectures, so that a verdict is not that of one of them:
linear probe  multinomial logistic regression on the features of EfficientNet-Lite0 (ImageNet; see `features`), standardised
small CNN     four convolutions from scratch, on images averaged to at most 32 pixels, mirrored at random
Both: 200 steps of AdamW with a one-cycle rate, batches of 64 with every class equally often. Nothing is chosen by looking at a test
score. Three seeds each: initial weights, batches, folds.

A patient is one answer: the mean of log probabilities over the slices. Balanced accuracy: the mean over classes of the share of
patients that are told right. AUROC: one class against the rest, mean over classes; under cross-validation the scores of several
models are pooled, which errs a little downwards (Forman and Scholz 2010).

Interval: 95 %, bootstrap over the patients of each class and over seeds. The gap is TSTR less TRTR on the same resamples.
Reading: where the interval of TRTR reaches chance, real images do not teach these classes here, and the gap says nothing.

Left out: tuning, larger networks, segmentation. Esteban et al. 2017 (https://arxiv.org/abs/1706.02633) for the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from server.evaluation.heldout import Heldout
from server.metrics import features, similarity
from server.metrics.base import interval
from shared.errors import DataError

SEEDS, STEPS, BATCH, FOLDS = 3, 200, 64, 5
SIDE = 32  # pixels that the small CNN sees
FEWEST = 10  # synthetic images of a class
METRICS = ("balanced accuracy", "AUROC")


@dataclass(frozen=True)
class Score:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Taught:
    """One architecture by one metric: trained on synthetic images, trained on real ones, the first less the second, guessing."""

    synthetic: Score
    real: Score
    gap: Score
    chance: float

    @property
    def taught(self) -> bool:
        """Whether real images teach the classes at all, so that the gap says something."""
        return self.real.low > self.chance


@dataclass(frozen=True)
class Utility:
    """Architecture -> metric -> what it came to; how it was measured, and what must be known to read it."""

    scores: dict[str, dict[str, Taught]]
    protocol: dict[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"notes": list(self.notes)}


def utility(
    heldout: Heldout,
    x_MHW: np.ndarray,
    label_M: np.ndarray,
    classes: Sequence[str],
    *,
    bootstrap: int,
    seed: int,
    real_Nd: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Utility:
    """Train on synthetic images (M, H, W) uint8 with labels (M,), and on held-out patients, and test both on held-out patients.

    real_Nd   EfficientNet-Lite0 features of the held-out images, where they are known

    A class with fewer than two real patients or ten synthetic images is left out, and said so. DataError where fewer than two
    remain.
    """
    counts = [
        (len(np.unique(heldout.patient_N[heldout.label_N == c])), int((label_M == c).sum()))
        for c in range(len(classes))
    ]
    kept = [c for c, (patients, images) in enumerate(counts) if patients >= 2 and images >= FEWEST]
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} class(es) have two real patients and {FEWEST} synthetic images; downstream utility needs two such "
            "classes that both sets know"
        )
    real_kept, drawn_kept = np.isin(heldout.label_N, kept), np.isin(label_M, kept)
    y_N, y_M = (np.searchsorted(kept, y) for y in (heldout.label_N[real_kept], label_M[drawn_kept]))
    _, group_N = np.unique(np.stack([heldout.patient_N[real_kept], y_N]), axis=1, return_inverse=True)
    group_N = group_N.reshape(-1)
    y_P = y_N[np.unique(group_N, return_index=True)[1]]
    folds = min(FOLDS, int(np.bincount(y_P).min()))
    network = features.EfficientNetLite0()
    real = features.extract(network, heldout.x_NHW) if real_Nd is None else real_Nd
    inputs = {
        "linear probe": (
            real[torch.from_numpy(real_kept)].float(),
            features.extract(network, x_MHW[drawn_kept]).float(),
        ),
        "small CNN": (_small(heldout.x_NHW[real_kept]), _small(x_MHW[drawn_kept])),
    }
    scores, done, total = {}, 0, len(inputs) * SEEDS * (folds + 1)
    for name, (x_N, x_M) in inputs.items():
        tstr, trtr = np.empty((2, SEEDS, len(y_P), len(kept)))
        for s in range(SEEDS):
            fold_P = _folds(y_P, folds, np.random.default_rng([seed, s]))
            log_NC = np.empty((len(y_N), len(kept)))
            for k in range(folds):
                test_N = fold_P[group_N] == k
                log_NC[test_N] = _taught(name, x_N[~test_N], y_N[~test_N], x_N[test_N], len(kept), seed + s)
            trtr[s] = _by_patient(log_NC, group_N)
            tstr[s] = _by_patient(_taught(name, x_M, y_M, x_N, len(kept), seed + s), group_N)
            done += folds + 1
            if progress:
                progress(done, total)
        scores[name] = _scored(tstr, trtr, y_P, bootstrap, np.random.default_rng(seed))
    protocol = {
        "classes": len(kept),
        "real_patients": len(y_P),
        "real_patients_per_class": np.bincount(y_P).tolist(),
        "real_images": len(y_N),
        "synthetic_images": len(y_M),
        "folds": folds,
        "seeds": SEEDS,
        "bootstrap": bootstrap,
    }
    return Utility(scores, protocol, _notes(scores, len(classes) - len(kept)))


def _notes(scores: dict[str, dict[str, Taught]], left_out: int) -> tuple[str, ...]:
    notes = []
    if left_out:
        notes.append(
            f"{left_out} class(es) with fewer than two real patients or {FEWEST} synthetic images are left out."
        )
    blind = [name for name, metrics in scores.items() if not any(taught.taught for taught in metrics.values())]
    if blind:
        notes.append(
            f"Even real images do not teach these classes here ({', '.join(blind)}: trained on real, the interval reaches chance). "
            "That synthetic images do no worse says nothing then."
        )
    return tuple(notes)


def _taught(name: str, x: Tensor, y: np.ndarray, test: Tensor, classes: int, seed: int) -> np.ndarray:
    """Log probabilities (T, C) of test images after training on x with labels y."""
    if name == "linear probe":
        mean, spread = x.mean(0), x.std(0)
        spread = spread.clamp_min(
            0.1 * float(spread.mean())
        )  # a feature that slept in training must not shout in the test
        x, test = (x - mean) / spread, (test - mean) / spread
    y_N = torch.from_numpy(y)
    weight_N = 1 / torch.bincount(y_N, minlength=classes).double()[y_N]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # weights, batches and mirrors; nothing private hangs on it
        network, rate, decay = (
            (nn.Linear(x.shape[1], classes), 1e-2, 1e-1) if name == "linear probe" else (_cnn(classes), 3e-3, 1e-2)
        )
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS)
        for _ in range(STEPS):
            rows = torch.multinomial(weight_N, BATCH, replacement=True)
            x_B = x[rows]
            if x.ndim == 4 and torch.rand(()) < 0.5:
                x_B = x_B.flip(3)
            loss = F.cross_entropy(network(x_B), y_N[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found: np.ndarray = torch.cat([network(part).log_softmax(1) for part in test.split(256)]).double().numpy()
    return found


def _small(x_NHW: np.ndarray) -> Tensor:
    """(N, H, H) uint8 -> (N, 1, h, h) in [0, 1] with h = min(H, 32)."""
    x_N1HW = similarity.shrink(x_NHW)[:, None]
    return F.adaptive_avg_pool2d(x_N1HW, min(SIDE, x_N1HW.shape[3]))


def _cnn(classes: int) -> nn.Module:
    """(B, 1, H, H) in [0, 1] -> (B, classes)."""
    layers: list[nn.Module] = []
    for inside, outside, stride in ((1, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(inside, outside, 3, stride, 1), nn.GroupNorm(8, outside), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def _folds(y_P: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """A fold for each patient (P,), every class spread evenly over them."""
    fold_P = np.empty(len(y_P), int)
    for c in np.unique(y_P):
        mine = rng.permutation(np.flatnonzero(y_P == c))
        fold_P[mine] = np.arange(len(mine)) % folds
    return fold_P


def _by_patient(log_NC: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Mean over each patient's slices, (P, C)."""
    sums = np.stack([np.bincount(group_N, column) for column in log_NC.T], axis=1)
    return np.asarray(sums / np.bincount(group_N)[:, None])


def balanced_accuracy(log_PC: np.ndarray, y_P: np.ndarray) -> float:
    right_P = log_PC.argmax(1) == y_P
    return float(np.mean([right_P[y_P == c].mean() for c in np.unique(y_P)]))


def auroc(log_PC: np.ndarray, y_P: np.ndarray) -> float:
    """One class against the rest, by ranks, mean over classes; ties count half."""
    found = []
    for c in np.unique(y_P):
        mine = y_P == c
        m, n = int(mine.sum()), int((~mine).sum())
        found.append((rankdata(log_PC[:, c])[mine].sum() - m * (m + 1) / 2) / (m * n))
    return float(np.mean(found))


def _scored(
    tstr_SPC: np.ndarray, trtr_SPC: np.ndarray, y_P: np.ndarray, bootstrap: int, rng: np.random.Generator
) -> dict[str, Taught]:
    """Both metrics of one architecture, means over seeds, with intervals over patients and seeds."""
    members = [np.flatnonzero(y_P == c) for c in np.unique(y_P)]
    draws = [
        (rng.integers(SEEDS, size=SEEDS), np.concatenate([rng.choice(m, len(m)) for m in members]))
        for _ in range(bootstrap)
    ]
    found = {}
    for name, metric, chance in zip(METRICS, (balanced_accuracy, auroc), (1 / len(members), 0.5), strict=True):

        def mean(
            log_SPC: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float] = metric
        ) -> tuple[float, np.ndarray]:
            spread = [np.mean([metric(log_SPC[s][rows], y_P[rows]) for s in seeds]) for seeds, rows in draws]
            return float(np.mean([metric(log_PC, y_P) for log_PC in log_SPC])), np.array(spread)

        (a, spread_a), (b, spread_b) = mean(tstr_SPC), mean(trtr_SPC)
        found[name] = Taught(
            _score(a, spread_a, 0.0), _score(b, spread_b, 0.0), _score(a - b, spread_a - spread_b, -1.0), chance
        )
    return found


def _score(value: float, spread: np.ndarray, least: float) -> Score:
    low, high = interval(value, list(spread))
    return Score(value, min(value, max(low, least)), max(value, min(high, 1.0)))
