"""A folder of DICOM files to patients: headers first, then one series of each study, rebuilt and stacked.

Only the rebuilt records reach the volume; the source datasets are dropped file by file.

Left out: fetching the files (`client.pacs.pull`); several patients at a time (`client.readers.folder`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import acceptance, deidentify, enhanced, export, pseudonym, reader
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.redaction import guarded
from client.modalities import reader_of
from client.modalities.base import Physics
from client.readers import persons, series, text, volumes
from client.readers.inventory import Cut, Found, Inputs, Tie

WANTED = frozenset(
    {"SOPClassUID", "DirectoryRecordSequence", "ConversionType", "SecondaryCaptureDeviceManufacturer", "ImageType"}
    | {
        "BurnedInAnnotation",
        "ComplexImageComponent",
        "NumberOfFrames",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        *acceptance.SUBJECT,
        *persons.WANTED,
    }
    | {rule.keyword for rule in series.KEYS.values()}
)


@cache
def wanted(modality: str) -> frozenset[str]:
    """The keywords that decide about a file of a modality."""
    reader = reader_of(modality)
    return WANTED | reader.words | {r.keyword for table in reader.tables.values() for r in table if r.kind != "pixels"}


@dataclass
class Series:
    """The frames of one series of one study of one patient; tokens are keyed."""

    token: str
    frames: list[series.Frame] = field(default_factory=list)
    physics: Physics | None = None

    @property
    def files(self) -> set[int]:
        return {frame.file for frame in self.frames}


@dataclass
class Person:
    """The studies of one patient, by the study's token, then by the series' token."""

    identifiers: set[str] = field(default_factory=set, repr=False)
    names: set[str] = field(default_factory=set)
    studies: dict[str, dict[str, Series]] = field(default_factory=lambda: defaultdict(dict))


@dataclass(frozen=True)
class Usable:
    """A file that may be used, until it is known whose it is."""

    study: str
    group: str
    frames: list[series.Frame]
    physics: Physics


def ties(inputs: Inputs, file: int) -> Tie:
    """Who a file's patient is, by what it says and by what it has in common with others."""
    try:
        claim = persons.claim_of(reader.header(inputs.paths[file], persons.WANTED))
    except Withheld:
        return Tie()
    return Tie(claim.identifier, claim.uids, frozenset(identifier for _, identifier in claim.others))


def patients(inputs: Inputs, cut: Cut) -> Iterator[Found]:
    """Every patient with at least one usable series; each file of the inputs has its verdict when this ends."""
    people = _scan(inputs, cut.modality)
    for name in sorted(people):
        studies = people[name].studies
        pictures = [
            _study(inputs, studies[study], cut, share(cut.slices, number, len(studies)))
            for number, study in enumerate(sorted(studies))
        ]
        usable = [x_SHW for x_SHW in pictures if x_SHW is not None and len(x_SHW)]
        if usable:
            inputs.names |= people[name].names
            yield Found(name, frozenset(people[name].identifiers), -1, np.concatenate(usable))


