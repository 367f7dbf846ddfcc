"""Read a YAML file into a frozen record, checked once; what is wrong is said in one line that names the key and its repair."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from shared.config.record import Record
from shared.errors import ConfigError

R = TypeVar("R", bound=Record)
NEAR = 0.7  # of 1: a slip of the keyboard, and not another word that shares some letters

WANTED = {  # where pydantic speaks of Python
    "dict_type": "it needs keys and values",
    "model_type": "it needs keys and values",
    "tuple_type": "it needs a list",
}


def read(path: Path, kind: type[R], overrides: dict[str, Any] | None = None) -> R:
    """Read one YAML file into a frozen record.

    path        the file
    kind        `Experiment` or `Site`
    overrides   dotted keys that replace values of the file, e.g. {"privacy.epsilon": 4.0}

    Raises ConfigError, in one line, when the file is missing, is not YAML, or holds an unknown or invalid key.
    """
    return validate(tree_of(path, kind, overrides), kind, source=str(path))


def tree_of(path: Path, kind: type[Record], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a YAML file says of such a record, not checked yet; ConfigError when it is missing or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}") from error
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} must hold keys and values, not {'a list' if isinstance(tree, list) else 'one value'}"
        )
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return kind.upgraded(tree) if path.suffix == ".json" else tree  # written by us, perhaps by an older version


def validate(tree: dict[str, Any], kind: type[R], source: str) -> R:
    """Check a tree of plain values against `kind`; ConfigError names the first offending key and its repair."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, kind)}") from error


def explain(error: ValidationError, kind: type[Record]) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"] if not str(part).endswith("]"))  # pydantic's own parts end so
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        known = _keys_at(kind, first["loc"][:-1])
        near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
        if near:
            return f"unknown key `{path}`; did you mean `{near[0]}`?"
        return f"unknown key `{path}`; the keys here are {', '.join(known)}" if known else f"unknown key `{path}`"
    if first["type"] == "missing":
        return f"the key `{path}` is required"
    if first["type"] == "value_error":
        return f"{path + ': ' if path else ''}{first['ctx']['error']}"
    given = first["input"]
    value = (
        json.dumps(given) if given is None or isinstance(given, bool) else repr(given)
    )  # null and false, as in the file
    wanted = WANTED.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
    return f"`{path}` is {value}: {wanted}{'; write null for none' if given == 'none' else ''}"


def _keys_at(kind: type[Record], location: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the record that `location` leads to."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        inner = [
            arg for arg in getattr(annotation, "__args__", ()) if isinstance(arg, type) and issubclass(arg, Record)
        ]
        kind = inner[0] if inner else annotation  # type: ignore[assignment]
    return list(kind.model_fields)
