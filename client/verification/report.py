"""The page that a privacy office reads and signs: DIR/report.html, one file without scripts or outside resources.

It is a function of the folder alone: verdicts from the manifest, pictures from what was kept, claims from the manifest's
header. Nothing of the source stands on it, and no time, so that whoever verifies the folder can make it again and compare.

Left out: pictures of what was withheld; any conclusion that depends on who receives the data.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from client import dataset
from client.deidentification import manifest
from client.deidentification.manifest import Reason, Verdict
from client.verification import dicom_parser
from client.verification.report_page import PAGE, STYLE
from client.verification.report_words import CURES, OPTIONS, RISKS, counted, ran, statement
from shared.errors import DataError
from shared.files import write_bytes

SHOWN, COLUMNS, SIDE = 48, 8, 112  # pictures on the contact sheet, in a row, pixels a side
HEADER_BYTES = 1 << 16


def write(folder: Path) -> Path:
    """Write folder/report.html of an ingest or a deidentify run. DataError where there is no whole manifest."""
    path = folder / "report.html"
    write_bytes(path, render(folder))
    path.chmod(0o600)
    return path


def render(folder: Path) -> bytes:
    """The page as bytes: equal for equal folders and versions."""
    found = manifest.load(folder / "manifest.jsonl")
    verdicts = manifest.verdicts(found.entries)
    pictures, total, what = _pictures(folder)
    claimed = {option.get("CodeValue", "") for option in found.header.get("options", [])}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(PAGE).render(
        style=Markup(STYLE),  # noqa: S704  (our own constant)
        header=found.header,
        last_hash=found.last_hash,
        files=len(found.entries),
        verdicts=verdicts,
        tiles=[
            ("input files", f"{len(found.entries):,}", "each has exactly one verdict"),
            ("passed", f"{verdicts['PASS']:,}", what),
            ("quarantined", f"{verdicts['QUARANTINED']:,}", "in doubt, or not chosen; not used"),
            ("refused", f"{verdicts['REFUSED']:,}", "never accepted; not used"),
        ],
        reasons=list(_reasons(found.entries)),
        counted=counted(found.counts),
        statement=statement(claimed),
        options=[(code, name, code in claimed, meaning) for code, (name, meaning) in OPTIONS.items()],
        ran=ran(claimed, found.header.get("models", {})),
        risks=RISKS,
        sheet=_sheet(pictures),
        shown=len(pictures),
        total=f"{total:,}",
        kept="patients" if (folder / "cohort").is_dir() else "series",
    )
    return page.encode()


def _reasons(entries: list[manifest.Entry]) -> Iterator[tuple[str, str, int, str, str]]:
    """(verdict, reason, files, share, what to do) of each reason that occurred, by verdict, most frequent first."""
    counts = Counter(entry.reason for entry in entries)
    order = list(Verdict)
    for reason, count in sorted(
        counts.items(), key=lambda item: (order.index(item[0].verdict), -item[1], item[0].code)
    ):
        text = "used" if reason is Reason.OK else reason.text
        share = f"{100 * count / len(entries):.1f} %"
        yield reason.verdict.value.lower(), text, count, share, CURES.get(reason.code, "")


def _pictures(folder: Path) -> tuple[list[np.ndarray], int, str]:
    """At most SHOWN pictures (H, W) uint8 spread evenly over what was kept, how many things there are, and what they are."""
    if (folder / "cohort").is_dir():
        patients = sorted((folder / "cohort").glob("*.npz"))
        slices = [_middle(path) for path in _evenly(patients)]
        return [x for x in slices if x is not None], len(patients), f"of {len(patients):,} patients"
    files = sorted(folder.glob("*.dcm"))
    series: dict[bytes, list[Path]] = {}
    for path in files:
        series.setdefault(_series_of(path), []).append(path)
    chosen = [paths[len(paths) // 2] for paths in _evenly(sorted(series.values()))]
    return [x for x in map(_decoded, chosen) if x is not None], len(series), f"rebuilt, of {len(series):,} series"


def _evenly(things: list[Any]) -> list[Any]:
    return [things[n * len(things) // SHOWN] for n in range(SHOWN)] if len(things) > SHOWN else things


def _middle(path: Path) -> np.ndarray | None:
    try:
        patient = dataset.load_one(path)
    except DataError:
        return None
    return np.asarray(patient.x_SHW[len(patient.x_SHW) // 2])


def _elements(path: Path) -> dict[int, dicom_parser.Element]:
    try:
        return {element.tag: element for element in dicom_parser.elements(path.read_bytes()) if not element.path}
    except dicom_parser.Fault:
        return {}


def _series_of(path: Path) -> bytes:
    """The series' UID, from the beginning of the file alone."""
    with path.open("rb") as opened:
        start = opened.read(HEADER_BYTES)
    try:
        return next(
            element.value for element in dicom_parser.elements(start) if element.tag == 0x0020000E and not element.path
        )
    except (dicom_parser.Fault, StopIteration):
        return b""


def _decoded(path: Path) -> np.ndarray | None:
    """The middle frame of a rebuilt file, scaled to its own range."""
    found = _elements(path)
    try:
        rows, columns, allocated, signed = (
            int.from_bytes(found[tag].value, "little") for tag in (0x00280010, 0x00280011, 0x00280100, 0x00280103)
        )
        samples = np.frombuffer(found[0x7FE00010].value, f"<{'i' if signed else 'u'}{allocated // 8}")
        frames = samples[: len(samples) // (rows * columns) * rows * columns].reshape(-1, rows, columns)
        picture = frames[len(frames) // 2].astype(np.float32)
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError):
        return None
    low, high = np.percentile(picture, [1, 99])
    return np.asarray(np.clip((picture - low) / max(high - low, 1e-6) * 255, 0, 255), dtype=np.uint8)


def _sheet(pictures: list[np.ndarray]) -> str | None:
    """The contact sheet as a data URI."""
    if not pictures:
        return None
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("L", (min(COLUMNS, len(pictures)) * SIDE, rows * SIDE))
    for number, picture in enumerate(pictures):
        tile = Image.fromarray(picture)
        tile.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        left, top = number % COLUMNS * SIDE, number // COLUMNS * SIDE
        sheet.paste(tile, (left + (SIDE - tile.width) // 2, top + (SIDE - tile.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
