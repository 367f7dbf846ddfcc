"""The prior finds where a cohort lies."""

from __future__ import annotations

import torch

from shared.models.prior import Prior, legendre, levels


def cohort(patients: int = 300, slices: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents with a known mean per class, slope over levels and covariance."""
    rng = torch.Generator().manual_seed(0)
    label = torch.randint(2, (patients,), generator=rng)
    root = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.3, 0.5]])
    noise = torch.randn(patients, slices, 3, generator=rng) @ root.T
    mean = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 2.0, 0.0]])[label][:, None]
    slope = levels(slices)[None, :, None] * torch.tensor([0.5, 0.0, 2.0])
    return mean + slope + noise, label


def test_the_exact_fit_whitens_and_its_samples_have_the_moments_of_the_data() -> None:
    z, label = cohort()
    prior = Prior(3, 2)
    prior.fit(z, label)
    rng = torch.Generator().manual_seed(1)
    for c in (0, 1):
        u = torch.rand(20000, generator=rng) * 2 - 1
        drawn = prior.sample(torch.full((20000,), c), u, rng)
        real = z[label == c].flatten(0, 1)
        torch.testing.assert_close(drawn.mean(0), real.mean(0), atol=0.12, rtol=0)
        torch.testing.assert_close(torch.cov(drawn.T), torch.cov(real.T), atol=0.3, rtol=0)


def test_gradient_steps_on_the_loss_converge_to_the_exact_fit() -> None:
    z, label = cohort(patients=60)
    exact = Prior(3, 2)
    exact.fit(z, label)
    prior = Prior(3, 2)
    prior.centre.copy_(exact.centre)
    prior.unwhiten.copy_(exact.unwhiten)
    optimizer = torch.optim.SGD(prior.parameters(), lr=0.5)
    u = levels(z.shape[1])
    for _ in range(200):
        optimizer.zero_grad()
        sum(prior.loss(z_SF, label[i].expand(len(z_SF)), u) for i, z_SF in enumerate(z)).div(len(z)).backward()  # type: ignore[union-attr]
        optimizer.step()
    torch.testing.assert_close(prior.offset, exact.offset, atol=0.02, rtol=0)
    torch.testing.assert_close(prior.level, exact.level, atol=0.05, rtol=0)
    torch.testing.assert_close(prior.sigma_FF(), exact.sigma_FF(), atol=0.05, rtol=0)


def test_an_unlabelled_patient_has_the_average_mean_and_a_broken_covariance_still_draws() -> None:
    prior = Prior(2, 2)
    with torch.no_grad():
        prior.offset.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        prior.covariance.copy_(torch.tensor([-2.0, 0.0, -2.0]))  # noise can do this
    mean = prior.mean(torch.tensor([-1]), torch.tensor([0.0]))
    torch.testing.assert_close(mean - legendre(torch.tensor([0.0])) @ prior.level, torch.tensor([[1.0, 1.0]]))
    drawn = prior.sample(torch.tensor([0, 1]), torch.zeros(2), torch.Generator().manual_seed(0))
    assert drawn.isfinite().all()
