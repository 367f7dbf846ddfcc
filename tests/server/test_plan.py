"""A plan counts everything that a run will reveal."""

from __future__ import annotations

import pytest

from privacy.accounting import Event, epsilon
from privacy.noisy_statistics import events
from server.plan import plan
from shared.config.experiment import Experiment
from shared.errors import ConfigError

TREE = {"name": "t", "training": {"rounds": 3, "steps": 2}, "cohort": {"patients_per_site": 100}}


def test_noisy_figures_are_paid_from_the_same_epsilon() -> None:
    asking = {"privacy": {"statistics": {"patient_count": 20.0, "mean_loss": 20.0}}}
    without, experiment = plan(Experiment.model_validate(TREE)), Experiment.model_validate(TREE | asking)
    found = plan(experiment)
    assert without.statistics == {}
    assert found.noise_multiplier > without.noise_multiplier
    spent = [*events(experiment.privacy.statistics, 3), Event(found.noise_multiplier, 1.0, 6)]
    assert found.epsilon == epsilon(spent, 1e-5)
    assert 7.9 < found.epsilon <= 8
    assert found.statistics == {
        "patient-count": epsilon([Event(20.0, 1.0, 1)], 1e-5),
        "mean-loss": epsilon([Event(20.0, 1.0, 3)], 1e-5),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation": {"metrics": ["FD-efflite0", "FVD"]}}, "`evaluation.metrics` names `FVD`.*FD-efflite0"),
        ({"federation": {"aggregation": "bulyan"}}, "`federation.aggregation` names `bulyan`.*trimmed-mean"),
    ],
)
def test_a_metric_or_rule_that_there_is_not_is_refused_before_anything_is_computed(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(Experiment.model_validate(TREE | changes))
