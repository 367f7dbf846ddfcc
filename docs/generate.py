"""The pages that are made from the program itself: every key, every command, and the functions of `import fedsynth`.

    python docs/generate.py        writes docs/configuration.md, docs/commands.md and docs/api.md anew

`make docs` does it before each build, and tests/test_docs.py fails where a page is not what this file makes of the program.

Left out: what is written by hand, and the settings (settings_page.py).
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from settings_page import KEYS, cell, code, configuration, first, said
from typer.core import TyperArgument

import fedsynth
from shared import cli

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py from the program; do not edit. -->"


def walk(command: click.Command, words: str, level: int) -> list[str]:
    """One command and those inside it."""
    text = f"{inspect.cleandoc(command.help or '')}\n\n{inspect.cleandoc(command.epilog or '')}".strip()
    lines = [f"{'#' * level} {words}", ""]
    for paragraph in re.split(r"\n\s*\n", text):
        example = paragraph.startswith("Example: ")
        lines += (
            ["```sh", paragraph.removeprefix("Example: "), "```", ""]
            if example
            else [paragraph.replace("<", "&lt;"), ""]
        )
    rows = [option(param) for param in command.params if "--help" not in param.opts]
    if rows:
        lines += [KEYS, "", "| | what it is | default |", "|---|---|---|", *rows, "", "</div>", ""]
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            inner = cli.load(name) if words == "fedsynth" and name in cli.COMMANDS else command.commands[name]
            if not inner.hidden:
                lines += walk(inner, f"{words} {name}", min(level + 1, 3))
    return lines


def option(param: click.Parameter) -> str:
    """A row: an argument or an option."""
    about, names = getattr(param, "help", None) or "", "` `".join([*param.opts, *param.secondary_opts])
    if isinstance(param, TyperArgument):
        names = param.metavar or (param.name or "").upper()
    elif not getattr(param, "is_flag", False):
        choices = getattr(param.type, "choices", None)
        value = "\\|".join(choices) if choices else param.metavar or param.type.name.upper().removesuffix(" RANGE")
        names += f" {value}"
    ends = {"at least": getattr(param.type, "min", None), "at most": getattr(param.type, "max", None)}
    limits = [f"{sign} {end:g}" for sign, end in ends.items() if isinstance(end, int | float)]
    default = "must be given" if param.required else ""
    if (
        not param.required
        and param.default not in (None, False, "")
        and isinstance(param.default, str | int | float | Path)
    ):
        default = code(param.default)
    words = [about.removesuffix(".") if limits else about, " and ".join(limits)]
    return f"| `{names}` | {cell('; '.join(filter(None, words)))} | {default} |"


def commands() -> str:
    """Every command with its arguments and options."""
    start = ["Every command explains itself with `--help`. This page says the same.", ""]
    return "\n".join(["# Commands", "", *start, *walk(cli.build(), "fedsynth", 2)])


def member(name: str, thing: Any, level: int) -> list[str]:
    """A function or a class of the public face."""
    lines = [f"{'#' * level} {name}", ""]
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        where = "the-experiment" if thing is fedsynth.Experiment else "the-sites-file"
        return [*lines, f"{first(inspect.getdoc(thing))} Its keys: [configuration](configuration.md#{where}).", ""]
    names: list[str] = []
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        names = list(signature.parameters)
        shown = [f"    {param}," for param in map(plain, signature.parameters.values())]
        stars = [place for place, param in enumerate(signature.parameters.values()) if param.kind is param.KEYWORD_ONLY]
        if stars:
            shown.insert(stars[0], "    *,")
        lines += ["```python", f"{name}(", *shown, f") -> {signature.return_annotation}", "```", ""]
    elif not issubclass(thing, Exception):
        names = list(inspect.get_annotations(thing))
    prose, words = said(inspect.getdoc(thing) or "", names)
    lines += [prose, "", *(f"- `{key}`: {text}" for key, text in words.items() if text not in prose), ""]
    for key, value in vars(thing).items() if isinstance(thing, type) else ():
        if isinstance(value, property):
            lines += [f"- `{name}.{key}`: {first(inspect.getdoc(value))}"]
    return [*lines, ""]


def plain(param: inspect.Parameter) -> str:
    """A parameter as it stands in the source."""
    default = "" if param.default is param.empty else f" = {param.default!r}"
    return f"{param.name}: {param.annotation}{default}"


def api() -> str:
    """What `import fedsynth` gives."""
    lines = ["# Python", "", inspect.cleandoc(fedsynth.__doc__ or ""), ""]
    for name in sorted(fedsynth.__all__, key=lambda name: (inspect.isclass(getattr(fedsynth, name)), name)):
        lines += member(name, getattr(fedsynth, name), 2)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Name of the file -> its text."""
    made = {"configuration.md": configuration(), "commands.md": commands(), "api.md": api()}
    tidy = {name: re.sub(r"\n{3,}", "\n\n", text).rstrip() for name, text in made.items()}
    return {name: f"{MADE}\n\n{text}\n" for name, text in tidy.items()}


if __name__ == "__main__":
    for file, text in pages().items():
        (HERE / file).write_text(text, encoding="utf-8")
