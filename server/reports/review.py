"""Readers judge real and synthetic images blind: which is which, how good the anatomy is, which artefacts they see.

A review lies in a folder of its own: plan.json (which image is which, the readers and their tokens), images/ (all re-encoded
alike, at one size, without a word inside), answers.jsonl (one line an answer, on the disk before the next image is shown). The
same command goes on where it stopped. Every reader sees the same images in an order of their own; an answer may be changed, and
the last one counts.

A release with `release.corner_label` says on every image what it is, and cannot be read blind.

The folder holds real images and says which they are: it is for its owner alone, and no reader may see it before the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server.evaluation import image_sets
from shared.errors import DataError
from shared.files import write_bytes

ARTEFACTS = ("blur", "noise", "ghosting or ringing", "asymmetry", "implausible anatomy", "border or frame")
SCORES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Answer:
    """One judgement: the reader takes the image for real or not, scores its anatomy 1 (absurd) to 5 (flawless)."""

    reader: str
    image: str
    real: bool
    score: int
    artefacts: tuple[str, ...]


class Review:
    """One review on disk."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder = folder
        self.truth: dict[str, bool] = plan["images"]
        self.tokens: dict[str, str] = plan["readers"]

    def order(self, reader: str) -> list[str]:
        """The images in this reader's order."""
        return sorted(self.truth, key=lambda image: hashlib.sha256(f"{self.tokens[reader]} {image}".encode()).digest())

    def reader(self, token: str) -> str | None:
        """Whose token it is."""
        found = [name for name, known in self.tokens.items() if secrets.compare_digest(known.encode(), token.encode())]
        return found[0] if found else None

    def answers(self) -> list[Answer]:
        """The last answer of every reader to every image; a torn or foreign line is none."""
        last: dict[tuple[str, str], Answer] = {}
        path = self.folder / "answers.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
            try:
                answer = self.check(json.loads(line))
            except (ValueError, DataError):
                continue
            last[answer.reader, answer.image] = answer
        return list(last.values())

    def check(self, tree: Any) -> Answer:
        """An answer whose every field is one of those that are offered; DataError otherwise."""
        if not isinstance(tree, dict) or not {"reader", "image", "real", "score", "artefacts"} <= set(tree):
            raise DataError("an answer needs reader, image, real, score and artefacts")
        marks = tree["artefacts"]
        good = (
            tree["reader"] in self.tokens
            and tree["image"] in self.truth
            and isinstance(tree["real"], bool)
            and type(tree["score"]) is int
            and tree["score"] in SCORES
            and isinstance(marks, list)
            and all(mark in ARTEFACTS for mark in marks)
        )
        if not good:
            raise DataError("an answer holds a value that was not offered")
        return Answer(tree["reader"], tree["image"], tree["real"], tree["score"], tuple(sorted(set(marks))))

    def add(self, answer: Answer) -> None:
        """Append durably: it is on the disk when this returns."""
        line = {
            "time": round(time.time()),
            "reader": answer.reader,
            "image": answer.image,
            "real": answer.real,
            "score": answer.score,
            "artefacts": list(answer.artefacts),
        }
        file = os.open(self.folder / "answers.jsonl", os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # a line that was cut off ends here
            os.write(file, (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
            os.fsync(file)
        finally:
            os.close(file)


def prepare(
    folder: Path, release: Path, real: Path, readers: list[str], *, images: int, patients: str, seed: int
) -> Review:
    """Make a review of as many synthetic as real images, or open the one that is there; new readers may join it.

    DataError where an image set cannot be read, or a reader's name is not letters, digits, '-' and '_'.
    """
    for name in readers:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise DataError(f"the reader {name[:40]!r} needs a name of letters, digits, '-' and '_'")
    if (folder / "plan.json").exists():
        plan = _plan(folder)
        new = [name for name in readers if name not in plan["readers"]]
    else:
        plan = {"readers": {}, "images": _images(folder, release, real, images=images, patients=patients, seed=seed)}
        new = readers
    if new or not (folder / "plan.json").exists():
        plan["readers"] |= {name: secrets.token_urlsafe(16) for name in new}
        write_bytes(folder / "plan.json", json.dumps(plan, indent=2).encode())
        (folder / "plan.json").chmod(0o600)
    return Review(folder, plan)


def open_review(folder: Path) -> Review:
    """The review in a folder; DataError where there is none."""
    return Review(folder, _plan(folder))


def _plan(folder: Path) -> dict[str, Any]:
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        if not isinstance(plan["readers"], dict) or not isinstance(plan["images"], dict):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"there is no review in {folder}, or its plan is damaged") from error
    return dict(plan)


def _images(folder: Path, release: Path, real: Path, *, images: int, patients: str, seed: int) -> dict[str, bool]:
    """Write all images alike, under names that say nothing; which is which, name -> real."""
    sets = [image_sets.survey(release), image_sets.survey(real, patients)]
    count = min(images, *(len(found) for found in sets))
    chosen = [image_sets.choose(found, count, seed) for found in sets]
    size = max(min(image_sets.side(entries) for entries in chosen), image_sets.SMALLEST)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "images").mkdir(exist_ok=True, mode=0o700)
    truth: dict[str, bool] = {}
    for is_real, entries in zip((False, True), chosen, strict=True):
        for x_HW in image_sets.load(entries, size).x_NHW:
            name = secrets.token_hex(8)
            Image.fromarray(np.asarray(x_HW)).save(folder / "images" / f"{name}.png")
            truth[name] = is_real
    return dict(sorted(truth.items()))
