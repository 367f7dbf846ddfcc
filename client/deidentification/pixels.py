"""Samples, and nothing but samples.

Whatever hides beside the samples goes: bits above Bits Stored, bytes after the last sample, frames beyond Number of
Frames, and everything inside a compressed stream that is not picture (comments, application segments).

Left out: colour, floating-point samples, 32-bit samples.
"""

from __future__ import annotations

import struct

import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder

from client.deidentification.manifest import Reason, Withheld
from client.deidentification.reader import NATIVE

LIMIT_SAMPLES = 1 << 30
RLE = "1.2.840.10008.1.2.5"
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{kind}" for kind in (50, 51, 81, 91, 203))  # may have lost detail


def samples(source: Dataset, syntax: str, description: Dataset) -> bytes:
    """The frames as little-endian bytes of exactly frames x rows x columns x bytes per sample (+ 1 to make it even).

    source       the dataset as read, with its pixel data
    syntax       its transfer syntax
    description  the rebuilt attributes of the picture (rows, columns, bits), already checked against the table
    """
    frames = int(description.get("NumberOfFrames", 1))
    rows, columns = int(description.Rows), int(description.Columns)
    allocated, stored = int(description.BitsAllocated), int(description.BitsStored)
    if allocated not in (8, 16) or stored > allocated or int(description.HighBit) != stored - 1:
        raise Withheld(Reason.PIXEL_FORMAT)
    if frames * rows * columns > LIMIT_SAMPLES:
        raise Withheld(Reason.TOO_LARGE)
    shape = (frames, rows, columns)
    signed = bool(description.PixelRepresentation)
    raw = _native(source, syntax, shape, allocated) if syntax in NATIVE else _decoded(source, syntax, shape)
    clean = masked(raw, stored, signed=signed)
    content = clean.astype(f"<{'i' if signed else 'u'}{allocated // 8}").tobytes()
    return content + b"\0" * (len(content) % 2)


def _native(source: Dataset, syntax: str, shape: tuple[int, int, int], allocated: int) -> np.ndarray:
    if "PixelData" not in source:
        raise Withheld(Reason.PIXEL_FORMAT)
    content = bytes(source.PixelData)
    length = int(np.prod(shape)) * allocated // 8
    big = syntax == "1.2.840.10008.1.2.2"
    if big and allocated == 8 and source["PixelData"].VR == "OW":  # 8-bit samples in swapped 16-bit words
        content = np.frombuffer(content[: len(content) // 2 * 2], ">u2").astype("<u2").tobytes()
    if len(content) < length:
        raise Withheld(Reason.TRUNCATED)
    return np.frombuffer(content[:length], f"{'>' if big else '<'}u{allocated // 8}").reshape(shape)


def _decoded(source: Dataset, syntax: str, shape: tuple[int, int, int]) -> np.ndarray:
    if syntax != RLE:
        for frame in generate_frames(source.PixelData, number_of_frames=shape[0]):
            if declared_size(frame) != shape[1:]:
                raise Withheld(Reason.PIXEL_FORMAT)
    # pylibjpeg-rle panics on damaged streams; pydicom's own RLE decoder raises.
    plugin = "pydicom" if syntax == RLE else ""
    array, _ = get_decoder(syntax).as_array(source, raw=True, allow_excess_frames=False, decoding_plugin=plugin)
    if array.size != np.prod(shape) or array.dtype.kind not in "iu":
        raise Withheld(Reason.TRUNCATED)
    return np.asarray(array).reshape(shape)


def declared_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream says of itself; None when it does not.

    Looked at before decoding, because a decoder takes memory for what the stream declares, not for what the header says.
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 256)  # JPEG 2000: SOC, SIZ (T.800, A.5.1); a JP2 wrapper may come first
    if start >= 0:
        right, bottom, left, top = struct.unpack(">4I", frame[start + 8 : start + 24])
        return bottom - top, right - left
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 9 <= len(frame) and frame[place] == 0xFF:  # JPEG: segments up to the frame header (T.81, B.2.2)
        marker, length = frame[place + 1], struct.unpack(">H", frame[place + 2 : place + 4])[0]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack(">HH", frame[place + 5 : place + 9])
            return rows, columns
        place += 2 + length
    return None


def masked(raw: np.ndarray, stored: int, *, signed: bool) -> np.ndarray:
    """Integer samples cut to their lowest `stored` bits; negative numbers keep their sign by extension."""
    mask = (1 << stored) - 1
    if not signed:
        kept: np.ndarray = raw & raw.dtype.type(mask)
        return kept
    bits = raw.astype(np.int32) & mask
    return np.where(bits >= 1 << (stored - 1), bits - (1 << stored), bits)
