"""A rebuilt record holds what the allow-list permits, and nothing else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from client.deidentification import acceptance, deidentify, export, pixels, profile, pseudonym, reader, rules
from client.deidentification.manifest import Reason, Withheld
from client.modalities import mr

Make = Callable[..., FileDataset]

# What one slice of the builder becomes, besides UIDs, pseudonym and pixels. A rule that goes missing changes this.
EXPECTED = {
    "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"], "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR",
    "PatientIdentityRemoved": "YES", "DeidentificationMethod": profile.METHOD,
    "LongitudinalTemporalInformationModified": "REMOVED",
    "ScanningSequence": ["GR", "IR"], "SequenceVariant": ["SP", "MP"], "MRAcquisitionType": "3D",
    "PatientPosition": "HFS", "RepetitionTime": 2000, "EchoTime": 2.98, "InversionTime": 900, "FlipAngle": 9,
    "EchoTrainLength": 1, "NumberOfAverages": 1, "MagneticFieldStrength": 3,
    "ImagePositionPatient": [-10.5, -12.25, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1.5, 1.25], "SliceThickness": 2, "SpacingBetweenSlices": 2, "RescaleIntercept": 0,
    "RescaleSlope": 1, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": 8, "Columns": 8,
    "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "LossyImageCompression": "00",
}  # fmt: skip
EMPTY = {
    "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientBirthDate",
    "PatientSex", "StudyID", "SeriesNumber", "InstanceNumber", "PositionReferenceIndicator", "Manufacturer",
    "ScanOptions", "Laterality",
}  # fmt: skip
MADE = {
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "PixelData",
    "DeidentificationMethodCodeSequence",
}  # fmt: skip


def content(ds: Dataset) -> dict[str, Any]:
    values = {element.keyword: element.value for element in ds}
    return {k: list(v) if isinstance(v, pydicom.multival.MultiValue) else v for k, v in values.items()}


def expected(found: dict[str, Any]) -> bool:
    return (
        found.keys() == EXPECTED.keys() | EMPTY | MADE
        and all(found[name] == value for name, value in EXPECTED.items())
        and all(not found[name] for name in EMPTY)
    )


def test_a_rebuilt_slice_is_exactly_the_table(make_slice: Make, key: bytes) -> None:
    source = make_slice(StudyDate="20200101", OperatorsName="X^Y", SeriesDescription="text", RepetitionTime="2000.04")
    assert expected(content(deidentify.rebuild(source, key)))


@pytest.mark.parametrize("removed", [rule.keyword for rule in mr.SINGLE_FRAME if rule.kind != "pixels"])
def test_e04_removing_any_one_rule_is_noticed(
    make_slice: Make, key: bytes, removed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tuple(rule for rule in mr.SINGLE_FRAME if rule.keyword != removed)
    monkeypatch.setitem(mr.READER.tables, "1.2.840.10008.5.1.4.1.1.4", table)
    with contextlib.suppress(Withheld):  # the pixels cannot be described without some of them
        assert not expected(content(deidentify.rebuild(make_slice(), key)))


def test_the_markers_are_those_of_the_options_that_ran(make_slice: Make, key: bytes) -> None:
    rebuilt = deidentify.rebuild(
        make_slice(BurnedInAnnotation="NO", LongitudinalTemporalInformationModified="UNMODIFIED"), key
    )
    codes = [item.CodeValue for item in rebuilt.DeidentificationMethodCodeSequence]
    assert (rebuilt.PatientIdentityRemoved, codes) == ("YES", ["113100"])
    assert rebuilt.LongitudinalTemporalInformationModified == "REMOVED"
    assert "BurnedInAnnotation" not in rebuilt and "RecognizableVisualFeatures" not in rebuilt


def test_preamble_and_file_meta_are_ours(make_slice: Make, key: bytes) -> None:
    source = make_slice()
    source.file_meta.SourceApplicationEntityTitle = "WARD7"
    written = deidentify.encode(deidentify.rebuild(source, key))
    again = pydicom.dcmread(io.BytesIO(written))
    assert again.preamble == deidentify.PREAMBLE
    assert again.file_meta.keys() == {0x00020000 + n for n in (0x0, 0x1, 0x2, 0x3, 0x10, 0x12, 0x13)}
    assert again.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID
    assert again.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert export.within_allow_list(written)


def test_the_check_of_written_bytes_sees_one_foreign_attribute(make_slice: Make, key: bytes) -> None:
    rebuilt = deidentify.rebuild(make_slice(), key)
    rebuilt.DeidentificationMethodCodeSequence[0].CodingSchemeVersion = "x"
    assert not export.within_allow_list(deidentify.encode(rebuilt))


def test_the_check_of_written_bytes_sees_bytes_after_the_end_and_a_foreign_preamble(
    make_slice: Make, key: bytes
) -> None:
    written = deidentify.encode(deidentify.rebuild(make_slice(), key))
    assert export.within_allow_list(written)
    for damaged in (
        written + b"QZJX",
        written[:-1],
        b"QZJX" + written[4:],
        written.replace(b"FEDSYNTH", b"QZJXQZJX")[:-2],
    ):
        assert not export.within_allow_list(damaged)
    other = written.replace(deidentify.IMPLEMENTATION_UID.encode(), b"1.2.840.113619.6.43".ljust(44, b"\0"))
    assert len(other) == len(written) and not export.within_allow_list(other)


def test_what_is_written_is_what_pydicom_writes_of_the_same_record(make_slice: Make, key: bytes) -> None:
    rebuilt = deidentify.rebuild(make_slice(0, np.arange(63).reshape(7, 9)), key)
    deidentify.claim_clean_pixels(rebuilt)
    plain = pydicom.FileDataset(
        "", Dataset(), preamble=deidentify.PREAMBLE, file_meta=pydicom.dataset.FileMetaDataset()
    )
    plain.update({each.tag: each for each in rebuilt})
    plain.file_meta.update({each.tag: each for each in rebuilt.file_meta})
    buffer = io.BytesIO()
    plain.save_as(buffer, enforce_file_format=True)
    assert deidentify.encode(rebuilt) == buffer.getvalue()


def test_changing_one_record_changes_no_other(make_slice: Make, key: bytes) -> None:
    first, second = (deidentify.rebuild(make_slice(), key) for _ in range(2))
    first.PixelSpacing[0] = 9
    first.ScanningSequence, first.ImageType[2] = "RM", "X"
    first.DeidentificationMethodCodeSequence[0].CodeValue = "X"
    assert expected(content(second)) and expected(content(deidentify.rebuild(make_slice(), key)))


def test_e06_two_runs_give_the_same_bytes(make_slice: Make, key: bytes) -> None:
    first, second = (deidentify.encode(deidentify.rebuild(make_slice(), key)) for _ in range(2))
    assert first == second


def test_uids_are_equal_for_equal_sources_and_differ_between_keys(key: bytes) -> None:
    made = pseudonym.uid(key, "1.2.3")
    assert made == pseudonym.uid(key, "1.2.3") != pseudonym.uid(key, "1.2.4")
    assert made != pseudonym.uid(b"x" * 32, "1.2.3")
    number = int(made.removeprefix("2.25."))
    assert number >> 76 & 0xF == 8 and number >> 62 & 0b11 == 0b10 and len(made) <= 64


def test_only_frames_of_reference_that_the_standard_names_keep_their_uid(key: bytes) -> None:
    atlas = "1.2.840.10008.1.4.1.1"
    assert pseudonym.uid(key, atlas) == atlas
    assert pseudonym.uid(key, "1.2.840.10008.19471213").startswith("2.25.")
    assert pseudonym.uid(key, "1.2.840.10008.5.1.4.1.1.4").startswith("2.25.")


def test_the_same_number_from_two_issuers_is_two_patients(make_slice: Make, key: bytes) -> None:
    one, same, other = (
        deidentify.rebuild(make_slice(PatientID=patient, IssuerOfPatientID=issuer), key).PatientID
        for patient, issuer in (("7", "A"), ("7 ", "A"), ("7", "B"))
    )
    assert one == same != other


@pytest.mark.parametrize("missing", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
                                     "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
                                     "ScanningSequence", "SequenceVariant", "BitsStored"])  # fmt: skip
def test_a_missing_required_attribute_quarantines(make_slice: Make, key: bytes, missing: str) -> None:
    source = make_slice()
    delattr(source, missing)
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(source, key)
    assert caught.value.reason is Reason.REQUIRED


@pytest.mark.parametrize("patient", ["", "  ", None])
def test_a_missing_patient_identifier_quarantines(make_slice: Make, key: bytes, patient: str | None) -> None:
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(make_slice(PatientID=patient), key)
    assert caught.value.reason is Reason.NO_PATIENT


@pytest.mark.parametrize(
    ("reason", "word"), [(reason, word) for reason, words in acceptance.DENIED.items() for word in sorted(words)]
)
def test_each_denied_image_type_is_withheld(make_slice: Make, key: bytes, reason: Reason, word: str) -> None:
    source = make_slice()
    source.add(pydicom.DataElement("ImageType", "UC", ["ORIGINAL", "PRIMARY", "M", word]))
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(source, key)
    assert caught.value.reason in acceptance.DENIED and word in acceptance.DENIED[reason]


@pytest.mark.parametrize(("reason", "attributes"), [
    (Reason.SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
    (Reason.SOP_CLASS, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}),
    (Reason.SOP_CLASS, {"SOPClassUID": "1.3.12.2.1107.5.9.1"}),
    (Reason.MODALITY, {"Modality": "CT"}),
    (Reason.MODALITY, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),
    (Reason.DICOMDIR, {"SOPClassUID": "1.2.840.10008.1.3.10"}),
    (Reason.COLOUR, {"SamplesPerPixel": 3}),
    (Reason.COLOUR, {"PhotometricInterpretation": "RGB"}),
    (Reason.COLOUR, {"PhotometricInterpretation": "PALETTE COLOR"}),
    (Reason.CONVERTED, {"ConversionType": "WSD"}),
    (Reason.CONVERTED, {"SecondaryCaptureDeviceManufacturer": "X"}),
    (Reason.BURNED_IN, {"BurnedInAnnotation": "YES"}),
    (Reason.BURNED_IN, {"BurnedInAnnotation": "MAYBE"}),
    (Reason.DERIVED, {"ImageType": ["ORIGINAL"]}),
    (Reason.NOT_MAGNITUDE, {"ComplexImageComponent": "PHASE"}),
    (Reason.PIXEL_FORMAT, {"HighBit": 15}),
    (Reason.PIXEL_FORMAT, {"BitsAllocated": 12}),
    (Reason.PIXEL_FORMAT, {"BitsAllocated": 8}),
    (Reason.PIXEL_FORMAT, {"NumberOfFrames": 2}),
    (Reason.TRUNCATED, {"PixelData": bytes(100)}),
    (Reason.REQUIRED, {"ImagePositionPatient": [0, 0, 77123.5]}),
])  # fmt: skip
def test_what_is_in_doubt_is_withheld(make_slice: Make, key: bytes, reason: Reason, attributes: dict[str, Any]) -> None:
    with pytest.raises(Withheld) as caught:
        deidentify.rebuild(make_slice(**attributes), key)
    assert caught.value.reason is reason


@pytest.mark.parametrize("value", ["77123.5", "770000123", "-1", "1e300", "nan", "inf", "JANE"])
def test_an_identifier_in_a_numeric_attribute_is_dropped(make_slice: Make, key: bytes, value: str) -> None:
    source = make_slice()
    source.add(pydicom.DataElement("RepetitionTime", "SH", value))
    assert not deidentify.rebuild(source, key).RepetitionTime


def test_words_outside_the_enumeration_are_dropped(make_slice: Make, key: bytes) -> None:
    source = make_slice(ScanningSequence=["GR", "JANE"], MRAcquisitionType="JANE")
    rebuilt = deidentify.rebuild(source, key)
    assert rebuilt.ScanningSequence == "GR" and not rebuilt.MRAcquisitionType


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
                                    "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90"])  # fmt: skip
def test_every_transfer_syntax_is_rebuilt_alike(
    make_slice: Make, key: bytes, head: np.ndarray, tmp_path: Path, syntax: str
) -> None:
    plain = deidentify.rebuild(make_slice(0, np.kron(head[:, :, 8], np.ones((4, 4)))), key)
    source = make_slice(0, np.kron(head[:, :, 8], np.ones((4, 4))))
    if UID(syntax).is_compressed and not UID(syntax).is_deflated:
        source.compress(syntax, generate_instance_uid=False)
        source.PixelData = with_comments(source.PixelData)
    elif syntax == "1.2.840.10008.1.2.2":
        source.PixelData = np.frombuffer(source.PixelData, "<u2").astype(">u2").tobytes()
    source.file_meta.TransferSyntaxUID = syntax
    source.set_original_encoding(syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2")
    source.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    rebuilt = deidentify.rebuild(reader.whole(tmp_path / "x.dcm"), key)
    assert rebuilt == plain and b"QZJX" not in deidentify.encode(rebuilt)


def with_comments(stream: bytes) -> bytes:
    """A comment inside the JPEG 2000 codestream, and a fragment too many."""
    (frame,) = generate_frames(stream, number_of_frames=1)
    place = frame.find(b"\xff\x52")
    if place > 0:
        frame = frame[:place] + b"\xff\x64\x00\x10\x00\x01" + b"QZJX" * 3 + frame[place:]
        return encapsulate([frame]) + b"\xfe\xff\x00\xe0\x08\x00\x00\x00QZJXQZJX"
    return encapsulate([frame])


def test_lossy_compression_is_said_even_when_the_source_does_not_say_it(make_slice: Make, key: bytes) -> None:
    source = make_slice(0, np.arange(4096).reshape(64, 64), LossyImageCompression=None)
    source.compress("1.2.840.10008.1.2.4.91", j2k_cr=[2], generate_instance_uid=False)
    assert deidentify.rebuild(source, key).LossyImageCompression == "01"


def test_negative_samples_survive_the_mask() -> None:
    raw = np.array([[-5, 7], [-2048, 2047]], dtype=np.int16)
    assert np.array_equal(pixels.masked(raw.view(np.uint16) & 0x0FFF, 12, signed=True), raw)
    assert np.array_equal(pixels.masked(raw.view(np.uint16), 12, signed=True), raw)


text = st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=20)


@given(st.dictionaries(st.sampled_from(sorted(rule.keyword for rule in mr.SINGLE_FRAME if rule.kind in ("number", "word"))),
                       st.one_of(text, st.lists(text, min_size=1, max_size=7))))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_e05_no_value_outside_the_typed_ranges_survives(make_slice: Make, values: dict[str, Any]) -> None:
    source = make_slice()
    for keyword, value in values.items():
        source.add(pydicom.DataElement(keyword, "UC", value))
    table = {rule.keyword: rule for rule in mr.SINGLE_FRAME}
    try:
        rebuilt = deidentify.rebuild(source, bytes(32))
    except Withheld:
        return
    assert {element.keyword for element in rebuilt} <= profile.allowed()
    for keyword in values:
        if rebuilt.get(keyword) in (None, ""):
            continue
        rule = table[keyword]
        if rule.kind == "number":
            numbers = rules.numbers(rule, rebuilt)
            assert numbers is not None and all(rule.low <= number <= rule.high for number in numbers)
        else:
            assert set(acceptance.words(rebuilt, keyword)) <= set(rule.words)
