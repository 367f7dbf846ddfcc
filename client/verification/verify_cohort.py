"""One written cohort file, judged byte by byte.

Left out: whether the pictures are those of the patient.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile

from client.verification.findings import Verification
from client.verification.verify_dicom import Needles


def check(content: bytes, name: str, needles: Needles, result: Verification) -> None:
    """Exactly two arrays in a zip of our making: no comment, no time, no extra field, nothing before, between or after."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            ours = [member.filename for member in members] == ["x.npy", "label.npy"] and not archive.comment
            ours = ours and all(m.date_time == (1980, 1, 1, 0, 0, 0) and not m.comment for m in members)
            place = 0
            for member in members:
                head = struct.unpack("<4s5H3I2H", content[place : place + 30])
                ours = (
                    ours
                    and member.header_offset == place
                    and head[0] == b"PK\3\4"
                    and head[4:6] == (0, 33)
                    and head[10] in (0, 20)
                )
                place += 30 + head[9] + head[10] + member.compress_size
            directory = sum(46 + len(m.filename) + len(m.extra) for m in members)
            ours = ours and not any(m.extra for m in members) and len(content) == place + directory + 22
            x, label = (archive.read(member) for member in members)
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OSError, EOFError):
        result.add(name, "cohort-file")
        return
    shape = re.fullmatch(
        rb"\x93NUMPY\x01\x00v\x00\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d+), (\d+), (\d+)\), \} +\n",
        x[:128],
    )
    if not ours or shape is None or len(x) != 128 + int(shape[1]) * int(shape[2]) * int(shape[3]):
        result.add(name, "cohort-file")
    if len(label) != 136 or b"'<i8'" not in label[:128] or not -1 <= struct.unpack("<q", label[128:])[0] < 1000:
        result.add(name, "cohort-file")
    for offset, _ in needles.samples[8].find(x[128:]):
        result.add(name, "source-samples", offset)
    for offset, _ in needles.text.find(content[:64] + b" " + content[-160:]):
        result.add(name, "source-value", offset)
