"""Group G of the de-identification suite: a volume comes out voxel by voxel as it was, or not at all.

The acquisitions are built by `test_client_volumes.acquired`'s rule again, so that one mistake cannot hide in both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import EnhancedMRImageStorage

from client import dataset
from client.deidentification import deidentify, enhanced, manifest
from client.deidentification.manifest import Reason, Withheld
from client.readers import volumes
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

Make = Callable[..., FileDataset]
Save = Callable[[Dataset, Path], Path]
Write = Callable[..., list[Path]]
STEP_MM = {"R": 1.25, "A": 1.5, "S": 2.0}
# Where an index of the head (right, anterior, superior) grows, in DICOM's left, posterior, superior
GROWS = {"R": (-1.0, 0.0, 0.0), "A": (0.0, -1.0, 0.0), "S": (0.0, 0.0, 1.0)}


def scan(
    make_slice: Make, head: np.ndarray, column: str, row: str, through: str, tilt: float = 0.0
) -> list[FileDataset]:
    """Slices with columns along one of R A S, rows along another, stacked along the third; lower case: backwards."""
    axes = "RAS"
    flipped = head[tuple(slice(None, None, -1) if a.lower() in column + row + through else slice(None) for a in axes)]
    turned = flipped.transpose([axes.index(a.upper()) for a in (through, row, column)])
    angle = np.radians(tilt)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])

    def along(axis: str) -> np.ndarray:
        return np.asarray(turn @ np.array(GROWS[axis.upper()]) * (1 if axis.isupper() else -1))

    return [
        make_slice(
            index,
            picture,
            ImageOrientationPatient=[f"{v:.9f}" for v in (*along(column), *along(row))],
            ImagePositionPatient=[f"{v:.6f}" for v in along(through) * index * STEP_MM[through.upper()]],
            PixelSpacing=[str(STEP_MM[row.upper()]), str(STEP_MM[column.upper()])],
        )
        for index, picture in enumerate(turned)
    ]


@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled"])
@pytest.mark.parametrize("plane", ["rAS", "RAS", "raS", "raS", "rAs", "ASR", "Asr", "aSR", "RSA", "rsA", "SRa", "sAR"])
def test_g01_to_g04_any_plane_direction_and_order_gives_the_exact_volume(
    make_slice: Make, head: np.ndarray, plane: str, order: str, key: bytes
) -> None:
    """Axial, coronal, sagittal; every sign; files in any order; after the rebuild of each header."""
    slices = [deidentify.rebuild(ds, key) for ds in scan(make_slice, head, *plane)]
    if order == "reversed":
        slices.reverse()
    elif order == "shuffled":
        slices = [slices[i] for i in np.random.default_rng(1).permutation(len(slices))]
    volume, spacing_mm = volumes.from_series(slices)
    assert np.array_equal(volume, head.astype(np.uint16))
    assert spacing_mm == pytest.approx((1.25, 1.5, 2.0), abs=1e-4)


def test_g05_a_localizer_among_the_slices_is_withheld(
    tmp_path: Path, write_series: Write, make_slice: Make, save: Save
) -> None:
    write_series(tmp_path / "data")
    for number, plane in enumerate(("rAS", "RSA", "ASR")):
        ds = scan(make_slice, np.ones((16, 20, 16)), *plane)[3]
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.7.1.1", "1.2.3.9"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.9.{number}"
        save(ds, tmp_path / "data" / f"localizer{number}.dcm")
    assert reasons(tmp_path) == {Reason.OK: 16, Reason.LOCALIZER: 3}


def reasons(folder: Path, **site: object) -> dict[Reason, int]:
    settings = Site.model_validate(
        {"name": "a", "data": folder / "data", "face_removal": "none", "text_check": "none", **site}
    )
    try:
        ingest(settings, classes=["x"], image_size=16, slices_per_patient=8, work=folder / "work")
    except DataError:
        assert not list((folder / "work" / "cohort").glob("*.npz"))
    entries = manifest.read(folder / "work" / "manifest.jsonl")
    return {reason: count for reason in Reason if (count := sum(entry.reason is reason for entry in entries))}


def test_g06_a_screenshot_in_the_series_is_withheld(
    tmp_path: Path, write_series: Write, make_slice: Make, save: Save
) -> None:
    write_series(tmp_path / "data")
    ds = make_slice(99, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", ConversionType="WSD")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.7.1.1", "1.2.826.0.1.3680043.8.498.7.1.2"
    save(ds, tmp_path / "data" / "screen.dcm")
    assert reasons(tmp_path) == {Reason.OK: 16, Reason.SOP_CLASS: 1}


@pytest.mark.parametrize("tilt", [1.0, 30.0, -30.0, 44.0])
def test_g07_an_oblique_volume_keeps_every_voxel(make_slice: Make, head: np.ndarray, key: bytes, tilt: float) -> None:
    slices = [deidentify.rebuild(ds, key) for ds in scan(make_slice, head, "r", "a", "S", tilt)]
    volume, spacing_mm = volumes.from_series(slices[::-1])
    assert np.array_equal(volume, head.astype(np.uint16)) and spacing_mm == pytest.approx((1.25, 1.5, 2.0), abs=1e-4)


@pytest.mark.parametrize("fault", ["duplicate", "missing", "irregular", "size"])
def test_g08_slices_that_make_no_regular_volume_are_withheld(
    tmp_path: Path, write_series: Write, make_slice: Make, save: Save, fault: str
) -> None:
    paths = write_series(tmp_path / "data")
    ds = pydicom.dcmread(paths[5])
    if fault == "missing":
        paths[5].unlink()
    elif fault == "irregular":
        ds.ImagePositionPatient = [-10.5, -12.25, 10.4]
        save(ds, paths[5])
    elif fault == "size":
        ds.Rows, ds.Columns = ds.Columns, ds.Rows
        save(ds, paths[5])
    else:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
        save(ds, tmp_path / "data" / "again.dcm")
    found = reasons(tmp_path, minimum_slices=8)
    assert Reason.OK not in found or (fault == "duplicate" and found == {Reason.OK: 16, Reason.OTHER_VOLUME: 1})
    assert sum(found.values()) == 16 + (fault == "duplicate") - (fault == "missing")


def test_g09_two_series_under_one_uid_are_not_mixed(tmp_path: Path, write_series: Write, head: np.ndarray) -> None:
    """Two names under one study are one person (persons.py), and two volumes under one series are withheld, never blended."""
    for number, patient in enumerate(("P1", "P2")):

        def change(index: int, ds: FileDataset, number: int = number) -> None:
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.{index}"

        write_series(tmp_path / "data" / patient, head * (1 + number), change=change, PatientID=patient)
    assert reasons(tmp_path) == {Reason.AMBIGUOUS: 32}
    assert not list((tmp_path / "work" / "cohort").glob("*.npz"))


def test_g09_instances_of_two_patients_under_one_uid_never_join(
    tmp_path: Path, write_series: Write, head: np.ndarray
) -> None:
    """The same instance UIDs for two people: the second person's are duplicates, nothing of them enters the first."""
    write_series(tmp_path / "data" / "a", head, PatientID="P1")
    alone = reasons(tmp_path)
    (first,) = dataset.load(tmp_path / "work" / "cohort")
    write_series(tmp_path / "data" / "b", head[::-1] * 2, PatientID="P2")
    assert alone == {Reason.OK: 16} and reasons(tmp_path) == {Reason.OK: 16, Reason.DUPLICATE: 16}
    (still,) = dataset.load(tmp_path / "work" / "cohort")
    assert np.array_equal(still.x_SHW, first.x_SHW)


