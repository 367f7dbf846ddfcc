"""Attributes of a rebuilt record, each checked and encoded by pydicom when its value is first met.

The slices of a series share nearly all their values; what was encoded once is used again. A cached element is immutable, and
pydicom makes a new one of it wherever somebody reads or changes it, so that no two records share anything that can change.

Left out: private attributes, other transfer syntaxes than explicit little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable
from functools import cache, lru_cache
from typing import Any

from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from client.deidentification import acceptance

Code = tuple[tuple[str, str], ...]  # an item of a sequence: keywords and their texts


def blank() -> Dataset:
    """A record without attributes, in the encoding in which it will be written."""
    made = Dataset()
    made.set_original_encoding(is_implicit_vr=False, is_little_endian=True, character_encoding=default_encoding)
    return made


def put(result: Dataset, keyword: str, value: Any) -> None:
    """Set one attribute: text, a number, none, several of them, or for a sequence its items as `Code`s."""
    made = element(keyword, tuple(value) if isinstance(value, list) else value)
    result[made.tag] = made


@lru_cache(maxsize=4096, typed=True)
def element(keyword: str, value: Hashable) -> RawDataElement:
    """The attribute as it stands in a file. Raises what pydicom raises when the value does not suit its representation."""
    tag, vr = acceptance.tag_of(keyword), vr_of(keyword)
    given: Any = list(value) if isinstance(value, tuple) else value
    if vr == "SQ":
        given = [item(code) for code in given]
    content = _by_pydicom(DataElement(tag, vr, given))[12 if vr in EXPLICIT_VR_LENGTH_32 else 8 :]
    return RawDataElement(tag, vr, len(content), content, 0, False, True)


def encode(ds: Dataset) -> bytes:
    """The attributes of a record in explicit little endian, in the order of their tags."""
    return b"".join(_whole(each) if isinstance(each, RawDataElement) else _by_pydicom(each) for each in ds.elements())


def _whole(made: RawDataElement) -> bytes:
    """Tag, representation, length and value: PS3.5, section 7.1.2."""
    content, vr = made.value or b"", (made.VR or "").encode()
    if made.VR in EXPLICIT_VR_LENGTH_32:
        return struct.pack("<HH2sHI", made.tag.group, made.tag.element, vr, 0, len(content)) + content
    return struct.pack("<HH2sH", made.tag.group, made.tag.element, vr, len(content)) + content


def _by_pydicom(made: DataElement) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_data_element(file, made)
    written: bytes = file.getvalue()
    return written


def item(code: Iterable[tuple[str, str]]) -> Dataset:
    """An item of a sequence with these constants."""
    made = Dataset()
    for keyword, text in code:
        setattr(made, keyword, text)
    return made


@cache
def vr_of(keyword: str) -> str:
    """The value representation of a keyword of the standard."""
    return str(dictionary_VR(keyword))
