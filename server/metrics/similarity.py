"""Structural similarity of unpaired images: how alike are images of one set, and how near is the nearest of another?

Both are measured at no more than 64 x 64 pixels (larger images are reduced, with antialiasing), so that figures of
different image sizes mean the same.

MS-SSIM by torchmetrics. Its default refuses small images: here kernel 7 (sigma 0.8) and 3 scales with betas
(0.3, 0.35, 0.35) at 64 pixels, 2 scales at 32, 1 at 16.
SSIM as by Wang et al. 2004: Gaussian window (11 pixels, sigma 1.5), k1 0.01, k2 0.03, windows wholly inside the image, at 64
pixels every third. A window's weighted products are inner products of patches: all pairs are one matrix product per window.

PSNR: 10 log10 (1 / mean squared error) in dB, of images in [0, 1]; copies would score infinity and are given 60 dB.

Left out: SSIM between random real and drawn images. It rewards collapse: the mean image beats real ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from server.metrics.base import Drawn, Held

PIXELS = 64  # the largest width at which similarity is measured
PAIRS = 1000  # random pairs behind an intra-set MS-SSIM
BETAS = {1: (1.0,), 2: (0.45, 0.55), 3: (0.3, 0.35, 0.35)}
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
PSNR_TOP = 60.0  # dB; about what rounding to 8 bits leaves


def shrink(x_NHW: np.ndarray) -> Tensor:
    """(N, H, H) uint8 -> (N, h, h) float32 in [0, 1] with h = min(H, 64)."""
    x_N1HW = torch.from_numpy(np.ascontiguousarray(x_NHW))[:, None].float() / 255.0
    if x_N1HW.shape[2] > PIXELS:
        x_N1HW = F.interpolate(x_N1HW, size=(PIXELS, PIXELS), mode="bilinear", antialias=True, align_corners=False)
    return x_N1HW[:, 0]


def small(held: Held) -> Tensor:
    """The held-out images, shrunk once for all metrics."""
    return held.once("small", lambda: shrink(held.x_NHW))


def small_drawn(drawn: Drawn) -> Tensor:
    """The drawn images, shrunk once for all metrics."""
    return drawn.once("small", lambda: shrink(drawn.x_MHW))


def pairs(group_N: np.ndarray, rng: np.random.Generator, count: int = PAIRS) -> np.ndarray:
    """`count` random pairs (K, 2) of indices whose groups (patients) differ; with repetition where few exist."""
    ends_K2 = rng.integers(len(group_N), size=(count, 2))
    same = group_N[ends_K2[:, 0]] == group_N[ends_K2[:, 1]]
    while same.any():
        ends_K2[same, 1] = rng.integers(len(group_N), size=int(same.sum()))
        same = group_N[ends_K2[:, 0]] == group_N[ends_K2[:, 1]]
    return ends_K2


def ms_ssim(a_NHW: Tensor, b_NHW: Tensor, pairs_K2: np.ndarray, batch: int = 25) -> np.ndarray:
    """MS-SSIM of each pair (K,); values in [0, 1], negative contrast terms count as 0."""
    from torchmetrics.functional.image import (  # noqa: PLC0415 - as in features.py
        multiscale_structural_similarity_index_measure,
    )

    width = a_NHW.shape[1]
    scales = 3 if width >= 64 else 2 if width >= 32 else 1
    parts = []
    for start in range(0, len(pairs_K2), batch):
        i, j = torch.from_numpy(pairs_K2[start : start + batch].T)
        parts.append(
            multiscale_structural_similarity_index_measure(
                a_NHW[i][:, None],
                b_NHW[j][:, None],
                kernel_size=7,
                sigma=0.8,
                betas=BETAS[scales],
                data_range=1.0,
                reduction="none",
            )
        )
    return torch.cat(parts).double().numpy()


def ssim(a_NHW: Tensor, b_MHW: Tensor) -> Tensor:
    """SSIM of all pairs (N, M), mean over windows that lie wholly inside; every third window from 60 pixels on."""
    stride = 3 if a_NHW.shape[1] >= 60 else 1
    offsets = torch.arange(WINDOW, dtype=torch.float32) - WINDOW // 2
    g = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    g = g / g.sum()
    root = (g[:, None] * g[None, :]).flatten().sqrt()[:, None]

    def patches(x_NHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted patches (L, N, 121), their means (L, N) and their variances (L, N)."""
        p_NKL = F.unfold(x_NHW[:, None], WINDOW, stride=stride)
        p_LNK = (p_NKL * root).permute(2, 0, 1).contiguous()
        mean_LN = (p_LNK * root[:, 0]).sum(dim=2)
        return p_LNK, mean_LN, p_LNK.square().sum(dim=2) - mean_LN.square()

    a, mu_a, var_a = patches(a_NHW)
    b, mu_b, var_b = patches(b_MHW)
    total = torch.zeros(len(a_NHW), len(b_MHW))
    for k in range(len(a)):  # Wang et al. 2004, equation 13
        mu = torch.outer(mu_a[k], mu_b[k])
        covariance = a[k] @ b[k].T - mu
        above = (2 * mu + C1) * (2 * covariance + C2)
        means = mu_a[k].square()[:, None] + mu_b[k].square()[None, :] + C1
        variances = var_a[k][:, None] + var_b[k][None, :] + C2
        total += above / (means * variances)
    return total / len(a)


def psnr(a_NHW: Tensor, b_MHW: Tensor) -> Tensor:
    """PSNR of all pairs (N, M) in dB, 60 at most."""
    error_NM = torch.cdist(a_NHW.flatten(1).double(), b_MHW.flatten(1).double()).square() / a_NHW[0].numel()
    return (-10 * error_NM.clamp_min(10 ** (-PSNR_TOP / 10)).log10()).float()


def nearest(
    query_NHW: Tensor,
    real_MHW: Tensor,
    patient_M: np.ndarray,
    score: Callable[[Tensor, Tensor], Tensor] = ssim,
    batch: int = 600,
) -> np.ndarray:
    """Largest score (SSIM or PSNR) of each query image to the images of each patient: (N, P)."""
    patient, count = torch.from_numpy(patient_M), int(patient_M.max()) + 1
    best_NP = torch.full((len(query_NHW), count), -torch.inf)
    for start in range(0, len(query_NHW), batch):
        rows = slice(start, start + batch)
        for first in range(0, len(real_MHW), batch):
            columns = slice(first, first + batch)
            found = score(query_NHW[rows], real_MHW[columns])
            best_NP[rows].scatter_reduce_(1, patient[columns].expand(len(found), -1), found, "amax")
    return best_NP.double().numpy()
