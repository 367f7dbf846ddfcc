"""One file, one more kind: how a file of a room is found by its name, and how a file of your own joins it in a simulation.

A room (`server.metrics`, `server.aggregation`, ...) has one seam, an abstract class. Its kinds are the classes of that seam that a
file of the room defines, and that bear a `name`: the kind "trimmed-mean" lies in trimmed_mean.py. Only the file of the kind that is
asked for is imported; what there is, is read from the files' text. No entry point is looked at: what a deployed node can run is
what lies in the bundle that its hospital approved.

A plug-in is a file of yours that defines such classes. It is loaded by path, once a process, and only where a simulation or
`fedsynth evaluate` was told to. What a simulation starts is told by the environment; a server or a site of a real federation
never reads that, runs what the approved bundle holds, and refuses an experiment that names plug-ins.

Left out: what a seam is (see the base.py of each room), and unloading.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shared.config.loading import tree_of, validate
from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config.experiment import Experiment

VARIABLE = "FEDSYNTH_PLUGINS"  # for the processes of a simulation alone: paths, as in PATH
T = TypeVar("T")
NAME = re.compile(r'^    name\b[^=\n]*= "([^"\n]+)"', re.MULTILINE)  # a class attribute `name`, in its file


@dataclass(frozen=True)
class Plugin:
    """A file that was loaded."""

    path: Path
    sha256: str
    module: ModuleType


_LOADED: dict[Path, Plugin] = {}


def load(path: Path) -> ModuleType:
    """Run a file, so that what it defines joins the rooms. The same file again is not run again; a changed one takes its place.

    ConfigError where it is absent, or whatever it raises.
    """
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the plug-in {path}: {error.strerror or error}") from error
    digest = hashlib.sha256(source).hexdigest()
    known = _LOADED.get(path)
    if known is not None and known.sha256 == digest:
        return known.module
    name = f"fedsynth_plugin_{slug(path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pydantic look their own module up
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - the user named this file to be run
    except Exception as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        raise ConfigError(f"the plug-in {path.name} cannot be loaded: {type(error).__name__}: {error}") from error
    _LOADED[path] = Plugin(path, digest, module)
    return module


def read(path: Path, overrides: dict[str, Any] | None = None) -> Experiment:
    """An experiment from its file, for a simulation: the plug-ins that it names, relative to the file, are loaded before the rest
    is looked at, and it comes back without them. Otherwise as `shared.config.loading.read`."""
    from shared.config.experiment import Experiment  # noqa: PLC0415 - its own kinds may be found by this module

    tree = tree_of(path, Experiment, overrides)
    named = tree.get("plugins")
    if isinstance(named, list) and all(isinstance(file, str) for file in named):  # anything else is refused below
        for file in named:
            load(path.parent / file)
    return validate(tree, Experiment, source=str(path)).model_copy(update={"plugins": ()})


def refuse(experiment: Experiment) -> None:
    """ConfigError where the experiment names plug-ins: not a simulation, or one whose plug-ins nobody has loaded."""
    if experiment.plugins:
        raise ConfigError(
            f"`plugins` names {experiment.plugins[0]}; plug-ins are for `fedsynth simulate`. Put the file into its room, and let "
            "every site approve the bundle"
        )


def loaded() -> tuple[Plugin, ...]:
    """All plug-ins of this process, in the order of their loading."""
    return tuple(_LOADED.values())


def environment() -> dict[str, str]:
    """What a simulation gives to the processes that it starts, so that they have the same plug-ins."""
    return {VARIABLE: os.pathsep.join(str(path) for path in _LOADED)} if _LOADED else {}


def load_from_environment() -> None:
    """Load what `environment` names. Never called by a node of a real federation."""
    for path in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        load(Path(path))


def slug(name: str) -> str:
    """The file of a kind, without its ending: "Trimmed-mean 2" lies in trimmed_mean_2.py."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


class Registry(Generic[T]):
    """The kinds of one room by name.

    room   the package, "server.metrics"
    seam   the name of the class in its base.py that all kinds are of; each has a class attribute `name`
    key    the key of the experiment that names a kind, for the error
    """

    def __init__(self, room: str, seam: str, key: str) -> None:
        self.room, self.seam, self.key = room, seam, key

    def __getitem__(self, name: str) -> type[T]:
        """The kind of this name. ConfigError with the key and all names where there is none."""
        own = self._in_room(slug(name)).get(name)
        plugged = [kind for kind in self._plugged() if vars(kind)["name"] == name]
        if own is not None and plugged:
            raise ConfigError(f"a plug-in defines `{name}`, which {self.room} has; give yours another name")
        if len(plugged) > 1:
            raise ConfigError(f"two plug-ins define `{name}`; give one of them another name")
        if own is not None or plugged:
            return own or plugged[0]
        names = self.names()
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{near[0]}`? All are" if near else "there are"
        raise ConfigError(f"`{self.key}` names `{name[:60]}`, which there is not; {hint} {', '.join(names)}")

    def names(self) -> list[str]:
        """All names, those of plug-ins last. Reads the files of the room and imports none."""
        own = set()
        for folder in importlib.import_module(self.room).__path__:
            for path in Path(folder).glob("*.py"):
                said = NAME.findall(path.read_text(encoding="utf-8"))
                own |= {name for name in said if slug(name) == path.stem}
        return [*sorted(own, key=str.lower), *(name for name in self.plugged() if name not in own)]

    def kinds(self) -> list[type[T]]:
        """All kinds, in the order of their names. Imports every file that holds one."""
        return [self[name] for name in self.names()]

    def plugged(self) -> list[str]:
        """Names of those that plug-ins define."""
        return list(dict.fromkeys(str(vars(kind)["name"]) for kind in self._plugged()))

    def _in_room(self, file: str) -> dict[str, type[T]]:
        """What a file of the room defines; nothing where there is no such file."""
        name = f"{self.room}.{file}"
        if not file or importlib.util.find_spec(name) is None:
            return {}
        return self._defined(importlib.import_module(name))

    def _plugged(self) -> list[type[T]]:
        return [kind for plugin in _LOADED.values() for kind in self._defined(plugin.module).values()]

    def _defined(self, module: ModuleType) -> dict[str, type[T]]:
        """Kinds that a module defines itself: what it imports is another's, and what is abstract is none."""
        seam = getattr(importlib.import_module(f"{self.room}.base"), self.seam)
        return {
            str(vars(kind)["name"]): kind
            for kind in vars(module).values()
            if isinstance(kind, type)
            and issubclass(kind, seam)
            and kind.__module__ == module.__name__
            and not inspect.isabstract(kind)
            and "name" in vars(kind)
        }


def digests(plugins: Iterable[Plugin]) -> dict[str, str]:
    """What a record of a run says of plug-ins: the file's name and the start of its SHA-256."""
    return {f"plug-in {plugin.path.name}": plugin.sha256[:12] for plugin in plugins}
