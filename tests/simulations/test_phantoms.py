"""The phantoms are brains, they differ, and their classes mean what they say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pydicom

from simulations.cohorts import phantom_dicom, phantoms


def phantom(kind: str = "healthy", seed: int = 0) -> phantoms.Phantom:
    return phantoms.draw(np.random.default_rng(seed), kind)


def test_a_phantom_is_reproducible_and_another_seed_is_another_patient() -> None:
    a, b = (phantoms.render(phantom(), 3, 32) for _ in range(2))
    assert np.array_equal(a, b)
    assert a.shape == (3, 32, 32)
    assert a.dtype == np.uint8
    assert not np.array_equal(a, phantoms.render(phantom(seed=1), 3, 32))


def test_the_background_is_black_and_the_brain_is_not() -> None:
    image = phantoms.render(phantom(), 5, 64)
    corners = image[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() == 0
    assert image[:, 24:40, 24:40].mean() > 60


def test_atrophy_has_larger_dark_ventricles() -> None:
    same = dataclasses.replace(phantom(), lowest_mm=12.0, span_mm=6.0, noise=0.003, tilt_rad=(0.0, 0.0, 0.0))
    thin = phantoms.render(dataclasses.replace(same, ventricles_mm=0.0, atrophy=0.0), 3, 64)
    wide = phantoms.render(dataclasses.replace(same, ventricles_mm=12.0, atrophy=1.5), 3, 64)
    centre = np.s_[:, 20:44, 22:42]
    assert (wide[centre] < 90).sum() > 1.3 * (thin[centre] < 90).sum()


def test_lesions_darken_white_matter_only_where_they_are() -> None:
    base = dataclasses.replace(phantom(), lesions=0)
    with_lesions = phantoms.render(dataclasses.replace(base, lesions=10), 8, 64).astype(int)
    without = phantoms.render(base, 8, 64).astype(int)
    changed = np.abs(with_lesions - without) > 40
    assert 0.0005 < changed.mean() < 0.2


def test_a_phantom_hospital_is_dicom_with_planted_identifiers_in_its_headers(tmp_path: Path) -> None:
    folder = tmp_path / "south"
    rng = np.random.default_rng(0)
    phantom_dicom.write_hospital(
        folder, rng, patients=2, size=16, look=phantoms.Look(), mix=None, planted=True, slices=3
    )
    files = sorted(folder.rglob("*.dcm"))
    planted = (tmp_path / "south-planted.txt").read_text().split("\n")[:-1]
    assert len(files) == 6
    assert len(set(planted)) > 100
    held = b"".join(path.read_bytes() for path in files)
    assert all(secret.encode() in held for secret in planted)
    assert pydicom.dcmread(files[0]).pixel_array.shape == (16, 16)
    assert (folder / "labels.csv").read_text().splitlines()[0] == "patient_id,class"
