"""Membership inference: chance is called chance, an overfitted model is found, and the figures are those of the definitions."""

import numpy as np
import pytest
import torch

from privacy import membership_inference
from privacy.accounting import best_attack, gdp_mu
from shared.errors import PrivacyError


def test_auc_is_the_chance_of_ranking_a_member_above_a_nonmember_and_ties_count_half() -> None:
    members, others = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    pairs = [(a > b) + (a == b) / 2 for a in members for b in others]
    assert membership_inference.auc(members, others) == pytest.approx(np.mean(pairs))
    assert membership_inference.auc(others, others) == 0.5


def test_tpr_allows_one_false_positive_in_a_hundred_and_none_below() -> None:
    members = np.array([0.5, 1.5, 2.5, 3.5])
    assert membership_inference.tpr(members, np.arange(50) / 16) == 1 / 4  # the largest is 3.06
    hundred = np.concatenate([np.full(99, 1.0), [3.0]])
    assert membership_inference.tpr(members, hundred) == 3 / 4  # the 3.0 is let through
    assert membership_inference.measure(np.arange(9.0), np.arange(49.0)).fpr == 1 / 50
    assert membership_inference.measure(np.arange(9.0), np.arange(199.0)).fpr == 2 / 200


def test_the_ceiling_is_the_best_attack_and_gaussian_scores_reach_it() -> None:
    mu, rng = gdp_mu(8.0, 1e-5), np.random.default_rng(0)
    best = best_attack(8.0, 1e-5)
    assert membership_inference.ceiling(0.01, mu) == pytest.approx(best.tpr_at_1pct)
    found = membership_inference.measure(rng.normal(mu, 1, 20000), rng.normal(0, 1, 20000), bootstrap=50)
    assert found.auc == pytest.approx(best.auc, abs=0.01)
    assert found.tpr_at_1pct == pytest.approx(best.tpr_at_1pct, abs=0.02)


def test_with_few_nonmembers_the_mean_tpr_stays_under_the_ceiling_at_the_expected_fpr() -> None:
    mu, rng = 1.67, np.random.default_rng(1)
    found = [membership_inference.tpr(rng.normal(mu, 1, 24), rng.normal(0, 1, 24)) for _ in range(2000)]
    assert membership_inference.ceiling(0.01, mu) < np.mean(found) < membership_inference.ceiling(1 / 25, mu)


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.5), (1.0, 0.7602)])
def test_the_interval_covers_the_truth(shift: float, truth: float) -> None:
    rng, covered = np.random.default_rng(2), 0
    for _ in range(100):
        m = membership_inference.measure(rng.normal(shift, 1, 40), rng.normal(0, 1, 40), bootstrap=200)
        covered += m.auc_low <= truth <= m.auc_high
        assert m.tpr_low <= m.tpr_at_1pct <= m.tpr_high
    assert covered >= 88


def fit(x: np.ndarray, y: np.ndarray, steps: int) -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(torch.tensor(x))[:, 0] - torch.tensor(y)).square().mean().backward()
        optimizer.step()
    return net


def losses(net: torch.nn.Module, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return (net(torch.tensor(x))[:, 0] - torch.tensor(y)).square().double().numpy()


def test_an_overfitted_model_gives_its_members_away_and_a_fresh_one_does_not() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(80, 20)).astype(np.float32), rng.normal(size=80).astype(np.float32)
    fresh, overfitted = fit(x[:40], y[:40], 0), fit(x[:40], y[:40], 300)
    reference, found = losses(fresh, x, y), losses(overfitted, x, y)
    for score in (membership_inference.by_loss(found), membership_inference.by_calibrated_loss(found, reference)):
        m = membership_inference.measure(score[:40], score[40:])
        assert m.auc_low > 0.65
    chance = membership_inference.measure(*np.split(membership_inference.by_loss(reference), 2))
    assert chance.auc_low < 0.5 < chance.auc_high


def test_an_update_leans_towards_those_who_made_it_beyond_what_all_have_in_common() -> None:
    rng = torch.Generator().manual_seed(0)
    common = 10 * torch.randn(50, generator=rng)
    g = common + torch.randn(60, 50, generator=rng)
    for learning_rate in (0.1, 7.0):
        update = [-learning_rate * g[:30].mean(0)]
        score = membership_inference.by_alignment(lambda i: [g[i]], 60, update, 1e9)
        assert membership_inference.auc(score[:30], score[30:]) > 0.85
    noise = [torch.randn(50, generator=rng)]
    score = membership_inference.by_alignment(lambda i: [g[i]], 60, noise, 1e9)
    assert 0.3 < membership_inference.auc(score[:30], score[30:]) < 0.7


def test_parameters_that_a_patient_does_not_use_and_patients_without_a_gradient_are_no_obstacle() -> None:
    update = [torch.ones(2), torch.ones(3)]
    score = membership_inference.by_alignment(lambda i: [torch.zeros(2), None], 3, update, 1.0)
    assert score.tolist() == [0.0, 0.0, 0.0]


def test_too_few_patients_or_damaged_scores_are_refused() -> None:
    with pytest.raises(PrivacyError, match="needs 5"):
        membership_inference.measure(np.zeros(4), np.zeros(9))
    with pytest.raises(PrivacyError, match="not a finite number"):
        membership_inference.measure(np.full(9, np.nan), np.zeros(9))
