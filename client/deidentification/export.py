"""A folder of DICOM to a folder of rebuilt DICOM: files named by their new UIDs, and a manifest.

Each file is written under a temporary name, read back and compared with the allow-list. It gets its name at the end, when
it is known that no file of its series shows text.

Left out: choosing series (every acceptable image is rebuilt), and faces: they stay as they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from pydicom.dataset import Dataset

from client.deidentification import acceptance, deidentify, manifest, profile, provenance, pseudonym, reader
from client.deidentification.manifest import Entry, Reason, Withheld
from client.deidentification.redaction import guarded
from client.readers import persons, text
from client.readers.inventory import Inputs
from client.verification import dicom_parser
from shared.errors import DataError
from shared.modalities.base import DEFAULT, sop_classes

IMPLEMENTATION = acceptance.tag_of("ImplementationClassUID")


def export(
    source: Path,
    target: Path,
    key: bytes,
    progress: Callable[[int, int], None] | None = None,
    *,
    text_check: bool = True,
    modality: str = DEFAULT,
    default_issuer: str = "",
) -> list[Entry]:
    """Rebuild every file of `source` (a folder or one file) into `target`; one manifest entry for each.

    text_check   look for text in every frame, withhold a series that shows any, and say in files and manifest that it ran
    modality     a name of shared/modalities; files of another one are refused
    default_issuer  who issued the identifiers that name no issuer

    All headers are read before the first file is written, since one file may say who the patient of another is.

    Raises DataError when there is nothing to read, or when `target` lies inside `source`.
    """
    source, target = source.resolve(), target.resolve()
    folder = source if source.is_dir() else source.parent
    if source.is_dir() and target.is_relative_to(source):
        raise DataError("the output folder must not lie inside the input folder; choose another")
    if not source.exists():
        raise DataError(f"the input {source} does not exist")
    files = [item for item in reader.listing(folder) if source.is_dir() or item[0] == source]
    inputs = Inputs(folder, files, key, progress)
    whose = _whose(inputs, default_issuer)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in target.glob("2.25.*.partial"):  # of an interrupted run
        left.unlink()
    models = text.models() if text_check else {}
    held: dict[int, tuple[Path, str]] = {}
    met: set[str] = set()
    shows_text: set[str | None] = set()
    looked = shows_text if text_check else None
    # In the order of the keyed tokens: times and places on the disk then say nothing about the order of the source.
    for file in sorted(inputs.open(), key=lambda number: inputs.entry(number).token):
        try:
            person = whose.get(file)
            held[file] = guarded(Reason.UNREADABLE, lambda: _one(inputs, file, target, met, looked, modality, person))  # noqa: B023
        except Withheld as withheld:
            inputs.give(file, withheld.reason)
            if withheld.reason is Reason.TEXT:
                shows_text.add(inputs.entry(file).series)
    for file, (partial, _) in held.items():
        if inputs.entry(file).series in shows_text:
            partial.unlink()
            inputs.give(file, Reason.TEXT)
        else:
            partial.replace(partial.with_suffix(".dcm"))
            inputs.give(file, Reason.OK)
    entries = inputs.entries({file: digest for file, (_, digest) in held.items()})
    options = (profile.BASIC_PROFILE, profile.CLEAN_PIXEL_DATA) if text_check else (profile.BASIC_PROFILE,)
    manifest.write(entries, target / "manifest.jsonl", provenance.header(options, models))
    return entries


def _one(
    inputs: Inputs,
    file: int,
    target: Path,
    met: set[str],
    shows_text: set[str | None] | None,
    modality: str,
    person: str | Reason | None,
) -> tuple[Path, str]:
    """Rebuild one file under a temporary name; that and the SHA-256 of what was written.

    shows_text   series in which text was seen; none: text is not looked for
    person       whose it is, or the reason why nobody knows; none: its header names nobody
    """
    source = reader.whole(inputs.paths[file])
    describe(inputs, file, source)
    rebuilt = deidentify.rebuild(source, inputs.key, modality, person if isinstance(person, str) else "")
    if isinstance(person, Reason):
        raise Withheld(person)
    name = str(rebuilt.SOPInstanceUID)
    if name in met:
        raise Withheld(Reason.DUPLICATE)
    met.add(name)
    if shows_text is not None:
        if inputs.entry(file).series in shows_text:
            raise Withheld(Reason.TEXT)
        text.check(deidentify.frames(rebuilt))
        deidentify.claim_clean_pixels(rebuilt)
    partial = target / f"{name}.partial"
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(deidentify.encode(rebuilt))
    content = partial.read_bytes()
    if not within_allow_list(content):
        partial.unlink()
        raise Withheld(Reason.NOT_CLEAN)
    return partial, hashlib.sha256(content).hexdigest()


def describe(inputs: Inputs, file: int, header: Dataset) -> None:
    """Note what the manifest may say of a header: keyed tokens and the name of a known SOP class."""
    key = inputs.key
    instance, series = (
        "".join(acceptance.words(header, keyword)) for keyword in ("SOPInstanceUID", "SeriesInstanceUID")
    )
    if instance:
        inputs.know(file, token=pseudonym.token(key, "uid", instance))
    if series:
        inputs.know(file, series=pseudonym.token(key, "uid", series))
    inputs.know(file, sop_class=sop_classes().get("".join(acceptance.words(header, "SOPClassUID"))))


def _whose(inputs: Inputs, default_issuer: str) -> dict[int, str | Reason]:
    """Of each file whose header names somebody: who that is."""
    claims = {}
    for file in inputs.open():
        with suppress(Withheld):  # it gets its own reason when its turn comes
            claims[file] = persons.claim_of(reader.header(inputs.paths[file], persons.WANTED), default_issuer)
        inputs.seen(file)
    whose = persons.resolve(claims, inputs.key)
    for file, person in whose.items():
        if isinstance(person, str):
            inputs.know(file, patient=person)
    return whose


def within_allow_list(content: bytes) -> bool:
    """Whether the written bytes are our preamble, our meta and attributes of the tables at every level, and nothing else.

    Read by the verifier's walker, which shares no code with the writer.
    """
    if not content.startswith(deidentify.PREAMBLE + b"DICM"):
        return False
    tags, implementation = _permitted(), b""
    try:
        for element in dicom_parser.elements(content):
            if element.tag not in tags or element.vr == b"UN":
                return False
            if element.tag == IMPLEMENTATION:
                implementation = element.value.rstrip(b"\0")
    except dicom_parser.Fault:
        return False
    return implementation == deidentify.IMPLEMENTATION_UID.encode()


@cache
def _permitted() -> frozenset[int]:
    return frozenset(acceptance.tag_of(keyword) for keyword in (*profile.allowed(), *deidentify.META))
