"""From a folder of DICOM to a cohort: grouped by patient, one verdict for every file, one volume of every study."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import FileDataset

from client import dataset
from client.deidentification import manifest
from client.deidentification.manifest import Reason, Verdict
from client.readers.ingest import IngestReport, ingest
from shared.config.site import Site
from shared.errors import DataError

Write = Callable[..., list[Path]]


def run(folder: Path, *, classes: Sequence[str] = ("a", "b"), slices: int = 8, **site: Any) -> IngestReport:
    settings = Site(name="a", data=folder / "data", **{"face_removal": "none", **site})
    return ingest(settings, classes=classes, image_size=16, slices_per_patient=slices, work=folder / "work")


def reasons(folder: Path) -> Counter[Reason]:
    return Counter(entry.reason for entry in manifest.read(folder / "work" / "manifest.jsonl"))


def test_studies_of_one_patient_become_one_patient_with_its_slices_shared_out(
    tmp_path: Path, write_series: Write
) -> None:
    for study in "123":
        write_series(tmp_path / "data" / study, study=study, PatientID="P1")
    write_series(tmp_path / "data" / "other", study="9", PatientID="P2")
    report = run(tmp_path, slices=8)
    assert (report.patients, report.slices, report.passed) == (2, 16, 64)
    assert sorted(len(patient.x_SHW) for patient in dataset.load(tmp_path / "work" / "cohort")) == [8, 8]


def test_the_same_number_from_two_issuers_stays_two_patients(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data" / "a", study="1", PatientID="7", IssuerOfPatientID="north")
    write_series(tmp_path / "data" / "b", study="2", PatientID="7", IssuerOfPatientID="south")
    assert run(tmp_path).patients == 2


def test_a_patient_whose_issuer_is_sometimes_missing_is_not_counted_twice(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data" / "a", study="1", PatientID="7", IssuerOfPatientID="north")
    write_series(tmp_path / "data" / "b", study="2", PatientID="7")
    write_series(tmp_path / "data" / "c", study="3", PatientID="8")
    report = run(tmp_path)
    assert report.patients == 2 and report.passed == 48 and report.reasons == {}


def test_pain16_every_file_has_exactly_one_verdict(tmp_path: Path, write_series: Write) -> None:
    paths = write_series(tmp_path / "data" / "good")
    write_series(tmp_path / "data" / "derived", study="2", ImageType=["DERIVED", "SECONDARY"])
    write_series(tmp_path / "data" / "nobody", study="3", PatientID="")
    write_series(tmp_path / "data" / "capture", study="4", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    shutil.copy(paths[0], tmp_path / "data" / "copy.dcm")
    (tmp_path / "data" / "notes.txt").write_text("x")
    report = run(tmp_path)
    entries = manifest.read(tmp_path / "work" / "manifest.jsonl")
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert len(entries) == len(files) == report.passed + report.quarantined + report.refused
    assert reasons(tmp_path) == {Reason.OK: 16, Reason.DERIVED: 16, Reason.NO_PATIENT: 16, Reason.SOP_CLASS: 16,
                                 Reason.DUPLICATE: 1, Reason.NOT_DICOM: 1}  # fmt: skip
    assert report.reasons["derived"] == 16
    (digest,) = {entry.sha256 for entry in entries if entry.reason.verdict is Verdict.PASS}
    assert digest and len(digest) == 64


def test_the_largest_then_thinnest_series_of_a_study_is_used(
    tmp_path: Path, write_series: Write, head: np.ndarray
) -> None:
    def series(number: int, thickness: float) -> Callable[[int, FileDataset], None]:
        def change(index: int, ds: FileDataset) -> None:
            ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}.{index}"
            ds.ImagePositionPatient = [0, 0, index * thickness]
            ds.InversionTime = "2500" if number < 3 else "900"

        return change

    write_series(tmp_path / "data" / "thick", change=series(1, 3))
    write_series(tmp_path / "data" / "thin", change=series(2, 2))
    write_series(tmp_path / "data" / "short", head[:, :, :15], change=series(0, 1))
    run(tmp_path)
    entries = manifest.read(tmp_path / "work" / "manifest.jsonl")
    used = {entry.series for entry in entries if entry.reason is Reason.OK}
    assert len(used) == 1 and reasons(tmp_path) == {Reason.OK: 16, Reason.OTHER_SERIES: 31}
    first = dataset.load(tmp_path / "work" / "cohort")[0]
    write_series(tmp_path / "data" / "t1", head[:, :, :15], change=series(3, 5))  # T1-weighted wins over larger
    run(tmp_path)
    assert reasons(tmp_path) == {Reason.OK: 15, Reason.OTHER_SERIES: 47}
    assert dataset.load(tmp_path / "work" / "cohort")[0].pseudonym == first.pseudonym


@pytest.mark.parametrize("told_by", ["temporal", "acquisition", "instance", "interleaved"])
def test_of_a_time_series_the_first_volume_is_used_alone(
    tmp_path: Path, write_series: Write, head: np.ndarray, told_by: str
) -> None:
    slices, times = head.shape[2], 3
    for time in range(times):

        def change(index: int, ds: FileDataset, time: int = time) -> None:
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{time}.{index}"
            volume_by_volume = (times - 1 - time if told_by in ("temporal", "acquisition") else time) * slices + index
            ds.InstanceNumber = 1 + (index * times + time if told_by == "interleaved" else volume_by_volume)
            if told_by == "temporal":
                ds.TemporalPositionIdentifier = time + 1
            if told_by == "acquisition":
                ds.AcquisitionNumber = time + 1

        write_series(tmp_path / "data" / str(time), head * (1 + time) if time else head, change=change)
    run(tmp_path)
    assert reasons(tmp_path) == {Reason.OK: slices, Reason.OTHER_VOLUME: 2 * slices}
    several = dataset.load(tmp_path / "work" / "cohort")[0].x_SHW
    shutil.rmtree(tmp_path / "data")
    write_series(tmp_path / "data", head)
    run(tmp_path)
    assert np.array_equal(several, dataset.load(tmp_path / "work" / "cohort")[0].x_SHW)


def test_volumes_that_cannot_be_told_apart_are_withheld_whole(tmp_path: Path, write_series: Write) -> None:
    for time in range(2):

        def change(index: int, ds: FileDataset, time: int = time) -> None:
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{time}.{index}"
            ds.InstanceNumber = (7 * index + 5 * time) % 32 + 1

        write_series(tmp_path / "data" / str(time), change=change)
    with pytest.raises(DataError, match="ambiguous 32"):
        run(tmp_path)


def test_a_missing_slice_withholds_the_series(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data" / "a", study="1", PatientID="good")
    write_series(tmp_path / "data" / "b", study="2", PatientID="gap")[7].unlink()
    report = run(tmp_path, minimum_slices=8)
    assert report.patients == 1 and report.reasons == {"geometry": 15}


def test_a_slice_that_is_truncated_withholds_its_series(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data" / "a", study="1", PatientID="good")
    broken = write_series(tmp_path / "data" / "b", study="2", PatientID="cut")[7]
    broken.write_bytes(broken.read_bytes()[:-50])
    assert run(tmp_path).reasons == {"geometry": 15, "truncated": 1}


def test_too_few_slices_are_withheld(tmp_path: Path, write_series: Write, head: np.ndarray) -> None:
    write_series(tmp_path / "data", head[:, :, :10])
    with pytest.raises(DataError, match="few-slices 10"):
        run(tmp_path)
    assert run(tmp_path, minimum_slices=10).patients == 1


def test_labels_come_from_the_table_and_others_stay_unlabelled(tmp_path: Path, write_series: Write) -> None:
    for number in range(3):
        write_series(tmp_path / "data" / str(number), study=str(number + 1), PatientID=f"P{number}")
    (tmp_path / "data" / "labels.csv").write_text("patient_id,class\nP0,b\nP1,a\n")
    report = run(tmp_path, labels=Path("labels.csv"))
    assert sorted(patient.label for patient in dataset.load(tmp_path / "work" / "cohort")) == [-1, 0, 1]
    assert report.refused == 0  # the table itself is not an input


def test_a_second_run_gives_the_same_bytes_and_forgets_removed_patients(tmp_path: Path, write_series: Write) -> None:
    for number in range(2):
        write_series(tmp_path / "data" / str(number), study=str(number + 1), PatientID=f"P{number}")
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()}
    (tmp_path / "work" / "cohort.partial").mkdir()
    (tmp_path / "work" / "cohort.partial" / "left.over").write_text("an interrupted run")
    run(tmp_path)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "data" / "0")
    run(tmp_path)
    assert len(dataset.load(tmp_path / "work" / "cohort")) == 1


def test_an_interrupted_run_leaves_the_old_cohort_in_place(
    tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "data")
    run(tmp_path)
    old = dataset.load(tmp_path / "work" / "cohort")
    write_series(tmp_path / "data" / "more", study="2", PatientID="P2")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert [patient.pseudonym for patient in dataset.load(tmp_path / "work" / "cohort")] == [old[0].pseudonym]
    monkeypatch.undo()
    assert run(tmp_path).patients == 2


def test_the_cohort_keeps_its_name_whatever_the_run_asks_for(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data")
    names = set()
    for slices in (4, 8):
        run(tmp_path, slices=slices)
        names |= {dataset.cohort_id(tmp_path / "work"), dataset.cohort_id(tmp_path / "work" / "cohort")}
    key = (tmp_path / "work" / "pseudonym.key").read_bytes()
    assert names == {dataset.cohort_id(key)} != {dataset.cohort_id(bytes(32))}


def listed(records: Path, work: Path) -> frozenset[str]:
    """The pseudonyms on the list that a cohort's facts name."""
    return frozenset((records / "ledger.members" / f"{dataset.facts(work).members}.txt").read_text().split())


