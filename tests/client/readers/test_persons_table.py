"""The table of docs/persons.md, row by row: every way to be one person under two names, or two under one, and what happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset

from client import dataset
from client.deidentification import manifest
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "persons.md"
NOISE = np.random.default_rng(0).integers(0, 1000, (8, 8, 8)).astype(np.int16)
PICTURE = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)


@dataclass(frozen=True)
class Way:
    """A row. `files`: of NIfTI or pictures; `series`: of DICOM, their attributes; `people`: patients in the cohort."""

    what: str
    happens: str
    people: int
    reasons: dict[str, int] = field(default_factory=dict)
    joined: int = 0
    alike: int = 0
    files: tuple[str, ...] = ()
    series: tuple[dict[str, Any], ...] = ()
    change: Callable[[int, FileDataset], None] | None = None
    table: str = ""
    site: dict[str, Any] = field(default_factory=dict)


def corrected(index: int, ds: FileDataset) -> None:
    ds.PatientID = "P1" if index < 8 else "P2"


def copied(index: int, ds: FileDataset) -> None:
    ds.PatientID = f"P{index % 5}"


def unnamed(index: int, ds: FileDataset) -> None:
    ds.PatientID = ""


def other(identifier: str) -> Dataset:
    item = Dataset()
    item.PatientID, item.TypeOfPatientID = identifier, "TEXT"
    return item


NIFTI, IMAGES = {"format": "nifti"}, {"format": "images"}
WAYS = (
    Way("One study under two identifiers", "one person; both are used", 1, {"other-series": 16}, joined=1,
        series=({"study": "1", "PatientID": "P1"}, {"study": "1", "PatientID": "P2", "again": True})),
    Way("An identifier corrected within a series", "one person; the series stays whole", 1, joined=1,
        series=({},), change=corrected),
    Way("A header lists the other identifier (Other Patient IDs)", "one person", 1, joined=1,
        series=({"study": "1", "PatientID": "P1"}, {"study": "2", "PatientID": "P2", "OtherPatientIDsSequence": [other("P1")]})),
    Way("An image copied under a second identifier", "one person; the doubles are withheld", 1, {"duplicate": 16}, joined=1,
        series=({"study": "1", "PatientID": "P1"}, {"study": "1", "PatientID": "P2"})),
    Way("A refused object of the study (a report) under a second identifier", "one person", 1, {"modality": 16}, joined=1,
        series=({"study": "1", "PatientID": "P1"}, {"study": "1", "PatientID": "P2", "Modality": "SR", "again": True},
                {"study": "2", "PatientID": "P2"})),
    Way("The issuer stands in a part of the files", "one person, with the pseudonym of identifier and issuer", 1,
        series=({"study": "1", "IssuerOfPatientID": "north"}, {"study": "2"})),
    Way("No issuer, and two issuers have the number", "the files without issuer are withheld", 2, {"no-issuer": 16},
        series=({"study": "1", "IssuerOfPatientID": "north"}, {"study": "2", "IssuerOfPatientID": "south"}, {"study": "3"})),
    Way("The same, with `default_issuer` in the site file", "the person of that issuer", 2, site={"default_issuer": "north"},
        series=({"study": "1", "IssuerOfPatientID": "north"}, {"study": "2", "IssuerOfPatientID": "south"}, {"study": "3"})),
    Way("One number from two issuers", "two people", 2,
        series=({"study": "1", "IssuerOfPatientID": "north"}, {"study": "2", "IssuerOfPatientID": "south"})),
    Way("Identifiers that differ in case, zeros, blanks or signs alone", "people apart; counted and said", 3, alike=2,
        series=({"study": "1", "PatientID": "P007"}, {"study": "2", "PatientID": "p-7"}, {"study": "3", "PatientID": "P8"})),
    Way("A study UID that was copied over more than four identifiers", "all of them are withheld", 0, {"many-names": 16},
        series=({},), change=copied),
    Way("No identifier", "withheld", 0, {"no-patient": 16}, series=({},), change=unnamed),
    Way("Two identifiers in one header", "withheld", 0, {"required": 16}, series=({"PatientID": ["P1", "P2"]},)),
    Way("Sessions in flat names (`sub-01_ses-01`, `sub-01_ses-02`)", "one person", 2, site=NIFTI,
        files=("sub-01_ses-01.nii", "sub-01_ses-02.nii", "sub-02_ses-01.nii", "sub-02_ses-02.nii")),
    Way("Contrasts in flat names (`IXI002-Guys-0828-T1`, `-T2`)", "one person; one contrast is used", 1, {"other-series": 1},
        files=("IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz"), site=NIFTI),
    Way("Subjects one level down (`rawdata/sub-01`)", "each subject is a person; derived folders are skipped", 3,
        {"derivatives": 1}, site=NIFTI,
        files=(*(f"rawdata/sub-0{n}/anat/sub-0{n}_T1w.nii" for n in (1, 2, 3)), "rawdata/derivatives/sub-01/anat/sub-01_T1w.nii")),
    Way("One subject in two trees", "one person", 1, {"other-series": 1}, site=NIFTI,
        files=("a/sub-01/anat/sub-01_T1w.nii", "b/sub-01/anat/sub-01_T1w.nii")),
    Way("Folders of visits or contrasts around one person's files", "one person", 1, {"other-series": 2}, site=NIFTI,
        files=("visit1/patient01.nii", "visit2/patient01.nii", "T2/patient01.nii")),
    Way("A path that names two people (`sub-01/sub-02_T1w`)", "withheld", 0, {"two-names": 1}, site=NIFTI,
        files=("sub-01/anat/sub-02_T1w.nii",)),
    Way("Subjects that differ in zeros or case alone (`sub-01`, `sub-1`)", "people apart; counted and said", 2, alike=2,
        files=("sub-01.nii", "sub-1.nii"), site=NIFTI),
    Way("Flat files, or folders of dates and contrasts, without a person's name", "refused: a table or `people` is needed", 0,
        {"no-patient": 4}, site=NIFTI, files=("0001.nii", "scan2.nii", "T1/0001.nii", "2021-03-04/0001.nii")),
    Way("The same, with a table of people (`people: people.csv`)", "as the table says; what it lacks is withheld", 1,
        {"no-patient": 1, "other-series": 1}, files=("0001.nii", "T1/0001.nii", "0009.nii"),
        table="file,person\n0001.nii,A\nT1/0001.nii,A\n", site={**NIFTI, "people": "people.csv"}),
    Way("Pictures flat below their class", "refused: a table or `people` is needed", 0, {"no-patient": 2},
        files=("a/1.png", "b/2.png"), site=IMAGES),
    Way("The same, where the hospital says `people: image`", "each picture is a person", 2,
        files=("a/1.png", "b/2.png"), site={**IMAGES, "people": "image"}),
    Way("A patient's folder below two classes", "withheld", 0, {"two-classes": 2}, files=("a/P7/1.png", "b/P7/1.png"), site=IMAGES),
)  # fmt: skip


def build(way: Way, folder: Path, write_series: Callable[..., list[Path]]) -> None:
    for number, attributes in enumerate(way.series):
        again = attributes.get("again", False)

        def change(index: int, ds: FileDataset, again: bool = again) -> None:
            if again:
                ds.SeriesInstanceUID += ".2"
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID + ".2"
            if way.change is not None:
                way.change(index, ds)

        with pydicom.config.disable_value_validation():
            write_series(folder / str(number), change=change, **{k: v for k, v in attributes.items() if k != "again"})
    for name in way.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".nii" in name:
            nibabel.save(nibabel.Nifti1Image(NOISE, np.eye(4)), path)
        else:
            Image.fromarray(PICTURE).save(path)
    if way.table:
        (folder / "people.csv").write_text(way.table)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.what)
def test_person_01_every_way_of_the_table_does_what_it_says(
    tmp_path: Path, write_series: Callable[..., list[Path]], way: Way
) -> None:
    build(way, tmp_path / "data", write_series)
    site = Site.model_validate({"name": "a", "data": tmp_path / "data", "face_removal": "none", "text_check": "none",
                                "minimum_slices": 4, **way.site})  # fmt: skip
    try:
        report = ingest(site, classes=["a", "b"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    except DataError:
        assert way.people == 0
    else:
        assert report.patients == len(dataset.load(tmp_path / "work" / "cohort")) == way.people
        assert (report.people["joined"], report.people["alike"]) == (way.joined, way.alike)
    found = manifest.load(tmp_path / "work" / "manifest.jsonl")
    assert manifest.reasons(found.entries) == way.reasons
    if way.joined or way.alike:
        assert (found.counts["people"]["joined"], found.counts["people"]["alike"]) == (way.joined, way.alike)


def test_person_01_the_documents_table_is_this_one() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    expected = [
        f"| {n} | {way.what} | {way.happens} | {', '.join(f'`{r}`' for r in way.reasons)} |"
        for n, way in enumerate(WAYS, 1)
    ]
    assert [row for row in rows if row[2].isdigit()] == expected
