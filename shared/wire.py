"""What a record that came from elsewhere must be before anything looks at what it says: names, kinds, shapes, bytes.

Guarantee     whatever a peer sends, the answer is what was asked for or a MessageError in our words. No library decodes a peer's
              bytes, nothing is allocated by a peer's number, and a stranger's words are cut and escaped

Left out: what the messages are (messages.py), and how many bytes may come at all (parts.py, client/supernode/transfer.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from shared.errors import MessageError

Shapes = Mapping[str, tuple[int, ...]]
VECTOR = "tensors"
LONGEST = 300  # characters of a stranger's words
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)(\{[ -|]{1,200}\}) *\n", re.DOTALL
)  # of an array's bytes, as numpy writes it


def tensors(arrays: ArrayRecord, shapes: Shapes, what: str) -> dict[str, Tensor]:
    """The one array that travels -> float32 tensors by name, when it holds as many finite float32 numbers as `shapes`."""
    only(arrays, {VECTOR}, what)
    sizes = [math.prod(shapes[name]) for name in sorted(shapes)]
    value = decoded(arrays[VECTOR], "float32", (sum(sizes),), what)
    if not np.isfinite(value).all():
        raise MessageError(f"{what}: it holds a value that is not finite")
    parts = torch.from_numpy(value.copy()).split(sizes)
    return {name: part.view(shapes[name]) for name, part in zip(sorted(shapes), parts, strict=True)}


def decoded(array: Array, dtype: str, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The numbers of an array that must be of this kind and shape, read-only; nothing is allocated and no library decodes anything.

    What is declared is checked first, then the header, which can only be the one that numpy writes for it, then the length.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", dtype, shape):
        raise MessageError(f"{what}: expected {dtype} {shape}")
    says = str({"descr": kind.str, "fortran_order": False, "shape": shape})
    header = HEADER.match(array.data[:1024])
    if (
        header is None
        or header[2] != says.replace("}", ", }").encode()
        or int.from_bytes(header[1], "little") != header.end() - 10
        or len(array.data) != header.end() + math.prod(shape) * kind.itemsize
    ):
        raise MessageError(f"{what}: the bytes are not what they are declared to be")
    return np.frombuffer(array.data, kind, offset=header.end()).reshape(shape)


def count(array: Array) -> int:
    """How many entries an array declares along its first axis. MessageError for none: there is something to look at."""
    count = array.shape[0] if array.shape else 0
    if type(count) is not int or count < 1:
        raise MessageError("an array of nothing")
    return count


def plain(text: object) -> str:
    """A stranger's words, cut, on one line of printable ASCII: everything else is escaped."""
    if not isinstance(text, str):
        return "something that is no text"
    return text[:LONGEST].encode("unicode_escape").decode("ascii")[:LONGEST]


def vector(values: Mapping[str, Tensor]) -> ArrayRecord:
    """All tensors end to end in the order of their names: an object on the wire costs requests, whatever its size."""
    parts = [values[name].detach().cpu().float().flatten() for name in sorted(values)]
    return ArrayRecord({VECTOR: torch.cat([torch.empty(0), *parts])})


def only(record: Mapping[str, object], names: set[str], what: str) -> None:
    extra, missing = set(record.keys()) - names, names - set(record.keys())
    if extra:
        raise MessageError(f"{what} holds `{plain(sorted(extra)[0][:60])}`, which may not travel")
    if missing:
        raise MessageError(f"{what} lacks `{sorted(missing)[0]}`")


def config_of(content: RecordDict, names: set[str]) -> ConfigRecord:
    config = content["config"]
    if not isinstance(config, ConfigRecord):
        raise MessageError("the message has no config record")
    only(config, names, "the config")
    return config


def arrays_in(content: RecordDict) -> ArrayRecord:
    arrays = content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise MessageError("the message has no array record")
    return arrays
