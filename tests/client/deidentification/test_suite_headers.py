"""Group H of the de-identification suite: whatever a header hides, none of it is written. The oracle is another project's table.

Cases that stand elsewhere: H07, H09, H11, H16 to H18 as canaries also in `test_client_leaks`; H20 also in
`test_client_bad_input`.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as kitware
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from client.deidentification.manifest import Reason
from client.verification import expected_attributes
from simulations.cohorts.planted import Canaries

Make = Callable[..., FileDataset]
Through = Callable[..., tuple[Reason, bytes]]

# PS3.15 2026d, Table E.1-1: the 655 rows of that table's edition 2026c, and the two that it lacks.
NEWER = {0x3004007F}
ROWS = {row[0] << 16 | row[1] for row in kitware.ALL_TAGS if len(row) == 2} | NEWER
REPEATING = (0x50003000, 0x60003000, 0x60004000)
# Rows that decide whether a file is accepted at all, so that a canary in them refuses it.
DECIDE = {0x00080018, 0x0020000D, 0x0020000E, 0x00200052, 0x00100020}


def vr_of(tag: int) -> str:
    """Of the dictionary; text for the newest attributes, which it lacks."""
    return dictionary_VR(tag).split(" ")[0] if dictionary_has_tag(tag) else "LO"


def planted(tag: int, canaries: Canaries) -> Any:
    vr = vr_of(tag)
    if vr == "SQ":
        inner = Dataset()
        inner.CodeMeaning, inner.PersonName, inner.TextValue = canaries.word(), canaries.word(), canaries.word()
        return Sequence([inner])
    value = canaries.value(vr)
    return value if value is not None else 0


def test_h04_the_oracle_is_the_edition_that_was_read() -> None:
    rows = {name: getattr(kitware, name) for name in dir(kitware) if name.endswith("_TAGS") and name != "ALL_TAGS"}
    digest = hashlib.sha256(repr(sorted((name, sorted(tags)) for name, tags in rows.items())).encode()).hexdigest()
    assert len(kitware.ALL_TAGS) == 655 and sum(len(tags) for tags in rows.values()) == 655
    assert digest == "e89fdbd8f40a49a481a628bf6828955a7e0c8987ead9c9ea62b6d613f7c72414", (
        "the oracle's table changed: read what is new, then pin it"
    )


def test_h01_of_all_rows_only_those_with_a_harmless_shape_may_be_written() -> None:
    """What the standard removes, empties, replaces by a dummy or by a UID is absent, empty, a constant or a UID of ours."""
    actions = {row[0] << 16 | row[1]: name for name in ("X", "Z", "D", "U", "Z_D", "X_Z", "X_D", "X_Z_D", "X_Z_U_STAR")
               for row in getattr(kitware, f"{name}_TAGS")}  # fmt: skip
    said: dict[str, set[str]] = {}
    for (_, tag), by_vr in expected_attributes.table().items():
        if tag in actions:
            said.setdefault(actions[tag], set()).update(shape.said for shapes in by_vr.values() for shape in shapes)
    assert said == {"Z": {"-"}, "U": {"uid"}, "Z_D": {"patient"}, "X_Z_D": {"REMOVED"}}


def test_h01_each_row_at_top_level_is_not_written(make_slice: Make, through: Through) -> None:
    canaries, verdicts = Canaries(), Counter[Reason]()
    for start in range(0, len(ROWS), 16):
        ds = make_slice()
        for tag in sorted(ROWS)[start : start + 16]:
            if tag not in DECIDE and tag >> 16 > 2:
                with pydicom.config.disable_value_validation():
                    ds.add_new(tag, vr_of(tag), planted(tag, canaries))
        reason, written = through(ds)
        assert not canaries.survivors(written) and not canaries.found_in(written)
        verdicts[reason] += 1
    assert verdicts[Reason.OK] >= 35 and sum(verdicts.values()) == 41
    assert len(canaries.made) > 550


@pytest.mark.parametrize("tag", REPEATING)
def test_h01_repeating_groups_are_not_written(make_slice: Make, through: Through, tag: int) -> None:
    for group in range(0, 0x20, 2):
        ds = make_slice()
        ds.add_new(
            tag + (group << 16), "OW" if tag & 0xF000 == 0x3000 else "LO", b"QZJXQZJX" if tag & 0x3000 else "QZJX"
        )
        assert through(ds)[0] is Reason.OK


def test_h02_each_row_inside_a_sequence_is_not_written(make_slice: Make, through: Through) -> None:
    """All rows in one item each of listed sequences, standard and functional-group ones."""
    canaries = Canaries()
    for around in ("ReferencedImageSequence", "RequestAttributesSequence", "DeidentificationMethodCodeSequence",
                   "OriginalAttributesSequence", "ContributingEquipmentSequence", "OtherPatientIDsSequence"):  # fmt: skip
        inner = Dataset()
        with pydicom.config.disable_value_validation():
            for tag in sorted(ROWS):
                if tag >> 16 > 2:
                    inner.add_new(tag, vr_of(tag), planted(tag, canaries))
        ds = make_slice()
        setattr(ds, around, [inner, inner])
        reason, written = through(ds)
        assert reason is Reason.OK and not canaries.found_in(written)


@pytest.mark.parametrize("depth", [1, 3, 50, 400])
def test_h03_nesting_however_deep_ends_in_a_verdict(make_slice: Make, through: Through, depth: int) -> None:
    """Written by hand, because a writer that recurses gives up before a reader does."""
    content = b"\x10\0\x10\0PN\x04\0QZJX"
    for _ in range(depth):
        item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(content)) + content
        content = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<I", len(item)) + item
    reason, written = through(inserted(make_slice(), content, before=b"\x10\0\x10\0PN"))
    assert reason in (Reason.OK, Reason.UNREADABLE) and bool(written) == (reason is Reason.OK)
    assert reason is Reason.OK or depth > 50


def inserted(ds: FileDataset, raw: bytes, before: bytes) -> bytes:
    """The file with an element of our own bytes in front of another."""
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    content = buffer.getvalue()
    place = content.index(before)
    return content[:place] + raw + content[place:]


FREE_TEXT = {
    "SequenceName": "QZJX", "SoftwareVersions": ["QZJX", "QZJX2"], "ManufacturerModelName": "QZJX", "Manufacturer": "QZJX",
    "ReceiveCoilName": "QZJX", "TransmitCoilName": "QZJX", "ScanOptions": ["QZJX"], "RescaleType": "QZJX",
    "PositionReferenceIndicator": "QZJX", "WindowCenterWidthExplanation": "QZJX", "BodyPartExamined": "QZJX",
    "FrameComments": "QZJX", "ImageType": ["ORIGINAL", "PRIMARY", "M", "QZJX"], "ProtocolName": "QZJX",
    "SeriesDescription": "QZJX", "ImageComments": "QZJX", "AngioFlag": "QZJX", "ImagedNucleus": "QZJX",
    "PresentationLUTShape": "QZJX", "LossyImageCompressionMethod": "QZJX", "QualityControlImage": "QZJX",
}  # fmt: skip


@pytest.mark.parametrize("keyword", FREE_TEXT)
def test_h05_free_text_that_the_standard_does_not_list_is_not_written(
    make_slice: Make, through: Through, keyword: str
) -> None:
    assert through(make_slice(**{keyword: FREE_TEXT[keyword]}))[0] is Reason.OK


@pytest.mark.parametrize("keyword", ["ScanningSequence", "SequenceVariant", "MRAcquisitionType", "PatientPosition",
                                     "PhotometricInterpretation", "LossyImageCompression", "PatientSex"])  # fmt: skip
def test_h06_a_word_outside_the_enumeration_is_not_written(make_slice: Make, through: Through, keyword: str) -> None:
    ds = make_slice()
    with pydicom.config.disable_value_validation():
        setattr(ds, keyword, "QZJX")
    reason, _ = through(ds)
    assert reason in (Reason.OK, Reason.REQUIRED, Reason.COLOUR)


@pytest.mark.parametrize("value", ["77123.5", "770000123", "-770000123", "7.7e8", "1947121300"])
@pytest.mark.parametrize("keyword", ["RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "NumberOfAverages",
                                     "SliceThickness", "MagneticFieldStrength", "EchoTrainLength", "RescaleIntercept"])  # fmt: skip
def test_h07_a_number_carrying_an_identifier_is_not_written(
    make_slice: Make, through: Through, keyword: str, value: str
) -> None:
    """Not of the right size for its attribute. Rescale Intercept reaches to a million: 77123.5 is one there."""
    ds = make_slice()
    ds.add(pydicom.DataElement(keyword, "SH", value))
    reason, written = through(ds)
    fits = keyword == "RescaleIntercept" and value == "77123.5"
    assert reason is Reason.OK and (value.encode() in written) == fits


def test_h08_a_name_stored_as_unknown_bytes_is_not_written(make_slice: Make, through: Through) -> None:
    for tag in (0x00100010, 0x00104000, 0x00080090, 0x00189999):
        ds = make_slice()
        ds.add_new(tag, "UN", b"QZJX^QZJX ")
        assert through(ds)[0] is Reason.OK


def test_h09_a_sequence_stored_as_unknown_bytes_is_not_written(make_slice: Make, through: Through) -> None:
    """In implicit VR inside, as PS3.5, 6.2.2 has it, with stated and with open length."""
    inner = b"\x10\0\x10\0\x04\0\0\0QZJX"
    item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(inner)) + inner
    for raw in (b"\x08\0\x40\x11UN\0\0" + struct.pack("<I", len(item)) + item,
                b"\x08\0\x40\x11UN\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"):  # fmt: skip
        assert through(inserted(make_slice(), raw, before=b"\x10\0\x10\0PN"))[0] is Reason.OK


@pytest.mark.parametrize(("tag", "vr", "value"), [
    (0x00100010, "LO", "QZJX^A"), (0x00104000, "OB", b"QZJX"), (0x00080020, "LO", "QZJX"), (0x00180080, "LT", "QZJX 2000"),
    (0x00100020, "DS", "771234567"), (0x00180087, "PN", "QZJX"), (0x00280030, "LO", "1.5"),
])  # fmt: skip
def test_h10_a_value_under_another_representation_is_not_written(
    make_slice: Make, through: Through, tag: int, vr: str, value: Any
) -> None:
    ds = make_slice()
    with pydicom.config.disable_value_validation():
        ds[tag] = pydicom.DataElement(tag, vr, value)
    reason, written = through(ds)
    assert reason in (Reason.OK, Reason.REQUIRED) and b"771234567" not in written


def test_h11_attributes_that_nobody_knows_are_not_written(make_slice: Make, through: Through) -> None:
    for tag in (0x00189999, 0x00100999, 0x30099990, 0x7FDE0010, 0x0022FFFE):
        ds = make_slice()
        ds.add_new(tag, "LO", "QZJX")
        assert through(ds)[0] is Reason.OK


def test_h12_private_attributes_are_not_written(make_slice: Make, through: Through) -> None:
    ds = make_slice()
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", b"SV10\4\3\2\1" + b"PatientName\0QZJX" * 20)
    block.add_new(0x11, "UN", b"QZJX")
    ds.private_block(0x2005, "QZJX", create=True).add_new(0x01, "PN", "QZJX")
    ds.add_new(0x00310077, "LO", "QZJX")  # no creator
    inner = Dataset()
    inner.private_block(0x0099, "QZJX", create=True).add_new(0x01, "SQ", [Dataset()])
    inner.add_new(0x00991099, "LO", "QZJX")
    ds.ReferencedImageSequence = [inner]
    ds.private_block(0x0051, "MINE", create=True).add_new(0x01, "SQ", [inner])
    assert through(ds)[0] is Reason.OK


NAMES = {
    "ISO 2022 IR 87": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "GBK": ("GBK", "Wang^XiaoDong=王^小东".encode("gbk")),
    "UTF-8": ("ISO_IR 192", "Müller^Jörg=山田^太郎=やまだ^たろう".encode()),
    "Latin-1 without a word": (None, "Grünewald^Søren".encode("latin-1")),
    "Latin-1 as UTF-8": ("ISO_IR 192", "Grünewald^Søren".encode("latin-1")),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5")),
    "unknown": ("ISO_IR 100", "Grünewald".encode("latin-1")),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_h13_names_in_any_character_set_are_not_written(make_slice: Make, through: Through, name: str) -> None:
    """Also where the identifier itself is in that character set: it is keyed, or the file is withheld, and never shown."""
    charset, raw = NAMES[name]
    for tag in (0x00100010, 0x00100020):
        ds = make_slice()
        raw_even = raw + b" " * (len(raw) % 2)
        del ds[tag]
        element = struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"PN" if tag == 0x00100010 else b"LO", len(raw_even))
        if charset is not None:
            with pydicom.config.disable_value_validation():
                ds.add_new(0x00080005, "CS", charset)
        following = b"\x10\0\x20\0LO" if tag == 0x00100010 else b"\x18\0\x20\0CS"
        content = inserted(ds, element + raw_even, before=following)
        content = content.replace(b"ISO_IR 100", b"QZJX_IR 00") if name == "unknown" else content
        reason, written = through(content)
        assert reason in (Reason.OK, Reason.UNREADABLE, Reason.REQUIRED, Reason.NO_PATIENT)
        assert tag == 0x00100020 or reason is Reason.OK or name == "unknown"
        for part in (part for piece in raw.split(b"=") for part in piece.split(b"^") if len(part) > 3):
            assert part not in written


def test_h14_several_values_where_one_belongs_are_in_doubt(make_slice: Make, through: Through) -> None:
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        ds = make_slice()
        ds[keyword] = pydicom.DataElement(keyword, "UI", ["1.2.3.4.5", "1.2.3.4.6"])
        ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
        assert through(ds)[0] is Reason.REQUIRED
    ds = make_slice(StudyDate=["19471213", "19471214"], PatientBirthDate=["19471213", "19471214"])
    reason, written = through(ds)
    assert reason is Reason.OK and b"1947" not in written
    ds = make_slice()
    ds["PatientID"] = pydicom.DataElement("PatientID", "LO", ["QZJX1", "QZJX2"])
    assert through(ds)[0] is Reason.REQUIRED


@pytest.mark.parametrize("padding", ["", " ", "   ", "\0", "\0\0", " \0 "])
def test_h15_padding_makes_no_second_patient_and_emptiness_no_patient(
    make_slice: Make, through: Through, padding: str
) -> None:
    with pydicom.config.disable_value_validation():
        plain, padded = (through(make_slice(PatientID=f"{before}P1{after}"))
                         for before, after in (("", ""), (padding.replace("\0", ""), padding)))  # fmt: skip
        assert plain == padded and plain[0] is Reason.OK
        assert through(make_slice(PatientID=padding))[0] is Reason.NO_PATIENT


def test_h16_group_lengths_and_reserved_groups_are_not_written(make_slice: Make, through: Through) -> None:
    ds = make_slice()
    for group in (0x0008, 0x0010, 0x0028):
        ds.add_new(group << 16, "UL", 4)
    ds.add_new(0xFFFCFFFC, "OB", b"QZJX" * 40)
    assert through(ds)[0] is Reason.OK
    ds.add_new(0x00041500, "CS", ["QZJX", "QZJX"])
    assert through(ds)[0] in (Reason.OK, Reason.UNREADABLE)


def test_h17_signatures_and_copies_of_the_old_values_are_not_written(make_slice: Make, through: Through) -> None:
    ds, inner = make_slice(), Dataset()
    inner.PatientName, inner.Signature, inner.CertificateOfSigner = "QZJX", b"QZJX", b"QZJX"
    inner.EncryptedContent, inner.ModifyingSystem, inner.Manufacturer = b"QZJXQZJX", "QZJX", "QZJX"
    inner.ModifiedAttributesSequence = [Dataset()]
    ds.DigitalSignaturesSequence = ds.MACParametersSequence = ds.EncryptedAttributesSequence = [inner]
    ds.OriginalAttributesSequence = ds.ContributingEquipmentSequence = ds.ModifiedAttributesSequence = [inner]
    assert through(ds)[0] is Reason.OK


def test_h18_addresses_profiles_and_device_identifiers_are_not_written(make_slice: Make, through: Through) -> None:
    ds = make_slice(RetrieveURL="https://qzjx.example", ICCProfile=b"QZJX" * 40, UniqueDeviceIdentifier="(01)QZJX",
                    DeviceUID="1.2.826.0.1.3680043.8.498.99", StationAETitle="QZJX", PatientTelephoneNumbers="QZJX")  # fmt: skip
    reason, written = through(ds)
    assert reason is Reason.OK and b"498.99" not in written


@pytest.mark.parametrize("missing", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows",
                                     "PixelSpacing", "ImagePositionPatient", "ScanningSequence", "BitsStored"])  # fmt: skip
def test_h19_without_a_required_attribute_nothing_is_written(make_slice: Make, through: Through, missing: str) -> None:
    ds = make_slice()
    meta = ds.file_meta.MediaStorageSOPInstanceUID
    delattr(ds, missing)
    ds.file_meta.MediaStorageSOPInstanceUID = meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=False, little_endian=True, implicit_vr=False)
    assert through(buffer.getvalue())[0] is Reason.REQUIRED


@pytest.mark.parametrize("where", ["top", "item"])
def test_h20_repeated_and_misplaced_elements_are_in_doubt(make_slice: Make, through: Through, where: str) -> None:
    """Two readers may take different ones; inside an item that is dropped whole it does not matter."""
    twice = b"\x10\0\x20\0LO\x04\0QZJX" * 2
    if where == "top":
        assert through(inserted(make_slice(), twice[:12], before=b"\x10\0\x20\0LO"))[0] is Reason.REQUIRED
        assert through(inserted(make_slice(), twice[:12], before=b"\x08\0\x18\0UI"))[0] is Reason.REQUIRED
        return
    item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(twice)) + twice
    raw = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<I", len(item)) + item
    assert through(inserted(make_slice(), raw, before=b"\x10\0\x10\0PN"))[0] is Reason.OK


def test_the_rows_are_all_tags_of_the_dictionary() -> None:
    assert len(ROWS) == 653 and all(Tag(row).is_private is False for row in ROWS)
