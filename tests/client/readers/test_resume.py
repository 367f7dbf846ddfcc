"""A folder of many patients: done in parts, by several processes, and a kill costs the unfinished part alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import dataset
from client.deidentification import manifest
from client.readers import resume, workers
from client.readers.ingest import IngestReport, ingest
from shared.config.site import Site
from shared.errors import DataError

Write = Callable[..., list[Path]]
PATIENTS = 10


def run(folder: Path, work: str = "work", jobs: int = 1, said: list[str] | None = None, **site: Any) -> IngestReport:
    settings = Site(name="a", data=folder / "data", records=folder / "records",
                    **{"face_removal": "none", "text_check": "none", **site})  # fmt: skip
    return ingest(settings, classes=("a", "b"), image_size=16, slices_per_patient=4, work=folder / work, jobs=jobs,
                  say=said.append if said is not None else None)  # fmt: skip


def results(work: Path) -> dict[str, bytes]:
    """Names and bytes of the cohort and the manifest."""
    paths = [*(work / "cohort").iterdir(), work / "manifest.jsonl"]
    return {path.name: path.read_bytes() for path in paths}


def patients(write_series: Write, folder: Path, number: int = 3, head: np.ndarray | None = None) -> None:
    for each in range(number):
        write_series(folder / "data" / str(each), head, study=str(each + 1), PatientID=f"P{each}")


def remember(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pseudonyms of the patients whose slices are made from now on."""
    made: list[str] = []
    save = dataset.save
    monkeypatch.setattr(dataset, "save", lambda patient, place: (made.append(patient.pseudonym), save(patient, place)))
    return made


