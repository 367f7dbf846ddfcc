"""Groups U, L and M of the de-identification suite: subjects and UIDs, channels that leak, markers.

No option that keeps dates or ages exists: of U06 and U07 it is shown that none is written. L05 and L06 (access logs and
associations) stand in `test_client_pacs`, M03 in `test_client_paper`, M04 in `test_client_manifest` and `test_client_verify`.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset

from client.deidentification import acceptance, deidentify, export, manifest, profile, pseudonym, reader, rules
from client.deidentification.manifest import Reason, Withheld
from client.readers.ingest import ingest
from shared.config.site import Site

Make = Callable[..., FileDataset]
Save = Callable[[Dataset, Path], Path]
Write = Callable[..., list[Path]]
Through = Callable[..., tuple[Reason, bytes]]
MRN = "771234567"


def bytes_of(folder: Path, *, but: str = "") -> bytes:
    return b"\n".join(
        str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() and path.name != but else b"")
        for path in sorted(folder.rglob("*"))
    )


def site(folder: Path, **values: object) -> Site:
    return Site.model_validate(
        {
            "name": "a",
            "data": folder / "data",
            "face_removal": "none",
            "text_check": "none",
            "minimum_slices": 4,
            **values,
        }
    )


def run(folder: Path, work: str = "work") -> None:
    ingest(site(folder), classes=["x"], image_size=16, slices_per_patient=4, work=folder / work)


def test_u01_a_uid_has_one_token_under_one_key_and_another_under_another(make_slice: Make, key: bytes) -> None:
    def uids(secret: bytes) -> tuple[str, ...]:
        rebuilt = deidentify.rebuild(make_slice(), secret)
        return tuple(str(rebuilt[f"{level}InstanceUID"].value) for level in ("SOP", "Series", "Study"))

    assert uids(key) == uids(key) and not set(uids(key)) & set(uids(bytes(32)))
    assert len(set(uids(key))) == 3


def test_u02_instances_of_a_series_stay_together_and_references_are_gone(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    def change(index: int, ds: FileDataset) -> None:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        ds.ReferencedImageSequence = [reference]

    write_series(tmp_path / "data", change=change)
    export.export(tmp_path / "data", tmp_path / "out", key)
    written = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("*.dcm")]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert len({ds[keyword].value for ds in written}) == 1
    assert len({ds.SOPInstanceUID for ds in written}) == len(written) == 16
    assert not any("ReferencedImageSequence" in ds for ds in written)


def test_u03_only_uids_that_the_standard_names_are_kept(make_slice: Make, key: bytes) -> None:
    atlas = "1.2.840.10008.1.4.1.1"
    rebuilt = deidentify.rebuild(make_slice(FrameOfReferenceUID=atlas), key)
    assert rebuilt.FrameOfReferenceUID == atlas and rebuilt.SOPClassUID == "1.2.840.10008.5.1.4.1.1.4"
    for made_up in ("1.2.840.10008.1.4.1.1.771234567", "1.2.840.10008.771234567", "1.2.840.10008.5.1.4.1.1.4"):
        rebuilt = deidentify.rebuild(make_slice(FrameOfReferenceUID=made_up), key)
        assert str(rebuilt.FrameOfReferenceUID).startswith("2.25.")


def test_u04_file_meta_and_dataset_name_one_instance(make_slice: Make, key: bytes) -> None:
    ds = make_slice()
    ds.file_meta.MediaStorageSOPInstanceUID = "1.2.3.771234567"  # the source disagrees with itself
    rebuilt = deidentify.rebuild(ds, key)
    assert rebuilt.file_meta.MediaStorageSOPInstanceUID == rebuilt.SOPInstanceUID


def test_u05_one_number_from_two_issuers_is_two_patients(make_slice: Make, key: bytes) -> None:
    names = {rules.patient_of(make_slice(PatientID=MRN, IssuerOfPatientID=issuer), key) for issuer in ("A", "B", "")}
    assert len(names) == 3
    swapped = [rules.patient_of(make_slice(PatientID=a, IssuerOfPatientID=b), key) for a, b in ("AB", "BA")]
    assert swapped[0] != swapped[1]


DATES = {
    "DA": ["19470229", "19480229", "1947", "194712", "1947.12.13", "19471213-19481213", "-19471213", "1947-12-13"],
    "DT": ["19471213091205.123456+0130", "19471213091205-1100", "1947", "19480229", "20240229235960&ZZXX"],
    "TM": ["091205.123456", "091205", "0912", "235960", "09:12:05"],
}
DATED = {
    "DA": ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "PatientBirthDate", "DateOfLastCalibration"),
    "DT": ("AcquisitionDateTime", "FrameReferenceDateTime", "InstanceCoercionDateTime", "DateTime"),
    "TM": ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime", "PatientBirthTime", "TimeOfLastCalibration"),
}


@pytest.mark.parametrize("vr", DATES)
def test_u06_no_date_is_written_in_any_form(make_slice: Make, through: Through, vr: str) -> None:
    """Leap days that exist and that do not, zones, ranges, years alone: none is shifted, all are gone."""
    plain = through(make_slice())[1]
    for value in DATES[vr]:
        ds, inner = make_slice(), Dataset()
        with pydicom.config.disable_value_validation():
            for keyword in DATED[vr]:
                ds[keyword] = pydicom.DataElement(keyword, vr, value)
                inner[keyword] = pydicom.DataElement(keyword, vr, value)
            ds.TimezoneOffsetFromUTC = "+0130"
            ds.RequestAttributesSequence = [inner]
            assert through(ds) == (Reason.OK, plain)


@pytest.mark.parametrize("age", ["089Y", "090Y", "094Y", "94", "94Y", "005W", "011M", "003D", "4711", "QZJX"])
def test_u07_no_age_is_written_however_old(make_slice: Make, through: Through, age: str) -> None:
    plain = through(make_slice())[1]
    ds = make_slice(PatientSize="1.77", PatientWeight="94", PatientSex="F", PregnancyStatus=4)
    with pydicom.config.disable_value_validation():
        ds["PatientAge"] = pydicom.DataElement("PatientAge", "AS", age)
        assert through(ds) == (Reason.OK, plain)


def test_u08_a_dictionary_of_every_identifier_recomputes_nothing(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    """Whoever guesses the identifier, alone, salted with public words or keyed with a guessed key, finds none of it."""
    write_series(tmp_path / "data", PatientID=MRN, IssuerOfPatientID="CLINIC", AccessionNumber="A1")
    run(tmp_path)
    export.export(tmp_path / "data", tmp_path / "out", (tmp_path / "work" / "pseudonym.key").read_bytes())
    content = bytes_of(tmp_path / "work", but="pseudonym.key") + bytes_of(tmp_path / "out")
    uids = {str(pydicom.dcmread(path)[keyword].value) for path in (tmp_path / "data").glob("*.dcm")
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}  # fmt: skip
    guesses = {MRN, f"CLINIC{MRN}", f"{MRN}CLINIC", f"CLINIC\0{MRN}", f"patient\0CLINIC\0{MRN}", f"CLINIC^{MRN}", *uids}
    guesses |= {f"uid\0{uid}" for uid in uids} | {path.name for path in (tmp_path / "data").iterdir()}
    tried = 0
    for guess, algorithm in itertools.product(guesses, ("md5", "sha1", "sha256", "sha512", "blake2b")):
        for salt in (b"", b"fedsynth", bytes(32)):
            for digest in (hashlib.new(algorithm, salt + guess.encode()).digest(),
                           __import__("hmac").digest(salt, guess.encode(), algorithm)):  # fmt: skip
                forms = {digest.hex()[:16], digest.hex()[:16].upper(), base64.b32encode(digest).decode()[:16].lower(),
                         base64.b64encode(digest).decode()[:16], str(int.from_bytes(digest[:16], "big"))}  # fmt: skip
                assert not any(form.encode() in content for form in forms)
                tried += len(forms)
    assert tried > 5000
    secret = (tmp_path / "work" / "pseudonym.key").read_bytes()
    assert pseudonym.pseudonym(secret, "CLINIC", MRN).encode() in content  # with the key it can be done


def test_u09_the_key_is_in_no_output_log_or_environment(
    tmp_path: Path, write_series: Write, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    write_series(tmp_path / "data")
    run(tmp_path)
    secret = (tmp_path / "work" / "pseudonym.key").read_bytes()
    export.export(tmp_path / "data", tmp_path / "out", secret)
    spoken = "".join((caplog.text, *capfd.readouterr(), *os.environ.values())).encode("utf-8", "surrogateescape")
    content = bytes_of(tmp_path / "work", but="pseudonym.key") + bytes_of(tmp_path / "out") + spoken
    forms = [secret, secret[::-1], secret.hex().encode(), base64.b64encode(secret), base64.b32encode(secret), secret[:16],
             hashlib.sha256(secret).digest(), hashlib.sha256(secret).hexdigest().encode()]  # fmt: skip
    assert not [form for form in forms if form in content or form.lower() in content.lower()]


def test_u10_order_times_and_names_of_the_output_say_nothing_of_the_source(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    """Files are written in the order of keyed tokens: another key, another order; neither follows the source's."""
    write_series(tmp_path / "data")
    orders, rename = [], Path.replace
    for number, secret in enumerate((key, bytes(32))):
        out = tmp_path / f"out{number}"
        written: list[str] = []

        def noted(self: Path, target: Path, written: list[str] = written) -> Path:
            written.append(Path(target).name)
            return rename(self, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", noted)
            export.export(tmp_path / "data", out, secret)
        by_instance = {f"{pseudonym.uid(secret, str(pydicom.dcmread(path).SOPInstanceUID))}.dcm": index
                       for index, path in enumerate(sorted((tmp_path / "data").glob("*.dcm")))}  # fmt: skip
        orders.append([by_instance[name] for name in written if name.endswith(".dcm")])
        assert sorted(orders[-1]) == list(range(16)) and orders[-1] != sorted(orders[-1])
        lines = manifest.read(out / "manifest.jsonl")
        assert [entry.token for entry in lines] == sorted(entry.token for entry in lines)
    assert orders[0] != orders[1]


def test_l01_what_a_reader_warns_of_is_not_repeated(
    make_slice: Make, save: Save, tmp_path: Path, key: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """pydicom quotes an invalid value in a warning. Warnings are errors here: one that escaped would fail the test."""
    caplog.set_level(logging.DEBUG)
    ds = make_slice()
    with pydicom.config.disable_value_validation():
        ds.StudyDate = "QZJX SMITH 1947"
        ds.InstanceCreatorUID = "QZJX"
        path = save(ds, tmp_path / "data" / "a.dcm")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert pydicom.dcmread(path).InstanceCreatorUID == "QZJX"
    assert any("QZJX" in str(warning.message) for warning in heard), "the reader no longer quotes: this test is dead"
    caplog.clear()
    export.export(tmp_path / "data", tmp_path / "out", key)
    assert "QZJX" not in caplog.text


def test_l02_a_traceback_holds_no_value(make_slice: Make, key: bytes) -> None:
    """Neither the text nor the chain of causes, also when local variables are printed."""
    ds = make_slice(ImageType=["DERIVED", "QZJX"], PatientID="QZJX")
    for call in (lambda: deidentify.rebuild(ds, key), lambda: acceptance.check(ds), lambda: reader.whole(Path("QZJX"))):
        with pytest.raises(Withheld) as caught:
            call()
        error = caught.value
        assert error.__cause__ is None and error.__context__ is None
        assert "QZJX" not in "".join(traceback.format_exception_only(error)) + repr(error) + str(error.args)


def test_l03_no_library_keeps_a_log_of_its_own(tmp_path: Path) -> None:
    """ONNX Runtime writes a device number and a database of events into the home folder, and uploads them, unless told not to."""
    code = "import numpy, client.readers.text as t; list(t.lines(numpy.eye(64) * 200)); print('ran')"
    for place in ("home", "tmp", "cwd"):
        (tmp_path / place).mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    homes = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run([sys.executable, "-c", code], env={**clean, **homes, "PYTHONPATH": root}, cwd=tmp_path / "cwd",
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "ran\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_l04_nothing_is_written_outside_the_output_and_nothing_is_left_beside_it(
    tmp_path: Path, write_series: Write, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No temporary file elsewhere; after a crash in the middle no half file with a name that looks whole."""
    write_series(tmp_path / "data")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "tmp")
    run(tmp_path)
    export.export(tmp_path / "data", tmp_path / "out", key)
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out", "tmp", "work"]
    assert not list(tmp_path.rglob("*.partial*"))
    count = 0

    def fail(rebuilt: Dataset) -> bytes:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return deidentify_encode(rebuilt)

    deidentify_encode = deidentify.encode
    monkeypatch.setattr(deidentify, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        export.export(tmp_path / "data", tmp_path / "again", key)
    monkeypatch.undo()
    left = list((tmp_path / "again").iterdir())
    assert len(left) == 3 and all(path.suffix == ".partial" for path in left)
    shutil.rmtree(tmp_path / "data")
    write_series(tmp_path / "data", study="2")
    export.export(tmp_path / "data", tmp_path / "again", key)
    assert not list((tmp_path / "again").glob("*.partial"))


def test_l07_a_cohort_file_keeps_no_normalisation_constant(
    tmp_path: Path, write_series: Write, head: np.ndarray
) -> None:
    """Twice the intensity gives the same bytes: the scale of the scanner, which tells scans apart, is gone."""
    for number, factor in enumerate((1, 2)):
        write_series(tmp_path / str(number) / "data", (head * factor).astype(np.uint16))
        ingest(site(tmp_path / str(number)), classes=["x"], image_size=16, slices_per_patient=4,
               work=tmp_path / str(number) / "work")  # fmt: skip
    (first,), (second,) = ([*(tmp_path / str(number) / "work" / "cohort").glob("*.npz")] for number in (0, 1))
    a, b = np.load(first), np.load(second)
    assert set(a.files) == {"x", "label"} and np.abs(a["x"].astype(int) - b["x"].astype(int)).max() <= 1


@pytest.mark.parametrize("looked", [True, False])
def test_m01_markers_are_those_of_the_standard_and_only_for_what_ran(
    make_slice: Make, through: Through, looked: bool
) -> None:
    for claim in ({}, {"BurnedInAnnotation": "NO", "RecognizableVisualFeatures": "NO", "PatientIdentityRemoved": "NO",
                       "LongitudinalTemporalInformationModified": "UNMODIFIED", "DeidentificationMethod": "QZJX"}):  # fmt: skip
        reason, written = through(make_slice(**claim), text_check=looked)
        assert reason is Reason.OK
        ds = pydicom.dcmread(__import__("io").BytesIO(written))
        assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
        codes = {(item.CodeValue, item.CodingSchemeDesignator) for item in ds.DeidentificationMethodCodeSequence}
        assert codes == {("113100", "DCM")} | ({("113101", "DCM")} if looked else set())
        assert ds.DeidentificationMethod == profile.METHOD
        assert ("BurnedInAnnotation" in ds) == (("113101", "DCM") in codes)
        assert ("RecognizableVisualFeatures" in ds) == (("113102", "DCM") in codes)


@pytest.mark.debian("dicom3tools")
@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs Debian's dicom3tools")
def test_m02_a_validator_finds_no_error_in_what_is_written(make_slice: Make, through: Through, tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(through(make_slice())[1])
    said = subprocess.run(["dciodvfy", tmp_path / "x.dcm"], capture_output=True, text=True, check=False)
    assert "Error" not in said.stderr + said.stdout
