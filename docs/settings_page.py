"""docs/configuration.md: every key of every file of settings, and what a key may name.

What is said of a key is what its record's docstring says: in an aligned line `name   words`, or as `name`: words.

Left out: checks that span several keys; the program says them when it reads a file.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from server.aggregation.base import RULES
from server.metrics.base import METRICS
from server.superlink.federation import FederationFile
from shared.config.experiment import Experiment
from shared.config.model import ADAPTERS, MODELS
from shared.config.pacs import Dimse
from shared.config.policy import Policy
from shared.config.site import SITE_NAME, Site
from shared.modalities import base as modalities
from simulations.pretraining import Pretraining


def _pattern(record: type[BaseModel], name: str) -> str:
    return str(record.model_json_schema()["properties"][name]["pattern"])


PATTERNS = {
    SITE_NAME: "of at most 40 small letters, digits and hyphens",
    _pattern(Pretraining, "name"): "of small letters, digits and hyphens",
    _pattern(Site, "default_issuer"): "without blanks at its ends",
    _pattern(FederationFile, "address"): "like `host:port`",
    _pattern(FederationFile, "listen"): "that is an IP address",
    _pattern(Dimse, "called_ae"): "of at most 16 characters, without blanks at its ends",
    Policy.model_json_schema()["properties"]["signers"]["items"]["pattern"]: "of 64 hexadecimal digits",
}
KEYS = '<div class="keys" markdown>'  # style.css shows such a table as a list where the screen is narrow
# A file of settings: its title, its record, what it is
FILES: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("The experiment", Experiment, "What the coordinator or researcher writes: `fedsynth simulate EXPERIMENT.yaml`."),
    ("The site's file", Site, "What a hospital writes for itself. It is never sent. `policy` and `pacs` are parts of it."),
    ("The federation's file", FederationFile, "What a coordinator of a federation over a network writes once."),
    ("The base's file", Pretraining, "How a public base is trained on phantoms: `fedsynth pretrain BASE.yaml`."),
)  # fmt: skip


def said(text: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A docstring in two parts: its prose, and what it says of each name."""
    prose: list[str] = []
    words: dict[str, str] = {}
    now: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        # Where a name is long, one blank may stand behind it
        match = re.match(r"(\w+(?:, \w+)*)(?: {2,}|(?<=\w{16}) )(\S.*)", line)
        if match and set(found := match[1].split(", ")) <= set(names):
            now = found
            words |= dict.fromkeys(now, match[2])
        elif now and line.startswith("  "):
            words |= {name: f"{words[name]} {line.strip()}" for name in now}
        else:
            now = []
            prose.append(line)
    whole = "\n".join(prose).strip()
    for name, its in re.findall(r"`(\w+)`: (.+?)(?:\.(?=\s)|\.?$)", whole, re.S):
        if name in names:
            words.setdefault(name, " ".join(its.split()))
    return whole, words


def said_of(record: type[BaseModel]) -> dict[str, str]:
    """Key -> its words; a record that builds on another says what is new."""
    words: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if issubclass(kind, BaseModel) and kind.__doc__:
            words |= said(kind.__doc__, list(record.model_fields))[1]
    return words


