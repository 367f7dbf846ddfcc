"""What every metric promises, whatever file it lies in: a new one is tested the moment it appears.

A metric that needs something given (weights, a package) is asked for its description and its refusal alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy import ndimage

from server.evaluation.evaluate import Evaluator, Heldout
from server.metrics.base import METRICS, Better, Figure, check
from shared import plugins
from shared.config.experiment import Evaluation
from shared.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_metric.py"
OWN = METRICS.names()
MEASURED = [*(name for name in OWN if not METRICS[name].option), "brightness gap"]
NOISE = np.random.default_rng(0).integers(0, 256, (16, 32, 32), dtype=np.uint8)


def patients(count: int, each: int, seed: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Smooth blobs in an ellipse; those of one patient resemble each other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    images = []
    for _ in range(count):
        wide, tall = rng.uniform(0.55, 0.9, 2)
        texture = ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 10)
        for _ in range(each):
            own = texture + 0.5 * ndimage.gaussian_filter(rng.normal(size=(size, size)), size / 10)
            images.append(np.clip(120 + 60 * own / own.std(), 1, 255) * ((x / wide) ** 2 + (y / tall) ** 2 < 1))
    return np.stack(images).astype(np.uint8), np.repeat(np.arange(count), each)


def heldout(count: int, each: int, size: int = 32) -> Heldout:
    x_NHW, patient_N = patients(count, each, 0, size)
    return Heldout(x_NHW, patient_N, np.zeros(len(x_NHW), int))


@pytest.fixture(scope="module", autouse=True)
def _example() -> Iterator[None]:
    """The example of the documentation keeps the promises as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "_LOADED", {})
        plugins.load(EXAMPLE)
        yield


@pytest.fixture(scope="module")
def evaluator(_example: None) -> Evaluator:
    return Evaluator(heldout(8, 4), bootstrap=40, seed=1, samples=16, metrics=MEASURED)


@pytest.fixture(scope="module")
def real(evaluator: Evaluator) -> dict[str, Figure]:
    return evaluator(patients(16, 1, 7)[0])


@pytest.fixture(scope="module")
def noise(evaluator: Evaluator) -> dict[str, Figure]:
    return evaluator(NOISE)


@pytest.mark.parametrize("name", OWN)
def test_a_metric_says_what_it_is_and_lies_in_the_file_of_its_name(name: str) -> None:
    kind, told = METRICS[name], METRICS[name].described()
    assert told.name == name
    assert kind.__module__ == f"server.metrics.{plugins.slug(name)}"
    assert told.better in get_args(Better)
    assert 0 <= told.digits <= 4
    assert told.factor > 0
    assert told.reading.endswith(".")
    assert len(told.reading) <= 120


@pytest.mark.parametrize("name", MEASURED)
def test_a_figure_has_a_floor_and_an_interval_that_contains_it(
    name: str, real: dict[str, Figure], noise: dict[str, Figure]
) -> None:
    for figure in (real[name], noise[name]):
        assert figure.low <= figure.value <= figure.high
        assert np.isfinite(list(figure.to_dict().values())).all()
    assert real[name].floor == noise[name].floor, "the floor is of the held-out images alone"


@pytest.mark.parametrize("name", MEASURED)
def test_other_patients_score_near_the_floor_and_noise_clearly_worse(
    name: str, evaluator: Evaluator, real: dict[str, Figure], noise: dict[str, Figure]
) -> None:
    bad = noise[name]
    told = evaluator.descriptions[name]
    near, low_near, high_near = told.distance(**real[name].to_dict())
    far, low_far, _ = told.distance(**bad.to_dict())
    floor = told.distance(bad.floor, bad.floor, bad.floor, bad.floor)[0]
    assert low_far > high_near or low_far > near + 0.5 * (far - near), (near, high_near, low_far)
    assert near - floor < 0.34 * (far - floor), (floor, low_near, near, far)


@pytest.mark.parametrize("name", MEASURED)
def test_few_and_small_images_suffice_and_a_metric_alone_says_what_it_says_among_others(name: str) -> None:
    few, drawn = heldout(2, 2, size=16), patients(2, 1, 3, size=16)[0]
    together = Evaluator(few, bootstrap=20, seed=0, samples=2, metrics=MEASURED)(drawn)[name]
    (alone,) = Evaluator(few, bootstrap=20, seed=0, samples=2, metrics=[name])(drawn).values()
    assert alone == together
    assert np.isfinite(list(alone.to_dict().values())).all()


@pytest.mark.parametrize("name", [name for name in OWN if METRICS[name].option])
def test_a_metric_that_lacks_what_it_needs_is_refused_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "frd_score", None)
    with pytest.raises(ConfigError, match=name):
        Evaluator(heldout(2, 2, size=16), bootstrap=20, seed=0, metrics=[name])


def test_an_unknown_metric_is_refused_with_all_names_and_one_without_an_interval_too() -> None:
    with pytest.raises(ConfigError, match=r"`evaluation.metrics` names `KID`.*coverage.*FD-efflite0.*recall"):
        check(Evaluation(metrics=("FD-efflite0", "KID")))
    with pytest.raises(ConfigError, match="`FRD`, which has no interval"):
        check(Evaluation(metrics=("FD-efflite0", "FRD")))
    check(Evaluation())


def test_the_names_of_the_settings_are_metrics_and_a_set_without_its_judge_is_refused() -> None:
    assert set(Evaluation().metrics) <= set(OWN)
    with pytest.raises(ValueError, match="`select_by` is 'FD-efflite0', which is not in `metrics`"):
        Evaluation(metrics=("recall",))
