"""How a site's images look: how the brain lies in the frame, and how bright its tissues are. A few dozen numbers.

Phantoms draw anatomy; a hospital's scanner and pre-processing decide the frame and the tone. Both are summarised per image by
bounded statistics s(x) of known meaning, fitted as mean per class and variance, and given to drawn images afterwards:

    s(x)   centre (row, column) and half sizes (rows, columns) of the brain, in fractions of the image, and Q quantiles of
           the intensity inside it, from 0 to 1
    fit    minimum of squared errors: the minimiser is the moment estimate, gradients are linear in the parameters
    give   t = mean_c + (s - m) sqrt(variance / v), with m and v the moments of the drawn images themselves, then an affine
           map takes the brain's box from s to t and a monotone curve takes its quantiles from s to t

This is optimal transport between two Gaussians with independent coordinates (Peyre & Cuturi 2019, remark 2.31,
https://arxiv.org/abs/1803.00567), applied to the statistics. Whitened by the public phantoms: they have mean 0, variance 1.

Left out: sharpness (matching the power spectrum made things worse), shear and rotation, anything local.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOX = 4
QUANTILES = 13
INSIDE = 24 / 255  # brain is what is brighter than this
FEW = 8  # images whose mean is worth something
VARIANCE_SCALE = 0.7  # the variances are kept in units of this, so that the means get more of the budget; see LOG.md


class Appearance(nn.Module):
    """Parameters: mean (C, A) and variance (A,), whitened, A = 4 + 13 statistics."""

    centre: Tensor
    scale: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        size = BOX + QUANTILES
        self.mean = nn.Parameter(torch.zeros(classes, size))
        self.variance = nn.Parameter(torch.ones(size) / VARIANCE_SCALE)
        ramp = torch.linspace(0.2, 0.8, QUANTILES)
        self.register_buffer("centre", torch.cat([torch.tensor([0.5, 0.5, 0.4, 0.4]), ramp]))
        self.register_buffer("scale", torch.full((size,), 0.1))

    def loss(self, s_SA: Tensor, label_S: Tensor) -> Tensor:
        """Scalar: squared error of mean and variance over the statistics of one patient's slices; label -1 is "any"."""
        w_SA = (s_SA - self.centre) / self.scale
        mean_SA = self._means()[label_S]
        observed = (w_SA - mean_SA).detach().square().mean(0)
        second = 0.5 * (VARIANCE_SCALE * self.variance - observed).square().sum()
        return 0.5 * (w_SA - mean_SA).square().sum(1).mean() + second

    @torch.no_grad()
    def fit(self, s_NA: Tensor, label_N: Tensor) -> None:
        """Exact moment fit on public images, every class among them. Sets the whitening as well."""
        self.centre.copy_(s_NA.mean(0))
        self.scale.copy_(s_NA.std(0).clamp_min(1e-3))
        w_NA = (s_NA - self.centre) / self.scale
        means = torch.stack([w_NA[label_N == c].mean(0) for c in range(len(self.mean))])
        self.mean.copy_(means)
        self.variance.copy_((w_NA - means[label_N]).square().mean(0) / VARIANCE_SCALE)

    @torch.no_grad()
    def give(self, x_NCHW: Tensor, label_N: Tensor) -> Tensor:
        """Give drawn images (N, C, H, W) in [-1, 1] this appearance; all channels the same frame and the same curve.

        The origin is the images' own mean, of each class with FEW or more of them, else of all; below FEW images in all
        there is no origin and they come back as they are.
        """
        if len(x_NCHW) < FEW:
            return x_NCHW
        s_NA = statistics(x_NCHW)
        w_NA = (s_NA - self.centre) / self.scale
        origin_NA = w_NA.mean(0).expand_as(w_NA).clone()
        for label in set(label_N.tolist()):
            same = label_N == label
            if int(same.sum()) >= FEW:
                origin_NA[same] = w_NA[same].mean(0)
        within = (w_NA - origin_NA).square().mean(0).clamp_min(1e-3)
        gain = ((VARIANCE_SCALE * self.variance).clamp_min(1e-3) / within).sqrt()
        t_NA = (self._means()[label_N] + (w_NA - origin_NA) * gain) * self.scale + self.centre
        return _tone(_frame(x_NCHW, s_NA, t_NA), t_NA)

    def _means(self) -> Tensor:
        return torch.cat([self.mean, self.mean.mean(0, keepdim=True)])


