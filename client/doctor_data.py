"""Is this site ready: its data, its machine (shared/checks.py), its settings, its key, its cohort? Nothing is changed or sent.

`fedsynth client doctor` prints this before what `client.doctor` says of the node.

Left out: whether a PACS or a coordinator answers (`client.doctor`); the quality of the pictures.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from client import dataset
from client.deidentification import manifest, pseudonym, reader
from client.deidentification.acceptance import check as gate
from client.deidentification.manifest import Withheld
from client.deidentification.redaction import guarded
from client.readers import dicom
from client.supernode import journal
from privacy import ledger
from shared import checks
from shared.checks import Finding, State
from shared.config.site import Site
from shared.errors import DataError, FedsynthError
from shared.modalities.base import Modality, modality

SAMPLE = 40  # headers that are looked at
PACKAGES = (*checks.PACKAGES, "pydicom", "highdicom")


def examine(site: Site, work: Path | None = None) -> list[Finding]:
    """Every answer in a fixed order. `work`: where `client ingest` wrote or will write."""
    lines = [*_data(site), *checks.machine(work or Path.cwd(), PACKAGES), *_settings(site)]
    if work is not None:
        lines += [*_records(site, work), *_cohort(work)]
    return lines


def _data(site: Site) -> Iterator[Finding]:
    if site.data is None:
        yield Finding("data", "good", "fetched from a PACS", "")
        return
    try:
        files = reader.listing(site.data)
    except FedsynthError:
        yield Finding("data", "bad", "the data folder is missing or empty", "set `data` in the site file")
        return
    plain = [path for path, unfit in files if unfit is None]
    unreadable = sum(not os.access(path, os.R_OK) for path in plain)
    state: State = "bad" if unreadable or not plain else "good"
    yield Finding("data", state, f"{len(files):,} files, {len(files) - len(plain):,} links or special, {unreadable:,} unreadable",
               "let this user read the data folder" if state != "good" else "")  # fmt: skip
    if site.format == "dicom" and plain:
        sample = [plain[number * len(plain) // SAMPLE] for number in range(SAMPLE)] if len(plain) > SAMPLE else plain
        yield _headers(sample, modality(site.modality))


def _headers(sample: list[Path], wanted: Modality) -> Finding:
    found: Counter[str] = Counter()
    for path in sample:
        try:
            header = reader.header(path, dicom.wanted(wanted.name))
            found[guarded(manifest.Reason.UNREADABLE, lambda: gate(header, wanted.name))] += 1  # noqa: B023
        except Withheld as withheld:
            found[withheld.reason.text] += 1
    usable = sum(found[name] for name in wanted.sop_classes.values())
    said = f"of {len(sample)} headers {usable} may be used: " + ", ".join(
        f"{n} {name}" for name, n in found.most_common(4)
    )
    if not usable:
        return Finding(
            "headers",
            "bad",
            said,
            f"check that `data` holds {wanted.code} as it was acquired, `format`, and `modality`",
        )
    return Finding("headers", "good" if usable * 2 >= len(sample) else "warning", said,
                "" if usable * 2 >= len(sample) else "most files will be withheld; look whether that is meant")  # fmt: skip


KEEP = "set it to `required`; if it has to be, say why in a comment of the site file"


def _settings(site: Site) -> Iterator[Finding]:
    weak = [
        (site.epsilon_cap is None, "epsilon_cap: null lets anybody train here without privacy", "set `epsilon_cap`"),
        (site.epsilon_cap is not None and site.epsilon_cap > 10, "epsilon_cap is above 10", "lower `epsilon_cap`"),
        (site.face_removal == "none", "face_removal: none: faces stay in the slices", KEEP),
        (site.text_check == "none", "text_check: none: text in pictures is not looked for", KEEP),
        (site.separate_cohorts, "separate_cohorts tells whether cohorts share patients", "set it to false"),
        (bool(site.share), f"noisy figures are shared: {', '.join(site.share)}", "each spends budget; remove what is not needed"),
        (site.minimum_slices < 8, "minimum_slices is under 8", "raise `minimum_slices`"),
    ]  # fmt: skip
    for met, said, then in weak:
        if met:
            yield Finding("settings", "bad" if "null" in said else "warning", said, then)
    if not any(met for met, _, _ in weak):
        yield Finding("settings", "good", "nothing that weakens privacy")


def _records(site: Site, work: Path) -> Iterator[Finding]:
    try:
        records = dataset.records(site, work)
    except DataError as error:
        yield Finding("key", "bad", "two places for key and ledger", str(error))
        return
    key = records / dataset.KEY_FILE
    if not key.exists():
        yield Finding(
            "key", "warning", "not made yet", "`fedsynth client ingest` makes it; keep a copy apart from the data"
        )
    else:
        try:
            pseudonym.load(key)
            yield Finding("key", "good", "32 bytes, private to its owner")
        except DataError as error:
            yield Finding("key", "bad", "in doubt", str(error))
    if records.exists() and stat.S_IMODE(records.stat().st_mode) & 0o077:
        yield Finding(
            "folder", "warning", "others may enter the folder of key and ledger", f"run `chmod 700 {records}`"
        )
    path = records / dataset.LEDGER_FILE
    try:
        mark = journal.ledger_mark(work) if (work / "node" / journal.FILE).exists() else None
        if mark is None and not ledger.begun(path):
            yield Finding("ledger", "good", "none yet: nothing was spent")
            return
        found = ledger.checked_records(path, [mark] if mark else [])
    except FedsynthError as error:
        yield Finding("ledger", "bad", "damaged, or not all that it was", str(error))
        return
    spent = max((record.get("epsilon") or 0.0 for record in found if record.get("kind") == "reserve"), default=0.0)
    said = f"chain ok, {len(found)} records, at most epsilon {spent:.2f} spent per patient"
    if site.epsilon_cap is None:
        yield Finding("ledger", "good", said)
        return
    left = site.epsilon_cap - spent
    yield Finding("ledger", "good" if left > 0.1 else "warning", f"{said}, {max(left, 0.0):.2f} left",
               "" if left > 0.1 else "no run fits any more; only the hospital can raise `epsilon_cap`")  # fmt: skip


def _cohort(work: Path) -> Iterator[Finding]:
    if not (work / "cohort").is_dir():
        yield Finding("cohort", "warning", "not made yet", f"run `fedsynth client ingest SITE.yaml --work {work}`")
        return
    try:
        counts = manifest.verdicts(manifest.read(work / "manifest.jsonl"))
        patients = len(list((work / "cohort").glob("*.npz")))
    except DataError as error:
        yield Finding("cohort", "bad", "its manifest is damaged", str(error))
        return
    said = f"{patients} patients; files: " + ", ".join(f"{count} {name.lower()}" for name, count in counts.items())
    yield Finding("cohort", "good" if patients else "bad", said, "" if patients else "run the ingest again")
