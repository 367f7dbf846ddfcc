"""How the files of each modality are read in the hospital: one reader a file, found by the file's name.

The pipeline asks `reader_of(name)` and knows no modality by itself. What a reader may decide: `client.modalities.base`.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from shared.modalities.base import modality, names

if TYPE_CHECKING:
    from client.deidentification.profile import Rule
    from client.modalities.base import Reader


@cache
def reader_of(name: str) -> Reader[Any]:
    """The reader of a modality. ConfigError lists the modalities that there are."""
    found: Reader[Any] = importlib.import_module(f"client.modalities.{modality(name).name}").READER
    return found


def tables() -> dict[str, tuple[Rule, ...]]:
    """SOP class UID -> the allow-list of what is written of it, of every modality."""
    return {uid: table for name in names() for uid, table in reader_of(name).tables.items()}
