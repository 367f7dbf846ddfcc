"""Where a cohort lies in the space of the base: the distribution of the latent, given class and slice level.

    w = whiten (z - centre)                         whitened so that the public phantoms have mean 0, variance 1
    w | class c, level u  ~  N(m(c, u), Sigma)      m(c, u) = offset_c + sum_k level_k P_k(u)

with P_k the Legendre polynomials of order 1..3 and u in [-1, 1] the position of a slice in its stack, which is public
(index over count). Fitting is the minimum of two squared errors, whose minimiser is the moment estimate of mean and
covariance; gradients are linear in the parameters, so plain SGD converges and a patient's gradient has a natural bound.

Left out: mixtures, and a covariance that depends on class or level: each would multiply the parameters and the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ORDERS = 3

# The covariance is kept in units of this: below 1, its gradients and the noise that reaches it are small beside the mean's,
# which matters more.
COVARIANCE_SCALE = 0.5


class Prior(nn.Module):
    """Parameters: offset (C, F), level (3, F), covariance (F (F + 1) / 2: lower triangle, scaled)."""

    centre: Tensor
    unwhiten: Tensor

    def __init__(self, latents: int, classes: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(classes, latents))
        self.level = nn.Parameter(torch.zeros(ORDERS, latents))
        rows, columns = torch.tril_indices(latents, latents)
        self.covariance = nn.Parameter((rows == columns).float() / COVARIANCE_SCALE)
        self.register_buffer("centre", torch.zeros(latents))
        self.register_buffer("unwhiten", torch.eye(latents))

    def mean(self, label_S: Tensor, u_S: Tensor) -> Tensor:
        """(S, F): the mean for labels (S,), -1 for the average over classes, and levels (S,) in [-1, 1]."""
        offset = torch.cat([self.offset, self.offset.mean(0, keepdim=True)])[label_S]
        return offset + legendre(u_S) @ self.level

    def sigma_FF(self) -> Tensor:
        """The covariance as a full symmetric matrix (F, F); not necessarily positive while it is being fitted."""
        n = self.offset.shape[1]
        lower = torch.zeros(n, n, device=self.covariance.device, dtype=self.covariance.dtype)
        rows, columns = torch.tril_indices(n, n)
        lower = lower.index_put((rows, columns), COVARIANCE_SCALE * self.covariance)
        return lower + lower.T - torch.diag(lower.diagonal())

    def loss(self, z_SF: Tensor, label_S: Tensor, u_S: Tensor) -> Tensor:
        """Scalar: squared error of mean and covariance over the slices of one patient."""
        w_SF = self.whiten(z_SF)
        mean_SF = self.mean(label_S, u_S)
        residual_SF = (w_SF - mean_SF).detach()
        observed = torch.einsum("si,sj->ij", residual_SF, residual_SF) / len(residual_SF)
        n = observed.shape[0]
        rows, columns = torch.tril_indices(n, n)
        second = 0.5 * (COVARIANCE_SCALE * self.covariance - observed[rows, columns]).square().sum()
        first: Tensor = 0.5 * (w_SF - mean_SF).square().sum(1).mean()
        return first + second

    def whiten(self, z_SF: Tensor) -> Tensor:
        w_FS: Tensor = torch.linalg.solve_triangular(self.unwhiten, (z_SF - self.centre).T, upper=False)
        return w_FS.T

    @torch.no_grad()
    def sample(self, label_S: Tensor, u_S: Tensor, rng: torch.Generator) -> Tensor:
        """Draw latents z (S, F). Directions whose fitted variance is not positive get (almost) none."""
        values, vectors = torch.linalg.eigh(self.sigma_FF().double().cpu())
        root = (vectors * values.clamp_min(1e-4).sqrt()).float()
        w_SF = self.mean(label_S, u_S).cpu() + torch.randn(len(label_S), len(root), generator=rng) @ root.T
        z_SF: Tensor = w_SF.to(self.centre.device) @ self.unwhiten.T + self.centre
        return z_SF

    @torch.no_grad()
    def fit(self, z_PSF: Tensor, label_P: Tensor) -> None:
        """Exact moment fit on public data: z (patients, slices, F). Sets the whitening as well."""
        z_NF = z_PSF.flatten(0, 1).double()
        self.centre.copy_(z_NF.mean(0))
        self.unwhiten.copy_(torch.linalg.cholesky(torch.cov(z_NF.T) + 1e-6 * torch.eye(z_NF.shape[1])))
        w_NF = self.whiten(z_NF.float())
        patients, slices = z_PSF.shape[:2]
        u_N = levels(slices).repeat(patients)
        label_N = label_P.repeat_interleave(slices)
        classes = self.offset.shape[0]
        design = torch.cat([torch.nn.functional.one_hot(label_N, classes).float(), legendre(u_N)], 1)
        solution = torch.linalg.lstsq(design, w_NF).solution
        self.offset.copy_(solution[:classes])
        self.level.copy_(solution[classes:])
        covariance = torch.cov((w_NF - design @ solution).T)
        rows, columns = torch.tril_indices(*covariance.shape)
        self.covariance.copy_(covariance[rows, columns] / COVARIANCE_SCALE)


def levels(slices: int) -> Tensor:
    """Positions (slices,) of the slices of a stack, from -1 (lowest) to 1."""
    return torch.linspace(-1, 1, slices) if slices > 1 else torch.zeros(1)


def legendre(u_S: Tensor) -> Tensor:
    """(S, 3): Legendre polynomials P1, P2, P3 at u."""
    return torch.stack([u_S, 0.5 * (3 * u_S**2 - 1), 0.5 * (5 * u_S**3 - 3 * u_S)], -1)
