"""Nothing that a library says about a patient's file is repeated.

pydicom quotes values in warnings, log records and exceptions ("Invalid value for VR DA: 'JANE SMITH 1947'"); the clients
of a PACS log addresses that hold identifiers. Every read of patient data goes through `guarded` or `instead`, which keep the
category of what was said and drop its text.

Left out: what other processes print; the operating system's core dumps.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from client.deidentification.manifest import Reason, Withheld
from shared.errors import FedsynthError

READERS = ("pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "nibabel", "PIL", "py.warnings")
NETWORK = (
    "pynetdicom",
    "dicomweb_client",
    "requests",
    "urllib3",
    "retrying",
)  # UIDs, AE titles, addresses with identifiers
WITHHELD = "text withheld: it may quote patient data"

T = TypeVar("T")


@contextmanager
def redacted() -> Iterator[Counter[str]]:
    """Silence the text of warnings and of the readers' log records; yields how many of each category were met.

    Log records still reach their handlers, so a watcher sees that something was said; only the text is replaced.
    """
    seen: Counter[str] = Counter()
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if record.name.split(".")[0] in (*READERS, *NETWORK) or record.name in READERS:
            seen[f"log {record.levelname}"] += 1
            record.msg, record.args, record.exc_info, record.stack_info = WITHHELD, (), None, None
        return record

    logging.setLogRecordFactory(factory)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield seen
        seen.update(warning.category.__name__ for warning in said)
    finally:
        logging.setLogRecordFactory(before)


def guarded(reason: Reason, read: Callable[[], T]) -> T:
    """What `read` returns; any failure becomes `Withheld(reason)`, which carries no value, cause or context."""
    return instead(read, lambda _: Withheld(reason))


def instead(read: Callable[[], T], error: Callable[[BaseException], FedsynthError]) -> T:
    """What `read` returns; any failure of a library becomes the `error` that is made for it, without cause or context.

    error   looks at the kind of failure and must not repeat what it says

    The new exception is raised after the handler has ended, so that not even `__context__` leads back to the old one.
    """
    try:
        with redacted():
            return read()
    except (FedsynthError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as failure:  # noqa: BLE001  (any failure of a reader is a verdict; a Rust panic is no Exception)
        said = error(failure)
    raise said