@torch.no_grad()
def statistics(x_NCHW: Tensor) -> Tensor:
    """s(x): (N, 4 + 13) of images in [-1, 1], over the mean of their channels; without a brain a centred box and a dark ramp."""
    y_NHW = _brightness(x_NCHW)
    inside = y_NHW > INSIDE
    enough = max(2, round(0.04 * y_NHW.shape[-1]))
    rows, columns = (inside.sum(axis) >= enough for axis in (2, 1))
    top, height = _extent(rows)
    left, width = _extent(columns)
    return torch.cat([torch.stack([top, left, height, width], 1), _quantiles(y_NHW, inside)], 1)


def _brightness(x_NCHW: Tensor) -> Tensor:
    """(N, H, W) from 0 to 1."""
    return (x_NCHW.mean(1) + 1) / 2


def _extent(hit_NL: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and half size of the true entries, in fractions of the length."""
    length = hit_NL.shape[1]
    index = torch.arange(length, device=hit_NL.device)
    nothing = ~hit_NL.any(1)
    first = torch.where(hit_NL, index, length).amin(1).masked_fill(nothing, length // 4)
    last = torch.where(hit_NL, index, -1).amax(1).masked_fill(nothing, 3 * length // 4 - 1)
    last = torch.maximum(last, first + length // 8)
    return (first + last + 1) / (2 * length), (last - first + 1) / (2 * length)


def _quantiles(y_NHW: Tensor, inside_NHW: Tensor) -> Tensor:
    """(N, 13): intensity quantiles, 2 % to 98 %, of the pixels inside."""
    levels = torch.linspace(0.02, 0.98, QUANTILES, device=y_NHW.device)
    found = []
    for y, inside in zip(y_NHW, inside_NHW, strict=True):
        values = y[inside].float()
        found.append(torch.quantile(values, levels) if len(values) > QUANTILES else INSIDE + levels * 0.1)
    return torch.stack(found)


def _frame(x_NCHW: Tensor, s_NA: Tensor, t_NA: Tensor) -> Tensor:
    """Move the brain's box from s to t by an affine map, one for each image."""
    n, _, size, _ = x_NCHW.shape
    axis = (torch.arange(size, device=x_NCHW.device) + 0.5) / size
    half_t = t_NA[:, 2:4].clamp(0.1, 0.5)
    v, u = (
        (axis - t_NA[:, i, None]) / half_t[:, i, None] * s_NA[:, 2 + i, None] + s_NA[:, i, None] for i in (0, 1)
    )  # where each target row and column comes from, (N, size)
    grid = torch.stack(
        [(2 * u - 1)[:, None, :].expand(n, size, size), (2 * v - 1)[:, :, None].expand(n, size, size)], -1
    )
    moved = F.grid_sample(x_NCHW + 1, grid, mode="bicubic", align_corners=False) - 1
    return moved.clamp(-1, 1)


def _tone(x_NCHW: Tensor, t_NA: Tensor) -> Tensor:
    """Map each image's quantiles to those of t by a monotone piecewise linear curve; background stays background."""
    y_N = _brightness(x_NCHW)
    source = _quantiles(y_N, y_N > INSIDE) + torch.arange(QUANTILES, device=y_N.device) * 1e-5  # strictly increasing
    target = t_NA[:, BOX:].clamp(0, 1).sort(1).values
    zero, one = torch.zeros(len(y_N), 1, device=y_N.device), torch.ones(len(y_N), 1, device=y_N.device)
    knots = torch.cat([zero, zero + INSIDE / 2, source, one + 1e-3], 1)
    values = torch.cat([zero, zero + INSIDE / 4, target, one], 1)
    flat = ((x_NCHW + 1) / 2).flatten(1).contiguous()
    right = torch.searchsorted(knots.contiguous(), flat, right=True).clamp(1, knots.shape[1] - 1)
    x0, x1 = knots.gather(1, right - 1), knots.gather(1, right)
    y0, y1 = values.gather(1, right - 1), values.gather(1, right)
    share = ((flat - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1)
    return ((y0 + share * (y1 - y0)).clamp(0, 1) * 2 - 1).view_as(x_NCHW)
