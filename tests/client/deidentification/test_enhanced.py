"""Multi-frame MR is rebuilt frame by frame, and makes the same volume as single frames."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage

from client.deidentification import deidentify, enhanced, export, profile
from client.deidentification.manifest import Reason, Withheld
from client.modalities import mr
from client.readers import volumes
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

Make = Callable[..., FileDataset]
CANARY = "QZJX0001"


def multi_frame(make_slice: Make, head: np.ndarray, order: list[int], *, repeats: int = 1) -> FileDataset:
    """A volume as one object, its frames in any order, with text in every group."""
    ds = make_slice(0, head[::-1, ::-1, 0].T, SOPClassUID=EnhancedMRImageStorage)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime",
                    "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "ScanningSequence"):  # fmt: skip
        delattr(ds, keyword)
    ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    shared = Dataset()
    measures, plane, transformation, kind = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = ["1.5", "1.25"], "2", "2"
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    transformation.RescaleIntercept, transformation.RescaleSlope, transformation.RescaleType = "0", "2", CANARY
    kind.FrameType, kind.ComplexImageComponent = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "MAGNITUDE"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence, shared.MRImageFrameTypeSequence = [transformation], [kind]
    anatomy = Dataset()
    anatomy.FrameLaterality, anatomy.CodeMeaning = "U", CANARY
    shared.FrameAnatomySequence = [anatomy]
    frames, samples = [], []
    for repeat in range(repeats):
        for index in order:
            frame, position, content = Dataset(), Dataset(), Dataset()
            position.ImagePositionPatient = [-10.5, -12.25, 2.0 * index]
            content.TemporalPositionIndex, content.FrameLabel, content.StackID = repeat + 1, CANARY, "1"
            content.InStackPositionNumber, content.FrameComments = index + 1, CANARY
            frame.PlanePositionSequence, frame.FrameContentSequence = [position], [content]
            frames.append(frame)
            samples.append(head[::-1, ::-1, index].T.astype(np.uint16) + repeat)
    ds.NumberOfFrames = len(frames)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    ds.PixelData = np.stack(samples).tobytes() + CANARY.encode()
    return ds


@pytest.fixture
def shuffled(head: np.ndarray) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).permutation(head.shape[2])]


@pytest.mark.parametrize("sop_class", [EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage])
def test_shuffled_frames_become_the_exact_volume(
    make_slice: Make, head: np.ndarray, shuffled: list[int], key: bytes, sop_class: str
) -> None:
    source = multi_frame(make_slice, head, shuffled)
    source.SOPClassUID = sop_class
    volume, spacing_mm = volumes.from_series(enhanced.split(deidentify.rebuild(source, key)))
    assert np.array_equal(volume, head.astype(np.uint16) * 2.0) and spacing_mm == (1.25, 1.5, 2.0)


def test_the_rebuilt_object_holds_no_text_and_reads_alike_elsewhere(
    make_slice: Make, head: np.ndarray, shuffled: list[int], key: bytes
) -> None:
    written = deidentify.encode(deidentify.rebuild(multi_frame(make_slice, head, shuffled), key))
    assert CANARY.encode() not in written and export.within_allow_list(written)
    again = pydicom.dcmread(io.BytesIO(written))
    assert all(element.keyword in profile.allowed() for element in again.iterall())
    volume = highdicom.Image.from_dataset(again).get_volume().to_patient_orientation("RAS")
    assert np.array_equal(volume.array, head.astype(np.uint16) * 2.0)


def test_only_the_first_complete_volume_of_a_multi_frame_series_is_used(
    make_slice: Make, head: np.ndarray, shuffled: list[int], save: Callable[..., object], tmp_path: object
) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    save(multi_frame(make_slice, head, shuffled, repeats=3), folder / "data" / "a.dcm")
    save(multi_frame(make_slice, head, sorted(shuffled)), folder / "single" / "a.dcm")
    cohorts = []
    for name in ("data", "single"):
        site = Site(name="a", data=folder / name, face_removal="none")
        report = ingest(site, classes=["x"], image_size=16, slices_per_patient=16, work=folder / f"work-{name}")
        assert (report.patients, report.passed) == (1, 1)
        (path,) = (folder / f"work-{name}" / "cohort").glob("*.npz")
        cohorts.append(np.load(path)["x"])
    assert np.array_equal(*cohorts)


# What one multi-frame object becomes: keywords at the top, in the shared item, and in the first frame.
TOP = {
    *(rule.keyword for rule in profile.IDENTITY), *(rule.keyword for rule in profile.PIXELS), "SOPClassUID", "Modality",
    "ImageType", "InstanceNumber", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
    "MagneticFieldStrength", "NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
}  # fmt: skip
SHARED = {
    "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "RescaleIntercept", "RescaleSlope", "RescaleType",
}  # fmt: skip
FRAME = {"FrameContentSequence", "PlanePositionSequence", "TemporalPositionIndex", "InStackPositionNumber",
         "ImagePositionPatient"}  # fmt: skip
KEPT = [rule.keyword for rule in mr.MULTI_FRAME if rule.kind not in ("group", "pixels")]
GROUPED = [(name, rule.keyword) for name, table in profile.GROUPS.items() for rule in table]


def shape(rebuilt: Dataset) -> tuple[set[str], set[str], set[str]]:
    """Keywords at the top, shared and of the first frame."""
    return (
        {element.keyword for element in rebuilt},
        {element.keyword for element in rebuilt.SharedFunctionalGroupsSequence[0].iterall()},
        {element.keyword for element in rebuilt.PerFrameFunctionalGroupsSequence[0].iterall()},
    )


def test_a_rebuilt_multi_frame_object_is_exactly_the_table(make_slice: Make, head: np.ndarray, key: bytes) -> None:
    assert shape(deidentify.rebuild(multi_frame(make_slice, head, [0, 1, 2]), key)) == (TOP, SHARED, FRAME)


@pytest.mark.parametrize("removed", [*KEPT, *GROUPED], ids=str)
def test_e04_removing_any_one_multi_frame_rule_is_noticed(
    make_slice: Make, head: np.ndarray, key: bytes, removed: str | tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(removed, str):
        table = tuple(rule for rule in mr.MULTI_FRAME if rule.keyword != removed)
        monkeypatch.setitem(mr.READER.tables, EnhancedMRImageStorage, table)
    else:
        group, keyword = removed
        table = tuple(rule for rule in profile.GROUPS[group] if rule.keyword != keyword)
        monkeypatch.setitem(profile.GROUPS, group, table)
    with contextlib.suppress(Withheld):
        assert shape(deidentify.rebuild(multi_frame(make_slice, head, [0, 1, 2]), key)) != (TOP, SHARED, FRAME)


@pytest.mark.parametrize("broken", ["no position", "two items", "phase frame", "too few frames", "no groups"])
def test_a_frame_in_doubt_withholds_the_object(
    make_slice: Make, head: np.ndarray, shuffled: list[int], key: bytes, broken: str
) -> None:
    source = multi_frame(make_slice, head, shuffled)
    frames = source.PerFrameFunctionalGroupsSequence
    match broken:
        case "no position":
            del frames[3].PlanePositionSequence
        case "two items":
            frames[3].PlanePositionSequence.append(frames[3].PlanePositionSequence[0])
        case "phase frame":
            source.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence[0].ComplexImageComponent = "PHASE"
        case "too few frames":
            source.NumberOfFrames = 3
        case _:
            del source.PerFrameFunctionalGroupsSequence
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(source, key)
    assert caught.value.reason in {Reason.REQUIRED, Reason.NOT_MAGNITUDE}


SPECIES = Dataset()
SPECIES.CodeValue, SPECIES.CodingSchemeDesignator, SPECIES.CodeMeaning = "448771007", "SCT", "Canis lupus familiaris"


@pytest.mark.parametrize(("keyword", "value", "reason"), [
    ("SyntheticData", "YES", Reason.SYNTHETIC), ("QualityControlImage", "BOTH", Reason.QUALITY_CONTROL),
    ("QualityControlSubject", "YES", Reason.QUALITY_CONTROL), ("PatientBreedDescription", "Beagle", Reason.ANIMAL),
    ("PatientSpeciesCodeSequence", [SPECIES], Reason.ANIMAL),
])  # fmt: skip
@pytest.mark.parametrize("where", ["", "UnassignedSharedConvertedAttributesSequence",
                                   "UnassignedPerFrameConvertedAttributesSequence"])  # fmt: skip
def test_person_02_what_is_no_person_is_refused_in_enhanced_objects_too(
    make_slice: Make, head: np.ndarray, shuffled: list[int], tmp_path: Path, key: bytes,
    where: str, keyword: str, value: object, reason: Reason,
) -> None:  # fmt: skip
    """Conversion from single frames puts what it does not know into sequences of its own, beside the groups of the frames."""
    ds = multi_frame(make_slice, head, shuffled)
    ds.SOPClassUID = LegacyConvertedEnhancedMRImageStorage
    place = Dataset() if where else ds
    if where:
        around = ds.SharedFunctionalGroupsSequence[0] if "Shared" in where else ds.PerFrameFunctionalGroupsSequence[3]
        setattr(around, where, [place])
    deidentify.rebuild(ds, key)
    setattr(place, keyword, value)
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(ds, key)
    assert caught.value.reason is reason
    (tmp_path / "data").mkdir()
    ds.save_as(tmp_path / "data" / "a.dcm", enforce_file_format=True)
    site = Site(name="a", data=tmp_path / "data", face_removal="none", text_check="none", minimum_slices=4)
    with pytest.raises(DataError, match=reason.code):
        ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
