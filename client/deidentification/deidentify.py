"""Rebuild, do not scrub: a new record is made from the allow-list, and the source is thrown away.

Guarantee: every attribute of the result, at every level, comes from a rule of `client.deidentification.profile`; texts are
constants of that table or words it lists; numbers are inside its ranges; UIDs and the patient identifier are keyed. Pixels are
masked to the bits stored and have their exact length. Codes claimed: 113100 (Basic Application Confidentiality Profile), and
113101 (Clean Pixel Data Option) where `claim_clean_pixels` was called, which is for who looked at every frame.

Edge cases: a required attribute that is missing, repeated or out of range quarantines the record; anything optional that
is not valid is left out. Source: DICOM PS3.15 2026d, E.1; PS3.5, 9.1 and B.2 for UIDs.

Left out: text in the pixels (`client.readers.text`) and faces; retention options; references to other objects.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from client.deidentification import acceptance, elements, enhanced, pixels, rules
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import BASIC_PROFILE, CLEAN_PIXEL_DATA
from client.deidentification.redaction import guarded
from client.modalities import reader_of
from shared.modalities.base import DEFAULT

IMPLEMENTATION_UID = "2.25.292614219327341873105482071862411273431"
IMPLEMENTATION_NAME = "FEDSYNTH_0"
META: dict[str, str | bytes | int] = {  # an empty value is filled in
    "FileMetaInformationGroupLength": 0,
    "FileMetaInformationVersion": b"\0\1",
    "MediaStorageSOPClassUID": "",
    "MediaStorageSOPInstanceUID": "",
    "TransferSyntaxUID": ExplicitVRLittleEndian,
    "ImplementationClassUID": IMPLEMENTATION_UID,
    "ImplementationVersionName": IMPLEMENTATION_NAME,
}
PREAMBLE = b"De-identified by fedsynth: rebuilt from an allow-list (DICOM PS3.15 2026d, 113100)".ljust(128, b"\0")


def rebuild(source: FileDataset, key: bytes, modality: str = DEFAULT, patient: str = "") -> Dataset:
    """A new dataset that holds what the allow-list permits of `source`. Raises Withheld with the reason.

    source  as read by `client.deidentification.reader.whole`
    key     the site's 32 bytes
    modality  of the site: a name of shared/modalities
    patient   the person's pseudonym, where other files had a say in who that is; empty: by this header alone
    """
    return guarded(Reason.UNREADABLE, lambda: _rebuild(source, key, modality, patient))


def _rebuild(source: FileDataset, key: bytes, modality: str, patient: str) -> Dataset:
    acceptance.check(source, modality)
    sop_class = str(source.SOPClassUID)
    result = elements.blank()
    elements.put(result, "SOPClassUID", sop_class)
    rules.apply(reader_of(modality).tables[sop_class], source, result, key)
    if patient:
        elements.put(result, "PatientID", patient)
    if "NumberOfFrames" in result:
        enhanced.apply_groups(source, result, key)
    elif acceptance.words(source, "NumberOfFrames") not in {(), ("1",)}:
        raise Withheld(Reason.PIXEL_FORMAT)
    samples = pixels.samples(source, str(source.file_meta.TransferSyntaxUID), result)
    if source.file_meta.TransferSyntaxUID in pixels.LOSSY:
        elements.put(result, "LossyImageCompression", "01")
    result.add_new(acceptance.tag_of("PixelData"), "OW" if result.BitsAllocated > 8 else "OB", samples)
    result.file_meta = file_meta(result)
    return result


def claim_clean_pixels(result: Dataset) -> None:
    """Say in a rebuilt record that text was looked for in every frame and none was seen (PS3.15, E.3.1)."""
    elements.put(result, "BurnedInAnnotation", "NO")
    codes = [tuple(code.items()) for code in (BASIC_PROFILE, CLEAN_PIXEL_DATA)]
    elements.put(result, "DeidentificationMethodCodeSequence", codes)


def frames(result: Dataset) -> np.ndarray:
    """The samples of a rebuilt record as (frames, rows, columns)."""
    kind = f"<{'i' if result.PixelRepresentation else 'u'}{result.BitsAllocated // 8}"
    count = int(result.get("NumberOfFrames", 1)) * int(result.Rows) * int(result.Columns)
    return np.frombuffer(result.PixelData, kind, count).reshape(-1, int(result.Rows), int(result.Columns))


def file_meta(result: Dataset) -> FileMetaDataset:
    """New file meta information: nothing of the source's."""
    made = FileMetaDataset()
    for keyword, value in META.items():
        elements.put(made, keyword, value)
    elements.put(made, "MediaStorageSOPClassUID", str(result.SOPClassUID))
    elements.put(made, "MediaStorageSOPInstanceUID", str(result.SOPInstanceUID))
    elements.put(made, "FileMetaInformationGroupLength", len(elements.encode(made)) - 12)
    return made


def encode(result: Dataset) -> bytes:
    """The rebuilt record as a Part 10 file: our own preamble and meta, explicit little endian."""
    return PREAMBLE + b"DICM" + elements.encode(result.file_meta) + elements.encode(result)
