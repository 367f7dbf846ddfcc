"""The appearance is measured, fitted and given."""

from __future__ import annotations

import numpy as np
import torch

from shared.models.appearance import BOX, FEW, VARIANCE_SCALE, Appearance, statistics
from simulations.cohorts import phantoms


def brains(patients: int = 20) -> torch.Tensor:
    """(N, 1, 64, 64) in [-1, 1]: one slice of each of some phantoms."""
    rng = np.random.default_rng(3)
    images = [phantoms.render(phantoms.draw(rng, "healthy"), 3, 64)[1] for _ in range(patients)]
    return torch.from_numpy(np.stack(images))[:, None].float() / 127.5 - 1


def test_the_box_and_the_quantiles_are_those_of_the_picture() -> None:
    x = torch.full((1, 1, 64, 64), -1.0)
    x[0, 0, 10:50, 20:40] = torch.linspace(0, 1, 20)  # rows 10..49, columns 20..39, intensities 0.5..1
    s = statistics(x)[0]
    torch.testing.assert_close(s[:BOX], torch.tensor([30 / 64, 30 / 64, 20 / 64, 10 / 64]))
    torch.testing.assert_close(s[BOX + 6], torch.tensor(0.75), atol=0.02, rtol=0)
    assert (s[BOX:].diff() >= 0).all()


def test_statistics_are_bounded_also_for_pictures_without_a_brain() -> None:
    for x in (torch.full((2, 1, 32, 32), -1.0), torch.full((2, 1, 32, 32), 1.0), torch.rand(2, 1, 32, 32) * 2 - 1):
        s = statistics(x)
        assert s.isfinite().all()
        assert (s >= 0).all()
        assert (s <= 1).all()


def test_given_images_have_the_moments_that_were_asked_for() -> None:
    x = brains()
    s = statistics(x)
    appearance = Appearance(1)
    label = torch.zeros(len(x), dtype=torch.long)
    appearance.fit(s, label)
    with torch.no_grad():
        appearance.mean[0, :BOX] += torch.tensor([0.2, 0.0, 0.5, -0.5])
        appearance.mean[0, BOX:] -= 0.3
        appearance.variance.fill_(0.25 / VARIANCE_SCALE)
    w = (statistics(appearance.give(x, label)) - appearance.centre) / appearance.scale
    torch.testing.assert_close(w.mean(0), appearance.mean[0], atol=0.25, rtol=0)
    assert float(w.var(0).mean()) < 0.5


def test_the_base_appearance_changes_little_and_too_few_images_not_at_all() -> None:
    x = brains()
    appearance = Appearance(1)
    label = torch.zeros(len(x), dtype=torch.long)
    appearance.fit(statistics(x), label)
    assert float((appearance.give(x, label) - x).abs().mean()) < 0.03
    few = x[: FEW - 1]
    assert torch.equal(appearance.give(few, label[: FEW - 1]), few)


def test_gradient_steps_on_the_loss_converge_to_the_moments() -> None:
    s = statistics(brains())
    label = torch.arange(len(s)) % 2
    exact, fitted = Appearance(2), Appearance(2)
    exact.fit(s, label)
    fitted.centre.copy_(exact.centre)
    fitted.scale.copy_(exact.scale)
    optimizer = torch.optim.SGD(fitted.parameters(), lr=0.5)
    for _ in range(80):
        optimizer.zero_grad()
        torch.stack([fitted.loss(s[i : i + 1], label[i : i + 1]) for i in range(len(s))]).mean().backward()
        optimizer.step()
    torch.testing.assert_close(fitted.mean, exact.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(fitted.variance, exact.variance, atol=0.05, rtol=0)