def test_two_work_folders_of_one_hospital_give_a_patient_one_pseudonym_and_say_whose_key_made_it(
    tmp_path: Path, write_series: Write
) -> None:
    write_series(tmp_path / "data")
    records = tmp_path / "records"
    site = Site(name="a", data=tmp_path / "data", face_removal="none", minimum_slices=4, records=records)
    names, members = [], []
    for name in ("first", "second"):
        work = tmp_path / name
        ingest(site, classes=["x"], image_size=16, slices_per_patient=8, work=work)
        cohort = dataset.load(work / "cohort")
        names.append([patient.pseudonym for patient in cohort])
        members.append(listed(records, work))
        assert not (work / dataset.KEY_FILE).exists()
    assert names[0] == names[1]
    assert members == [frozenset(names[0])] * 2
    kept = {dataset.KEY_FILE, "ledger.groups.json", "ledger.members"}
    assert {p.name for p in records.iterdir()} == kept and len(list((records / "ledger.members").iterdir())) == 1


def test_progress_runs_to_its_total(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data")
    (tmp_path / "data" / "x.txt").write_text("x")
    told: list[tuple[int, int]] = []
    site = Site(name="a", data=tmp_path / "data", face_removal="none")
    ingest(site, classes=["a"], image_size=16, slices_per_patient=4, work=tmp_path / "work",
           progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert told[-1] == (34, 34) and told == sorted(told)


@pytest.mark.parametrize("damage", ["readable by others", "short", "link"])
def test_a_key_in_doubt_is_refused(tmp_path: Path, write_series: Write, damage: str) -> None:
    write_series(tmp_path / "data")
    run(tmp_path)
    key = tmp_path / "work" / "pseudonym.key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    if damage == "readable by others":
        key.chmod(0o640)
    elif damage == "short":
        key.write_bytes(b"x")
    else:
        key.rename(tmp_path / "elsewhere")
        key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="key file"):
        run(tmp_path)