def test_a_killed_ingest_goes_on_and_ends_with_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, write_series: Write, head: np.ndarray
) -> None:
    patients(write_series, tmp_path, PATIENTS, np.kron(head, np.ones((6, 5, 2))))
    (tmp_path / "data" / "notes.txt").write_text("x")
    site, work, store = tmp_path / "site.yaml", tmp_path / "work", tmp_path / "work" / "finished"
    site.write_text(
        f"name: a\ndata: {tmp_path / 'data'}\nrecords: {tmp_path / 'records'}\nface_removal: none\ntext_check: none\n"
    )
    command = [sys.executable, "-c", "from shared.cli import main; main()", "client", "ingest", str(site), "--work", str(work),
               "--image-size", "16", "--slices", "4", "--jobs", "2", "--classes", "a,b"]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list(store.glob("*/manifest.jsonl")):
        time.sleep(0.002)
    workers_of = [
        int(child)
        for task in Path(f"/proc/{running.pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    running.send_signal(signal.SIGKILL)
    running.wait()
    patience = time.monotonic() + 20
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers_of):
        assert time.monotonic() < patience, "a worker outlived its ingest"
        time.sleep(0.05)
    before = {path.parent.name: path.stat().st_mtime_ns for path in store.glob("*/manifest.jsonl")}
    assert workers_of and 1 <= len(before) <= PATIENTS
    assert not (work / "manifest.jsonl").exists() and not (work / "cohort").exists()

    again = subprocess.run(command, capture_output=True, check=True, text=True)
    assert "patients are finished already" in again.stderr or len(before) == 1  # the one of the file that is nobody's
    after = {path.parent.name: path.stat().st_mtime_ns for path in store.glob("*/manifest.jsonl")}
    assert before.items() <= after.items() and len(after) == PATIENTS + 1
    run(tmp_path, "whole")
    assert results(work) == results(tmp_path / "whole")
    assert len(dataset.load(work / "cohort")) == PATIENTS and not list(store.glob("*.partial"))


def test_several_processes_give_the_bytes_of_one(tmp_path: Path, write_series: Write) -> None:
    patients(write_series, tmp_path)
    write_series(tmp_path / "data" / "gap", study="8", PatientID="P8")[3].unlink()
    assert run(tmp_path, "one") == run(tmp_path, "three", jobs=3)
    assert results(tmp_path / "one") == results(tmp_path / "three")


def test_what_depends_on_another_file_is_decided_with_it(tmp_path: Path, write_series: Write) -> None:
    """An instance of two identifiers; a number with and without an issuer: as if all files were read at once."""
    patients(write_series, tmp_path)
    write_series(tmp_path / "data" / "copied", study="1", PatientID="P7")  # the instances of P0 under another name
    write_series(tmp_path / "data" / "issued", study="5", PatientID="P1", IssuerOfPatientID="north")
    run(tmp_path)
    entries = manifest.read(tmp_path / "work" / "manifest.jsonl")
    found = sorted(entry.reason.code for entry in entries)
    assert found == ["duplicate"] * 16 + ["ok"] * 64
    assert len(list((tmp_path / "work" / "finished").iterdir())) == 3


def test_only_patients_with_a_changed_file_are_read_again(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients(write_series, tmp_path)
    made, said = remember(monkeypatch), list[str]()
    run(tmp_path, said=said)
    assert len(made) == 3 and not said
    first = made.copy()
    made.clear()
    run(tmp_path, said=said)
    assert not made and said == ["3 of 3 patients are finished already"]
    (tmp_path / "data" / "1" / "IM0003.dcm").touch()
    write_series(tmp_path / "data" / "3", study="4", PatientID="P3")
    run(tmp_path, said=said)
    assert len(set(made) - set(first)) == 1 and len(made) == 2 and said[1] == "2 of 4 patients are finished already"
    shutil.rmtree(tmp_path / "data" / "0")
    assert run(tmp_path).patients == 3
    assert len(list((tmp_path / "work" / "finished").iterdir())) == 3


@pytest.mark.parametrize("change", ["site file", "key", "version", "damage"])
def test_what_was_made_otherwise_is_made_anew_and_that_is_said(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    patients(write_series, tmp_path)
    run(tmp_path)
    made, said = remember(monkeypatch), list[str]()
    if change == "key":
        (tmp_path / "records" / dataset.KEY_FILE).unlink()
    elif change == "version":
        monkeypatch.setattr(resume, "code", lambda: "another")
    elif change == "damage":
        for path in (tmp_path / "work" / "finished").glob("*/*.npz"):
            path.write_bytes(path.read_bytes()[:-1])
    run(tmp_path, said=said, **({"minimum_slices": 5} if change == "site file" else {}))
    assert len(made) == 3 and len(said) == 1 and "starting anew" in said[0]


def test_a_label_that_changed_is_taken_over_at_once(tmp_path: Path, write_series: Write) -> None:
    patients(write_series, tmp_path)
    table = tmp_path / "labels.csv"
    for label in (0, 1):
        table.write_text(f"patient_id,class\nP0,{'ab'[label]}\n")
        run(tmp_path, labels=table)
        assert sorted(patient.label for patient in dataset.load(tmp_path / "work" / "cohort")) == [-1, -1, label]


def test_a_second_ingest_into_the_same_folder_is_refused_and_disturbs_nothing(
    tmp_path: Path, write_series: Write
) -> None:
    patients(write_series, tmp_path, 1)
    run(tmp_path)
    before = results(tmp_path / "work")
    from client.pacs import spool

    with spool.alone(tmp_path / "work" / "finished"), pytest.raises(DataError, match="another ingest"):
        run(tmp_path)
    assert results(tmp_path / "work") == before


def end(_: int) -> None:
    os._exit(9)


def fail(task: int) -> None:
    if task == 1:
        raise ValueError("JANE SMITH 1947")


def refuse(_: int) -> None:
    raise DataError("in words for the user")


def test_a_worker_that_dies_or_fails_ends_the_run_with_one_line_and_no_value() -> None:
    for work, words in ((end, "fewer `--jobs`"), (fail, "failed with ValueError$"), (refuse, "in words for the user")):
        with pytest.raises(DataError, match=words):
            list(workers.run(work, range(4), 2))


def note(task: Path) -> None:
    task.write_text(os.environ["OMP_NUM_THREADS"])


def test_workers_share_the_cores_and_every_task_is_done_once(tmp_path: Path) -> None:
    tasks = [tmp_path / str(number) for number in range(5)]
    before = dict(os.environ)
    assert sorted(workers.run(note, tasks, 2)) == tasks and dict(os.environ) == before
    assert {task.read_text() for task in tasks} == {str(max(workers.cores() // 2, 1))}
