"""Images that teach what real ones teach score as they do, mislabelled ones do not, and no patient is tested by who saw them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from server.evaluation import study, utility
from server.evaluation.heldout import Heldout
from server.evaluation.utility import auroc, balanced_accuracy
from shared.errors import DataError

_Y, _X = np.indices((16, 16)) % 4 < 2
STRIPES = (_Y, _X, _Y ^ _X)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility, "STEPS", 25)
    monkeypatch.setattr(utility, "BATCH", 24)


def cohort(patients: int, seed: int, classes: int = 2, per_patient: int = 3, strength: float = 80.0) -> Heldout:
    """Noise of each patient's own, and stripes whose direction tells the class."""
    rng = np.random.default_rng(seed)
    x_NHW = rng.normal(100, 10, (patients * per_patient, 16, 16))
    label_N = np.repeat(np.arange(patients) % classes, per_patient)
    for i, label in enumerate(label_N):
        x_NHW[i] += strength * np.roll(STRIPES[label], int(rng.integers(4)), axis=(0, 1))
    return Heldout(np.clip(x_NHW, 0, 255).astype(np.uint8), np.repeat(np.arange(patients), per_patient), label_N)


def test_faithful_images_teach_as_real_ones_and_mislabelled_ones_do_not() -> None:
    real, drawn = cohort(8, 0), cohort(12, 1)
    told: list[tuple[int, int]] = []
    found = utility.utility(
        real,
        drawn.x_NHW,
        drawn.label_N,
        ["a", "b"],
        bootstrap=50,
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert set(found.scores) == {"linear probe", "small CNN"}
    for metrics in found.scores.values():
        for metric, taught in metrics.items():
            assert taught.chance == 0.5
            assert taught.taught
            assert taught.synthetic.value > 0.9, metric
            assert taught.gap.low <= 0 <= taught.gap.high
    assert told[-1] == (30, 30)
    assert found.protocol["real_patients_per_class"] == [4, 4]
    assert not found.notes
    assert json.loads(json.dumps(found.to_dict()))
    wrong = utility.utility(real, drawn.x_NHW, 1 - drawn.label_N, ["a", "b"], bootstrap=50, seed=0)
    for metrics in wrong.scores.values():
        assert metrics["balanced accuracy"].synthetic.high < 0.5
        assert metrics["balanced accuracy"].gap.high < 0


def test_where_real_images_teach_nothing_it_is_said() -> None:
    real, drawn = cohort(8, 0, strength=0), cohort(8, 1, strength=0)
    found = utility.utility(real, drawn.x_NHW, drawn.label_N, ["a", "b"], bootstrap=50, seed=0)
    assert "Even real images do not teach" in found.notes[0]


def test_no_patient_is_tested_by_a_model_that_saw_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = cohort(9, 0, classes=3)
    mark_Nd = torch.from_numpy(real.patient_N[:, None].astype(np.float64))  # the features tell whose an image is
    monkeypatch.setattr(utility.features, "extract", lambda network, x: torch.full((len(x), 1), -1.0).double())
    tested: list[set[float]] = []

    def watch(name: str, x: torch.Tensor, y: np.ndarray, test: torch.Tensor, classes: int, seed: int) -> np.ndarray:
        if x.ndim == 2:
            train, held = set(x[:, 0].tolist()), set(test[:, 0].tolist())
            assert not train & held
            if train != {-1.0}:
                tested.append(held)
                assert set(y.tolist()) == {0, 1, 2}
        return np.zeros((len(test), classes))

    monkeypatch.setattr(utility, "_taught", watch)
    utility.utility(real, np.tile(real.x_NHW, (2, 1, 1)), np.tile(real.label_N, 2), ["a", "b", "c"], bootstrap=20, seed=0,
                    real_Nd=mark_Nd)  # fmt: skip
    assert len(tested) == utility.SEEDS * 3, "three patients a class: three folds"
    for first in range(0, len(tested), 3):
        assert set.union(*tested[first : first + 3]) == set(range(9))
        assert sum(map(len, tested[first : first + 3])) == 9, "each once"


def test_a_class_that_is_too_small_is_left_out_and_one_class_is_refused() -> None:
    real, drawn = cohort(9, 0, classes=3), cohort(12, 1, classes=3)
    lone = Heldout(real.x_NHW[:-6], real.patient_N[:-6], np.where(real.patient_N == 8, 1, real.label_N)[:-6])
    lone.label_N[lone.label_N == 2] = np.array([2] * 3 + [0] * 3)  # one patient of the third class is left
    found = utility.utility(lone, drawn.x_NHW, drawn.label_N, ["a", "b", "c"], bootstrap=20, seed=0)
    assert found.protocol["classes"] == 2
    assert "1 class(es)" in found.notes[0]
    with pytest.raises(DataError, match="1 class"):
        utility.utility(real, drawn.x_NHW, np.zeros(len(drawn.x_NHW), int), ["a", "b", "c"], bootstrap=20, seed=0)


def test_the_two_metrics_by_hand() -> None:
    log_PC = np.log([[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])
    y_P = np.array([0, 0, 1, 1])
    assert balanced_accuracy(log_PC, y_P) == 0.75
    assert auroc(log_PC, y_P) == 0.75
    assert auroc(np.zeros((4, 2)), y_P) == 0.5
    assert balanced_accuracy(np.log([[0.9, 0.1]] * 4), np.array([0, 0, 0, 1])) == 0.5


def test_what_could_not_be_studied_is_a_note_and_a_card_says_so() -> None:
    real, drawn = cohort(4, 0), cohort(4, 1)  # squares on noise are no brains
    tree = study.study(real, drawn.x_NHW, drawn.label_N, ["a", "b"], bootstrap=20, seed=0, with_utility=True)
    assert tree["biomarkers"] is None
    assert tree["utility"] is None
    assert "no brain-like foreground" in tree["notes"][0]
    text = study.markdown(tree)
    assert text.count("Not measured.") == 2
    assert tree["notes"][1] in text
    assert study.markdown({}).count("Not measured.") == 2
