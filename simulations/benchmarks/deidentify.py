"""python -m simulations.benchmarks.deidentify [--files 96]

Planted identifiers through fedsynth and through what a user would pick instead, side by side in one run: how many survive in the
bytes that each tool writes, and how many files a second one process rebuilds. Needs `pip install dicom-anonymizer dicognito`;
a tool that is not installed is named and left out, and so is Orthanc where Debian's `orthanc` is absent.

Survivors   MR images with an identifier in every attribute of the standard that can hold one, in nested items, private elements,
            wrong representations, overlays, spare bits, preamble and file meta; and the same header as objects that are no
            images (structured report, screen capture, PDF, presentation state, segmentation, private class)
Speed       of the header path, without the search for text in the pixels, which the others do not have: phantoms' series,
            256 x 256, with ordinary full headers; the tools take turns; read, change, write
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from rich.console import Console
from rich.table import Table

from client.deidentification.export import export
from simulations.cohorts.phantom_dicom import write_hospital
from simulations.cohorts.phantoms import Look
from simulations.cohorts.planted import Canaries, plant, plant_oddities

OTHER_KINDS = (
    "1.2.840.10008.5.1.4.1.1.7",  # secondary capture
    "1.2.840.10008.5.1.4.1.1.88.11",  # basic text structured report
    "1.2.840.10008.5.1.4.1.1.104.1",  # encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.11.1",  # greyscale presentation state
    "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
    "1.3.12.2.1107.5.9.1",  # a vendor's private class
)
Tool = Callable[[Path, Path], None]  # every file of one folder into another


@dataclass(frozen=True)
class Result:
    """survivors of the planted; files written of those planted; files a second, one for each round."""

    survivors: int
    written: int
    files_per_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=96, help="files of the speed run, in series of 24")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the tools warn about every odd value that is planted
    with tempfile.TemporaryDirectory() as name, tools() as (found, missing):
        folder = Path(name)
        canaries = _plant(folder / "planted")
        _ordinary(folder / "ordinary", options.files)
        results = {}
        for tool, run in found.items():
            _run(run, folder / "planted", folder / "out")
            written = [path for path in (folder / "out").rglob("*") if path.is_file()]
            left = set[str]().union(*(canaries.survivors(path.read_bytes() + path.name.encode()) for path in written))
            images = sum(path.suffix != ".jsonl" for path in written)
            results[tool] = Result(len(left), images, [])
        for _ in range(options.rounds):
            for tool, run in found.items():
                start = time.perf_counter()
                _run(run, folder / "ordinary", folder / "out")
                results[tool].files_per_s.append(options.files / (time.perf_counter() - start))
        planted = len(list((folder / "planted").iterdir()))
    table = Table(title=f"{len(canaries.made)} identifiers planted in {planted} files; {options.files} files for speed")
    for column in ("tool", "survivors", "files written", "files a second", "times fedsynth"):
        table.add_column(column, justify="left" if column == "tool" else "right")
    for tool, result in results.items():
        ratio = statistics.median(
            a / b for a, b in zip(result.files_per_s, results["fedsynth"].files_per_s, strict=True)
        )
        speed = f"{statistics.median(result.files_per_s):.0f}"
        table.add_row(tool, str(result.survivors), str(result.written), speed, f"{ratio:.2f}")
    Console().print(table)
    for tool, why in missing.items():
        Console().print(f"not measured: {tool} ({why})")


@contextmanager
def tools() -> Iterator[tuple[dict[str, Tool], dict[str, str]]]:
    """What is installed, and why the rest is not here."""
    found: dict[str, Tool] = {
        "fedsynth": lambda source, target: void(export(source, target, bytes(32), text_check=False))
    }
    missing = {}
    for name, module, tool in (
        ("dicom-anonymizer", "dicomanonymizer", _dicom_anonymizer),
        ("dicognito", "dicognito", _dicognito),
    ):
        if importlib.util.find_spec(module):
            found[name] = tool()
        else:
            missing[name] = f"pip install {name}"
    binary = shutil.which("Orthanc")
    if binary is None:
        missing["Orthanc"] = "Debian's package orthanc is not installed"
        yield found, missing
        return
    with _orthanc(binary) as address:
        found["Orthanc"] = lambda source, target: _through_orthanc(address, source, target)
        yield found, missing


def _dicom_anonymizer() -> Tool:
    """Version 2.1, with its newest table; by default it uses one of 2023."""
    from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file, initialize_actions  # noqa: PLC0415

    rules = initialize_actions("dicomfields_2026c")

    def run(source: Path, target: Path) -> None:
        for path in sorted(source.rglob("*.dcm")):
            anonymize_dicom_file(
                str(path), str(target / f"{path.parent.name}-{path.name}"), rules, delete_private_tags=True
            )

    return run


def _dicognito() -> Tool:
    from dicognito.anonymizer import Anonymizer  # noqa: PLC0415

    def run(source: Path, target: Path) -> None:
        anonymizer = Anonymizer(seed="0" * 32)
        for path in sorted(source.rglob("*.dcm")):
            with pydicom.dcmread(path) as ds:
                anonymizer.anonymize(ds)
                ds.save_as(target / f"{path.parent.name}-{path.name}")

    return run


@contextmanager
def _orthanc(binary: str) -> Iterator[str]:
    """A server of our own on loopback, with nothing in it."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        http, dicom = one.getsockname()[1], two.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        settings = {
            "StorageDirectory": name,
            "IndexDirectory": name,
            "HttpPort": http,
            "DicomPort": dicom,
            "Plugins": [],
        }
        (Path(name) / "orthanc.json").write_text(json.dumps(settings | {"RemoteAccessAllowed": False}))
        server = subprocess.Popen(
            [binary, f"{name}/orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            patience = time.monotonic() + 60
            while not _listens(http):
                if time.monotonic() > patience or server.poll() is not None:
                    raise SystemExit("Orthanc did not start")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{http}"
        finally:
            server.terminate()
            server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _through_orthanc(address: str, source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*.dcm")):
        try:
            kept = json.loads(_post(f"{address}/instances", path.read_bytes()))
            content = _post(f"{address}/instances/{kept['ID']}/anonymize", b"{}")
        except urllib.error.HTTPError:
            continue  # what it does not take cannot leak
        (target / f"{path.parent.name}-{path.name}").write_bytes(content)


def _post(address: str, body: bytes) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=60) as answer:  # noqa: S310
        content: bytes = answer.read()
        return content


def _run(tool: Tool, source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    tool(source, target)


def _ordinary(folder: Path, files: int) -> None:
    rng = np.random.default_rng(0)
    write_hospital(folder, rng, patients=files // 24, size=256, look=Look(), mix=None, planted=True)
    (folder / "labels.csv").unlink()


def _plant(folder: Path) -> Canaries:
    """A short series and objects of other kinds, each full of identifiers; the series' UIDs are shared."""
    canaries = Canaries()
    with tempfile.TemporaryDirectory() as name:
        _ordinary(Path(name), 24)
        paths = sorted(Path(name).rglob("*.dcm"))[: 3 + len(OTHER_KINDS)]
        folder.mkdir()
        with pydicom.config.disable_value_validation():
            for number, path in enumerate(paths):
                ds = pydicom.dcmread(path)
                instance = ds.SOPInstanceUID
                plant(ds, canaries)
                plant_oddities(ds, canaries, depth=3)  # Orthanc 1.10 dies of 50
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = instance
                if number >= 3:
                    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = OTHER_KINDS[number - 3]
                ds.save_as(folder / path.name, enforce_file_format=True)
    return canaries


def void(_: object) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
