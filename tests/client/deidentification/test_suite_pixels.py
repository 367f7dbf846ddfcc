"""Group P of the de-identification suite: what can be hidden in and beside the samples, none of which is written.

Every case runs `client deidentify` over one file: `through` looks for the canary and for every value of the source in each byte
and name that is written. Canaries that are spread over bits are looked for in the samples themselves.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from client.deidentification import manifest
from client.deidentification.manifest import Reason
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

Make = Callable[..., FileDataset]
Write = Callable[..., list[Path]]
Through = Callable[..., tuple[Reason, bytes]]
CANARY = b"QZJX"


def samples(written: bytes) -> np.ndarray:
    ds = pydicom.dcmread(io.BytesIO(written))
    assert len(ds.PixelData) == ds.Rows * ds.Columns * ds.BitsAllocated // 8 * int(ds.get("NumberOfFrames", 1))
    return np.frombuffer(ds.PixelData, np.uint8 if ds.BitsAllocated == 8 else np.uint16)


def coded(ds: FileDataset, syntax: str) -> FileDataset:
    """In another native transfer syntax."""
    if syntax == ExplicitVRBigEndian:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.set_original_encoding(syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian)
    return ds


@pytest.fixture
def picture() -> np.ndarray:
    """Large enough that every codec takes it."""
    return np.add.outer(np.arange(64) * 11, np.arange(64) * 7)


@pytest.mark.parametrize("tail", [CANARY, CANARY + b"\0", b"\0" * 1001 + CANARY, CANARY * 5000])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_p01_bytes_after_the_last_sample_are_not_written(
    make_slice: Make, through: Through, syntax: str | None, tail: bytes
) -> None:
    plain = through(make_slice())[1]
    ds = make_slice() if syntax is None else coded(make_slice(), syntax)
    ds.PixelData += tail + b"\0" * (len(tail) % 2)
    assert through(ds) == (Reason.OK, plain)


def test_p01_eight_bit_samples_of_an_odd_number_are_padded_with_nothing(make_slice: Make, through: Through) -> None:
    ds = make_slice(0, np.zeros((3, 5)), BitsAllocated=8, BitsStored=8, HighBit=7)
    ds.PixelData = bytes(range(15)) + b"Q"  # the byte that makes the length even
    ds["PixelData"].VR = "OB"
    reason, written = through(ds)
    assert reason is Reason.OK and written.endswith(bytes(range(15)) + b"\0")


@pytest.mark.parametrize(("syntax", "signed"), [
    (None, False), (None, True), (ImplicitVRLittleEndian, False), (ExplicitVRBigEndian, False), (RLELossless, False),
])  # fmt: skip
def test_p02_bits_above_those_stored_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, syntax: str | None, signed: bool
) -> None:
    """A canary, one nibble a sample: no search of bytes would see it."""
    plain = picture.astype(np.uint16) & 0x0FFF
    hidden = plain.copy()
    nibbles = [half for letter in CANARY * 64 for half in (letter >> 4, letter & 0xF)]
    hidden.flat[: len(nibbles)] |= np.array(nibbles, np.uint16) << 12
    ds = make_slice(0, hidden, PixelRepresentation=int(signed))
    if syntax == RLELossless:
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax is not None:
        coded(ds, syntax)
    reason, written = through(ds)
    found = samples(written)
    above = found >> 12
    assert reason is Reason.OK and np.array_equal(found & 0x0FFF, plain.ravel())
    assert np.array_equal(above, np.where(plain.ravel() >= 0x800, 0xF, 0)) if signed else not above.any()


def jpeg(picture: np.ndarray, **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((picture % 256).astype(np.uint8)).save(buffer, "JPEG", quality=95, **more)
    return buffer.getvalue()


def exif() -> bytes:
    made = Image.Exif()
    made[0x013B], made[0x010E] = "QZJX", "QZJX 1947"  # artist, description
    return made.tobytes()


JPEG_HIDING = {
    "comment": lambda frame: frame[:2] + b"\xff\xfe" + struct.pack(">H", 22) + CANARY * 5 + frame[2:],
    "application segment": lambda frame: frame[:2] + b"\xff\xeb" + struct.pack(">H", 22) + CANARY * 5 + frame[2:],
    "comment before the scan": lambda frame: frame.replace(
        b"\xff\xda", b"\xff\xfe" + struct.pack(">H", 22) + CANARY * 5 + b"\xff\xda", 1
    ),
    "after the end": lambda frame: frame + CANARY * 5,
    "a second picture": lambda frame: frame + frame[:2] + b"\xff\xfe\0\x06" + CANARY + frame[2:],
}


@pytest.mark.parametrize("hiding", [*JPEG_HIDING, "EXIF"])
def test_p03_comments_and_application_segments_of_a_jpeg_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, hiding: str
) -> None:
    def packed(frame: bytes) -> FileDataset:
        ds = make_slice(0, picture, BitsAllocated=8, BitsStored=8, HighBit=7)
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR = "OB"
        return ds

    plain = through(packed(jpeg(picture)))
    frame = jpeg(picture, exif=exif()) if hiding == "EXIF" else JPEG_HIDING[hiding](jpeg(picture))
    assert CANARY in frame and plain[0] is Reason.OK
    assert through(packed(frame)) == plain


STREAM_HIDING = {
    JPEG2000Lossless: (b"\xff\x52", b"\xff\x64\x00\x1a\x00\x01"),  # before COD: COM, its length, "text"
    JPEGLSLossless: (b"\xff\xda", b"\xff\xfe\x00\x18"),  # before SOS
}


@pytest.mark.parametrize("syntax", STREAM_HIDING)
def test_p03_comments_of_jpeg_2000_and_jpeg_ls_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, syntax: str
) -> None:
    plain = through(make_slice(0, picture))
    ds = make_slice(0, picture)
    ds.compress(syntax, generate_instance_uid=False)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    before, comment = STREAM_HIDING[syntax]
    place = frame.index(before)
    ds.PixelData = encapsulate([frame[:place] + comment + (CANARY * 6)[:22] + frame[place:] + CANARY])
    assert through(ds) == plain


def test_p03_boxes_around_a_jpeg_2000_stream_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray
) -> None:
    """A whole JP2 file instead of a stream, with an XML box: decoded, or withheld."""
    plain = through(make_slice(0, picture % 256, BitsAllocated=8, BitsStored=8, HighBit=7,
                               PixelData=(picture % 256).astype(np.uint8).tobytes()))  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray((picture % 256).astype(np.uint8)).save(buffer, "JPEG2000")
    whole = buffer.getvalue()
    place = whole.index(b"jp2c") - 4
    xml = struct.pack(">I4s", 28, b"xml ") + CANARY * 5
    ds = make_slice(0, picture, BitsAllocated=8, BitsStored=8, HighBit=7)
    ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
    ds.PixelData = encapsulate([whole[:place] + xml + whole[place:]])
    ds["PixelData"].VR = "OB"
    reason, written = through(ds)
    assert (reason, written) == plain if reason is Reason.OK else reason.verdict is not manifest.Verdict.PASS


@pytest.mark.parametrize("where", ["after the frame", "in the offset table", "after the delimiter", "a second frame"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_p03_extra_fragments_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, syntax: str, where: str
) -> None:
    plain = through(make_slice(0, picture))
    ds = make_slice(0, picture)
    ds.compress(syntax, generate_instance_uid=False)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    extra = b"\xfe\xff\0\xe0\x14\0\0\0" + CANARY * 5
    table, content = b"\xfe\xff\0\xe0\0\0\0\0", b"\xfe\xff\0\xe0" + struct.pack("<I", len(frame)) + frame
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    ds.PixelData = {
        "after the frame": table + content + extra,
        "in the offset table": b"\xfe\xff\0\xe0\x08\0\0\0\0\0\0\0" + CANARY + content,
        "after the delimiter": table + content + end + CANARY * 5,
        "a second frame": encapsulate([frame, CANARY * 5]),
    }[where]
    reason, written = through(ds)
    assert not written or written == plain[1]
    assert reason in (Reason.OK, Reason.UNREADABLE, Reason.TRUNCATED, Reason.PIXEL_FORMAT, Reason.REQUIRED)


def test_p03_bytes_after_the_runs_of_an_rle_frame_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray
) -> None:
    """In the unused part of the header, where further segments would be named, and after the last segment."""
    plain = through(make_slice(0, picture))
    for hide in (lambda frame: frame + CANARY * 5, lambda frame: frame[:40] + CANARY * 6 + frame[64:]):
        ds = make_slice(0, picture)
        ds.compress(RLELossless, generate_instance_uid=False)
        (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([hide(frame)])
        assert through(ds) == plain


def test_p04_overlays_curves_and_icons_are_not_written(make_slice: Make, through: Through, picture: np.ndarray) -> None:
    plain = through(make_slice(0, picture))
    ds, icon, graphic = make_slice(0, picture), Dataset(), Dataset()
    for group in (0x6000, 0x6002, 0x601E):
        ds.add_new((group, 0x0010), "US", 64)
        ds.add_new((group, 0x0011), "US", 64)
        ds.add_new((group, 0x0022), "LO", "QZJX")
        ds.add_new((group, 0x0040), "CS", "G")
        ds.add_new((group, 0x0100), "US", 1)
        ds.add_new((group, 0x0102), "US", 0)
        ds.add_new((group, 0x1500), "LO", "QZJX")
        ds.add_new((group, 0x3000), "OW", CANARY * 128)
        ds.add_new((group - 0x1000, 0x3000), "OW", CANARY * 16)
        ds.add_new((group - 0x1000, 0x2500), "LO", "QZJX")
    icon.Rows, icon.Columns, icon.BitsAllocated, icon.PixelData = 4, 4, 8, CANARY * 4
    ds.IconImageSequence = [icon]
    graphic.UnformattedTextValue = "QZJX"
    ds.GraphicAnnotationSequence = [graphic]
    assert through(ds) == plain


def test_p04_an_overlay_in_the_spare_bits_of_the_samples_is_not_written(
    make_slice: Make, through: Through, picture: np.ndarray
) -> None:
    """As retired editions had it: no data of its own, but a bit position."""
    plain = through(make_slice(0, picture))
    drawn = np.zeros((64, 64), np.uint16)
    drawn[20:40, 10:50] = 1 << 15
    ds = make_slice(0, picture.astype(np.uint16) | drawn)
    ds.add_new(0x60000010, "US", 64)
    ds.add_new(0x60000011, "US", 64)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    assert through(ds) == plain


def multi_frame(make_slice: Make, picture: np.ndarray, stored: int, said: int) -> FileDataset:
    """`stored` frames in the samples, of which the header tells of `said`; all but those show the canary's bytes."""
    ds = make_slice(0, picture, SOPClassUID=EnhancedMRImageStorage)
    ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
                    "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept"):  # fmt: skip
        delattr(ds, keyword)
    measures, plane, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = ["1", "1"], "2", "2"
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for index in range(said):
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 2.0 * index]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    ds.NumberOfFrames = said
    one = picture.astype(np.uint16).tobytes()
    ds.PixelData = one * said + (CANARY * len(one))[: len(one) * (stored - said)]
    return ds


