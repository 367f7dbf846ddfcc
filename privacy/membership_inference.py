"""Membership inference: can it be told whom a model was trained on? One score for each patient, never for each image.

Attacks (higher score: more likely a member)
    loss               minus the patient's mean training loss under the released model (Yeom et al. 2018, arXiv 1709.01604; for
                       diffusion: Carlini et al. 2023, arXiv 2301.13188, section 5)
    calibrated loss    loss under the public base minus loss under the released model: what this patient's images gained
                       (Watson et al. 2022, arXiv 2111.08440, difficulty calibration; the base is the reference model)
    update alignment   how far each round's update leans towards the patient's own gradient, beyond what all patients have in
                       common; white box, needs no second look at the images (after Leemann et al. 2023, arXiv 2306.07273, who
                       derive it for DP-SGD as a likelihood ratio; here with the identity for the covariance)

Figures       AUC (chance of ranking a member above a non-member, ties count half) and the TPR at an observed FPR of at most
              1 %. With fewer than 100 non-members that means no false positive at all, and the true FPR of such a threshold is
              on average 1 / (non-members + 1), often far above 1 %: compare with `ceiling` at `fpr`. Intervals: 95 %, bootstrap
              over patients; of the TPR the wider of that and Clopper-Pearson, because a bootstrap of a 0 is a 0
Reading       A private model cannot be told apart better than `accounting.best_attack`, by any attack. An AUC whose whole
              interval is above it: something is wrong. Below it: these attacks did not find more. A non-private model that
              memorises is the positive control

Left out: shadow models (LiRA): dozens of trainings; where patients are as few as here, calibration gives most of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import beta, rankdata
from torch import Tensor

from shared.errors import PrivacyError

FPR = 0.01
FEWEST = 5


def by_loss(loss_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses under the released model -> scores."""
    return -loss_P


def by_calibrated_loss(loss_P: NDArray[np.float64], reference_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses under the released model and under a reference that has seen no patient -> scores."""
    return reference_P - loss_P


def by_alignment(
    gradient: Callable[[int], Sequence[Tensor | None]], count: int, update: Sequence[Tensor], max_grad_norm: float
) -> NDArray[np.float64]:
    """Scores of `count` patients from one round's update: -<u - a m, clip(g_i) - m>.

    m is the mean of the patients' clipped gradients, which stands for the population; a fits u by least squares, whatever the
    learning rate. What all patients have in common so drops out; left is what this cohort adds, and the noise.

    gradient   of a patient at the model that the round began with, tensor by tensor; asked for twice each
    """

    def clipped(i: int) -> Tensor:
        flat = torch.cat(
            [
                (torch.zeros_like(u) if g is None else g).detach().double().reshape(-1).cpu()
                for g, u in zip(gradient(i), update, strict=True)
            ]
        )
        return flat * min(1.0, max_grad_norm / max(float(torch.linalg.vector_norm(flat)), 1e-30))

    u = torch.cat([t.detach().double().reshape(-1).cpu() for t in update])
    mean = torch.zeros_like(u)
    for i in range(count):
        mean += clipped(i) / count
    squared = float(mean @ mean)
    residual = u - mean * (float(u @ mean) / squared) if squared > 0 else u
    return np.array([-float(residual @ (clipped(i) - mean)) for i in range(count)])


@dataclass(frozen=True)
class Membership:
    """How well members and non-members were told apart. `low` and `high`: 95 % intervals over patients.

    fpr   expected true false positive rate of the threshold behind `tpr_at_1pct`, (allowed + 1) / (nonmembers + 1)
    """

    members: int
    nonmembers: int
    auc: float
    auc_low: float
    auc_high: float
    tpr_at_1pct: float
    tpr_low: float
    tpr_high: float
    fpr: float


def ceiling(fpr: float, mu: float) -> float:
    """The largest TPR at this FPR under mu-GDP (Dong, Roth and Su 2022, equation 6).

    Also for an expected FPR: the curve is concave, so the expected TPR is at most the curve at the expected FPR.
    """
    return float(ndtr(ndtri(fpr) + mu))


def measure(
    member_M: NDArray[np.float64], nonmember_N: NDArray[np.float64], *, bootstrap: int = 1000, seed: int = 0
) -> Membership:
    """Figures of one attack from the scores of members and of non-members. See the top of this file.

    Raises PrivacyError with fewer than 5 of either, or scores that are not finite.
    """
    if min(len(member_M), len(nonmember_N)) < FEWEST:
        raise PrivacyError(
            f"{len(member_M)} members and {len(nonmember_N)} non-members; membership inference needs {FEWEST} of each"
        )
    if not (np.isfinite(member_M).all() and np.isfinite(nonmember_N).all()):
        raise PrivacyError("a membership score is not a finite number; the model or a patient's loss is damaged")
    rng = np.random.default_rng(seed)
    m, n = len(member_M), len(nonmember_N)
    resampled = np.empty((bootstrap, 2))
    for b in range(bootstrap):
        a, o = member_M[rng.integers(m, size=m)], nonmember_N[rng.integers(n, size=n)]
        resampled[b] = auc(a, o), tpr(a, o)
    value, rate = auc(member_M, nonmember_N), tpr(member_M, nonmember_N)
    auc_low, auc_high = np.quantile(resampled[:, 0], [0.025, 0.975])
    tpr_low, tpr_high = np.quantile(resampled[:, 1], [0.025, 0.975])
    hits = round(rate * m)
    exact_low = float(beta.ppf(0.025, hits, m - hits + 1)) if hits else 0.0
    exact_high = float(beta.ppf(0.975, hits + 1, m - hits)) if hits < m else 1.0
    return Membership(
        m,
        n,
        value,
        min(value, float(auc_low)),
        max(value, float(auc_high)),
        rate,
        min(float(tpr_low), exact_low),
        max(float(tpr_high), exact_high),
        (math.floor(FPR * n + 1e-9) + 1) / (n + 1),
    )


def auc(member_M: NDArray[np.float64], nonmember_N: NDArray[np.float64]) -> float:
    """Area under the ROC curve, by ranks (Mann and Whitney 1947)."""
    m, n = len(member_M), len(nonmember_N)
    ranks = rankdata(np.concatenate([member_M, nonmember_N]))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def tpr(member_M: NDArray[np.float64], nonmember_N: NDArray[np.float64], fpr: float = FPR) -> float:
    """True positive rate at the lowest threshold whose observed false positive rate is at most `fpr`."""
    allowed = math.floor(fpr * len(nonmember_N) + 1e-9)
    threshold = np.sort(nonmember_N)[::-1][allowed] if allowed < len(nonmember_N) else -math.inf
    return float((member_M > threshold).mean())
