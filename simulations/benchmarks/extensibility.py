"""python -m simulations.benchmarks.extensibility [--keep FOLDER]

How many files does one more kind of a thing take? In a copy of the repository, under git, a toy is added to each room: the examples
of examples/, and the toy modality of tests/contracts/test_toy_modality.py, all under other names. What git then says was touched
is counted. After that, in the copy:

contracts    tests/contracts, all of them: the toys must be among what is tested
bundle       what a hospital would approve holds the toys
ingest       `client ingest` and `client verify` of drawn DICOM projections, read and judged by the toy modality
federation   `fedsynth simulate`, two sites, one round: toy model, adapter, metric, rule and modality at once. Its hospitals hold
             drawn pictures (PNG), because phantoms come as MR; so the modality is in its cohorts, messages and cards, and
             its reader of DICOM is what `ingest` shows

Ends with exit code 1 when a kind takes more files than was promised, or when anything fails. It takes minutes.
Not counted: docs/conformance.md, which is made anew by a command when a modality is added.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
IGNORED = (".git", ".venv", "out", "build", "dist", "__pycache__", ".*_cache", "*.egg-info", ".hypothesis")
DX = "1.2.840.10008.5.1.4.1.1.1.1"
MAIN = "from shared.cli import main; main()"
FEDERATION = {
    "name": "toys",
    "data": "pictures",
    "modality": "drawing",
    "base": "none",
    "classes": {"rings": "rings", "stripes": "stripes"},
    "cohort": {"sites": 2, "patients_per_site": 4, "heldout_patients": 4, "slices_per_patient": 4},
    "model": {"kind": "toy-model", "image_size": 16, "width": 8, "latents": 8},
    "training": {"trainable": "toy-bias", "rounds": 1, "steps": 1, "slices": 2, "draws": 1},
    "privacy": {"epsilon": 8, "max_nsr": 1e9},
    "federation": {"aggregation": {"rule": "toy-median", "steps": 5}, "assumed_bad_sites": 0},
    "evaluation": {"metrics": ["toy gap"], "select_by": "toy gap", "samples": 16, "bootstrap": 20, "utility": False},
    "release": {"images_per_class": 0},
}


@dataclass(frozen=True)
class Toy:
    """One more kind.

    before   files to touch before there were seams, counted on version 0.1
    most     files that are promised now
    name     by which the tests and the settings know it
    files    path in the repository -> text
    """

    kind: str
    before: str
    most: int
    name: str
    files: dict[str, str]


def toys() -> list[Toy]:
    """A file of a room and a plug-in are the same text. The names differ, because the contract tests load the examples as well."""
    modality = runpy.run_path(str(ROOT / "tests" / "contracts" / "test_toy_modality.py"))
    rooms = {"shared": "RECORD", "client": "READER", "client/verification": "JUDGE"}
    drawing = {
        f"{room}/modalities/drawing.py": modality[text].replace('"toy"', '"drawing"').replace(".toy ", ".drawing ")
        for room, text in rooms.items()
    }
    return [
        Toy("model", "16-18", 1, "toy-model", example("my_model.py", "my-model", "shared/models/toy_model.py")),
        Toy("adapter", "7", 1, "toy-bias", example("my_adapter.py", "bias", "shared/adapters/toy_bias.py")),
        Toy("modality", "20 or more", 3, "drawing", drawing),
        Toy("metric", "2-9", 1, "toy gap", example("my_metric.py", "brightness gap", "server/metrics/toy_gap.py")),
        Toy(
            "aggregation", "2-7", 1, "toy-median",
            example("my_aggregation.py", "geometric-median", "server/aggregation/toy_median.py"),
        ),
    ]  # fmt: skip


def example(file: str, name: str, path: str) -> dict[str, str]:
    """The text of an example, under the name of the file that it becomes in a room."""
    toy = Path(path).stem.replace("_", " " if " " in name else "-")
    return {path: (ROOT / "examples" / file).read_text(encoding="utf-8").replace(f'"{name}"', f'"{toy}"')}


def copy(target: Path) -> Path:
    """The repository without what is not ours, under git."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*IGNORED))
    git(target, "init", "--quiet")
    commit(target)
    return target


def add(toy: Toy, folder: Path) -> list[str]:
    """Write a toy's files; returns what git says was touched."""
    for path, text in toy.files.items():
        (folder / path).write_text(text, encoding="utf-8")
    touched = [line[3:] for line in git(folder, "status", "--porcelain", "--untracked-files=all").splitlines()]
    commit(folder)
    return touched


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "-c", "user.name=toy", "-c", "user.email=toy@localhost", "commit", "--quiet", "--message", "toy")