def test_g10_frames_in_any_order_give_the_exact_volume(make_slice: Make, head: np.ndarray, key: bytes) -> None:
    """Orientation and spacing per frame instead of shared, frames shuffled, a tilted plane."""
    slices = scan(make_slice, head, "A", "s", "r", 20.0)
    for seed in range(3):
        order = [int(i) for i in np.random.default_rng(seed).permutation(len(slices))]
        volume, spacing_mm = volumes.from_series(enhanced.split(deidentify.rebuild(multi_frame(slices, order), key)))
        assert np.array_equal(volume, head.astype(np.uint16)) and spacing_mm == pytest.approx(
            (1.25, 1.5, 2.0), abs=1e-4
        )


def multi_frame(slices: list[FileDataset], order: list[int]) -> FileDataset:
    ds = copy.deepcopy(slices[0])
    frames = []
    for index in order:
        frame, position, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = slices[index].ImagePositionPatient
        orientation.ImageOrientationPatient = slices[index].ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = slices[index].PixelSpacing, "2"
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [position], [orientation]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
                    "SpacingBetweenSlices", "RescaleIntercept"):  # fmt: skip
        delattr(ds, keyword)
    ds.SOPClassUID = EnhancedMRImageStorage
    ds.NumberOfFrames, ds.PerFrameFunctionalGroupsSequence = len(frames), frames
    ds.SharedFunctionalGroupsSequence = [Dataset()]
    ds.PixelData = b"".join(slices[index].PixelData for index in order)
    return ds


def test_g10_a_frame_too_many_or_too_few_is_withheld(make_slice: Make, head: np.ndarray, key: bytes) -> None:
    slices = scan(make_slice, head, "r", "a", "S")
    for change in (-1, 1):
        ds = multi_frame(slices, list(range(len(slices))))
        ds.NumberOfFrames = len(slices) + change
        with pytest.raises(Withheld):
            deidentify.rebuild(ds, key)
