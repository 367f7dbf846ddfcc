"""Fetched whole or withheld, kept or made anew: with an archive that is a table, to fail as we like."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from client import dataset
from client.deidentification import manifest
from client.pacs import archive, pull, spool
from client.pacs.archive import Series, Unanswered
from client.readers.ingest import IngestReport, ingest
from shared.config.pacs import Pacs
from shared.config.site import Site
from shared.errors import DataError

Write = Callable[..., list[Path]]
REACH = {"dicomweb": {"url": "https://pacs.example/dicom-web"}}


class Table:
    """An archive in memory. `lacks`: instances that are listed and never sent; `wrong`: sent in place of others."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, dict[tuple[str, str], dict[str, bytes]]] = {}
        self.lacks: set[str] = set()
        self.deaf_to: set[str] = set()
        self.asked: list[str] = []
        self.wanted: list[str] = []
        self.fetched = 0
        self.add(folder)

    def add(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            ds = pydicom.dcmread(path)
            series = self.files.setdefault(ds.PatientID, {}).setdefault((ds.StudyInstanceUID, ds.SeriesInstanceUID), {})
            series[ds.SOPInstanceUID] = path.read_bytes()

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def ping(self) -> None: ...

    def find(self, patient: str, modality: str) -> list[Series]:
        self.asked.append(patient)
        self.wanted.append(modality)
        if patient in self.deaf_to:
            raise Unanswered("status 0xC001")
        return [Series(study, uid, frozenset(sent)) for (study, uid), sent in self.files.get(patient, {}).items()]

    def fetch(self, series: Series, put: archive.Put) -> None:
        for patient in self.files.values():
            for uid, content in patient.get((series.study, series.uid), {}).items():
                if uid not in self.lacks:
                    self.fetched += 1
                    put(content)


@pytest.fixture
def table(tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Patient A with two studies, patient B with one."""
    for patient, study in (("A", "1"), ("A", "2"), ("B", "3")):
        write_series(tmp_path / "data" / study, study=study, PatientID=patient)
    made = Table(tmp_path / "data")
    monkeypatch.setattr(pull, "connect", lambda _: made)
    return made


def run(folder: Path, patients: str = "A\nB\n", **site: Any) -> IngestReport:
    (folder / "list").write_text(patients)
    pacs = {"patients": folder / "list", "tries": 2, "first_wait_s": 0.001, **REACH}
    settings = Site.model_validate({"name": "a", "pacs": pacs, "face_removal": "none", "text_check": "none", **site})
    return ingest(settings, classes=("a", "b"), image_size=16, slices_per_patient=8, work=folder / "work")


def slices(folder: Path) -> list[int]:
    return sorted(len(patient.x_SHW) for patient in dataset.load(folder / "work" / "cohort"))


def test_a_study_of_which_one_image_is_missing_is_withheld_and_asked_for_again(tmp_path: Path, table: Table) -> None:
    uid = next(iter(table.files["A"][next(iter(table.files["A"]))]))
    table.lacks = {uid}
    report = run(tmp_path)
    assert (report.patients, report.passed, report.reasons) == (2, 32, {"incomplete": 1})
    entries = manifest.read(tmp_path / "work" / "manifest.jsonl")
    assert uid not in str(entries) and len(entries) == 33
    table.lacks, table.fetched = set(), 0
    assert run(tmp_path).passed == 48 and table.fetched == 32  # the patient's two studies, and not B's


def test_a_patient_for_whom_the_archive_always_fails_does_not_stop_the_others(tmp_path: Path, table: Table) -> None:
    table.deaf_to = {"A"}
    assert run(tmp_path).reasons == {"not-reached": 1} and table.asked == ["A", "A", "B"]
    table.deaf_to = set()
    run(tmp_path)
    table.deaf_to = {"A"}
    assert run(tmp_path).patients == 2  # what was read whole before stays


def test_files_of_another_patient_are_not_used(tmp_path: Path, table: Table) -> None:
    table.files["B"] |= {place: sent for place, sent in table.files["A"].items() if place[0].endswith("2.1")}
    report = run(tmp_path, "B\n")
    assert (report.patients, report.passed, report.reasons) == (1, 16, {"other-patient": 16})


def test_person_01_two_wanted_identifiers_with_one_study_never_are_two_patients(
    tmp_path: Path, table: Table, write_series: Write
) -> None:
    """The id of study 1 was corrected half way: the archive has a series of it under C. Also when C was read before."""

    def again(_: int, ds: pydicom.Dataset) -> None:
        ds.SeriesInstanceUID += ".2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID + ".2"

    write_series(tmp_path / "more", study="1", PatientID="C", change=again)
    table.add(tmp_path / "more")
    assert run(tmp_path, "C\nB\n").patients == 2
    report = run(tmp_path, "A\nB\nC\n")
    assert report.patients == 2 and report.reasons == {"shared-study": 16} and report.passed == 48
    table.deaf_to = {"C"}
    assert run(tmp_path, "A\nB\nC\n").reasons == {"shared-study": 16}  # what was kept of C does not come back


def test_person_01_the_sites_own_issuer_fits_a_list_that_names_it(tmp_path: Path, table: Table) -> None:
    with pytest.raises(DataError, match="no-issuer"):
        run(tmp_path, "patient_id,issuer\nA,north\n")
    assert run(tmp_path, "patient_id,issuer\nA,north\n", default_issuer="north").passed == 32
    with pytest.raises(DataError, match="other-patient"):
        run(tmp_path, "patient_id,issuer\nA,north\n", default_issuer="south")


def test_person_01_wanted_identifiers_that_look_alike_are_counted(tmp_path: Path, table: Table) -> None:
    assert run(tmp_path, "A\na\nB\n").people == {"identifiers": 3, "joined": 0, "alike": 2}


def test_what_is_sent_twice_or_without_being_asked_for_is_dropped(tmp_path: Path, table: Table) -> None:
    def fetch(series: Series, put: archive.Put) -> None:
        for patient in table.files.values():
            for sent in patient.values():
                for content in sent.values():
                    put(content)
                    put(content)
        put(b"no DICOM at all")
        put(b"")

    table.fetch = fetch  # type: ignore[method-assign]
    assert run(tmp_path, "B\n").passed == 16


def test_labels_and_another_label_reach_the_patient(tmp_path: Path, table: Table) -> None:
    for kind, index in (("b", 1), ("a", 0)):
        (tmp_path / "labels.csv").write_text(f"patient_id,class\nA,{kind}\n")
        table.fetched = 0
        run(tmp_path, labels=tmp_path / "labels.csv")
        assert sorted(patient.label for patient in dataset.load(tmp_path / "work" / "cohort")) == [-1, index]
        assert table.fetched == (48 if kind == "b" else 32)  # only the one whose label changed


def test_an_interrupt_leaves_the_old_cohort_and_no_image(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "A\n")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert slices(tmp_path) == [8]
    key = (tmp_path / "work" / dataset.KEY_FILE).read_bytes()
    assert not [place for place in spool.Spool(tmp_path / "work", key).places if place.exists()]


def test_without_room_in_memory_the_disk_is_used_and_without_any_room_that_is_said(
    tmp_path: Path, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, used = spool.put, set()

    def full_memory(path: Path, content: bytes) -> None:
        used.add(path.is_relative_to(tmp_path))
        if not path.is_relative_to(tmp_path):
            raise spool.NoRoom("no room")
        put(path, content)

    monkeypatch.setattr(spool, "put", full_memory)
    monkeypatch.setattr(spool, "MEMORY", tmp_path.parent / "elsewhere")
    (tmp_path.parent / "elsewhere").mkdir(exist_ok=True)
    assert run(tmp_path).patients == 2 and used == {True, False}

    def full(path: Path, content: bytes) -> None:
        raise spool.NoRoom("no room at all")

    monkeypatch.setattr(spool, "put", full)
    with pytest.raises(DataError, match="no room at all"):
        run(tmp_path, "A\nB\n", minimum_slices=4)
    assert not (tmp_path / "work" / "incoming").exists() and not list((tmp_path.parent / "elsewhere").iterdir())


def test_a_folder_that_another_user_put_in_the_way_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "work").mkdir()
    made = spool.Spool(tmp_path / "work", bytes(32))
    made.places[0].symlink_to(tmp_path / "target")
    with pytest.raises(DataError, match="cannot be removed"), made.folder(1):
        pass
    assert not list((tmp_path / "target").iterdir())


def test_no_more_requests_than_allowed_in_a_second_from_any_thread() -> None:
    pace, begun = archive.Pace(50), time.monotonic()
    threads = [threading.Thread(target=lambda: [pace.wait() for _ in range(5)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun >= 14 / 50


def test_waits_double_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    pacs = Pacs.model_validate({"patients": "p", "tries": 4, "first_wait_s": 0.5, **REACH})

    def fail(*, final: bool = False) -> None:
        raise Unanswered("silence", final=final)

    with pytest.raises(Unanswered, match="silence"):
        archive.patiently(pacs, fail)
    assert waited == [0.5, 1.0, 2.0]
    with pytest.raises(Unanswered):
        archive.patiently(pacs, lambda: fail(final=True))
    assert len(waited) == 3


def test_the_archive_is_asked_for_the_sites_modality_alone(tmp_path: Path, table: Table) -> None:
    with pytest.raises(DataError, match=r"no usable patient among 48 files \(modality 48\)"):
        run(tmp_path, modality="ct")
    assert set(table.wanted) == {"CT"}
    run(tmp_path)
    assert set(table.wanted) == {"CT", "MR"}