def cell(text: str) -> str:
    """Text that stands in a table as it is."""
    return re.sub(r"([|*\[\]])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))


def code(value: object) -> str:
    """A value as YAML would have it, in code."""
    if value is None or isinstance(value, bool):
        text = {None: "none", True: "true", False: "false"}[value]
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(str, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {its}' for key, its in value.items())}}}"
    else:
        text = str(value)
    return f"`{text or chr(34) * 2}`".replace("|", "\\|")


def kind_of(schema: dict[str, Any]) -> str:
    """What may stand there, in words, from its JSON schema."""
    if "$ref" in schema:
        return "record"
    if "enum" in schema or "const" in schema:
        return "one of " * ("enum" in schema) + ", ".join(map(code, schema.get("enum", [schema.get("const")])))
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(kind_of(part) for part in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of: {kind_of(schema['items'])}" if "items" in schema else f"list of {schema['maxItems']} values"
    if kind == "object":
        inside = schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)
        return f"`{{NAME: ...}}`, each {kind_of(inside)}" if isinstance(inside, dict) else "record"
    plain = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "null": "none",
        "string": "text",
    }
    words = "path" if schema.get("format") == "path" else plain.get(str(kind), "record")
    bounds = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    limits = [f"{sign} {plainly(schema[key])}" for key, sign in bounds.items() if key in schema]
    if "maxLength" in schema:
        limits.append(f"of at most {schema['maxLength']} characters")
    if schema.get("pattern"):
        limits.append(PATTERNS.get(schema["pattern"], f"like {code(schema['pattern'])}"))
    return " ".join([words, " and ".join(limits)]).strip()


def plainly(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def parts_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The records in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from parts_of(inner)


def keys(record: type[BaseModel], at: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Every key of a file by its path, its record, and its name there."""
    for name, field in record.model_fields.items():
        yield at + name, record, name
        for inner in [] if name in ("model", "sites") else parts_of(field.annotation):
            yield from keys(inner, f"{at}{name}.")


def table(record: type[BaseModel], path: str = "") -> list[str]:
    """The keys of one record: what each may be, its default, its words."""
    words, schema = said_of(record), record.model_json_schema()["properties"]
    lines = [KEYS, "", "| key | what may stand there | default | what it says |", "|---|---|---|---|"]
    for name, field in record.model_fields.items():
        given = {} if field.default_factory is dict else schema[name].get("default")
        default = "must be given" if field.is_required() else code(given)
        if kind_of(schema[name]).startswith("record"):
            default = default if field.is_required() or field.default is None else "the defaults of its keys"
        default = "empty" if default in ("`[]`", "`{}`", '`""`') else default
        what, inner = kind_of(schema[name]), next(parts_of(field.annotation), None)
        if inner is not None:
            place = {"model": "what-modelkind-may-be", "sites": "the-sites-file"}.get(
                name, f"{path}{name}".replace(".", "")
            )
            what = what.replace("record", f"[its keys](#{place})")
        about = words.get(name) or first(inner.__doc__ if inner is not None else "")
        lines.append(f"| `{name}` | {what} | {default} | {cell(about)} |")
    return [*lines, "", "</div>", ""]


def section(record: type[BaseModel], path: str, level: int) -> list[str]:
    """One record and those inside it."""
    lines = [f"{'#' * level} {path}", ""] if path else []
    if path:
        lines += [said(record.__doc__ or "", list(record.model_fields))[0].replace("*", "\\*"), ""]
    lines += table(record, path and f"{path}.")
    for name, field in record.model_fields.items():
        for inner in [] if name in ("model", "sites") else parts_of(field.annotation):
            lines += section(inner, f"{path}.{name}".strip("."), level if path else level + 1)
    return lines


def kinds() -> list[str]:
    """What a key may name: one heading a seam."""
    lines = ["## What `model.kind` may be", ""]
    for model in MODELS.kinds():
        about = (model.Settings.__doc__ or "").strip()
        lines += [
            f"### {model.name}",
            "",
            first(inspect.getdoc(model)),
            "",
            f"`model`: {about}",
            "",
            *table(model.Settings),
        ]
    lines += ["## What `training.trainable` may be", "", "| adapter | what a hospital trains and sends |", "|---|---|"]
    lines += [f"| `{kind.name}` | {cell(about_file(kind))} |" for kind in ADAPTERS.kinds()]
    lines += ["", "## What `federation.aggregation` may be", ""]
    lines += ["| rule | how updates are combined | its settings |", "|---|---|---|"]
    for rule in RULES.kinds():
        settings = ", ".join(f"`{key}`" for key in rule.Settings.model_fields) or "none"
        lines.append(f"| `{rule.name}` | {cell(about_file(rule))} | {settings} |")
    lines += ["", "## What `evaluation.metrics` may name", "", "| metric | how to read it | best |", "|---|---|---|"]
    for metric in METRICS.kinds():
        lines.append(f"| `{metric.name}` | {cell(metric.reading)} | {metric.described().goal} |")
    lines += ["", "## What `modality` may be", ""]
    lines += ["| name | what it is | in DICOM | channels | faces | biomarkers |", "|---|---|---|---|---|---|"]
    for record in map(modalities.modality, modalities.names()):
        lines.append(
            f"| `{record.name}` | {record.title} | {record.code} | {record.channels} | {record.faces} | "
            f"{', '.join(record.biomarkers)} |"
        )
    return [*lines, ""]


def first(text: str | None) -> str:
    """The first paragraph."""
    return " ".join((text or "").partition("\n\n")[0].split())


def about_file(kind: type) -> str:
    return first(inspect.getdoc(sys.modules[kind.__module__]))


def configuration() -> str:
    """Every key of every file of settings."""
    lines = [
        "# Configuration", "",
        "Files of settings are YAML. They are read once and checked before anything happens: an unknown key or a value out of",
        "its range is an error in one line, which names the key and a near one. What holds in the end, with all defaults, is",
        "printed by `fedsynth simulate EXPERIMENT.yaml --dry-run`.", "",
        "A key is named by its path: `training.rounds` is the key `rounds` below `training`. *none* is written as `null`, or the",
        "key is left out.", "",
    ]  # fmt: skip
    for title, record, about in FILES:
        lines += [f"## {title}", "", about, "", *section(record, "", 2)]
    return "\n".join([*lines, *kinds()])
