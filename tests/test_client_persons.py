"""Who is one person: nobody counts as two, and where the files do not say who is who, nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset

from client import dataset
from client.intake.ingest import IngestReport, ingest
from client.rebuild import export, manifest
from shared.config import Site

Write = Callable[..., list[Path]]


def run(folder: Path, *, classes: tuple[str, ...] = ("a", "b"), work: str = "work", **site: Any) -> IngestReport:
    values = {"face_removal": "none", "text_check": "none", "minimum_slices": 4, **site}
    settings = Site.model_validate({"name": "a", "data": folder / "data", **values})
    return ingest(settings, classes=classes, image_size=16, slices_per_patient=4, work=folder / work)


def people(folder: Path, work: str = "work") -> int:
    return len(dataset.load(folder / work / "cohort"))


def reasons(folder: Path, work: str = "work") -> dict[str, int]:
    return manifest.reasons(manifest.read(folder / work / "manifest.jsonl"))


def pseudonyms(folder: Path, key: bytes, **options: Any) -> set[str]:
    """The patients in what `client deidentify` writes of a folder, each file of which must pass."""
    entries = export.export(folder / "data", folder / "out", key, text_check=False, **options)
    assert {entry.reason.code for entry in entries} == {"ok"}
    written = {str(pydicom.dcmread(path).PatientID) for path in (folder / "out").glob("*.dcm")}
    assert {entry.patient for entry in entries} == written
    return written


def half(first: str, second: str) -> Callable[[int, FileDataset], None]:
    """The first eight slices under one identifier, the others under another: an id that was corrected half way."""

    def change(index: int, ds: FileDataset) -> None:
        ds.PatientID = first if index < 8 else second

    return change


def test_person_01_a_study_under_two_identifiers_is_one_person(tmp_path: Path, write_series: Write, key: bytes) -> None:
    def again(index: int, ds: FileDataset) -> None:
        ds.SeriesInstanceUID += ".2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID + ".2"

    write_series(tmp_path / "data" / "a", PatientID="P1")
    write_series(tmp_path / "data" / "b", PatientID="P2", change=again)
    report = run(tmp_path)
    assert report.patients == people(tmp_path) == 1
    assert report.people["joined"] == 1
    assert len(pseudonyms(tmp_path, key)) == 1


def test_person_01_an_identifier_corrected_within_a_series_leaves_the_series_whole(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    write_series(tmp_path / "data", change=half("P1", "P2"))
    assert run(tmp_path).passed == 16 and people(tmp_path) == 1
    assert len(pseudonyms(tmp_path, key)) == 1


def test_person_01_a_later_study_follows_the_person_under_either_identifier(
    tmp_path: Path, write_series: Write
) -> None:
    write_series(tmp_path / "data" / "both", change=half("P1", "P2"))
    write_series(tmp_path / "data" / "old", study="2", PatientID="P1")
    write_series(tmp_path / "data" / "new", study="3", PatientID="P2")
    assert run(tmp_path).passed == 48 and people(tmp_path) == 1


def test_person_01_a_refused_object_of_the_study_ties_two_identifiers_as_well(
    tmp_path: Path, write_series: Write, make_slice: Callable[..., FileDataset], save: Callable[[Dataset, Path], Path]
) -> None:
    """The report of study 1 was filed under P2: it is no image, and still says who P2 is."""
    (first, *_) = write_series(tmp_path / "data" / "a", PatientID="P1")
    write_series(tmp_path / "data" / "b", study="2", PatientID="P2")
    report = pydicom.dcmread(first)
    report.PatientID, report.Modality, report.SOPInstanceUID = "P2", "SR", "1.2.3.4"
    save(report, tmp_path / "data" / "report.dcm")
    assert run(tmp_path).reasons == {"modality": 1} and people(tmp_path) == 1


def test_person_01_an_identifier_that_the_header_names_beside_its_own_is_the_same_person(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = "P1", "TEXT"
    write_series(tmp_path / "data" / "a", study="1", PatientID="P1")
    write_series(tmp_path / "data" / "b", study="2", PatientID="P2", OtherPatientIDsSequence=[other])
    write_series(tmp_path / "data" / "c", study="3", PatientID="P3", OtherPatientIDs=["X", "P2"])
    write_series(tmp_path / "data" / "d", study="4", PatientID="P4", OtherPatientIDs=["X"])  # names nobody here
    assert run(tmp_path).patients == 2
    assert len(pseudonyms(tmp_path, key)) == 2


def test_person_01_a_study_uid_of_many_people_withholds_them_and_makes_nobody_one(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    """Five identifiers in one study: a UID that was copied. Nobody can tell who is who."""

    def change(index: int, ds: FileDataset) -> None:
        ds.PatientID = f"P{index % 5}"

    write_series(tmp_path / "data" / "a", change=change)
    write_series(tmp_path / "data" / "b", study="2", PatientID="P0")
    write_series(tmp_path / "data" / "c", study="3", PatientID="good")
    assert run(tmp_path).reasons == {"many-names": 32} and people(tmp_path) == 1
    entries = export.export(tmp_path / "data", tmp_path / "out", key, text_check=False)
    assert manifest.reasons(entries) == {"many-names": 32}


def test_person_01_a_file_without_an_issuer_changes_no_pseudonym(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    write_series(tmp_path / "data" / "a", IssuerOfPatientID="north")
    alone = pseudonyms(tmp_path, key)
    (first, *_) = write_series(tmp_path / "data" / "b", study="2")
    assert pseudonyms(tmp_path, key) == alone
    first.parent.rename(tmp_path / "b")
    run(tmp_path)
    before = {path.name for path in (tmp_path / "work" / "cohort").glob("*.npz")}
    (tmp_path / "b").rename(tmp_path / "data" / "b")
    assert run(tmp_path).passed == 32
    assert {path.name for path in (tmp_path / "work" / "cohort").glob("*.npz")} == before and len(before) == 1


def test_person_01_without_an_issuer_a_number_of_two_issuers_is_withheld(tmp_path: Path, write_series: Write) -> None:
    for number, issuer in enumerate(("north", "south")):
        write_series(tmp_path / "data" / issuer, study=str(number + 1), IssuerOfPatientID=issuer)
    write_series(tmp_path / "data" / "none", study="3")
    assert run(tmp_path).reasons == {"no-issuer": 16} and people(tmp_path) == 2


def test_person_01_the_sites_own_issuer_stands_where_a_header_has_none(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    for number, issuer in enumerate(("north", "south")):
        write_series(tmp_path / "data" / issuer, study=str(number + 1), IssuerOfPatientID=issuer)
    write_series(tmp_path / "data" / "none", study="3")
    assert run(tmp_path, default_issuer="north").reasons == {} and people(tmp_path) == 2
    assert len(pseudonyms(tmp_path, key, default_issuer="north")) == 2


def test_person_01_identifiers_that_look_alike_are_counted_and_never_named(tmp_path: Path, write_series: Write) -> None:
    for number, name in enumerate(("P007", "p7", "P 7", "P-0007", "Q7", "70")):
        write_series(tmp_path / "data" / str(number), study=str(number + 1), PatientID=name)
    report = run(tmp_path)
    assert report.patients == 6 and report.people == {"identifiers": 6, "joined": 0, "alike": 4}
    written = (tmp_path / "work" / "manifest.jsonl").read_text()
    assert "P007" not in written and '"alike":4' in written.replace(" ", "")


@pytest.mark.parametrize("order", [("P1", "P2"), ("P2", "P1")])
def test_person_01_the_pseudonym_of_one_person_does_not_hang_on_the_order_of_files(
    tmp_path: Path, write_series: Write, key: bytes, order: tuple[str, str]
) -> None:
    write_series(tmp_path / "data", change=half(*order))
    write_series(tmp_path / "other" / "data", change=half("P1", "P2"))
    assert pseudonyms(tmp_path, key) == pseudonyms(tmp_path / "other", key)


def coded(value: str, scheme: str = "SCT") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "x"
    return item


def equipment(purpose: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(purpose, "DCM")]
    return item


NOT_A_PERSON: dict[str, list[dict[str, Any]]] = {
    "synthetic": [{"SyntheticData": "YES"}, {"SyntheticData": "MAYBE"},
                  {"ContributingEquipmentSequence": [equipment("109100")]}],
    "quality-control": [{"QualityControlSubject": "YES"}, {"QualityControlImage": "YES"}, {"QualityControlImage": "BOTH"}],
    "animal": [{"PatientSpeciesDescription": "Canis lupus"}, {"PatientSpeciesCodeSequence": [coded("448771007")]},
               {"PatientBreedDescription": "Beagle"}, {"PatientBreedCodeSequence": [coded("132392007")]},
               {"PatientSexNeutered": "ALTERED"}, {"StrainDescription": "C57BL/6"},
               {"BreedRegistrationSequence": [coded("x")]}],
}  # fmt: skip
A_PERSON: list[dict[str, Any]] = [
    {"SyntheticData": "NO", "QualityControlSubject": "NO", "QualityControlImage": "NO"},
    {"SyntheticData": "", "PatientSpeciesDescription": "", "PatientBreedDescription": "", "PatientSexNeutered": ""},
    {"PatientSpeciesDescription": "Homo sapiens"},
    {"PatientSpeciesDescription": "HUMAN", "PatientSpeciesCodeSequence": [coded("337915000")]},
    {"PatientSpeciesCodeSequence": [coded("L-85B00", "SRT")]},
    {
        "ContributingEquipmentSequence": [equipment("109101")],
        "PatientBreedCodeSequence": [],
        "ResponsiblePerson": "A^B",
    },
]


@pytest.mark.parametrize(("reason", "said"), [(r, said) for r, several in NOT_A_PERSON.items() for said in several])
def test_person_02_what_is_no_person_or_was_not_acquired_is_refused_with_its_word(
    tmp_path: Path, write_series: Write, key: bytes, reason: str, said: dict[str, Any]
) -> None:
    write_series(tmp_path / "data" / "no", **said)
    write_series(tmp_path / "data" / "yes", study="2", PatientID="P2")
    report = run(tmp_path)
    assert (report.reasons, report.refused, people(tmp_path)) == ({reason: 16}, 16, 1)
    entries = export.export(tmp_path / "data", tmp_path / "out", key, text_check=False)
    assert manifest.reasons(entries) == {reason: 16} and len(list((tmp_path / "out").glob("*.dcm"))) == 16


@pytest.mark.parametrize("said", A_PERSON)
def test_person_02_whoever_is_said_to_be_a_person_is_used(
    make_slice: Callable[..., FileDataset], through: Callable[..., Any], said: dict[str, Any]
) -> None:
    assert through(make_slice(**said))[0].code == "ok"


def test_person_02_a_release_of_ours_is_never_taken_for_patients(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    def made(_: int, ds: FileDataset) -> None:
        ds.SyntheticData, ds.ImageType = "YES", ["ORIGINAL", "PRIMARY", "M"]  # even where the type was edited

    write_series(tmp_path / "data", change=made)
    entries = export.export(tmp_path / "data", tmp_path / "out", key, text_check=False)
    assert manifest.reasons(entries) == {"synthetic": 16}
