"""The allow-list at work: what each rule makes of a source dataset.

Left out: sequences (`client.deidentification.enhanced`) and samples (`client.deidentification.pixels`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from client.deidentification import acceptance, elements, pseudonym
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import Rule

RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType")


def apply(table: Iterable[Rule], source: Dataset, result: Dataset, key: bytes) -> None:
    """Set in `result` what the table permits of `source`; groups and pixels are made elsewhere. Raises Withheld."""
    for rule in table:
        if rule.kind in ("group", "pixels"):
            continue
        value = value_of(rule, source, key)
        if value is None and rule.required:
            raise Withheld(Reason.REQUIRED)
        if value is not None or rule.empty_if_unknown:
            elements.put(result, rule.keyword, value)
    if not all(acceptance.tag_of(keyword) in result for keyword in RESCALE[:2]):  # one without the other means nothing
        for keyword in RESCALE:
            result.pop(acceptance.tag_of(keyword), None)


def patient_of(source: Dataset, key: bytes) -> str:
    """The pseudonym of the header's patient by this header alone: keyed by issuer and identifier (see `client.readers.persons`)."""
    return pseudonym.pseudonym(key, issuer_of(source), identifier_of(source))


def issuer_of(source: Dataset) -> str:
    """Who issued the patient's identifier, empty when not stated: to compare, never to write."""
    return _one(source, "IssuerOfPatientID")


def identifier_of(source: Dataset) -> str:
    """The patient's identifier itself: to compare, never to write."""
    identifier = _one(source, "PatientID")
    if not identifier:
        raise Withheld(Reason.NO_PATIENT)
    return identifier


def value_of(rule: Rule, source: Dataset, key: bytes) -> Any:  # noqa: PLR0911  (one line per kind of rule)
    """What the rule makes of the source; None when the source has no valid value."""
    match rule.kind:
        case "constant":
            return _constant(rule)
        case "empty":
            return ""
        case "patient":
            return patient_of(source, key)
        case "uid":
            given = _one(source, rule.keyword)
            return pseudonym.uid(key, given) if given else None
        case "word":
            kept = [word for word in acceptance.words(source, rule.keyword) if word in rule.words][: rule.count]
            return (kept if len(kept) > 1 else kept[0]) if kept else None
        case "number":
            values = numbers(rule, source)
            if values is None:
                return None
            written = [_written(rule, value) for value in values]
            return written if rule.count > 1 else written[0]
        case _:
            raise AssertionError(rule.kind)


def numbers(rule: Rule, source: Dataset) -> list[float] | None:
    """`rule.count` finite numbers inside the range, rounded; None otherwise."""
    given = texts(source, rule.keyword)
    if len(given) != rule.count:
        return None
    try:
        values = [float(text) for text in given]
    except ValueError:
        return None
    if not all(math.isfinite(value) and rule.low <= value <= rule.high for value in values):
        return None
    if not rule.decimals and any(value != int(value) for value in values):
        return None
    return [round(value, rule.decimals) + 0.0 for value in values]  # + 0.0: no negative zero


def _written(rule: Rule, value: float) -> Any:
    """The number as its value representation wants it; decimal strings are formatted anew, at most 16 characters."""
    match elements.vr_of(rule.keyword):
        case "DS":
            text = f"{value:.{rule.decimals}f}"
            return text.rstrip("0").rstrip(".") if "." in text else text
        case "FD" | "FL":
            return value
        case _:
            return int(value)


def _constant(rule: Rule) -> Any:
    if isinstance(rule.constant, Mapping):
        return [tuple(rule.constant.items())]
    return rule.constant.split("\\") if isinstance(rule.constant, str) and "\\" in rule.constant else rule.constant


def _one(source: Dataset, keyword: str) -> str:
    """A single identifier without padding; empty when absent. Several are in doubt."""
    given = [text for value in texts(source, keyword) if (text := value.strip(" \0"))]
    if len(given) > 1:
        raise Withheld(Reason.REQUIRED)
    return given[0] if given else ""


def texts(source: Dataset, keyword: str) -> list[str]:
    """The values as text, however they were stored; none when the attribute is absent or cannot be converted."""
    try:
        element = source.get(acceptance.tag_of(keyword))
        value = element.value if element is not None else None
    except Exception:  # noqa: BLE001  (an attribute that its own VR cannot hold counts as absent)
        return []
    if value is None or isinstance(value, bytes | Dataset):
        return []
    return [str(item) for item in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]
