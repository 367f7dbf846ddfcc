"""The seam of a reader: what the pipeline asks about the files of one modality. The record beside it is shared/modalities/NAME.py.

In the order in which the pipeline asks:

    check_header(header)           more than holds for every modality, before any pixel is read
    physics(header)                what tells the series of a study apart
    frames(header, file)           the slices that a file holds
    check_physics(physics, ...)    is this the kind of series that is wanted?
    volume(frames)                 the frames of one volume
    check_volume(frames)           does it show the part of the body that is wanted, by its geometry?
    rank(volume, physics)          which series of a study is tried first
    scan(slices)                   rebuilt slices to values in space
    steps()                        what a volume goes through where faces must go; `networks` names what decides there
    greys(volume, brain)           what is black, what is white, and where anything is seen

The defaults read a volume in slices. A check raises `Withheld` with the true reason. Values of a header are compared, never kept.

Left out: what holds for every modality (client/deidentification/acceptance.py), and the pictures' size (client/readers/volumes.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import acceptance
from client.deidentification.profile import Rule
from client.readers import series, volumes
from client.readers.series import Frame
from client.readers.volumes import Greys, Scan
from shared.modalities.base import Modality


@dataclass(frozen=True)
class Physics:
    """What tells the series of a study apart; more of it is a reader's own."""

    contrast: bool


P = TypeVar("P", bound=Physics)


class Reader(ABC, Generic[P]):
    """How the files of one modality are read.

    modality   its record
    tables     SOP class UID -> the allow-list of what is written of it
    words      keywords that are read to decide, and never written
    preferred  a NIfTI file whose name holds one of these is used before others of its session
    """

    modality: ClassVar[Modality]
    tables: ClassVar[dict[str, tuple[Rule, ...]]]
    words: ClassVar[frozenset[str]] = frozenset({"ContrastBolusAgent"})
    preferred: ClassVar[tuple[str, ...]] = ()

    def check_header(self, header: Dataset) -> None:
        """Raise Withheld where a header that passed the common tests is still none of this modality."""

    @abstractmethod
    def physics(self, header: Dataset) -> P:
        """What tells the series of a study apart; anything unknown stays unknown."""

    def frames(self, header: Dataset, file: int) -> list[Frame]:
        """The slices of a file. Raises Withheld where their place in space is not stated."""
        return series.frames_of(header, file)

    def check_physics(self, physics: P, *, faces_go: bool) -> None:
        """Raise Withheld unless a series is of the wanted kind. `faces_go`: whether faces will be removed from it."""

    def volume(self, frames: Sequence[Frame]) -> list[Frame]:
        """The frames of the first complete volume. Raises Withheld where volumes cannot be told apart."""
        return series.first_volume(frames)

    def check_volume(self, volume: Sequence[Frame]) -> None:
        """Raise Withheld unless a volume can show the wanted part of the body."""

    def rank(self, volume: Sequence[Frame], physics: P) -> tuple[Any, ...]:
        """Sorts the best series of a study first: without contrast agent, most slices, thinnest."""
        return (physics.contrast, *series.fullest(volume))

    def scan(self, slices: Sequence[Dataset]) -> Scan:
        """Rebuilt slices to a volume. Raises Withheld where they are not exactly one."""
        return Scan(*volumes.from_series(slices))

    def steps(self) -> tuple[Callable[[Scan], Scan], ...]:
        """What takes the face off, in order, and raises Withheld in doubt. Asked only where the record says `removed`."""
        return ()

    def networks(self) -> Mapping[str, str]:
        """Name -> SHA-256 of each network that decides in `steps`, for the manifest."""
        return {}

    def greys(self, volume_RAS: np.ndarray, brain: np.ndarray | None) -> Greys:
        """Where anything is seen, and which values are black and white. Raises Withheld where nothing is."""
        if self.modality.window is None:
            return volumes.greys(volume_RAS, brain)
        tissue, black, white = self.modality.window
        return Greys(volume_RAS > tissue if brain is None else brain, black, white)


def contrast_agent(header: Dataset) -> bool:
    """Whether a header names a contrast agent."""
    return bool(acceptance.words(header, "ContrastBolusAgent"))
