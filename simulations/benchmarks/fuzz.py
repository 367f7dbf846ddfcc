"""python -m simulations.benchmarks.fuzz [--files 10000] [--seed 0]

Damaged and forged DICOM through the hospital's door: files full of planted identifiers are mutated (bits flipped, bytes cut out,
copied and inserted, lengths, tags and representations changed, files truncated and spliced) and rebuilt. Each must end with a
verdict, within 10 s, and no planted identifier may be in anything written. Prints the verdicts; exit code 1 when one of
the three is broken.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from rich.console import Console

from client.deidentification.export import export
from simulations.cohorts.phantom_dicom import write_hospital
from simulations.cohorts.phantoms import Look
from simulations.cohorts.planted import Canaries, plant_oddities

LIMIT_S = 10.0
TAGS = (
    b"\x10\x00\x10\x00",
    b"\x10\x00\x20\x00",
    b"\x08\x00\x18\x00",
    b"\xe0\x7f\x10\x00",
    b"\x28\x00\x10\x00",
    b"\xfe\xff\x00\xe0",
)
KINDS = (b"PN", b"SQ", b"UN", b"OW", b"UI", b"DS", b"LT", b"US")


@dataclass
class Outcome:
    """verdicts by reason; seconds of the slowest file; mutants that held identifiers; names of written files that do."""

    planted: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    leaks: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcome = run(options.files, options.seed)
    console = Console()
    for reason, count in outcome.verdicts.most_common():
        console.print(f"{count:7d}  {reason}")
    total = sum(outcome.verdicts.values())
    console.print(
        f"{total} of {options.files} with a verdict; slowest {outcome.slowest_s:.2f} s; {len(outcome.leaks)} leaks"
    )
    sys.exit(total != options.files or outcome.slowest_s > LIMIT_S or bool(outcome.leaks))


def run(files: int, seed: int) -> Outcome:
    """Mutate and rebuild `files` files, one at a time so that each has its time; deterministic for a seed but for the time."""
    rng, canaries, outcome = random.Random(seed), Canaries(), Outcome()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = _seeds(folder / "seeds", canaries)
        for _ in range(files):
            source, target = folder / "in", folder / "out"
            for place in (source, target):
                shutil.rmtree(place, ignore_errors=True)
            source.mkdir()
            mutant = mutate(rng, rng.choice(seeds), seeds)
            outcome.planted += bool(canaries.found_in(mutant))
            (source / "x.dcm").write_bytes(mutant)
            start = time.perf_counter()
            (entry,) = export(source, target, bytes(32))
            outcome.slowest_s = max(outcome.slowest_s, time.perf_counter() - start)
            outcome.verdicts[f"{entry.reason.verdict.value}: {entry.reason.text}"] += 1
            outcome.leaks += [path.name for path in target.rglob("*") if canaries.found_in(_unpacked(path))]
    return outcome


def mutate(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """One to four random changes; half of them in the header, where they do the most harm."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 6000))
        length = min(rng.choice((1, 2, 4, 8, 64, 1000)), len(data) - place)
        match rng.randrange(9):
            case 0:
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = rng.randbytes(length)
            case 3:
                start = rng.randrange(len(data))
                data[place:place] = data[start : start + length]
            case 4:
                data[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x02\0\0\0"))
            case 5:
                data[place : place + 4] = rng.choice(TAGS)
            case 6:
                found = data.find(rng.choice(KINDS), place)
                data[found : found + 2] = rng.choice(KINDS) if found >= 0 else data[found : found + 2]
            case 7:
                del data[max(place, 1) :]
            case _:
                other = rng.choice(others)
                data[place:] = other[min(place, len(other)) :]
    return bytes(data)


def _seeds(folder: Path, canaries: Canaries) -> list[bytes]:
    """The same kind of image in five packings, with identifiers in its header and its odd corners."""
    write_hospital(folder, np.random.default_rng(0), patients=1, size=16, look=Look(), mix=None, planted=False)
    paths = sorted(folder.rglob("*.dcm"))
    found = []
    with pydicom.config.disable_value_validation():
        for number, syntax in enumerate(
            (None, None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless)
        ):
            ds = pydicom.dcmread(paths[number])
            ds.PatientName, ds.PatientID, ds.PatientAddress = (canaries.word() for _ in range(3))
            ds.ImageComments, ds.SeriesDescription, ds.AccessionNumber = (canaries.word() for _ in range(3))
            if number:
                plant_oddities(ds, canaries, depth=3)
            found.append(_packed(ds, syntax))
    return found


def _packed(ds: FileDataset, syntax: str | None) -> bytes:
    if syntax == RLELossless:
        ds.PixelData = ds.PixelData[: ds.Rows * ds.Columns * 2]
        ds.compress(RLELossless, generate_instance_uid=False)
    elif syntax:
        ds.file_meta.TransferSyntaxUID = syntax
    buffer = io.BytesIO()
    ds.save_as(buffer, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _unpacked(path: Path) -> bytes:
    """Name and bytes of a file, with the members of an archive unpacked."""
    if not path.is_file():
        return path.name.encode()
    content = path.name.encode() + path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content += b"".join(archive.read(member) for member in archive.namelist())
    return content


if __name__ == "__main__":
    main()
