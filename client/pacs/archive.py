"""What a PACS can be asked, whatever protocol it speaks, and what may be said when it does not answer.

Left out: the protocols (`client.pacs.dicomweb`, `client.pacs.dimse`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeVar

from shared.config.pacs import Pacs
from shared.errors import DataError

UID = re.compile(r"[0-9.]{1,64}")
Put = Callable[[bytes], None]

T = TypeVar("T")


class Unanswered(DataError):
    """The PACS gave no usable answer. `final`: the same request would fail again."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(f"the PACS: {why}")
        self.final = final


@dataclass(frozen=True)
class Series:
    """One series as the PACS lists it; the UIDs are patient data and stay out of messages."""

    study: str = field(repr=False)
    uid: str = field(repr=False)
    instances: frozenset[str] = field(repr=False)


class Archive(Protocol):
    """A PACS. Every method raises Unanswered, in fixed words, when no usable answer comes."""

    def __enter__(self) -> Archive: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def ping(self) -> None:
        """Return when the PACS answers and accepts us."""

    def find(self, patient: str, modality: str) -> list[Series]:
        """The series of one modality of one patient, with the UIDs of their instances."""

    def fetch(self, series: Series, put: Put) -> None:
        """Have the instances of a series sent; `put` gets each as the bytes of a file, maybe not all and in any order."""


class Pace:
    """At most `per_second` calls of `wait` return in a second, from any number of threads."""

    def __init__(self, per_second: float) -> None:
        self._apart_s = 1 / per_second
        self._next_s = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._next_s = max(self._next_s, now) + self._apart_s
            left_s = self._next_s - self._apart_s - now
        if left_s > 0:
            time.sleep(left_s)


def patiently(pacs: Pacs, ask: Callable[[], T]) -> T:
    """`ask`, again after a wait that doubles, until it answers or `pacs.tries` is used up."""
    for tried in range(pacs.tries):
        try:
            return ask()
        except Unanswered as error:
            if error.final or tried + 1 == pacs.tries:
                raise
        time.sleep(pacs.first_wait_s * 2**tried)
    raise AssertionError


def uid(text: object) -> str:
    """A UID that the PACS sent, checked before it is used in a request."""
    if not isinstance(text, str) or not UID.fullmatch(text):
        raise Unanswered("its answer holds no valid UID where one must stand")
    return text
