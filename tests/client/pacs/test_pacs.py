"""Against a real archive (Orthanc, on this machine): fetched whole or not at all, and nothing of a patient left or said."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileDataset

from client import dataset
from client.deidentification import manifest
from client.pacs import pull, spool
from client.readers.ingest import IngestReport, ingest
from client.verification import verify
from shared import ports
from shared.config.site import Site
from shared.errors import DataError
from shared.modalities.base import modality

Write = Callable[..., list[Path]]

pytestmark = [pytest.mark.debian("orthanc"), pytest.mark.skipif(
    not os.environ.get("CI") and shutil.which("Orthanc") is None, reason="needs Debian's orthanc and orthanc-dicomweb"
)]  # fmt: skip
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
WORD, NUMBER = "QZJX", "771234567"
WAYS = ("dicomweb", "dimse")


class Orthanc:
    """A real PACS on loopback, with its own folder and ports.

    certificates   DIMSE over TLS, each side with a certificate. (HTTPS is not tried: Debian's 1.10.1 dies of its first
                   request; `test_client_dicomweb` has a server of its own for that.)
    """

    def __init__(self, folder: Path, certificates: Path | None = None) -> None:
        self.folder, self.certificates = folder, certificates
        self.http, self.dicom, self.ours = ports.free(), ports.free(), ports.free()
        folder.mkdir()
        tls = {} if certificates is None else {
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(certificates / "pacs.pem"),
            "DicomTlsPrivateKey": str(certificates / "pacs.key"),
            "DicomTlsTrustedCertificates": str(certificates / "ca.pem"),
        }  # fmt: skip
        us = {"AET": "FEDSYNTH", "Host": "127.0.0.1", "Port": self.ours, "UseDicomTls": certificates is not None}
        (folder / "orthanc.json").write_text(json.dumps({
            "StorageDirectory": str(folder / "store"), "IndexDirectory": str(folder / "store"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ARCHIVE", "DicomModalities": {"us": us},
            "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)],
            "DicomCheckModalityHost": True, "DicomAlwaysAllowFind": False, "DicomAlwaysAllowEcho": False, **tls,
        }))  # fmt: skip

    def start(self) -> Orthanc:
        log = self.folder / f"log{len(list(self.folder.glob('log*')))}"
        with log.open("wb") as opened:
            self.process = subprocess.Popen(
                ["Orthanc", str(self.folder / "orthanc.json")], stdout=opened, stderr=opened
            )
        for _ in range(600):
            if "Orthanc has started" in log.read_text():
                return self
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        raise AssertionError("Orthanc did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def store(self, paths: list[Path]) -> None:
        for path in paths:
            request = urllib.request.Request(f"http://127.0.0.1:{self.http}/instances", path.read_bytes())
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 200

    def settings(self, way: str, folder: Path, patients: str, **more: Any) -> dict[str, Any]:
        """`pacs` of a site file."""
        (folder / "patients.csv").write_text(patients)
        files = {"ca": "ca.pem", "certificate": "us.pem", "key": "us.key"}
        secure = {} if self.certificates is None else {name: self.certificates / file for name, file in files.items()}  # fmt: skip
        reach = {
            "dicomweb": {"url": f"http://127.0.0.1:{self.http}/dicom-web"},
            "dimse": {"host": "127.0.0.1", "port": self.dicom, "called_ae": "ARCHIVE", "calling_ae": "FEDSYNTH",
                      "listen_port": self.ours} | secure,
        }[way]  # fmt: skip
        gentle = {"requests_per_second": 200, "instances_per_second": 2000, "tries": 2, "first_wait_s": 0.05}
        return {"patients": folder / "patients.csv", way: reach, "timeout_s": 10, **gentle, **more}


def run(pacs: dict[str, Any], work: Path, **site: Any) -> IngestReport:
    settings = Site.model_validate({"name": "a", "pacs": pacs, "face_removal": "none", "text_check": "none", **site})
    return ingest(settings, classes=("a", "b"), image_size=16, slices_per_patient=8, work=work)


def reasons(work: Path) -> Counter[str]:
    return Counter(entry.reason.code for entry in manifest.read(work / "manifest.jsonl"))


def cohort(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (work / "cohort").glob("*.npz")}


def with_key(work: Path) -> Path:
    """A work folder with a fixed key, so that results of different runs can be compared."""
    work.mkdir()
    (work / dataset.KEY_FILE).write_bytes(bytes(range(32)))
    (work / dataset.KEY_FILE).chmod(0o600)
    return work


def planted(write_series: Write, folder: Path) -> Path:
    """Three patients, the first with two studies, every study with two series; identifiers wherever an archive takes them."""

    def series(patient: int, study: int, number: int) -> Callable[[int, FileDataset], None]:
        def change(index: int, ds: FileDataset) -> None:
            for keyword in ("PatientName", "StudyDescription", "SeriesDescription", "AccessionNumber", "InstitutionName",
                            "ReferringPhysicianName", "OtherPatientIDs", "PatientComments", "StationName", "StudyID",
                            "OperatorsName", "ProtocolName", "DeviceSerialNumber", "ImageComments"):  # fmt: skip
                setattr(ds, keyword, f"{WORD}{keyword[:8].upper()}")
            ds.PatientID = f"{WORD}-{patient}"
            ds.StudyDate, ds.PatientBirthDate = "20200213", "19471213"
            ds.private_block(0x0029, f"{WORD}PRIVATE", create=True).add_new(0x10, "OB", f"{WORD}".encode())
            item = Dataset()
            item.TextValue = f"{WORD}DEEP"
            ds.RequestAttributesSequence = [item]
            root = f"1.3.6.1.4.1.{NUMBER}.{patient}.{study}"
            ds.StudyInstanceUID, ds.SeriesInstanceUID = root, f"{root}.{number}"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{root}.{number}.{index + 1}"

        return change

    for patient, study, number in (
        (1, 1, 1),
        (1, 1, 2),
        (1, 2, 1),
        (1, 2, 2),
        (2, 1, 1),
        (2, 1, 2),
        (3, 1, 1),
        (3, 1, 2),
    ):
        write_series(folder / f"{patient}-{study}-{number}", change=series(patient, study, number))
    return folder


@pytest.fixture
def pacs(tmp_path: Path, write_series: Write) -> Iterator[Orthanc]:
    """An archive with the planted patients in it, which also lie in data/."""
    orthanc = Orthanc(tmp_path / "orthanc").start()
    try:
        orthanc.store(sorted(planted(write_series, tmp_path / "data").rglob("*.dcm")))
        yield orthanc
    finally:
        orthanc.kill()


EVERYBODY = f"patient_id\n{WORD}-1\n{WORD}-2\n{WORD}-3\n{WORD}-NOT-THERE\n"

opened: list[str] | None = None
connected: list[Any] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str | os.PathLike):
        mode, flags = arguments[1], arguments[2]
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
        ):
            opened.append(os.fspath(arguments[0]))
    if connected is not None and event in ("socket.connect", "socket.sendto"):
        connected.append(arguments[1])
    if connected is not None and event == "socket.getaddrinfo":
        connected.append(arguments[:2])


sys.addaudithook(_watch)


@pytest.fixture
def watched() -> Iterator[tuple[list[str], list[Any]]]:
    """Every path that is opened for writing, and every address that is looked up or connected to."""
    global opened, connected  # noqa: PLW0603  (an audit hook cannot be removed, only silenced)
    opened, connected = [], []
    yield opened, connected
    opened = connected = None


@pytest.mark.parametrize("way", WAYS)
def test_n01_l05_l06_the_round_trip_gives_what_the_folder_gives_and_leaks_nothing(
    way: str, pacs: Orthanc, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
    watched: tuple[list[str], list[Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")  # nobody; an honest client of the environment would go there
    written, asked = watched
    pacs_settings, work = pacs.settings(way, tmp_path, EVERYBODY), with_key(tmp_path / "work")
    places = spool.Spool(work, bytes(range(32))).places
    (tmp_path / "labels.csv").write_text(f"patient_id,class\n{WORD}-2,b\n")
    written.clear()
    asked.clear()
    report = run(pacs_settings, work, labels=tmp_path / "labels.csv")
    written_to, asked_for = list(written), list(asked)
    assert (report.patients, report.slices) == (3, 24)
    assert report.reasons == {"other-series": 64, "not-found": 1}

    # the same as from a folder
    folder = with_key(tmp_path / "folder")
    ingest(Site(name="a", data=tmp_path / "data", face_removal="none", text_check="none", labels=tmp_path / "labels.csv"),
           classes=("a", "b"), image_size=16, slices_per_patient=8, work=folder)  # fmt: skip
    assert cohort(work) == cohort(folder)

    # nothing left, nothing said
    said = capfd.readouterr()
    spoken = "\n".join((said.out, said.err, caplog.text, *(str(record.__dict__) for record in caplog.records)))
    assert "pynetdicom" in caplog.text if way == "dimse" else "urllib3" in caplog.text  # there was something to redact
    everything = b"\n".join(
        str(path).encode() + (path.read_bytes() if path.is_file() else b"") for path in work.rglob("*")
    )
    for mark in (WORD, WORD.lower(), NUMBER, "19471213"):
        assert mark not in spoken.replace(str(tmp_path), "")
        assert mark.encode() not in everything
        assert mark not in "\n".join(written_to)
    assert not verify.verify_folder(work).findings
    assert not [place for place in places if place.exists()]
    assert any(Path(path).is_relative_to(places[0]) or Path(path).is_relative_to(places[-1]) for path in written_to)
    homes = (work, *places)
    assert not [
        path for path in written_to if path != os.devnull and not any(Path(path).is_relative_to(home) for home in homes)
    ]

    # nobody else asked
    port = {"dicomweb": pacs.http, "dimse": pacs.dicom}[way]
    assert ("127.0.0.1", port) in asked_for
    assert set(asked_for) <= {
        ("127.0.0.1", port),
        ("127.0.0.1", None),
        ("127.0.0.1", 0),
        (None, 0),
    }  # 0, none: our own side


def test_dimse_over_tls_works_only_with_certificates_of_the_right_authority(
    tls: Path, tmp_path: Path, write_series: Write
) -> None:
    orthanc = Orthanc(tmp_path / "orthanc", tls).start()
    try:
        orthanc.store(write_series(tmp_path / "data", PatientID=f"{WORD}-1"))
        settings = orthanc.settings("dimse", tmp_path, f"{WORD}-1\n", tries=1)
        assert run(settings, tmp_path / "work").patients == 1
        for wrong in ({"ca": tls / "stranger.pem"}, {"certificate": tls / "stranger.pem", "key": tls / "stranger.key"}):
            with pytest.raises(DataError, match="the PACS: "):
                run(settings | {"dimse": settings["dimse"] | wrong}, tmp_path / "other")
        assert not (tmp_path / "other" / "cohort").exists()
    finally:
        orthanc.kill()


@pytest.mark.parametrize("way", WAYS)
def test_n02_an_archive_that_dies_half_way_leaves_no_half_study_and_the_next_run_heals(
    way: str, pacs: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, work = pacs.settings(way, tmp_path, EVERYBODY), with_key(tmp_path / "work")
    put, puts = spool.put, [0]

    def until_dead(path: Path, content: bytes) -> None:
        puts[0] += 1
        if puts[0] == 64 + 10:  # within the first series of the second patient
            pacs.process.send_signal(signal.SIGKILL)
            pacs.process.wait()
        put(path, content)

    monkeypatch.setattr(spool, "put", until_dead)
    with pytest.raises(DataError, match=r"the PACS: .*1 patients are in the cohort, and 3 are still") as caught:
        run(settings, work)
    assert WORD not in str(caught.value) and NUMBER not in str(caught.value)
    assert reasons(work) == {"ok": 32, "other-series": 32, "not-reached": 3}
    (only,) = cohort(work).values()
    assert not [place for place in spool.Spool(work, bytes(range(32))).places if place.exists()]

    pacs.start()
    puts[0] = 1000
    assert run(settings, work).patients == 3
    assert puts[0] == 1000 + 64  # the first patient was not fetched again
    assert only in cohort(work).values()
    monkeypatch.undo()
    whole = with_key(tmp_path / "whole")
    run(settings, whole)
    assert cohort(work) == cohort(whole) and reasons(work) == reasons(whole)


def test_what_has_not_changed_is_not_fetched_again_and_who_is_not_wanted_is_forgotten(
    pacs: Orthanc, tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, put, puts = with_key(tmp_path / "work"), spool.put, [0]

    def counted(path: Path, content: bytes) -> None:
        puts[0] += 1
        put(path, content)

    monkeypatch.setattr(spool, "put", counted)
    settings = pacs.settings("dicomweb", tmp_path, EVERYBODY)
    run(settings, work)
    first, puts[0] = cohort(work), 0
    run(settings, work)
    assert puts[0] == 0 and cohort(work) == first
    pacs.store(write_series(tmp_path / "more", study="77", PatientID=f"{WORD}-2"))  # a new study of one patient
    run(settings, work)
    assert puts[0] == 32 + 16 and sum(cohort(work)[name] != first[name] for name in first) == 1
    puts[0] = 0
    run(settings, work, minimum_slices=3)  # another setting makes everybody anew
    assert puts[0] == 128 + 16
    (damaged,) = sorted((work / "finished").glob("*/*.npz"))[:1]
    damaged.unlink()
    puts[0] = 0
    run(settings, work, minimum_slices=3)
    assert puts[0] in (32, 48, 64)
    run(pacs.settings("dicomweb", tmp_path, f"{WORD}-3\n"), work, minimum_slices=3)
    assert len(cohort(work)) == len(list((work / "finished").iterdir())) == 1


def test_pain17_a_preview_counts_the_same_both_ways_and_fetches_nothing(pacs: Orthanc, tmp_path: Path) -> None:
    for way in WAYS:
        settings = Site.model_validate({"name": "a", "pacs": pacs.settings(way, tmp_path, EVERYBODY)}).pacs
        assert settings is not None
        told: list[tuple[int, int]] = []
        found = pull.preview(settings, modality("mr"), lambda done, total: told.append((done, total)))  # noqa: B023
        assert found == pull.Preview(modality="MR", patients=4, found=3, studies=4, series=8, instances=128)
        assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert not (tmp_path / "work").exists()


def test_the_command_says_what_would_be_fetched(pacs: Orthanc, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from client import cli

    reach = pacs.settings("dicomweb", tmp_path, EVERYBODY)
    reach["patients"] = str(reach["patients"])
    (tmp_path / "site.yaml").write_text(json.dumps({"name": "north", "pacs": reach}))
    said = CliRunner().invoke(cli.app, ["pacs", str(tmp_path / "site.yaml")])
    assert said.exit_code == 0 and "of 4 wanted patients it has 3 with MR images" in said.output
    assert "128 instances: 8 series of 4 studies" in said.output and WORD not in said.output
    said = CliRunner().invoke(cli.app, ["pacs", str(tmp_path / "site.yaml"), "--json"])
    assert json.loads(said.stdout) == {
        "modality": "MR",
        "patients": 4,
        "found": 3,
        "studies": 4,
        "series": 8,
        "instances": 128,
    }


def test_other_modalities_are_not_fetched(pacs: Orthanc, tmp_path: Path, write_series: Write) -> None:
    pacs.store(write_series(tmp_path / "more", study="5", PatientID=f"{WORD}-2", Modality="CT",
                            SOPClassUID="1.2.840.10008.5.1.4.1.1.2"))  # fmt: skip
    for way in WAYS:
        report = run(pacs.settings(way, tmp_path, f"{WORD}-2\n"), tmp_path / way)
        assert (report.passed, report.reasons) == (16, {"other-series": 16})


def test_only_the_wanted_issuer_is_used(pacs: Orthanc, tmp_path: Path, write_series: Write) -> None:
    for number, issuer in enumerate(("north", "south", None)):
        pacs.store(write_series(tmp_path / f"more{number}", study=f"8{number}", PatientID="7",
                                **{"IssuerOfPatientID": issuer} if issuer else {}))  # fmt: skip
    for way in WAYS:
        report = run(pacs.settings(way, tmp_path, "patient_id,issuer\n7,north\n"), tmp_path / way)
        assert (report.patients, report.passed) == (1, 16)
        assert report.reasons == {"other-patient": 16, "no-issuer": 16}


def test_an_archive_that_does_not_know_us_says_so_in_our_words(pacs: Orthanc, tmp_path: Path) -> None:
    settings = pacs.settings("dimse", tmp_path, EVERYBODY)
    settings["dimse"]["calling_ae"] = "STRANGER"
    with pytest.raises(DataError, match="do not know our AE title"):
        run(settings, tmp_path / "work")
    assert not (tmp_path / "work" / "manifest.jsonl").exists()
    settings["dimse"] |= {"calling_ae": "FEDSYNTH", "port": ports.free()}
    with pytest.raises(DataError, match="no association"):
        run(settings, tmp_path / "work")


def test_n03_images_from_an_application_entity_that_is_not_listed_are_refused(pacs: Orthanc, tmp_path: Path) -> None:
    settings = pacs.settings("dimse", tmp_path, f"{WORD}-2\n", tries=1)
    settings["dimse"]["peers"] = {"ANOTHER": "127.0.0.1"}
    with pytest.raises(DataError, match=r"incomplete 1; the PACS: .*listen_port"):
        run(settings, tmp_path / "work")
    settings["dimse"]["peers"]["ARCHIVE"] = "127.0.0.2"  # the right title at another address
    with pytest.raises(DataError, match=r"incomplete 1; the PACS: .*listen_port"):
        run(settings, tmp_path / "work")
    settings["dimse"]["peers"]["ARCHIVE"] = "127.0.0.1"
    assert run(settings, tmp_path / "work").patients == 1


def test_what_a_killed_run_left_is_removed_by_the_next(pacs: Orthanc, tmp_path: Path) -> None:
    one, work = f"patient_id\n{WORD}-3\n", with_key(tmp_path / "work")
    settings = pacs.settings("dicomweb", tmp_path, one, instances_per_second=1)  # long enough to be killed at the first
    site = Site.model_validate(
        {"name": "a", "pacs": settings, "face_removal": "none", "text_check": "none"}
    ).model_dump_json()
    code = (
        "import sys; from pathlib import Path; from client.readers.ingest import ingest; from shared.config.site import Site\n"
        "ingest(Site.model_validate_json(sys.argv[1]), classes=['a'], image_size=16, slices_per_patient=8, work=Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, site, str(work)])
    try:
        places = spool.Spool(work, bytes(range(32))).places
        for _ in range(600):
            left = [path for place in places for path in place.rglob("*.dcm")]
            if left:
                break
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(DataError, match="another ingest"):
            run(settings, work)
    finally:
        process.kill()
        process.wait()
    (place,) = [place for place in places if place.exists()]
    assert left and place.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in place.rglob("*"))
    assert run(pacs.settings("dicomweb", tmp_path, one), work).patients == 1
    assert not [place for place in places if place.exists()]
