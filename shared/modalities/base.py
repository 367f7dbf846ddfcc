"""The seam of a modality: one record that says what it is, in plain values that both sides read.

A modality NAME is three files, and nothing else changes:

    shared/modalities/NAME.py                MODALITY, the record below
    client/modalities/NAME.py                READER: how its files are read in the hospital, with the allow-list of what survives
    client/verification/modalities/NAME.py   the judge's own table of what may stand in a rebuilt header, written apart from it

All three are found by the file's name inside the room, when first asked for; nothing is registered, and a deployed node finds
nothing but what the approved bundle holds. tests/contracts/test_modalities.py runs over every file that is there. The generated
docs/conformance.md is made anew (`fedsynth client deidentify --conformance`).

Left out: whatever needs pydicom, a volume or a network; these are the reader's.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from shared.errors import ConfigError

DEFAULT = "mr"
PIPELINE = 1  # raised when the same files would become other pictures: a cohort of another number must be made anew


class Window(NamedTuple):
    """Where values mean the same everywhere: tissue lies above the first; what is black, and what is white."""

    tissue: float
    black: float
    white: float


@dataclass(frozen=True)
class Modality:
    """One modality, as far as settings, pages and messages must know it.

    name          of its files, and in settings
    title         for people
    codes         what Modality (0008,0060) must say, and what a PACS is asked for; none: it does not come as DICOM
    sop_classes   SOP class UID -> its name in the manifest; the one with a single frame first. Two modalities that have one in
                  common give it one name and one allow-list
    channels      of a picture: 1 (grey) or 3 (colour)
    photometric   what Photometric Interpretation may say
    image_types   the first two values of Image Type that are accepted
    burned_in     what Burned In Annotation may say, where it is there; "YES" only with a reader whose `scan` takes the text out.
                  Text that is still seen in the pixels withholds a series of every modality
    window        black and white of every picture; none: a volume's own values decide
    scaling       the same in words, for the manifest
    faces         "removed": its reader can take them off. "stay": they show and cannot be taken off. "none": it shows none
    biomarkers    names of those that apply (server/evaluation/biomarkers.py)
    """

    name: str
    title: str
    codes: tuple[str, ...]
    sop_classes: Mapping[str, str]
    window: Window | None
    scaling: str
    faces: Literal["removed", "stay", "none"]
    biomarkers: tuple[str, ...] = ()
    channels: Literal[1, 3] = 1
    photometric: tuple[str, ...] = ("MONOCHROME1", "MONOCHROME2")
    image_types: tuple[tuple[str, str], ...] = (("ORIGINAL", "PRIMARY"),)
    burned_in: tuple[str, ...] = ("NO",)

    @property
    def code(self) -> str:
        """Its codes as one word for people, such as CT."""
        return "/".join(self.codes) or self.name


@cache
def names() -> tuple[str, ...]:
    """Every modality that there is, by its file. Loads none of them."""
    from shared import modalities  # noqa: PLC0415  (its folder may hold more than this file's)

    return tuple(sorted(module.name for module in pkgutil.iter_modules(modalities.__path__) if module.name != "base"))


@cache
def modality(name: str) -> Modality:
    """The record of a modality. ConfigError lists what there is."""
    if name not in names():
        raise ConfigError(f"there is no modality `{name[:40]}`; there are {', '.join(names())}")
    found: Modality = importlib.import_module(f"shared.modalities.{name}").MODALITY
    return found


@cache
def sop_classes() -> dict[str, str]:
    """UID -> name of every SOP class of any modality."""
    return {uid: said for name in names() for uid, said in modality(name).sop_classes.items()}