@pytest.mark.parametrize("syntax", [None, RLELossless, JPEG2000Lossless])
def test_p05_frames_beyond_the_number_of_frames_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, syntax: str | None
) -> None:
    plain = through(multi_frame(make_slice, picture, 3, 3))
    assert plain[0] is Reason.OK and len(samples(plain[1])) == 3 * picture.size
    ds = multi_frame(make_slice, picture, 5, 3)
    if syntax is not None:
        ds.NumberOfFrames = 5
        ds.compress(syntax, generate_instance_uid=False)
        ds.NumberOfFrames = 3
    assert through(ds) == plain


def test_p05_a_number_of_frames_that_fits_nothing_is_withheld(
    make_slice: Make, through: Through, picture: np.ndarray
) -> None:
    ds = make_slice(0, picture, NumberOfFrames=2)
    ds.PixelData = ds.PixelData + (CANARY * len(ds.PixelData))[: len(ds.PixelData)]
    assert through(ds) == (Reason.PIXEL_FORMAT, b"")  # of a class with one frame
    assert through(multi_frame(make_slice, picture, 3, 3))[0] is Reason.OK
    ds = multi_frame(make_slice, picture, 3, 3)
    ds.NumberOfFrames = 4  # one more than there are groups for
    assert through(ds) == (Reason.REQUIRED, b"")
    ds = multi_frame(make_slice, picture, 3, 3)
    ds.PixelData = ds.PixelData[:-2]
    assert through(ds) == (Reason.TRUNCATED, b"")


