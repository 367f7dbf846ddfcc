"""What may be in an app bundle: sources that Python reads as a person does, and nothing beside them.

Guarantee     of a bundle without faults: every byte is in a file of its list; every file is a source in a room or the one
              pyproject.toml of ours; a source is printable text in which each character can be seen, every name is ASCII, and what
              the interpreter compiles is that text. So a reviewer who has read the sources has read all that will run
Relation      a pure function of the bytes (and of Python's own tables of characters and grammar); called before a signature
              is made and whenever one is counted (client/supernode/approval.py)

| edge case                                            | what happens                                                             |
|------------------------------------------------------|--------------------------------------------------------------------------|
| bytes between, before or after the files; a comment; | a fault: a set of files has one packing, and this is not it              |
| a link; another date; a second directory             |                                                                          |
| a library, .pth, .so, .pyc, .pyi, a case twin        | a fault: names are matched against a pattern                             |
| a module and a folder of one name; a folder without  | a fault: Python would take one, and a reviewer may read the other        |
| __init__.py                                          |                                                                          |
| another pyproject.toml than ours                     | a fault: it says what is loaded and where it is unpacked                 |
| a control, bidi or separator character; not UTF-8    | a fault that names file, line and character                              |
| a declared coding, even utf-8                        | a fault: Python would read other text than was shown                     |
| a letter outside ASCII in a string or a comment      | fine; a diff shows it by its number                                      |
| ... in a name, also inside an f-string               | a fault: in Cyrillic `scale` is another name, in full width the same     |
| a line of more than 200 characters                   | a fault: its end may lie beyond the reviewer's window                    |
| deep nesting, NUL, what does not parse               | a fault, never an exception of the parser                                |

Left out: whether the code does what it should. That is the reviewer's part, and no check's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from shared.crypto import bundle
from shared.crypto.bundle_diff import escaped, parsed
from shared.errors import FederationError

SOURCE = re.compile(rf"({'|'.join(bundle.ROOMS)})(/[a-z0-9_]+)+\.py")
PROJECT = re.compile(re.escape(bundle.PROJECT).replace(re.escape("{version}"), r"[0-9][0-9a-z.+!]{0,40}"))
CODING = re.compile(r"[ \t\f]*#.*?coding[:=]")  # PEP 263, a little wider
UNSEEN = set("\u115f\u1160\u2800\u3164\uffa0")  # letters and symbols that draw nothing
WIDEST = 200  # characters of a line
LONGEST = 200  # characters of a name
MOST = 10  # faults that are named


@lru_cache(maxsize=4)
def faults(data: bytes) -> tuple[str, ...]:
    """What is wrong with a bundle, the first ten; empty when nothing is. The texts are safe to print, whatever the bundle holds."""
    if len(data) > bundle.LIMIT:
        return (f"the bundle has {len(data)} bytes, at most {bundle.LIMIT} may travel",)
    try:
        files = bundle.contents(data)
    except FederationError as error:
        return (str(error),)
    found: list[str] = []
    for fault in _faults(data, files):
        found.append(fault)
        if len(found) == MOST:
            break
    return tuple(found)


def _faults(data: bytes, files: dict[str, bytes]) -> Iterator[str]:
    strange = sorted(n for n in files if len(n) > LONGEST or not (SOURCE.fullmatch(n) or n == "pyproject.toml"))
    if strange:  # then nothing more is done with them
        yield from (f"the bundle holds {escaped(name[:LONGEST])}, which is no source of a room" for name in strange)
        return
    if bundle.pack(files) != data:
        yield "the bundle is not packed as fedsynth packs: it holds more than its files, or an unpacker may read others"
    if not PROJECT.fullmatch(files.get("pyproject.toml", b"").decode("latin-1")):
        yield "the bundle's pyproject.toml is not the one that fedsynth writes"
    yield from _packages(files)
    for name, source in sorted(files.items()):
        if name != "pyproject.toml":
            yield from (f"the bundle's {name}{why}" for why in _text(source))


def _packages(files: dict[str, bytes]) -> Iterator[str]:
    """Where Python could take something else than the file that was read."""
    folders = {"/".join(parts[:i]) for parts in (n.split("/") for n in files) for i in range(1, len(parts))}
    for name in sorted(n for n in files if n.removesuffix(".py") in folders):
        yield f"the bundle holds {name} and a folder of the same name; Python would take only one"
    for folder in sorted(folders | set(bundle.ROOMS)):
        if f"{folder}/__init__.py" not in files:
            yield f"the bundle's {folder} has no __init__.py; other code could stand in"


def _text(source: bytes) -> Iterator[str]:
    """What is wrong with one source: each as the end of a sentence that begins with its name."""
    for number, raw in enumerate(source.split(b"\n"), 1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError:
            yield f", line {number}: is not UTF-8"
            return
        if bad := [c for c in line if not _visible(c)]:
            yield f", line {number}: holds the character U+{ord(bad[0]):04X}, which hides or turns round what is read"
            return
        if len(line) > WIDEST:
            yield f", line {number}: has {len(line)} characters, at most {WIDEST} are read by people"
            return
        if number <= 2 and CODING.match(line):
            yield f", line {number}: declares a coding, so that Python may read other text than this"
            return
    text = source.decode("utf-8")
    if parsed(text) is None:
        yield " is not Python"
    elif parsed("".join(c if c.isascii() else "\u00a7" for c in text)) is None:
        # that sign may stand in strings and comments, and in no name: so every character that it took the place of stood there too
        yield " has a name in other than ASCII letters, which may look like another"


def _visible(c: str) -> bool:
    """Whether a reader sees this character, apart from others and in its place."""
    return c.isprintable() and c not in UNSEEN and not unicodedata.category(c).startswith("M")
