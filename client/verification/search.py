"""Thousands of byte strings looked for in hundreds of megabytes, in one pass.

Each window of four (or eight) bytes is hashed into a table of bits made from the beginnings of the needles; only the few
windows that are set there are compared for real. The time does not grow with the number of needles. Upper and lower case
ASCII letters are the same.

A needle counts only as a word of its own where chance would find it otherwise: one under eight bytes must not touch a
letter or digit, and a number must not touch a digit. Inside samples only needles are looked for that a picture does not
hold by chance: eight bytes or more in 16-bit samples, twelve characters or more with one character a sample.

Left out: regular expressions, approximate matches, and needles that were cut in two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

CHUNK = 16 << 20
TABLE_BITS = 22
MULTIPLIER = {4: 0x9E3779B1, 8: 0x9E3779B97F4A7C15}
ALPHANUMERIC = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyz")
DIGITS = frozenset(b"0123456789")


class Search:
    """A set of needles, ready to be looked for.

    needles   in lower case
    width     bytes of the window, 4 or 8: shorter needles are left out
    whole     needles count only as words of their own (`False` inside samples, where words mean nothing)
    """

    def __init__(self, needles: Iterable[bytes], *, width: int = 4, whole: bool = True) -> None:
        self.width, self.whole = width, whole
        self.by_start: dict[bytes, list[bytes]] = defaultdict(list)
        for needle in sorted(needles):
            if len(needle) >= width:
                self.by_start[needle[:width]].append(needle)
        self.longest = max((len(n) for group in self.by_start.values() for n in group), default=width)
        self._type = np.dtype(f"<u{width}")
        starts = np.frombuffer(b"".join(sorted(self.by_start)), self._type)
        self._starts = np.unique(starts)
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self._hash(starts)] = True

    def _hash(self, windows: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            product = windows * self._type.type(MULTIPLIER[self.width])
        return product >> self._type.type(8 * self.width - TABLE_BITS)  # type: ignore[no-any-return]

    def __contains__(self, value: bytes) -> bool:
        """Whether exactly this value is a needle."""
        value = value.lower()
        return value in self.by_start.get(value[: self.width], ())

    def find(self, content: bytes) -> Iterator[tuple[int, bytes]]:
        """(offset, needle) for each occurrence in `content`."""
        if not len(self._starts):
            return
        for start in range(0, max(len(content), 1), CHUNK):
            piece = content[start : start + CHUNK + self.longest].lower()
            for place in self._places(piece):
                if place >= CHUNK:  # the next piece finds it
                    continue
                for needle in self.by_start[piece[place : place + self.width]]:
                    if piece.startswith(needle, place) and (
                        not self.whole or self._alone(content, start + place, needle)
                    ):
                        yield start + place, needle

    def _places(self, piece: bytes) -> list[int]:
        found = []
        for shift in range(self.width):
            count = (len(piece) - shift) // self.width
            if count <= 0:
                break
            windows = np.frombuffer(piece, self._type, count, shift)
            likely = np.flatnonzero(self._table[self._hash(windows)])
            if len(likely):
                nearest = np.searchsorted(self._starts, windows[likely]).clip(max=len(self._starts) - 1)
                found.append(likely[self._starts[nearest] == windows[likely]] * self.width + shift)
        return sorted(int(place) for group in found for place in group)

    @staticmethod
    def _alone(content: bytes, place: int, needle: bytes) -> bool:
        around = {
            *content[max(place - 1, 0) : place].lower(),
            *content[place + len(needle) : place + len(needle) + 1].lower(),
        }
        if len(needle) < 8 and around & ALPHANUMERIC:
            return False
        return not (set(needle) <= DIGITS and around & DIGITS)


def in_samples(needles: Iterable[bytes], bits: int) -> Search:
    """A search for samples of 8 or 16 bits."""
    kept = []
    for needle in needles:
        one_a_sample = bits == 8 or 0 in needle
        if len(needle.replace(b"\0", b"")) >= (12 if one_a_sample else 8):
            kept.append(needle)
    return Search(kept, width=8, whole=False)