def python(folder: Path, *words: str | Path) -> str:
    """Run Python in the copy, with the copy's rooms; returns what it printed. RuntimeError with the end of it where it fails."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


# ---- what is run ----------------------------------------------------------------------------------------------------


def contracts(folder: Path, added: Sequence[Toy]) -> str:
    """How many promises were tested, and of each toy by its name."""
    said = python(folder, "-m", "pytest", "tests/contracts", "-vv", "-p", "no:cacheprovider")
    passed = re.findall(r"^tests/contracts/(\S+?\.py)::(.+?) PASSED", said, re.MULTILINE)
    by_name = {toy.name: sum(toy.name in test for _, test in passed) for toy in added}
    by_name["toy-bias"] = sum(file == "test_models.py" for file, _ in passed)  # each tries every adapter on its model
    missing = [name for name, count in by_name.items() if not count]
    if missing:
        raise RuntimeError(f"no contract test has seen {', '.join(missing)}")
    return f"{len(passed)} passed; " + ", ".join(f"{name} {count}" for name, count in by_name.items())


def bundle(folder: Path, added: Sequence[Toy]) -> str:
    """Whether the code that hospitals approve holds every file."""
    look = "from shared.crypto.bundle import *; print(*contents(build()), sep='\\n')"
    missing = {path for toy in added for path in toy.files} - set(python(folder, "-c", look).split())
    if missing:
        raise RuntimeError(f"the bundle lacks {', '.join(sorted(missing))}")
    return "holds all of them"


def ingest(folder: Path) -> str:
    """Drawn projections of three patients, read by the toy modality and judged by its table."""
    place = folder / "out" / "ingest"
    for patient in range(3):
        write_projection(place / "data" / f"{patient}.dcm", patient)
    site = {
        "name": "north",
        "data": str(place / "data"),
        "modality": "drawing",
        "text_check": "none",
        "minimum_slices": 1,
    }
    (place / "site.yaml").write_text(yaml.safe_dump(site), encoding="utf-8")
    work = [
        "--work",
        str(place / "work"),
        "--classes",
        "rings,stripes",
        "--image-size",
        "16",
        "--slices",
        "1",
        "--json",
    ]
    found = json.loads(python(folder, "-c", MAIN, "client", "ingest", place / "site.yaml", *work))
    if found["patients"] != 3:
        raise RuntimeError(f"{found['patients']} of 3 patients came in: {found['reasons']}")
    python(folder, "-c", MAIN, "client", "verify", place / "work", "--source", place / "data")
    return "3 of 3 patients came in; the judge found nothing"


def federation(folder: Path) -> str:
    """One round with everything at once; what its summary says."""
    for number in range(12):
        write_pictures(folder / "pictures" / ("rings", "stripes")[number % 2] / f"p{number:02d}", number)
    (folder / "toys.yaml").write_text(yaml.safe_dump(FEDERATION), encoding="utf-8")
    summary = json.loads(python(folder, "-c", MAIN, "simulate", "toys.yaml", "--json", "--out", "out/toys"))
    cohort = json.loads(
        (folder / "out" / "toys" / "sites" / "north" / "node" / "cohort.json").read_text(encoding="utf-8")
    )
    told = summary["sites_contributed"], summary["trainable"], set(summary["metrics"]["toy gap"]), cohort["modality"]
    wanted = 2, "toy-bias", {"0", "1"}, FEDERATION["modality"]
    if told != wanted:
        raise RuntimeError(f"the summary says {told}")
    value = summary["metrics"]["toy gap"]["1"]["value"]
    return f"{told[0]} sites, {summary['trainable_parameters']} parameters, toy gap {value:.1f} after 1 round"


def write_projection(path: Path, number: int) -> None:
    """A picture of one patient as a digital X-ray would come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DX
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.ImageType, ds.PixelSpacing = "DX", ["DERIVED", "PRIMARY"], [0.2, 0.2]
    ds.PatientID, ds.PatientName = f"TOY{number}", f"TOY^NUMBER{number}"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.Rows, ds.Columns = 1, "MONOCHROME2", 32, 32
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.tile(np.linspace(0, 4000, 32), (32, 1)).astype(np.uint16).tobytes()
    ds.save_as(path, enforce_file_format=True)


def write_pictures(folder: Path, number: int) -> None:
    """Four pictures of one patient: rings or stripes, of the patient's own width."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    for index in range(4):
        wave = np.hypot(x, y) if number % 2 == 0 else x
        grey = 128 + 90 * np.cos((6 + number / 2) * wave + index / 3)
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{index}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="put the copy here, and leave it")
    keep = parser.parse_args().keep
    console, failed = Console(width=140), False
    with tempfile.TemporaryDirectory(prefix="fedsynth-extensibility-") as scratch:
        folder = copy(keep.resolve() if keep else Path(scratch) / "copy")
        added, table = toys(), Table("kind", "files before", "files now", "promised", "which", box=SIMPLE_HEAD)
        for toy in added:
            touched = add(toy, folder)
            failed |= len(touched) > toy.most
            table.add_row(toy.kind, toy.before, str(len(touched)), str(toy.most), ", ".join(touched))
        console.print(table)
        checks: dict[str, Callable[[], str]] = {
            "contracts": lambda: contracts(folder, added),
            "bundle": lambda: bundle(folder, added),
            "ingest": lambda: ingest(folder),
            "federation": lambda: federation(folder),
        }
        for name, check in checks.items():
            start = time.monotonic()
            try:
                said = check()
            except RuntimeError as error:
                failed, said = True, f"FAILED: {error}"
            console.print(f"{name:11} {said} ({time.monotonic() - start:.0f} s)", highlight=False, markup=False)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
