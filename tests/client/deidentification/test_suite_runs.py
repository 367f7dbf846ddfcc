"""Cases N04 and E06 of the de-identification suite: what a whole run does beside its work, and what a second one makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset

from client import dataset
from client.deidentification import export
from client.readers.ingest import ingest
from client.supernode import isolation
from shared.config.site import Site

Write = Callable[..., list[Path]]
ROOT = Path(__file__).resolve().parents[3]

# Everything that is not addressed to this machine leaves by the only interface there is, where it is counted and dies.
PACKETS = """
import socket, sys
def sent():
    return int(next(line for line in open("/proc/net/dev") if line.strip().startswith("lo:")).split()[9])
before = sent()
"""
WORK = """
from pathlib import Path
from client.readers import text
from client.readers.ingest import ingest
from client.deidentification import export
from shared.config.experiment import Site
export.export(Path("data"), Path("out"), bytes(32))
site = Site(name="a", data=Path("data"), face_removal="none")
ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=Path("work"))
"""
LEAK = """
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.sendto(b"x", ("192.0.2.1", 53))
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_n04_no_packet_leaves_for_anywhere(tmp_path: Path, write_series: Write) -> None:
    """In a network of its own, where also a library's own connections are seen; a single datagram would be counted."""
    if not isolation.available() or not shutil.which("ip"):
        pytest.skip("this machine does not let a user make network namespaces, or has no iproute2")
    write_series(tmp_path / "data")
    road = 'ip link set lo up && ip route add default dev lo && exec "$@"'
    said = []
    for work in (WORK, LEAK):
        done = subprocess.run(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", road, "sh", sys.executable, "-c",
                               f"{PACKETS}{work}\nprint(sent() - before)"], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)  # fmt: skip
        said.append(int(done.stdout.splitlines()[-1]))
    assert said[0] == 0 and said[1] > 0
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 16 and list((tmp_path / "work" / "cohort").glob("*.npz"))


def test_e06_two_runs_over_a_folder_give_the_same_bytes(tmp_path: Path, write_series: Write, key: bytes) -> None:
    """Whatever order the disk lists its files in, and whichever came first."""

    def change(index: int, ds: FileDataset) -> None:
        ds.AcquisitionNumber = index

    for number in range(3):
        write_series(tmp_path / "data" / str(number), study=str(number), PatientID=f"P{number}", change=change)
    (tmp_path / "data" / "not an image.txt").write_text("x")
    for run in ("first", "second"):
        export.export(tmp_path / "data", tmp_path / run / "out", key)
        work = tmp_path / run / "work"
        work.mkdir()
        (work / dataset.KEY_FILE).write_bytes(key)
        (work / dataset.KEY_FILE).chmod(0o600)
        site = Site(name="a", data=tmp_path / "data", face_removal="none")
        ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=work)
        for path in sorted(
            (tmp_path / "data").rglob("*.dcm"), reverse=True
        ):  # the same files, laid down in another order
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
    for folder in ("out", "work/cohort"):
        first, second = (files(tmp_path / run / folder) for run in ("first", "second"))
        assert first == second and len(first) == {"out": 49, "work/cohort": 4}[folder]
    assert (tmp_path / "first/work/manifest.jsonl").read_bytes() == (
        tmp_path / "second/work/manifest.jsonl"
    ).read_bytes()
