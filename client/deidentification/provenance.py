"""Who made a manifest and by which tables: the header that the chain of its lines begins with.

It is a function of the installed software and of the options that ran; it holds no time, no name of the site and nothing
of the data, so that the same input under the same key gives the same bytes.

Left out: a signature (the last hash of the chain is what to sign, or to note elsewhere).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from client import modalities
from client.deidentification import profile
from shared.modalities.base import sop_classes

EDITION = "DICOM PS3.15 2026d, Annex E"
FORMAT = 2


def software() -> str:
    """Name and version, such as `fedsynth 0.1.0`."""
    try:
        return f"fedsynth {version('fedsynth')}"
    except PackageNotFoundError:
        return "fedsynth of unknown version"


def table_digest() -> str:
    """SHA-256 of the allow-list: every rule of every table, with its range, words and constants."""
    known = sop_classes()
    tables = {uid: [known[uid], [asdict(rule) for rule in table]] for uid, table in modalities.tables().items()}
    groups = {name: [asdict(rule) for rule in rules] for name, rules in profile.GROUPS.items()}
    canonical = json.dumps([tables, groups], sort_keys=True, default=dict)
    return hashlib.sha256(canonical.encode()).hexdigest()


def header(
    options: Sequence[Mapping[str, str]] = (profile.BASIC_PROFILE,), models: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The first record of a manifest.

    options   codes of CID 7050 that ran on every file that passed
    models    name -> SHA-256 of each network that took part in a decision
    """
    return {
        "format": FORMAT,
        "software": software(),
        "edition": EDITION,
        "table_sha256": table_digest(),
        "options": [dict(option) for option in options],
        "models": dict(models or {}),
    }
