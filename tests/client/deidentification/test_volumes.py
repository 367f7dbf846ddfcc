"""Geometry is exact or refused; pictures look like ordinary axial slices."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from client.deidentification.manifest import Reason, Withheld
from client.readers import volumes

Make = Callable[..., FileDataset]
SPACING_MM = (1.25, 1.5, 2.0)  # right, anterior, superior


def acquired(make_slice: Make, head: np.ndarray, normal: int, tilt_degrees: float = 0) -> list[FileDataset]:
    """The head cut along another axis (0: sagittal, 1: coronal, 2: axial), maybe with the patient turned in the scanner."""
    angle = np.radians(tilt_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    # Directions in DICOM's patient coordinates (left, posterior, superior) in which each index of `head` grows
    axes = [turn @ np.array(v, float) for v in ((-1, 0, 0), (0, -1, 0), (0, 0, 1))]
    rows, columns = [axis for axis in (2, 1, 0) if axis != normal]  # the picture's rows and columns
    slices = []
    for index in range(head.shape[normal]):
        picture = np.take(head, index, axis=normal)
        picture = picture if rows < columns else picture.T
        orientation = [*axes[columns], *axes[rows]]
        position = axes[normal] * index * SPACING_MM[normal]
        slices.append(
            make_slice(
                index,
                picture,
                ImageOrientationPatient=[f"{v:.8f}" for v in orientation],
                ImagePositionPatient=[f"{v:.6f}" for v in position],
                PixelSpacing=[SPACING_MM[rows], SPACING_MM[columns]],
            )
        )
    return slices


@pytest.mark.parametrize(("normal", "backwards"), list(itertools.product(range(3), (False, True))))
def test_any_acquisition_becomes_the_same_volume_voxel_by_voxel(
    make_slice: Make, head: np.ndarray, normal: int, backwards: bool
) -> None:
    slices = acquired(make_slice, head, normal)
    volume, spacing_mm = volumes.from_series(slices[::-1] if backwards else slices)
    assert np.array_equal(volume, head.astype(np.uint16)) and spacing_mm == pytest.approx(SPACING_MM)


def test_an_oblique_acquisition_keeps_its_voxels(make_slice: Make, head: np.ndarray) -> None:
    volume, _ = volumes.from_series(acquired(make_slice, head, 2, tilt_degrees=30))
    assert np.array_equal(volume, head.astype(np.uint16))


@pytest.mark.parametrize("fault", ["missing", "irregular", "duplicate", "orientation", "shear", "spacing", "frame"])
def test_irregular_geometry_is_refused(make_slice: Make, head: np.ndarray, fault: str) -> None:
    slices = acquired(make_slice, head, 2)
    match fault:
        case "missing":
            del slices[5]
        case "irregular":
            slices[5].ImagePositionPatient = [0, 0, 10.4]
        case "duplicate":
            slices[5].ImagePositionPatient = slices[4].ImagePositionPatient
        case "orientation":
            slices[5].ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
        case "shear":
            for index, ds in enumerate(slices):
                ds.ImagePositionPatient = [0, index, 2.0 * index]
        case "spacing":
            slices[5].PixelSpacing = [1, 1]
        case _:
            slices[5].FrameOfReferenceUID = "1.2.3"
    with pytest.raises(Withheld) as caught:
        volumes.from_series(slices)
    assert caught.value.reason is Reason.GEOMETRY


def test_a_picture_has_the_front_on_top_and_the_right_on_the_left() -> None:
    volume = np.zeros((20, 20, 3), np.float32)
    volume[2:18, 2:18] = 100
    volume[14:18, 14:18] = 300  # right, anterior
    pictures = volumes.axial(volume, (1, 1, 1), size=20, count=3)
    bright = np.argwhere(pictures[1] > 200).mean(axis=0)
    assert bright[0] < 8 and bright[1] < 8  # upper left


def test_levels_run_from_low_to_high_and_leave_out_those_with_little_head() -> None:
    volume = np.zeros((20, 20, 12), np.float32)
    for level in range(12):
        volume[:, : (20 if level > 2 else 2), level] = 50 + 10 * level
    pictures = volumes.axial(volume, (1, 1, 1), size=16, count=4)
    means = pictures.reshape(4, -1).mean(axis=1)
    assert len(pictures) == 4 and (np.diff(means) > 0).all()
    assert len(volumes.axial(volume, (1, 1, 1), size=16, count=50)) == 9


def test_a_circle_stays_a_circle_whatever_the_spacing() -> None:
    right, anterior = np.meshgrid(np.arange(80) * 0.5 - 20, np.arange(25) * 2.0 - 25, indexing="ij")
    disk = (right**2 + anterior**2 < 15**2).T * 255.0
    inside = volumes.square(disk, row_mm=2.0, column_mm=0.5, size=64) > 128
    height, width = int(inside.any(1).sum()), int(inside.any(0).sum())
    assert abs(height - width) <= 2 and abs(height - 30 / 50 * 64) <= 3


def test_scaling_ignores_outliers_and_uses_the_whole_range(head: np.ndarray) -> None:
    volume = head.astype(np.float32)
    volume[3, 3, 3] = 1e6
    pictures = volumes.axial(volume, (1, 1, 1), size=32, count=8)
    assert pictures.dtype == np.uint8 and pictures.max() == 255 and np.median(pictures[pictures > 0]) > 40


@pytest.mark.parametrize(("value", "hot", "reason"), [
    (0.0, 0, Reason.LABEL_MAP), (7.0, 0, Reason.LABEL_MAP), (np.nan, 0, Reason.PIXEL_FORMAT), (7.0, 5, Reason.LABEL_MAP),
])  # fmt: skip
def test_a_volume_without_contrast_is_withheld(value: float, hot: int, reason: Reason) -> None:
    """Also one that is flat but for a few hot values, which are no head."""
    volume = np.full((8, 8, 8), value, np.float32)
    volume[4, 4, :hot] = 100 + np.arange(hot)
    with pytest.raises(Withheld) as caught:
        volumes.axial(volume, (1, 1, 1), size=16, count=4)
    assert caught.value.reason is reason


@pytest.mark.parametrize(("available", "count"), [(24, 24), (24, 5), (3, 10), (1, 1), (100, 7)])
def test_even_choice_is_in_order_without_repeats(available: int, count: int) -> None:
    chosen = volumes.evenly(available, count)
    assert len(set(chosen.tolist())) == len(chosen) == min(available, count)
    assert (np.diff(chosen) > 0).all() and (chosen < available).all()
