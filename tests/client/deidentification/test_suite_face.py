"""Cases V05, V06 and V08 of the de-identification suite: odd heads, what a face is drawn from, and what stripping cannot do.

V01 to V04, V07 and the other heads of V05 stand in `test_client_face`; real heads, one of them a child's, in `test_client_real`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from client.deidentification import defacing
from client.readers import volumes
from client.readers.template import Fit
from client.readers.volumes import Scan
from simulations.benchmarks.verdicts import alike
from simulations.cohorts.phantom_heads import Head, head
from simulations.face_detector import MOST, faces

STEP_MM = 4.0


@pytest.fixture(scope="module")
def patients() -> list[Head]:
    """Three at 4 mm, of different sizes."""
    sizes = ((1.0, 1.0, 1.0), (0.92, 1.02, 0.95), (1.05, 0.94, 1.04))
    return [head(np.random.default_rng(number), step_mm=STEP_MM, size=size) for number, size in enumerate(sizes)]


def fitted(made: Head) -> Fit:
    """A second opinion that is right."""
    upper = np.zeros_like(made.brain)
    upper[:, :, np.nonzero(made.brain)[2].mean().astype(int) :] = True
    return Fit(made.brain, made.brain & upper, made.face, 1.3, 1.0)


def unshaded(volume: np.ndarray, brain: np.ndarray, *_: Any) -> np.ndarray:
    return np.where(brain, volume, 0)


def strip(made: Head, volume_RAS: np.ndarray | None = None, mask: np.ndarray | None = None) -> Scan:
    scan = Scan(made.volume_RAS if volume_RAS is None else volume_RAS, made.spacing_mm)
    brain = made.brain if mask is None else mask
    return defacing.remove(scan, masker=lambda _: brain, second=lambda *_: fitted(made), correct=unshaded)


def pictures(scan: Scan) -> np.ndarray:
    return volumes.axial(scan.volume_RAS, scan.spacing_mm, size=64, count=12, brain=scan.brain, cerebrum=scan.cerebrum)


def ball(made: Head, centre_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """Voxels around a place that is given from the middle of the brain."""
    middle = np.array(ndimage.center_of_mass(made.brain)) * STEP_MM + centre_mm
    place = np.stack(np.meshgrid(*(np.arange(n) * STEP_MM for n in made.brain.shape), indexing="ij"))
    return np.asarray(((place - middle[:, None, None, None]) ** 2).sum(axis=0) <= radius_mm**2)


@pytest.mark.parametrize("kind", ["bright tumour", "dark tumour", "cavity with a hole in the mask"])
def test_v05_a_brain_with_a_tumour_or_after_surgery_keeps_it_and_nothing_else(patients: list[Head], kind: str) -> None:
    made = patients[0]
    lesion = ball(made, (20, 10, 25), 22) & made.brain
    volume, mask = made.volume_RAS.copy(), made.brain
    volume[lesion] = {"bright tumour": 1500, "dark tumour": 200}.get(kind, 0)
    if kind.startswith("cavity"):
        mask = made.brain & ~lesion  # a masker may leave the cavity out
    scan = strip(made, volume, mask)
    assert lesion.sum() > 300 and scan.brain is not None and scan.evidence["in_face"] == 0
    assert not scan.volume_RAS[~scan.brain].any()
    assert scan.brain.sum() == mask.sum() or kind.startswith("cavity")


@pytest.mark.parametrize(("size", "nod_degrees"), [((0.92, 0.9, 0.94), -6.0), ((1.0, 1.0, 1.0), 8.0)])
def test_v06_a_detector_of_faces_sees_one_before_and_none_after(
    size: tuple[float, float, float], nod_degrees: float
) -> None:
    made = head(np.random.default_rng(2), step_mm=2.0, size=size, nod_degrees=nod_degrees)
    scan = strip(made)
    assert faces(made.volume_RAS, made.spacing_mm) >= MOST > faces(scan.volume_RAS, scan.spacing_mm)


def test_v08_two_scans_of_one_patient_are_more_alike_than_those_of_two(patients: list[Head]) -> None:
    """Taking a face off does not make a scan anonymous, and nothing here says so: the linkage is measured, not refused."""
    rng = np.random.default_rng(9)
    first = [pictures(strip(made)) for made in patients]
    again = [pictures(strip(made, made.volume_RAS + rng.normal(0, 15, made.volume_RAS.shape))) for made in patients]
    same = [alike(a, b) for a, b in zip(first, again, strict=True)]
    other = [alike(first[i], again[j]) for i in range(3) for j in range(3) if i != j]
    assert min(same) > max(other)
