"""What a reviewer reads before signing a bundle: which files changed, and each changed line, in printable ASCII alone.

Guarantee     every byte that differs is in a line that is shown. Lines end at the newline and nowhere else; what is not printable
              ASCII is shown by its number, <U+03B5> or <byte FF>, so that nothing acts on the terminal or looks like something
              else. The first two columns are ours: no line of a file can pass for a headline
Relation      compares what Python compiles as well: the syntax trees of a changed source

| edge case                                     | what happens                                                                  |
|-----------------------------------------------|-------------------------------------------------------------------------------|
| only the last newline differs; an empty file  | shown, as an empty line that came or went                                     |
| bytes that are not UTF-8                      | shown each by its number: two different ones never look equal                 |
| a changed file without a line of change       | FederationError: then this text cannot be trusted                             |
| texts differ, trees do not                    | "the same program": layout and comments alone                                 |
| texts look the same, trees do not             | "looks the same, and is another program": white space, or 1 and l, O and 0    |
| a source that does not parse                  | no word about the program; bundle_check.py refuses it                         |

Left out: what a change means. A program that reads its own source text could act on a comment; the trees do not show that.
"""

from __future__ import annotations

import ast
import difflib
import unicodedata
import warnings

from shared.crypto import bundle
from shared.errors import FederationError

ALIKE = str.maketrans("1I|O", "lll0")  # after these, what many a font draws the same is the same


def changes(before: bytes | None, after: bytes) -> tuple[list[str], str]:
    """One line for each added (+), removed (-) or changed (~) file, and what changed, line by line. Both safe to print."""
    old, new = bundle.contents(before) if before else {}, bundle.contents(after)
    listing: list[str] = []
    text: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        left, right = old.get(name), new.get(name)
        if left == right:
            continue
        sign = "+" if left is None else "-" if right is None else "~"
        shown = escaped(name)
        about = _about(left, right) if left is not None and right is not None and name.endswith(".py") else ""
        listing.append(f"{sign} {shown}{about}")
        lines = list(difflib.unified_diff(_lines(left), _lines(right), lineterm=""))[2:]
        if not lines:
            raise FederationError(f"{shown} changed and the diff shows nothing; do not approve this bundle")
        text += [f"=== {sign} {shown}{about}", *(_line(line) for line in lines)]
    return listing, "\n".join(text)


def escaped(text: str | bytes) -> str:
    """As printable ASCII: a character beyond it as <U+03B5>, a byte that is no UTF-8 as <byte FF>."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    return "".join(c if " " <= c <= "~" else _number(c) for c in text)


def parsed(source: str | bytes) -> ast.Module | None:
    """What the interpreter makes of a source; none when it makes nothing of it, whatever the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the parser thinks of `"\d"`
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _line(line: str) -> str:
    """A line of a diff: a blank after its sign, or `++ ` at the beginning of an added line would look like a headline."""
    return line if line.startswith("@@") else f"{line[0]} {escaped(line[1:].encode('latin-1'))}"


def _number(c: str) -> str:
    return f"<byte {ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else f"<U+{ord(c):04X}>"


def _lines(data: bytes | None) -> list[str]:
    """As a list in which any two different files differ. Latin-1 gives each byte one character, and none is lost."""
    return [] if data is None else data.decode("latin-1").split("\n")


def _about(left: bytes, right: bytes) -> str:
    try:
        trees = [ast.dump(tree) for source in (left, right) if (tree := parsed(source)) is not None]
    except RecursionError:
        trees = []
    if len(trees) < 2:
        return ""
    if trees[0] == trees[1]:
        return "   (the same program: only layout and comments differ)"
    return "   (LOOKS THE SAME, AND IS ANOTHER PROGRAM)" if _look(left) == _look(right) else ""


def _look(source: bytes) -> str:
    """What the eye keeps of a source: no white space, and one letter for those that look alike."""
    text = unicodedata.normalize("NFKC", source.decode("utf-8", "replace"))
    return "".join(text.split()).translate(ALIKE)