def test_p06_palettes_and_tables_are_not_written(make_slice: Make, through: Through, picture: np.ndarray) -> None:
    plain = through(make_slice(0, picture))
    ds, table = make_slice(0, picture), Dataset()
    for colour in ("Red", "Green", "Blue", "Alpha"):
        setattr(ds, f"{colour}PaletteColorLookupTableData", CANARY * 128)
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"Segmented{colour}PaletteColorLookupTableData", CANARY * 128)
    ds.PaletteColorLookupTableUID = "1.3.6.1.4.1.771234567.1"
    table.LUTDescriptor, table.LUTExplanation, table.ModalityLUTType = [4, 0, 16], "QZJX", "QZJX"
    table.add_new(0x00283006, "OW", CANARY * 2)
    ds.VOILUTSequence = ds.ModalityLUTSequence = ds.PresentationLUTSequence = [table]
    ds.VOILUTFunction, ds.WindowCenterWidthExplanation = "QZJX", "QZJX"
    assert through(ds) == plain
    ds.PhotometricInterpretation = "PALETTE COLOR"
    assert through(ds) == (Reason.COLOUR, b"")


EXTREMES = ["1e300", "-1e300", "1e-300", "0", "-1", "771234567", "1947121300", "nan", "inf", "QZJX", "1E+06\\QZJX"]


