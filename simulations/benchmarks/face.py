"""python -m simulations.benchmarks.face [--data ../shared/data] [--out out/benchmarks/face]

The removal of faces on real heads: verdict, measures, seconds for each volume (at most 120 on two cores), and values left
outside the mask (none). Writes mosaic.png, before with the mask's outline and after. The heads are other people's: keep
the mosaic out of the repository.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from client.deidentification import defacing, deidentify, reader
from client.deidentification.manifest import Withheld
from client.readers import masks, nifti, volumes

DICOM = ("siemens_skyra_t1", "uih_umr770_t1")
LIMIT_S = 120
MEASURES = ("volume_ml", "dice", "in_face", "contrast", "covered", "centre")


def heads(data: Path) -> Iterator[tuple[str, volumes.Scan]]:
    """T1-weighted heads with their faces, by name."""
    for name in DICOM:
        files = sorted((data / "dicom" / name).glob("*.dcm"))
        slices = [deidentify.rebuild(reader.whole(path), bytes(32)) for path in files]
        yield name, volumes.Scan(*volumes.from_series(slices))
    for path in sorted((data / "nifti_ms").rglob("*T1W.nii.gz")):
        yield f"{path.parent.name} {path.name[:6]}", volumes.Scan(*nifti.volume(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/face"))
    options = parser.parse_args()
    table = Table(
        "head", "verdict", *MEASURES, "values outside", "seconds", "of a core", title="Faces taken off real heads"
    )
    rows = []
    for name, scan in heads(options.data):
        found: list[np.ndarray] = []

        def masker(volume_RAS: np.ndarray, found: list[np.ndarray] = found) -> np.ndarray:
            found.append(masks.deepbet(volume_RAS))
            return found[0]

        began, worked, stripped, outside = time.perf_counter(), time.process_time(), None, "-"
        try:
            stripped = defacing.remove(scan, masker)
            verdict, evidence = "passed", stripped.evidence
            assert stripped.brain is not None
            outside = str(np.count_nonzero(stripped.volume_RAS[~stripped.brain]))
        except Withheld as withheld:
            verdict, evidence = withheld.reason.code, withheld.evidence or {}
        seconds, of_a_core = time.perf_counter() - began, time.process_time() - worked
        said = [str(evidence.get(measure, "-")) for measure in MEASURES]
        slow = " too slow" if seconds > LIMIT_S else ""
        table.add_row(name, verdict, *said, outside, f"{seconds:.0f}{slow}", f"{of_a_core:.0f}")
        rows.append((f"{name}: {verdict}", scan, found[0] if found else None, stripped))
    Console(width=150).print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(rows, options.out / "mosaic.png")


def draw(rows: list[tuple[str, volumes.Scan, np.ndarray | None, volumes.Scan | None]], path: Path) -> None:
    """One row a head: three planes through the mask, the orbits, and three pictures of the cohort."""
    figure, axes = plt.subplots(len(rows), 7, figsize=(21, 3 * len(rows)), squeeze=False)
    for row, (title, scan, mask, stripped) in zip(axes, rows, strict=True):
        volume, (right, anterior, superior) = scan.volume_RAS, scan.spacing_mm
        outline = np.zeros(volume.shape) if mask is None else masks.solid(mask)[0].astype(float)
        r, a, s = (int(np.nonzero(outline)[axis].mean()) for axis in range(3))
        low = max(s - round(40 / superior), 0)
        whole = slice(None)
        planes: list[tuple[tuple[int | slice, ...], float]] = [
            ((r,), superior / anterior),
            ((whole, a), superior / right),
            ((whole, whole, s), anterior / right),
            ((whole, whole, low), anterior / right),
        ]
        for axis, (plane, aspect) in zip(row, planes, strict=False):
            axis.imshow(volume[plane].T, cmap="gray", vmax=np.percentile(volume, 99.5), origin="lower", aspect=aspect)
            axis.contour(outline[plane].T, [0.5], colors="red", linewidths=0.8)
        if stripped is not None:
            pictures = volumes.axial(stripped.volume_RAS, stripped.spacing_mm, size=128, count=3,
                                     brain=stripped.brain, cerebrum=stripped.cerebrum)  # fmt: skip
            for axis, picture in zip(row[4:], pictures, strict=False):
                axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        row[0].set_title(title)
        for axis in row:
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=55)


if __name__ == "__main__":
    main()
