"""Kinds by the name of their file: `shared/models/pixel_diffusion.py` is the model `pixel-diffusion`.

A room of kinds is a package with a seam, an abstract class in its base.py. A file of the room that defines a class on that seam is
a kind, and is loaded when somebody asks for it by name. Nothing is registered anywhere, and no entry point is looked at: what a
deployed node can run is what lies in the bundle that its hospital approved.

In a simulation a file may be named beside it (`plugins: [my_model.py]`): its classes join the rooms whose seams they fill.

Left out: two kinds in one file of a room.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError

_PLUGGED: dict[str, dict[str, type[Any]]] = {}  # seam -> name -> class


@dataclass(frozen=True)
class Room:
    """Where kinds live: a package, the name of the seam's class, and what a kind is called in messages."""

    package: str
    seam: str
    word: str

    def names(self) -> tuple[str, ...]:
        """All kinds, sorted. Looks at text alone and loads nothing."""
        return tuple(sorted({*self._files(), *_PLUGGED.get(self.seam, {})}))

    def find(self, name: str) -> type[Any]:
        """The class of a kind. ConfigError lists what there is."""
        if name in _PLUGGED.get(self.seam, {}):
            return _PLUGGED[self.seam][name]
        if name not in self._files():
            raise ConfigError(f"no {self.word} is called `{name}`; there are {', '.join(self.names())}")
        module = importlib.import_module(f"{self.package}.{name.replace('-', '_')}")
        return next(kind for seam, kind in _kinds(module) if seam == self.seam)

    def _files(self) -> dict[str, Path]:
        """name -> file. The class names the seam itself among its bases: `class Name(Seam):`."""
        fills = re.compile(rf"^class \w+\([^)]*\b{self.seam}\b[^)]*\):", re.MULTILINE)
        folders = importlib.import_module(self.package).__path__
        files = (path for folder in folders for path in sorted(Path(folder).glob("*.py")) if path.stem != "base")
        return {p.stem.replace("_", "-"): p for p in files if fills.search(p.read_text(encoding="utf-8"))}


MODELS = Room("shared.models", "GenerativeModel", "model")
ADAPTERS = Room("shared.adapters", "Adapter", "trainable part")


def plug(path: Path) -> list[str]:
    """Load a file of somebody's own, for this process; returns the names of what it adds. ConfigError where it adds nothing.

    For simulations alone: whoever names the file runs its code.
    """
    name = path.stem.replace("_", "-")
    known = f"fedsynth_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(known, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"cannot read the plug-in {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    spec.loader.exec_module(module)
    found = list(_kinds(module))
    if not found:
        raise ConfigError(f"the plug-in {path} defines no class on a seam, such as GenerativeModel or Adapter")
    for seam, kind in found:
        _PLUGGED.setdefault(seam, {})[name] = kind
    return [name]


def _kinds(module: Any) -> Iterator[tuple[str, type[Any]]]:
    """The classes that a module defines on a seam: each with the seam's name."""
    for value in vars(module).values():
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from ((base.__name__, value) for base in value.__mro__[1:] if "SEAM" in vars(base))
