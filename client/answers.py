"""How often this hospital has said whether a release may go out: RECORDS/release-checks.jsonl, beside key and ledger.

Guarantee     none for the bit itself: it is computed from the patients without noise. So their number is bounded over the life of
              the key, whatever the cohort and the work folder, and a question is on the disk before anything is computed for it

| edge case                                | what happens                                                         |
|------------------------------------------|----------------------------------------------------------------------|
| the same question again                  | the same answer, not counted again                                   |
| killed between question and answer       | it counts; asked again, it is answered                               |
| a damaged line                           | counts as a question of its own: damage never buys another answer    |
| two nodes or apps at the same time       | one after the other: an exclusive lock spans read and append         |
| the record of an older version           | lay in the work folder; both count                                   |

Left out: an answer that is noised.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privacy.durable import told
from shared.files import replace

RECORD, LOCK = "release-checks.jsonl", ".release-checks.lock"


class Answers:
    """The record in a hospital's folder of records. `also`: a work folder that may hold one of an older version."""

    def __init__(self, records: Path, also: Path | None = None) -> None:
        self.path = records / RECORD
        self._old = also / RECORD if also is not None and also.resolve() != records.resolve() else None

    def ask(self, question: str, limit: int) -> tuple[bool, bool | None]:
        """Count a question, unless `limit` others were counted. Returns whether it may be answered, and the answer given before."""
        with self._locked():
            lines = self._read()
            given = [line["passed"] for line in lines if line["question"] == question and "passed" in line]
            if given:
                return True, bool(given[-1])
            if len({line["question"] for line in lines} - {question}) >= limit:
                return False, None
            self._append({"question": question})
            return True, None

    def answered(self, question: str, passed: bool, **figures: Any) -> None:
        """Keep the answer before it is sent. `figures` are private: they stay here, for the hospital's own eyes."""
        with self._locked():
            self._append({"question": question, "passed": passed} | figures)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with told(self.path):
            file = os.open(self.path.with_name(LOCK), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _append(self, line: dict[str, Any]) -> None:
        """On the disk, for its owner alone, when this returns."""
        with told(self.path):
            before = self.path.read_bytes() if self.path.exists() else b""
            if before and not before.endswith(b"\n"):
                before += b"\n"
            replace(self.path, before + json.dumps(line).encode() + b"\n")

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for path in filter(None, (self._old, self.path)):
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            for number, one in enumerate(text.split("\n")):
                if not one:
                    continue
                try:
                    line = json.loads(one)
                    line["question"]
                except (ValueError, KeyError, TypeError):
                    line = {"question": f"damaged line {number} of {path.parent.name}"}
                lines.append(line)
        return lines
