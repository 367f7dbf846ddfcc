"""Who is one person: nobody counts as two, and where the files do not say who is who, nothing is guessed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import Dataset, FileDataset

from client import dataset
from client.deidentification import export, manifest
from client.readers.ingest import IngestReport, ingest
from client.verification import verify
from shared.config.site import Site
from shared.errors import DataError

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


def test_person_01_a_number_of_another_issuer_is_another_person_also_where_a_header_lists_it(
    tmp_path: Path, write_series: Write, key: bytes
) -> None:
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "P1", "south", "TEXT"
    about = {"OtherPatientIDsSequence": [other], "IssuerOfPatientID": "north"}
    write_series(tmp_path / "data" / "a", study="1", PatientID="P1", IssuerOfPatientID="north")
    write_series(tmp_path / "data" / "b", study="2", PatientID="P2", **about)
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


def listed(records: Path, work: Path) -> frozenset[str]:
    """The pseudonyms on the list that a cohort's facts name."""
    return frozenset((records / "ledger.members" / f"{dataset.facts(work).members}.txt").read_text().split())


def test_person_01_a_ledger_that_counts_cohorts_apart_knows_a_person_by_every_name(
    tmp_path: Path, write_series: Write
) -> None:
    """The first cohort has P2 alone, the second knows that P1 and P2 are one: they share a patient. Issuer or not, as well."""
    records = tmp_path / "records"
    both, alone = tmp_path / "both", tmp_path / "alone"
    write_series(both / "data", change=half("P1", "P2"), IssuerOfPatientID="north")
    write_series(both / "data" / "q", study="2", PatientID="Q")
    names = []
    for number in (1, 2):
        write_series(alone / str(number) / "data", study="9", PatientID=f"P{number}")
    for folder in (both, alone / "1", alone / "2"):
        site = Site(
            name="a", data=folder / "data", face_removal="none", text_check="none", minimum_slices=4, records=records
        )
        ingest(site, classes=["a"], image_size=16, slices_per_patient=4, work=folder / "work")
        names.append(listed(records, folder / "work"))
    assert all(names) and names[1].isdisjoint(names[2])
    assert names[0] & names[1] and names[0] & names[2]
    assert not verify.verify_folder(both / "work", both / "data").findings
    content = (both / "work" / "cohort" / "cohort.names").read_text()
    (both / "work" / "cohort" / "cohort.names").write_text(content + "QZJX\n")
    assert {found.rule for found in verify.verify_folder(both / "work").findings} == {"cohort-file"}


def coded(value: str, scheme: str = "SCT") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, "x"
    return item


def equipment(purpose: str) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [coded(purpose, "DCM")]
    return item


NOT_A_PERSON: dict[str, list[dict[str, Any]]] = {
    "synthetic": [{"SyntheticData": "YES"}, {"SyntheticData": "Y"},
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


NOISE = np.random.default_rng(0).integers(0, 1000, (8, 8, 8)).astype(np.int16)
PICTURE = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)


def nifti(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(NOISE, np.eye(4)), path)


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PICTURE).save(path)


