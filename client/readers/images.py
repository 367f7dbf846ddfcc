"""A folder of pictures, class/patient/*.jpg|jpeg|png, to patients. The path below the class says whose a picture is
(`client.readers.whose`): as a rule the patient's folder; flat below the class only where names or the site file say so.

A patient who appears under two classes is in doubt (one person or two?), so it is withheld.

Grey levels are those of `shared.pictures`. A picture that shows nothing is withheld alone: the patient's others are used.

Left out: pictures that are nobody's (no unit of privacy), colour, formats other than JPEG and PNG.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from client.deidentification import pseudonym
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.readers import text, volumes, whose
from client.readers.inventory import Cut, Found, Inputs, Tie
from shared import pictures
from shared.errors import DataError
from shared.pictures import Levels

ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
FORMATS = ("JPEG", "PNG")
LIMIT_PIXELS = 4096 * 4096
EMPTY = {"not-finite": Reason.PIXEL_FORMAT, "black": Reason.BLACK, "flat": Reason.FLAT}


def ties(inputs: Inputs, file: int) -> Tie:
    """The name of a file's patient, empty where it has none; and nothing else."""
    try:
        return Tie(_person(inputs, file))
    except Withheld:
        return Tie()


def _person(inputs: Inputs, file: int) -> str:
    if inputs.paths[file].suffix.lower() not in ENDINGS:
        raise Withheld(Reason.NOT_AN_IMAGE)
    return inputs.people.person(inputs.parts(file))


def check_classes(inputs: Inputs, classes: Sequence[str]) -> None:
    """Raise DataError when a folder that holds patients' folders is none of the classes."""
    _labels({inputs.parts(file)[0] for file in inputs.open() if ties(inputs, file).patient}, classes)


def patients(inputs: Inputs, cut: Cut, classes: Sequence[str]) -> Iterator[Found]:
    """Every patient with at least one readable picture; each file of the inputs has its verdict when this ends."""
    people: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for file in inputs.open():
        try:
            name = _person(inputs, file)
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
            continue
        people[name][inputs.parts(file)[0]].append(file)
        inputs.know(file, patient=pseudonym.pseudonym(inputs.key, "", name), sop_class="image")
    labels = _labels({kind for person in people.values() for kind in person}, classes)
    for name in sorted(people):
        if len(people[name]) > 1:
            for file in (file for files in people[name].values() for file in files):
                inputs.give(file, Reason.TWO_CLASSES)
            continue
        ((kind, files),) = people[name].items()
        levels = _levels(inputs, files)
        found = {
            file: picture
            for file in sorted(set(files) & set(inputs.open()))
            if (picture := _picture(inputs, file, levels, cut.size)) is not None
        }
        kept = [list(found)[index] for index in volumes.evenly(len(found), cut.slices)]
        reason = _text(inputs, kept, levels) if cut.text else Reason.OK
        for file in found:
            inputs.give(file, reason)
        if kept and reason is Reason.OK:
            x_SHW = np.stack([found[file] for file in kept])
            person = pseudonym.pseudonym(inputs.key, "", name)
            yield Found(person, whose.spellings(name), labels[kind], x_SHW)


def _labels(kinds: set[str], classes: Sequence[str]) -> dict[str, int]:
    for number, kind in enumerate(sorted(kinds), start=1):
        if kind not in classes:
            raise DataError(
                f"class folder {number} of {len(kinds)}, in the order of their names, is not one of the classes "
                f"{', '.join(classes)}; the layout is class/patient/*.jpg"
            )
    return {kind: classes.index(kind) for kind in kinds}


def _levels(inputs: Inputs, files: list[int]) -> Levels:
    """Black and white of what is deeper than 8 bits of one person."""
    met, levels = pictures.Range(), pictures.BYTES
    for file in files:
        try:
            if guarded(Reason.UNREADABLE, lambda: pictures.deep(inputs.paths[file], formats=FORMATS)):  # noqa: B023
                met.add(guarded(Reason.UNREADABLE, lambda: _samples(inputs.paths[file])))  # noqa: B023
                levels = met.levels
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
    return levels


def _picture(inputs: Inputs, file: int, levels: Levels, size: int) -> np.ndarray | None:
    try:
        x_HW = guarded(Reason.UNREADABLE, lambda: grey(inputs.paths[file], levels))
        problem = pictures.problem(x_HW)
        if problem is not None:
            raise Withheld(EMPTY[problem])
    except Withheld as withheld:
        inputs.give(file, withheld.reason)
        return None
    inputs.seen(file)
    return volumes.square(x_HW, 1, 1, size)


def _text(inputs: Inputs, kept: list[int], levels: Levels) -> Reason:
    """TEXT when a kept picture, in its own size, shows any: then none of this patient's pictures is used."""
    try:
        text.check(grey(inputs.paths[file], levels) for file in kept)
    except Withheld as withheld:
        return withheld.reason
    return Reason.OK


def grey(path: Path, levels: Levels | None = None) -> np.ndarray:
    """The picture as (H, W) in [0, 255]; `levels` of deep samples, none: its own."""
    x_HW = _samples(path)
    if x_HW.dtype == np.uint8:
        return pictures.scaled(x_HW)
    if levels is None:
        met = pictures.Range()
        met.add(x_HW)
        levels = met.levels
    return pictures.scaled(x_HW, levels)


def _samples(path: Path) -> np.ndarray:
    try:
        return pictures.read(path, formats=FORMATS, limit=LIMIT_PIXELS)
    except pictures.TooLarge:
        raise Withheld(Reason.TOO_LARGE) from None
