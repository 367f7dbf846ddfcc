"""python -m simulations.benchmarks.verdicts [--data ../shared/data] [--only dicom|deid|nifti]

What the hospital's door makes of real images, by the ways that ship: verdict tables, to be read by a person.

scanners   each series below dicom/ through `client ingest` with the settings of a new site: faces come off, text is looked for
deid       ultrasounds with names in their pixels and files broken on purpose, below deid/, through `client deidentify`; of
           the ultrasounds also whether the search for text sees the names, which their class has kept out before
nifti      each volume below nifti_*/ by itself through `client ingest`: only T1-weighted heads may come in
linkage    how alike the kept pictures of one patient's two scans are, and those of two patients (told, not judged: a stripped scan
           of one person can be matched to another of theirs)

Ends with exit code 1 when something was kept that must not be: a file of deid/, a volume that is not T1-weighted, a mask that
reaches into the face, a value outside the mask, a surface on which a face is seen (`simulations.face_detector`). A folder that
is missing is named and left out. The images are other people's.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import pydicom
from rich.console import Console
from rich.table import Table

from client import dataset
from client.deidentification import defacing, manifest, pseudonym, reader
from client.deidentification.export import export
from client.deidentification.manifest import Reason, Verdict, Withheld
from client.readers import text
from client.readers.ingest import ingest
from client.readers.volumes import Scan
from shared.config.site import Site
from shared.errors import DataError
from simulations import face_detector

KEY = bytes(32)
SLICES, SIZE = 24, 128
T1 = ("siemens_skyra_t1", "uih_umr770_t1", "T1W")  # in the names of what may be kept; everything else must be withheld
LIMIT_S = 2 * 120  # of a core for a volume: two minutes of two


@dataclass
class Ingested:
    """reasons by files; what the removal of faces measured and left; the pictures that were kept (S, H, W).

    faces   lights under which a face is seen on the drawn surface, before and after
    """

    reasons: Counter[Reason] = field(default_factory=Counter)
    evidence: dict[str, float | str] = field(default_factory=dict)
    outside: int | None = None
    faces: tuple[int, int] | None = None
    x_SHW: np.ndarray | None = None
    seconds: float = 0.0
    of_a_core: float = 0.0

    def wrongs(self, name: str) -> list[str]:
        """Why this must not have been kept; empty when it was not, or may be."""
        if self.x_SHW is None:
            return []
        found = [] if any(word in name for word in T1) else ["not T1-weighted"]
        found += [] if self.evidence.get("in_face") == 0 else ["mask in the face"]
        found += [] if self.faces is not None and self.faces[1] < face_detector.MOST else ["a face is seen"]
        return found + ([] if self.outside == 0 else ["values outside the mask"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=("dicom", "deid", "nifti"))
    options = parser.parse_args()
    console, wrongs = Console(width=150), list[str]()
    kept: list[tuple[str, np.ndarray]] = []
    for part in ("dicom", "deid", "nifti"):
        if options.only not in (None, part):
            continue
        folders = sorted(path for path in options.data.glob(f"{part}*") if path.is_dir())
        if not folders:
            console.print(f"{part}: left out, there is no {options.data / part}*", highlight=False)
        elif part == "deid":
            wrongs += _deidentified(folders[0], console)
        else:
            several = [
                (f"{path.parent.name} {path.name}", path) for each in folders for path in sorted(each.rglob("*.nii*"))
            ]
            alone = [(path.name, path) for path in sorted(folders[0].iterdir()) if path.is_dir()]
            wrongs += _heads(part, alone if part == "dicom" else several, kept, console)
    _linkage(kept, console)
    for wrong in wrongs:
        console.print(f"kept, and must not be: {wrong}", style="bold red", highlight=False)
    console.print(f"{len(wrongs)} kept that must not be")
    sys.exit(bool(wrongs))


def _heads(
    part: str, sources: list[tuple[str, Path]], kept: list[tuple[str, np.ndarray]], console: Console
) -> Iterator[str]:
    """The table of a folder of volumes; yields what must not have been kept."""
    columns = (
        "verdict",
        "reasons (files)",
        "slices kept",
        "mask in face",
        "values outside",
        "face seen",
        "seconds",
        "of a core",
    )
    table = Table("series" if part == "dicom" else "volume", *columns, title=f"{part}: client ingest")
    for name, path in sources:
        found = taken_in(path, "dicom" if part == "dicom" else "nifti")
        slow = " too slow" if found.of_a_core > LIMIT_S else ""
        verdict = "PASS" if found.x_SHW is not None else "withheld"
        reasons = ", ".join(f"{reason.code} {count}" for reason, count in found.reasons.most_common())
        table.add_row(name, verdict, reasons, str(len(found.x_SHW)) if found.x_SHW is not None else "0",
                      str(found.evidence.get("in_face", "-")), "-" if found.outside is None else str(found.outside),
                      "-" if found.faces is None else f"{found.faces[0]} -> {found.faces[1]} of {len(face_detector.LIGHTS)}",
                      f"{found.seconds:.0f}", f"{found.of_a_core:.0f}{slow}")  # fmt: skip
        yield from (f"{name}: {wrong}" for wrong in found.wrongs(name))
        if found.x_SHW is not None:
            kept.append((name, found.x_SHW))
    console.print(table)


def taken_in(source: Path, kind: str) -> Ingested:
    """What `client ingest` makes of a folder of DICOM or of one NIfTI file, with the settings of a new site."""
    found = Ingested()
    remove = defacing.remove

    def watched(scan: Scan) -> Scan:
        stripped = remove(scan)
        assert stripped.brain is not None
        before, after = (face_detector.faces(each.volume_RAS, each.spacing_mm) for each in (scan, stripped))
        found.faces = before, after
        found.outside = int(np.count_nonzero(stripped.volume_RAS[~stripped.brain]))
        return stripped

    began, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as name, mock.patch.object(defacing, "remove", watched):
        work, data = Path(name) / "work", source
        if source.is_file():
            data = Path(name) / "data"
            (data / "patient").mkdir(parents=True)
            shutil.copy(source, data / "patient")
        site = Site.model_validate({"name": "a", "data": data, "format": kind})
        try:
            ingest(site, classes=["x"], image_size=SIZE, slices_per_patient=SLICES, work=work)
            (patient,) = dataset.load(work / "cohort")
            found.x_SHW = patient.x_SHW
        except DataError:
            pass  # the manifest says why
        for entry in manifest.read(work / "manifest.jsonl"):
            found.reasons[entry.reason] += 1
            found.evidence = entry.face or found.evidence
    found.seconds, found.of_a_core = time.perf_counter() - began, time.process_time() - worked
    return found


def _deidentified(folder: Path, console: Console) -> Iterator[str]:
    """The tables of files that must all be withheld; yields those that were not."""
    with tempfile.TemporaryDirectory() as name:
        entries = {entry.file: entry.reason for entry in export(folder, Path(name) / "out", KEY)}
    verdicts = {str(path.relative_to(folder)): entries[pseudonym.token(KEY, "file", str(path.relative_to(folder)))]
                for path, _ in reader.listing(folder)}  # fmt: skip
    table = Table("file", "verdict", "reason", title="deid: client deidentify")
    for group, reasons in _grouped(verdicts).items():
        said = (f"{reason.text}{f' ({count})' if count > 1 else ''}" for reason, count in reasons.items())
        table.add_row(group, " ".join(sorted({reason.verdict.value for reason in reasons})), ", ".join(said))
    console.print(table)
    counts = Counter(reason.verdict.value for reason in verdicts.values())
    console.print(
        f"{len(verdicts)} files: {', '.join(f'{count} {verdict}' for verdict, count in sorted(counts.items()))}"
    )
    seen = Table(
        "ultrasound", "frames looked at", "text seen in", title="deid: the search for text, had they come so far"
    )
    for path in sorted(folder.glob("*ultrasound*/*")):
        if path.suffix in (".dcm", ".zip"):
            frames = list(_frames(path))
            seen.add_row(path.name, str(len(frames)), str(sum(_shows_text(frame) for frame in frames)))
    console.print(seen)
    yield from (f"{name}" for name, reason in verdicts.items() if reason.verdict is Verdict.PASS)


def _grouped(verdicts: dict[str, Reason]) -> dict[str, Counter[Reason]]:
    """By the folder of a test case where its files met one reason, else by file."""
    groups: dict[str, Counter[Reason]] = {}
    for name, reason in verdicts.items():
        alike = {other for path, other in verdicts.items() if Path(path).parent == Path(name).parent}
        group = f"{Path(name).parent}/" if len(alike) == 1 else name
        groups.setdefault(group, Counter())[reason] += 1
    return groups


def _frames(path: Path, most: int = 4) -> Iterator[np.ndarray]:
    """Some frames (H, W) of an image or of the first image of an archive."""
    with tempfile.TemporaryDirectory() as name:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                inside = [member for member in archive.namelist() if member.endswith(".dcm")]
                path = Path(archive.extract(inside[0], name)) if inside else path
        ds = pydicom.dcmread(path)
        colour = int(ds.SamplesPerPixel) > 1
        array = ds.pixel_array.mean(axis=-1) if colour else ds.pixel_array
    frames = array[None] if array.ndim == 2 else array
    yield from frames[:: max(len(frames) // most, 1)][:most]


def _shows_text(frame: np.ndarray) -> bool:
    try:
        text.check([frame])
    except Withheld as withheld:
        return withheld.reason is Reason.TEXT
    return False


def _linkage(kept: list[tuple[str, np.ndarray]], console: Console) -> None:
    """Correlation of the kept pictures of two scans, the best over the shifts of a level or two: same patient and others."""
    same, other = list[float](), list[float]()
    for number, (name, first) in enumerate(kept):
        for another, second in kept[number + 1 :]:
            (same if name.split()[0] == another.split()[0] and " " in name else other).append(alike(first, second))
    for words, values in (("two scans of one patient", same), ("scans of two patients", other)):
        if values:
            console.print(f"{words}: likeness {min(values):.2f} to {max(values):.2f} ({len(values)} pairs)")


def alike(first_SHW: np.ndarray, second_SHW: np.ndarray) -> float:
    """Mean correlation of pictures at the same level, where both show something; the best of five shifts of the levels."""
    count = min(len(first_SHW), len(second_SHW))
    best = -1.0
    for shift in range(-2, 3):
        pairs = [(first_SHW[level], second_SHW[level + shift]) for level in range(count) if 0 <= level + shift < count]
        scores = [np.corrcoef(a[both], b[both])[0, 1] for a, b in pairs if (both := (a > 0) & (b > 0)).sum() > 50]
        best = max(best, float(np.mean(scores))) if scores else best
    return best


if __name__ == "__main__":
    main()