def share(slices: int, number: int, studies: int) -> int:
    """A patient's slices are shared out over the studies, so that no patient has more than another for having more."""
    return max(1, slices // studies + (number < slices % studies))


def _scan(inputs: Inputs, modality: str) -> dict[str, Person]:
    """The usable files by person. Whoever is in a refused file still counts where it says who is who."""
    people: dict[str, Person] = defaultdict(Person)
    claims: dict[int, persons.Claim] = {}
    usable: dict[int, Usable] = {}
    met: set[str] = set()
    for file in inputs.open():
        try:
            header = reader.header(inputs.paths[file], wanted(modality))
            claim = _claim(header, inputs.default_issuer)
            if isinstance(claim, persons.Claim):
                claims[file] = claim
            usable[file] = guarded(Reason.UNREADABLE, lambda: _usable(inputs, file, header, met, modality))  # noqa: B023
            if isinstance(claim, Reason):
                raise Withheld(claim)
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
        inputs.seen(file)
    for file, person in persons.resolve(claims, inputs.key).items():
        if isinstance(person, Reason):
            inputs.give(file, person)
            continue
        inputs.know(file, patient=person)
        inputs.studies.add(pseudonym.token(inputs.key, "uid", claims[file].study))
        people[person].identifiers.add(claims[file].identifier)
        people[person].names.update(persons.names(claims[file], inputs.key))
        if file in usable:
            _file_away(people[person], usable[file])
    return people


def _claim(header: Dataset, default_issuer: str) -> persons.Claim | Reason:
    try:
        return persons.claim_of(header, default_issuer)
    except Withheld as withheld:
        return withheld.reason


def _usable(inputs: Inputs, file: int, header: Dataset, met: set[str], modality: str) -> Usable:
    key = inputs.key
    export.describe(inputs, file, header)
    acceptance.check(header, modality)
    instance, study, group = (
        "".join(acceptance.words(header, f"{level}InstanceUID")) for level in ("SOP", "Study", "Series")
    )
    if not (instance and study and group):
        raise Withheld(Reason.REQUIRED)
    if instance in met:
        raise Withheld(Reason.DUPLICATE)
    frames = reader_of(modality).frames(header, file)
    met.add(instance)
    study, group = (pseudonym.token(key, "uid", uid) for uid in (study, group))
    return Usable(study, group, frames, reader_of(modality).physics(header))


def _file_away(person: Person, usable: Usable) -> None:
    place = person.studies[usable.study]
    found = place.setdefault(usable.group, Series(usable.group))
    found.frames.extend(usable.frames)
    found.physics = found.physics or usable.physics


def _study(inputs: Inputs, found: dict[str, Series], cut: Cut, slices: int) -> np.ndarray | None:
    """The pictures of the best series of a study that makes a volume; every file of the study gets its verdict."""
    asked, candidates = reader_of(cut.modality), []
    for token in sorted(found):
        try:
            physics = found[token].physics
            assert physics is not None
            asked.check_physics(physics, faces_go=cut.faces_go)
            volume = asked.volume(found[token].frames)
            if len(volume) < cut.minimum:
                raise Withheld(Reason.FEW_SLICES)
            asked.check_volume(volume)
        except Withheld as withheld:
            _give(inputs, found[token].files, withheld.reason)
            continue
        candidates.append((asked.rank(volume, physics), token, volume))
    pictures = None
    for _, token, volume in sorted(candidates, key=lambda candidate: candidate[:2]):
        if pictures is not None:
            _give(inputs, found[token].files, Reason.OTHER_SERIES)
            continue
        try:
            pictures = _pictures(inputs, volume, cut, slices)
        except Withheld as withheld:
            _know(inputs, {frame.file for frame in volume}, withheld.evidence)
            _give(inputs, found[token].files, withheld.reason)
            continue
        _give(inputs, {frame.file for frame in volume}, Reason.OK)
        _give(inputs, found[token].files, Reason.OTHER_VOLUME)
    return pictures


def _give(inputs: Inputs, files: set[int], reason: Reason) -> None:
    for file in sorted(files):
        inputs.give(file, reason)


def _know(inputs: Inputs, files: set[int], evidence: dict[str, float | str] | None) -> None:
    for file in files if evidence else ():
        inputs.know(file, face=evidence)


def _pictures(inputs: Inputs, volume: list[series.Frame], cut: Cut, slices: int) -> np.ndarray:
    by_file: dict[int, list[int]] = defaultdict(list)
    for frame in volume:
        by_file[frame.file].append(frame.number)
    singles: list[Dataset] = []
    for file, numbers in by_file.items():
        try:
            rebuilt = deidentify.rebuild(reader.whole(inputs.paths[file]), inputs.key, cut.modality)
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
            raise Withheld(Reason.GEOMETRY) from None
        parts = enhanced.split(rebuilt) if "NumberOfFrames" in rebuilt else [rebuilt]
        singles += [parts[number] for number in numbers]
    inspect = partial(text.check_volume, along=volumes.acquired_along(volume[0].orientation)) if cut.text else None
    x_SHW, scan = cut.pictures(reader_of(cut.modality).scan(singles), slices, inspect)
    _know(inputs, set(by_file), scan.evidence)
    return x_SHW
