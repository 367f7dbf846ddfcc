"""Is this site ready: its data, its machine, its settings, its key, its cohort? Nothing is changed and nothing is sent.

`fedsynth client doctor` prints this before what `client.doctor` says of the node.

Left out: whether a PACS or a coordinator answers (`client.doctor`); the quality of the pictures.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from client import dataset
from client.intake import dicom
from client.rebuild import manifest, provenance, pseudonym, reader
from client.rebuild.gates import check as gate
from client.rebuild.manifest import Withheld
from client.rebuild.redaction import guarded
from privacy import ledger
from shared.config import Site
from shared.errors import DataError, FedsynthError

State = Literal["good", "warning", "bad"]
SAMPLE = 40  # headers that are looked at
FREE_GB = 5.0
MEMORY_GB = 4.0
SHARED_MB = 64
BUILT = datetime(2026, 1, 1, tzinfo=UTC)  # a clock before this is wrong
PACKAGES = ("torch", "flwr", "opacus", "pydicom", "highdicom", "cryptography")


@dataclass(frozen=True)
class Line:
    """One answer. `next`: what to do, empty when it is ok."""

    about: str
    state: State
    said: str
    next: str = ""


def examine(site: Site, work: Path | None = None) -> list[Line]:
    """Every answer in a fixed order. `work`: where `client ingest` wrote or will write."""
    lines = [*_data(site), *_machine(work), *_settings(site)]
    if work is not None:
        lines += [*_records(site, work), *_cohort(work)]
    return lines


def _data(site: Site) -> Iterator[Line]:
    if site.data is None:
        yield Line("data", "good", "fetched from a PACS", "")
        return
    try:
        files = reader.listing(site.data)
    except FedsynthError:
        yield Line("data", "bad", "the data folder is missing or empty", "set `data` in the site file")
        return
    plain = [path for path, unfit in files if unfit is None]
    unreadable = sum(not os.access(path, os.R_OK) for path in plain)
    state: State = "bad" if unreadable or not plain else "good"
    yield Line("data", state, f"{len(files):,} files, {len(files) - len(plain):,} links or special, {unreadable:,} unreadable",
               "let this user read the data folder" if state != "good" else "")  # fmt: skip
    if site.format == "dicom" and plain:
        yield _headers(
            [plain[number * len(plain) // SAMPLE] for number in range(SAMPLE)] if len(plain) > SAMPLE else plain
        )


def _headers(sample: list[Path]) -> Line:
    found: Counter[str] = Counter()
    for path in sample:
        try:
            header = reader.header(path, dicom.WANTED)
            found[guarded(manifest.Reason.UNREADABLE, lambda: gate(header))] += 1  # noqa: B023
        except Withheld as withheld:
            found[withheld.reason.text] += 1
    usable = sum(
        count for name, count in found.items() if name in ("MR Image", "Enhanced MR Image") or "Legacy" in name
    )
    said = f"of {len(sample)} headers {usable} may be used: " + ", ".join(
        f"{n} {name}" for name, n in found.most_common(4)
    )
    if not usable:
        return Line("headers", "bad", said, "check that `data` holds MR as it was acquired, and `format`")
    return Line("headers", "good" if usable * 2 >= len(sample) else "warning", said,
                "" if usable * 2 >= len(sample) else "most files will be withheld; look whether that is meant")  # fmt: skip


def _machine(work: Path | None) -> Iterator[Line]:
    place = next(
        path for path in ((work or Path.cwd()).resolve(), *(work or Path.cwd()).resolve().parents) if path.exists()
    )
    free = shutil.disk_usage(place).free / 1e9
    yield Line("disk", "good" if free >= FREE_GB else "warning", f"{free:.0f} GB free where the work folder is",
               "" if free >= FREE_GB else f"free {FREE_GB:g} GB, or choose another --work")  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield Line("memory", "good" if memory >= MEMORY_GB else "warning", f"{memory:.0f} GB, {os.cpu_count()} processors",
               "" if memory >= MEMORY_GB else f"give the machine {MEMORY_GB:g} GB")  # fmt: skip
    if torch.cuda.is_available():
        yield Line("GPU", "good", torch.cuda.get_device_name(0))
    else:
        yield Line("GPU", "warning", "none found", "training runs on processors; for 64 x 64 that is enough")
    shared = Path("/dev/shm")  # noqa: S108  (looked at, never written)
    size = shutil.disk_usage(shared).total / 1e6 if shared.is_dir() else 0
    yield Line("shared memory", "good" if size >= SHARED_MB else "warning", f"{size:,.0f} MB",
               "" if size >= SHARED_MB else "start the container with --shm-size=1g")  # fmt: skip
    now = datetime.now(UTC)
    sane = BUILT < now < BUILT.replace(year=BUILT.year + 20)
    yield Line("clock", "good" if sane else "bad", now.isoformat(timespec="minutes"),
               "" if sane else "set the clock: certificates and ledgers need it")  # fmt: skip
    yield Line("versions", "good", f"{provenance.software()}, Python {sys.version.split()[0]}, "
               + ", ".join(f"{name} {_version(name)}" for name in PACKAGES))  # fmt: skip


def _settings(site: Site) -> Iterator[Line]:
    weak = [
        (site.epsilon_cap is None, "epsilon_cap: null lets anybody train here without privacy", "set `epsilon_cap`"),
        (site.epsilon_cap is not None and site.epsilon_cap > 10, "epsilon_cap is above 10", "lower `epsilon_cap`"),
        (site.face_removal == "none", "face_removal: none: faces stay in the slices", "set it to required, or note why"),
        (site.text_check == "none", "text_check: none: text in pictures is not looked for", "set it to required, or note why"),
        (site.separate_cohorts, "separate_cohorts tells whether cohorts share patients", "set it to false"),
        (bool(site.share), f"noisy figures are shared: {', '.join(site.share)}", "each spends budget; remove what is not needed"),
        (site.minimum_slices < 8, "minimum_slices is under 8", "raise `minimum_slices`"),
    ]  # fmt: skip
    for met, said, then in weak:
        if met:
            yield Line("settings", "bad" if "null" in said else "warning", said, then)
    if not any(met for met, _, _ in weak):
        yield Line("settings", "good", "nothing that weakens privacy")


def _records(site: Site, work: Path) -> Iterator[Line]:
    try:
        records = dataset.records(site, work)
    except DataError as error:
        yield Line("key", "bad", "two places for key and ledger", str(error))
        return
    key = records / dataset.KEY_FILE
    if not key.exists():
        yield Line(
            "key", "warning", "not made yet", "`fedsynth client ingest` makes it; keep a copy apart from the data"
        )
    else:
        try:
            pseudonym.load(key)
            yield Line("key", "good", "32 bytes, private to its owner")
        except DataError as error:
            yield Line("key", "bad", "in doubt", str(error))
    if records.exists() and stat.S_IMODE(records.stat().st_mode) & 0o077:
        yield Line("folder", "warning", "others may enter the folder of key and ledger", f"run `chmod 700 {records}`")
    path = records / "ledger.jsonl"
    if not path.exists():
        yield Line("ledger", "good", "none yet: nothing was spent")
        return
    try:
        found = ledger.verify(path)
    except FedsynthError as error:
        yield Line("ledger", "bad", "damaged", str(error))
        return
    spent = max((record.get("epsilon") or 0.0 for record in found if record.get("kind") == "reserve"), default=0.0)
    said = f"chain ok, {len(found)} records, at most epsilon {spent:.2f} spent per patient"
    if site.epsilon_cap is None:
        yield Line("ledger", "good", said)
        return
    left = site.epsilon_cap - spent
    yield Line("ledger", "good" if left > 0.1 else "warning", f"{said}, {max(left, 0.0):.2f} left",
               "" if left > 0.1 else "no run fits any more; only the hospital can raise `epsilon_cap`")  # fmt: skip


def _cohort(work: Path) -> Iterator[Line]:
    if not (work / "cohort").is_dir():
        yield Line("cohort", "warning", "not made yet", f"run `fedsynth client ingest SITE.yaml --work {work}`")
        return
    try:
        counts = manifest.verdicts(manifest.read(work / "manifest.jsonl"))
        patients = len(list((work / "cohort").glob("*.npz")))
    except DataError as error:
        yield Line("cohort", "bad", "its manifest is damaged", str(error))
        return
    said = f"{patients} patients; files: " + ", ".join(f"{count} {name.lower()}" for name, count in counts.items())
    yield Line("cohort", "good" if patients else "bad", said, "" if patients else "run the ingest again")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
