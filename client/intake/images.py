"""A folder of pictures, class/patient/*.jpg|jpeg|png, to patients. The path below the class says whose a picture is
(`client.intake.whose`): as a rule the patient's folder; flat below the class only where names or the site file say so.

A patient who appears under two classes is in doubt (one person or two?), so it is withheld.

Left out: pictures without a patient folder (no unit of privacy), colour, formats other than JPEG and PNG.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from client.intake import text, volumes, whose
from client.intake.inputs import Cut, Found, Inputs, Tie
from client.rebuild import pseudonym
from client.rebuild.manifest import Reason, Withheld
from client.rebuild.redaction import guarded
from shared.errors import DataError

ENDINGS = frozenset({".jpg", ".jpeg", ".png"})
LIMIT_PIXELS = 4096 * 4096


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
        pictures = {file: picture for file in files if (picture := _picture(inputs, file, cut.size)) is not None}
        kept = [list(pictures)[index] for index in volumes.evenly(len(pictures), cut.slices)]
        reason = _text(inputs, kept) if cut.text else Reason.OK
        for file in pictures:
            inputs.give(file, reason)
        if kept and reason is Reason.OK:
            x_SHW = np.stack([pictures[file] for file in kept])
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


def _picture(inputs: Inputs, file: int, size: int) -> np.ndarray | None:
    try:
        picture = volumes.square(guarded(Reason.UNREADABLE, lambda: grey(inputs.paths[file])), 1, 1, size)
    except Withheld as withheld:
        inputs.give(file, withheld.reason)
        return None
    inputs.seen(file)
    return picture


def _text(inputs: Inputs, kept: list[int]) -> Reason:
    """TEXT when a kept picture, in its own size, shows any: then none of this patient's pictures is used."""
    try:
        text.check(grey(inputs.paths[file]) for file in kept)
    except Withheld as withheld:
        return withheld.reason
    return Reason.OK


def grey(path: Path) -> np.ndarray:
    """The picture as (H, W) in [0, 255]; comments, EXIF and everything else beside the samples is dropped."""
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        if image.width * image.height > LIMIT_PIXELS:
            raise Withheld(Reason.TOO_LARGE)
        if image.mode.startswith("I"):  # 16 bits
            return np.asarray(image, dtype=np.float32) / 257
        return np.asarray(image.convert("L"), dtype=np.float32)