@pytest.mark.parametrize("value", EXTREMES)
def test_p07_an_extreme_rescale_is_left_out_with_its_partner(make_slice: Make, through: Through, value: str) -> None:
    ds = make_slice(RescaleType="QZJX")
    with pydicom.config.disable_value_validation():
        ds.add(pydicom.DataElement("RescaleSlope", "SH", value.split("\\")))
    reason, written = through(ds)
    ds = pydicom.dcmread(io.BytesIO(written))
    assert reason is Reason.OK and not {"RescaleSlope", "RescaleIntercept", "RescaleType"} & set(dir(ds))
    ds = make_slice()
    with pydicom.config.disable_value_validation():
        ds.add(pydicom.DataElement("RescaleIntercept", "SH", value.split("\\")))
    reason, written = through(ds)
    ds = pydicom.dcmread(io.BytesIO(written))
    assert reason is Reason.OK and float(ds.get("RescaleIntercept", 0)) in (0, -1)


def test_p07_padding_and_extreme_values_are_not_written(
    make_slice: Make, through: Through, picture: np.ndarray
) -> None:
    plain = through(make_slice(0, picture))
    for value in (0, 63, 31123, 65535):
        ds = make_slice(0, picture, PixelPaddingValue=value, PixelPaddingRangeLimit=value, LargestImagePixelValue=value,
                        SmallestImagePixelValue=value, SmallestPixelValueInSeries=value, WindowCenter="771234567",
                        WindowWidth=["771234567", "1947121300"])  # fmt: skip
        assert through(ds) == plain


def test_p07_a_rescale_at_the_end_of_its_range_is_ingested_or_withheld(
    tmp_path: Path, write_series: Write, head: np.ndarray
) -> None:
    """Values up to 10^11 and down to 10^-5 make the same pictures; where the intercept swallows them, none."""
    made = []
    for number, (slope, intercept) in enumerate((("1", "0"), ("1000000", "0"), ("0.00000001", "0"))):
        write_series(tmp_path / str(number) / "data", head, RescaleSlope=slope, RescaleIntercept=intercept)
        site = Site(name="a", data=tmp_path / str(number) / "data", face_removal="none", text_check="none")
        ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / str(number) / "work")
        (path,) = (tmp_path / str(number) / "work" / "cohort").glob("*.npz")
        made.append(np.load(path)["x"].astype(int))
    assert all(np.abs(other - made[0]).max() <= 1 for other in made[1:])
    write_series(tmp_path / "data", head, RescaleSlope="0.00000001", RescaleIntercept="1000000")
    site = Site(name="a", data=tmp_path / "data", face_removal="none", text_check="none")
    with pytest.raises(DataError, match="label-map"):
        ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")


@pytest.mark.parametrize(("keyword", "bits"), [("FloatPixelData", 32), ("DoubleFloatPixelData", 64)])
def test_p08_float_samples_are_withheld_and_beside_others_not_written(
    make_slice: Make, through: Through, picture: np.ndarray, keyword: str, bits: int
) -> None:
    values = (CANARY * 2 * picture.size)[: picture.size * bits // 8]
    ds = make_slice(0, picture, BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1)
    del ds.PixelData
    setattr(ds, keyword, values)
    assert through(ds) == (Reason.REQUIRED, b"")
    plain = through(make_slice(0, picture))
    ds = make_slice(0, picture)
    setattr(ds, keyword, values)
    reason, written = through(ds)
    assert not written or (reason, written) == plain
    ds = make_slice(0, picture)
    del ds.PixelData
    setattr(ds, keyword, values)
    assert through(ds) == (Reason.PIXEL_FORMAT, b"")
