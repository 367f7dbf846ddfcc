"""Biomarkers are the areas that were drawn, find a class whose ventricles changed, and are refused where there is no brain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.evaluation import study
from server.evaluation.biomarkers import NAMES, SCALARS, biomarkers, brain, measure, otsu, thresholds
from server.evaluation.heldout import Heldout
from shared.errors import DataError

Y, X = np.mgrid[-1:1:64j, -1:1:64j]
R = np.hypot(Y, X)


def brain_slice(ventricle: float, rng: np.random.Generator | None = None, white: float = 0.55) -> np.ndarray:
    """Discs: brain of radius 0.8 in grey, white matter inside, a ventricle in the middle; all radii in half widths."""
    x_HW = np.select([ventricle > R, white > R, R < 0.8], [30.0, 200.0, 120.0], 0.0)
    if rng is not None:
        x_HW = np.clip(x_HW + (x_HW > 0) * rng.normal(0, 6, x_HW.shape), 1, 255) * (x_HW > 0)
    return x_HW.astype(np.uint8)


def cohort(patients: int, seed: int, ventricle: Callable[[int], float], slices: int = 4) -> Heldout:
    """Patients of two classes in turn; `ventricle` gives the mean radius of a class."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for p in range(patients):
        own = ventricle(p % 2) + rng.normal(0, 0.02)
        images += [brain_slice(own + rng.normal(0, 0.005), rng, 0.55 + rng.normal(0, 0.01)) for _ in range(slices)]
        labels += [p % 2] * slices
    return Heldout(np.stack(images), np.repeat(np.arange(patients), slices), np.array(labels))


def test_the_figures_are_the_areas_that_were_drawn() -> None:
    x_HW = brain_slice(0.25)
    found = measure(x_HW[None])
    assert found.there_N.all()
    area = (R < 0.8).sum()
    expected = [(R < 0.25).sum(), (R < 0.25).sum(), ((R >= 0.55) & (R < 0.8)).sum(), ((R >= 0.25) & (R < 0.55)).sum()]
    np.testing.assert_allclose(found.value_NK[0], np.array(expected) / area)
    assert found.cdf_NL[0, 30] == pytest.approx((R < 0.25).sum() / area)
    assert found.cdf_NL[0, 255] == 1


def test_sulci_at_the_surface_are_fluid_but_no_ventricle() -> None:
    x_HW = brain_slice(0.25)
    sulcus = (np.abs(Y) < 0.08) & (R > 0.68) & (R < 0.76)
    x_HW[sulcus] = 30
    ratio, csf = measure(x_HW[None]).value_NK[0, :2]
    assert ratio == pytest.approx((R < 0.25).sum() / (R < 0.8).sum())
    assert csf == pytest.approx(ratio + sulcus.sum() / (R < 0.8).sum())


@pytest.mark.parametrize(
    ("name", "x_HW"),
    [
        ("black", np.zeros((64, 64), np.uint8)),
        ("flat", np.full((64, 64), 120, np.uint8)),
        ("noise", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)),
        ("ramp", np.broadcast_to(np.arange(64, dtype=np.uint8) * 4, (64, 64)).copy()),
        ("two pieces", np.maximum(np.roll(brain_slice(0.1), 32, 1), 0)),
        ("a dot", (brain_slice(0.1) * (R < 0.12)).astype(np.uint8)),
    ],
)
def test_what_is_no_brain_has_no_biomarkers(name: str, x_HW: np.ndarray) -> None:
    assert brain(x_HW) is None, name
    found = measure(x_HW[None])
    assert not found.there_N.any()
    assert np.isnan(found.value_NK).all()


def test_other_patients_agree_and_a_class_with_larger_ventricles_is_found() -> None:
    real = cohort(24, 0, lambda label: 0.2)
    others = cohort(24, 1, lambda label: 0.2, slices=2)
    found = biomarkers(real, others.x_NHW, others.label_N, ["well", "ill"], bootstrap=100, seed=0)
    assert set(found.markers) == {"well", "ill"}
    assert tuple(found.markers["ill"]) == NAMES
    for markers in found.markers.values():
        for m in markers.values():
            assert 0 <= m.low <= m.value <= m.high <= 1
            assert m.low <= m.floor + 0.1
    grown = cohort(24, 1, lambda label: 0.2 + 0.1 * label, slices=2)
    found = biomarkers(real, grown.x_NHW, grown.label_N, ["well", "ill"], bootstrap=100, seed=0)
    ill, well = (found.markers[name]["ventricle-to-brain ratio"] for name in ("ill", "well"))
    assert ill.low > max(ill.floor, well.high)
    assert ill.synthetic > 1.5 * ill.real
    assert found.markers["ill"]["intensity"].low > found.markers["well"]["intensity"].value