NIFTI_TREES: dict[str, tuple[tuple[str, ...], int]] = {  # files -> people
    "sessions in flat names": (("sub-01_ses-01_T1w.nii", "sub-01_ses-02_T1w.nii", "sub-02_T1w.nii.gz"), 2),
    "flat names without a contrast": (("sub-01_ses-01.nii", "sub-01_ses-02.nii", "sub-02_ses-01.nii", "sub-02_ses-02.nii"), 2),
    "two contrasts of IXI": (("IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz", "IXI012-HH-1211-T1.nii.gz"), 2),
    "OASIS": (("OAS1_0001_MR1.nii", "OAS1_0001_MR2.nii", "OAS1_0002_MR1.nii"), 2),
    "a person's word in flat names": (("patient01_T1.nii", "patient01_T2.nii", "T1_subject-2.nii"), 2),
    "BIDS": (("sub-01/anat/sub-01_T1w.nii", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii", "sub-02/anat/sub-02_T1w.nii"), 2),
    "BIDS one level down": (tuple(f"rawdata/sub-0{n}/anat/sub-0{n}_T1w.nii" for n in (1, 2, 3)), 3),
    "BIDS two levels down": (tuple(f"study/bids/sub-0{n}/ses-1/anat/sub-0{n}_ses-1_T1w.nii" for n in (1, 2)), 2),
    "derivatives one level down": (("ds/sub-01/anat/sub-01_T1w.nii", "ds/derivatives/fs/sub-09/anat/sub-09_T1w.nii"), 1),
    "one person in two trees": (("a/sub-01/anat/sub-01_T1w.nii", "b/sub-01/anat/sub-01_T1w.nii"), 1),
    "a folder a patient": (("A17/t1.nii", "A17/t2.nii", "B3/t1.nii"), 2),
    "a folder a patient one level down": (("nifti/A17/t1.nii", "nifti/A17/t2.nii", "nifti/B3/t1.nii"), 2),
    "folders of visits": (("visit1/patient01.nii", "visit2/patient01.nii", "visit1/patient02.nii"), 2),
    "folders of contrasts": (("T1/sub-01.nii", "T2/sub-01.nii", "T1/sub-02.nii"), 2),
    "people in one folder": (("mine/patient01.nii", "mine/patient02.nii"), 2),
}  # fmt: skip


@pytest.mark.parametrize("tree", NIFTI_TREES)
def test_person_01_nifti_files_are_grouped_by_person(tmp_path: Path, tree: str) -> None:
    names, expected = NIFTI_TREES[tree]
    nifti(tmp_path, *names)
    assert run(tmp_path, format="nifti").patients == people(tmp_path) == expected
    assert "no-patient" not in reasons(tmp_path)


NOBODY = {
    "numbers": ("0001.nii", "0002.nii"), "words of images": ("scan1.nii", "T1_0001.nii", "brain_2.nii.gz", "run-2.nii"),
    "folders of contrasts": ("T1/0001.nii", "T2/0001.nii"), "folders of visits": ("baseline/7.nii", "visit2/7.nii"),
    "folders of dates": ("2019-03-04/7.nii", "20200304/7.nii", "2021/7.nii"), "classes": ("a/1.nii", "b/2.nii"),
}  # fmt: skip


@pytest.mark.parametrize("tree", NOBODY)
def test_person_01_names_that_do_not_say_the_person_are_refused_with_the_cure(tmp_path: Path, tree: str) -> None:
    nifti(tmp_path, *NOBODY[tree])
    with pytest.raises(DataError, match=r"no-patient.*`people`") as caught:
        run(tmp_path, format="nifti")
    assert "0001" not in str(caught.value)
    assert set(reasons(tmp_path)) == {"no-patient"}


def test_person_01_a_name_that_says_two_people_is_withheld(tmp_path: Path) -> None:
    nifti(
        tmp_path,
        "sub-01/anat/sub-02_T1w.nii",
        "patient1/patient2.nii",
        "sub-03/anat/sub-03_T1w.nii",
        "patient04/patient4.nii",
    )
    run(tmp_path, format="nifti")
    assert people(tmp_path) == 2 and reasons(tmp_path) == {"two-names": 2}


def test_person_01_a_table_says_whose_each_file_is(tmp_path: Path) -> None:
    nifti(tmp_path, "0001.nii", "0002.nii", "T2/0001.nii", "sub-09.nii", "0009.nii")
    table = tmp_path / "data" / "people.csv"
    table.write_text("file,person\n0001.nii,A\nT2/0001.nii,A\nT2\\0002.nii,A\n./0002.nii,B\nsub-09.nii,B\n")
    report = run(tmp_path, format="nifti", people="people.csv")
    assert report.patients == people(tmp_path) == 2 and report.reasons == {"no-patient": 1, "other-series": 2}
    table.write_text("file;Patient ID\n0001.nii;A\n0001.nii;B\n")
    with pytest.raises(DataError, match="rows 2 and 3 of the table of people"):
        run(tmp_path, format="nifti", people="people.csv")
    table.write_text("file,person\nelsewhere/0001.nii,A\n")
    with pytest.raises(DataError, match="no file of the table of people is there"):
        run(tmp_path, format="nifti", people="people.csv")
    with pytest.raises(DataError, match="cannot read the table of people"):
        run(tmp_path, format="nifti", people="nowhere.csv")


def test_person_01_a_labels_table_names_the_people_of_flat_files(tmp_path: Path) -> None:
    nifti(tmp_path, "QZ17-T1.nii", "QZ17-T2.nii", "QZ17B.nii", "visit2/QZ17_T1.nii", "R5.nii")
    (tmp_path / "labels.csv").write_text("patient_id,class\nQZ17,a\nR5,b\n")
    run(tmp_path, format="nifti", labels=tmp_path / "labels.csv")
    assert people(tmp_path) == 2 and reasons(tmp_path) == {"no-patient": 1, "other-series": 2}


def test_person_01_the_hospital_may_say_that_each_file_or_each_folder_is_a_person(tmp_path: Path) -> None:
    nifti(tmp_path, "0001.nii", "0002.nii", "T1/0001.nii", "T1/0002.nii")
    assert run(tmp_path, format="nifti", people="image").patients == 4
    assert run(tmp_path, format="nifti", people="folder").reasons == {"no-patient": 2, "other-series": 1}


def test_person_01_identifiers_of_files_that_look_alike_are_counted(tmp_path: Path) -> None:
    nifti(tmp_path, "sub-01.nii", "sub-1.nii", "sub-A.nii", "sub-a.nii", "sub-7.nii")
    assert run(tmp_path, format="nifti").people == {"identifiers": 5, "joined": 0, "alike": 4}


def test_person_01_participants_of_a_bids_tree_are_its_labels(tmp_path: Path) -> None:
    nifti(tmp_path, *(f"raw/sub-0{n}/anat/sub-0{n}_T1w.nii" for n in (1, 2, 3, 4)))
    root = tmp_path / "data" / "raw"
    (root / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    (root / "participants.tsv").write_text(
        "participant_id\tage\tgroup\nsub-01\t33\ta\n02\t41\tb\nsub-03\t5\tn/a\nsub-08\t5\ta\n"
    )
    report = run(tmp_path, format="nifti")
    assert sorted(patient.label for patient in dataset.load(tmp_path / "work" / "cohort")) == [-1, -1, 0, 1]
    assert report.labels["matched"] == 2 and report.labels["surplus"] == 1


def test_person_01_pictures_ask_the_same_question_and_get_the_same_answer(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "a/sub-01_slice1.png",
        "a/sub-01_slice2.png",
        "a/patient2/1.png",
        "b/P7/1.png",
        "b/7.png",
        "b/T1/1.png",
    )
    report = run(tmp_path, format="images")
    assert (report.patients, report.reasons) == (3, {"no-patient": 2})
    assert run(tmp_path, format="images", people="image").patients == 6
    assert run(tmp_path, format="images", people="folder").reasons == {"no-patient": 3}
    (tmp_path / "people.csv").write_text("file,person\na/sub-01_slice1.png,X\nb/7.png,Y\nb/T1/1.png,Y\n")
    report = run(tmp_path, format="images", people=tmp_path / "people.csv")
    assert (report.patients, report.passed, report.reasons) == (2, 3, {"no-patient": 3})


def test_person_01_a_flat_folder_of_pictures_without_people_is_refused_with_the_cure(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(DataError, match=r"no-patient.*`people`"):
        run(tmp_path, format="images")


def test_person_01_people_is_a_setting_of_files_and_not_of_dicom(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="DICOM says it in its headers"):
        Site(name="a", data=tmp_path, people="folder")
    with pytest.raises(ValidationError, match=r"auto, folder, image.*\.csv"):
        Site(name="a", data=tmp_path, format="nifti", people="table")
