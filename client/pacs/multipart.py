"""The bodies of a multipart message while it arrives (RFC 2046, 5.1.1).

A message that breaks off is told from one that ends: only the closing delimiter ends it. (An answer over a connection that
is simply closed has no other end, and a body cut short would pass for a whole one.)

Left out: headers of the parts; multipart inside multipart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from email.message import Message

END_OF_HEADERS = b"\r\n\r\n"


def bodies(content_type: str, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each body in turn; EOFError when the message breaks off, ValueError when it is not multipart."""
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_maintype() != "multipart" or not boundary:
        raise ValueError("not multipart")
    delimiter = b"\r\n--" + boundary.encode("ascii")
    waiting = bytearray(b"\r\n")  # so that a delimiter at the very beginning is one too
    inside, searched = False, 0
    for chunk in chunks:
        waiting += chunk
        while (found := waiting.find(delimiter, searched)) >= 0:
            if inside:
                yield _body(bytes(waiting[:found]))
            inside, searched = True, 0
            del waiting[: found + len(delimiter)]
        searched = max(0, len(waiting) - len(delimiter) + 1)  # a delimiter may lie across two chunks
    if not inside or not waiting.startswith(b"--"):
        raise EOFError("no closing delimiter")


def _body(part: bytes) -> bytes:
    _, end, body = part.partition(END_OF_HEADERS)
    if not end:
        raise ValueError("a part without an end of its headers")
    return body