def test_a_set_without_brains_is_refused_and_a_few_bad_images_are_counted() -> None:
    real, rng = cohort(8, 0, lambda label: 0.2), np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 64, 64), dtype=np.uint8)
    label_N = np.arange(24) % 2
    with pytest.raises(DataError, match="24 of 24 synthetic images show no brain-like foreground"):
        biomarkers(real, noise, label_N, ["well", "ill"], bootstrap=20, seed=0)
    with pytest.raises(DataError, match="no class has two real patients"):
        biomarkers(real, real.x_NHW[:9], real.label_N[:9], ["well", "ill"], bootstrap=20, seed=0)
    mixed = np.concatenate([real.x_NHW, noise[:4]])
    found = biomarkers(real, mixed, np.append(real.label_N, [0] * 4), ["well", "ill"], bootstrap=20, seed=0)
    assert (found.real_refused, found.synthetic_refused) == (0, 4)
    lone = Heldout(real.x_NHW[:20], real.patient_N[:20], np.repeat([0, 0, 0, 0, 1], 4))
    found = biomarkers(lone, real.x_NHW, real.label_N, ["well", "ill"], bootstrap=20, seed=0)
    assert list(found.markers) == ["well"]
    assert "Class 2 has 1 real patient(s)" in found.notes[0]


def test_thresholds_are_the_best_by_otsus_criterion() -> None:
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.integers(0, 256, 400), minlength=256)

    def between(*ends: int) -> float:
        parts = [np.repeat(np.arange(a, b), counts[a:b]) for a, b in zip((0, *ends), (*ends, 256), strict=True)]
        return sum(len(p) * (p.mean() - values.mean()) ** 2 for p in parts if len(p))

    values = np.repeat(np.arange(256), counts)
    best = max(between(t + 1) for t in range(255))
    assert between(otsu(counts) + 1) == pytest.approx(best)
    tried = [between(a, b) for a in range(1, 256, 5) for b in range(a + 1, 256, 5)]
    assert between(*thresholds(counts)) >= max(tried) - 1e-6


@pytest.mark.real_data
def test_real_ventricles_grow_with_dementia_and_every_slice_is_a_brain(real_data: Callable[[str], Path]) -> None:
    from PIL import Image

    folder = real_data("slices_dementia")
    ratios = {}
    for label in ("Non_Demented", "Mild_Demented"):
        patients = sorted((folder / label).iterdir())[:12]
        x_NHW = np.stack(
            [np.asarray(Image.open(f).convert("L")) for p in patients for f in sorted(p.iterdir())[8:16:4]]
        )
        found = measure(x_NHW)
        assert found.there_N.all()
        ratios[label] = found.value_NK[:, SCALARS.index("ventricle-to-brain ratio")]
    assert np.median(ratios["Mild_Demented"]) > np.median(ratios["Non_Demented"])


def test_only_the_biomarkers_that_apply_to_the_modality_are_said() -> None:
    real, drawn = (cohort(6, seed, lambda label: 0.2 + 0.1 * label) for seed in (0, 1))

    def studied(*markers: str) -> dict[str, Any]:
        return study.study(
            real,
            drawn.x_NHW,
            drawn.label_N,
            ["well", "ill"],
            bootstrap=20,
            seed=0,
            with_utility=False,
            markers=markers,
        )

    assert {name for name, *_ in study.biomarker_rows(studied("intensity", "CSF fraction"))} == {
        "intensity",
        "CSF fraction",
    }
    assert {name for name, *_ in study.biomarker_rows(studied(*NAMES))} == set(NAMES)
    none = studied()
    assert none["biomarkers"] is None and none["notes"] == [
        "Biomarkers were not measured: none of them applies to this modality."
    ]
