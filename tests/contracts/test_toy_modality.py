"""A modality is three files: projections with two codes and no place in space, added beside the others, go through the whole house.

It is as unlike a head in slices as the seam has to bear: no volume, no frame of reference, no face, two classes, a window.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset

import client.modalities
import client.verification.modalities
import shared.modalities
from client import cli, dataset
from client.deidentification import manifest
from client.modalities import reader_of
from client.readers import dicom
from client.readers.ingest import ingest
from client.verification import expected_attributes, verify
from shared.config.site import Site
from shared.errors import DataError
from shared.modalities import base

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
RECORD = f'''
from shared.modalities.base import Modality, Window

MODALITY = Modality(
    name="toy", title="projections", codes=("CR", "DX"), sop_classes={{"{CR}": "CR Image", "{DX}": "DX Image"}},
    window=Window(tissue=0.0, black=0.0, white=4000.0), scaling="from 0 to 4000", faces="none",
    image_types=(("ORIGINAL", "PRIMARY"), ("DERIVED", "PRIMARY")),
)
'''
READER = """
import numpy as np
from pydicom.dataset import Dataset

from client.deidentification import deidentify
from client.deidentification.profile import IDENTITY, PIXELS, constant, number, word
from client.modalities.base import Physics, Reader
from client.readers.series import Frame
from client.readers.volumes import Scan
from shared.modalities.toy import MODALITY

TABLE = (
    *(rule for rule in IDENTITY if rule.keyword not in ("FrameOfReferenceUID", "PositionReferenceIndicator")),
    constant("ImageType", "ORIGINAL\\\\PRIMARY"),
    word("Modality", "CR DX", required=True),
    number("PixelSpacing", 0.01, 5, 4, "mm", count=2, required=True),
    *PIXELS,
)


class ToyReader(Reader[Physics]):
    modality = MODALITY
    tables = dict.fromkeys(MODALITY.sop_classes, TABLE)

    def physics(self, header: Dataset) -> Physics:
        return Physics(contrast=False)

    def frames(self, header: Dataset, file: int) -> list[Frame]:
        spacing = tuple(float(step) for step in header.PixelSpacing)
        return [Frame(file, 0, (0, 0, file), (1, 0, 0, 0, 1, 0), spacing, (int(header.Rows), int(header.Columns)), {})]

    def volume(self, frames):
        return list(frames)

    def scan(self, slices) -> Scan:
        pictures = np.concatenate([deidentify.frames(each) for each in slices]).astype(np.float32)
        return Scan(pictures.transpose(2, 1, 0)[::-1, ::-1], (*map(float, slices[0].PixelSpacing), 1.0))


READER = ToyReader()
"""
JUDGE = f'''
SOP_CLASSES = {{"{CR}": "CR Image", "{DX}": "DX Image"}}
SCALING = "from 0 to 4000"
LINES = """
00020002 UI {CR}|{DX}
00080008 CS ORIGINAL\\\\PRIMARY
00080016 UI {CR}|{DX}
00080060 CS CR|DX
00280002 US n:1:1:0
00280004 CS MONOCHROME1|MONOCHROME2
00280030 DS n:0.01:5:4:2
"""
TABLES = {{uid: {{"00000000": LINES}} for uid in SOP_CLASSES}}
'''
CACHES = (
    *(base.names, base.modality, base.sop_classes, reader_of, dicom.wanted),
    *(expected_attributes.judged, expected_attributes.names, expected_attributes.table),
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The three files, each in a folder that its room looks into as well."""
    rooms = ((shared.modalities, RECORD), (client.modalities, READER), (client.verification.modalities, JUDGE))
    for number, (room, code) in enumerate(rooms):
        folder = tmp_path / f"room{number}"
        folder.mkdir()
        (folder / "toy.py").write_text(code)
        monkeypatch.setattr(room, "__path__", [*room.__path__, str(folder)])
    for cache in CACHES:
        cache.cache_clear()
    yield "toy"
    for room, _ in rooms:
        monkeypatch.delitem(sys.modules, f"{room.__name__}.toy", raising=False)
        if hasattr(room, "toy"):
            del room.toy
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def write(make_slice: Callable[..., FileDataset], save: Callable[[Dataset, Path], Path]) -> Callable[..., None]:
    def make(folder: Path, **attributes: object) -> None:
        for number, (sop_class, code) in enumerate(((CR, "CR"), (DX, "DX"))):
            ds = make_slice(number, np.tile(np.linspace(0, 4000, 32), (32, 1)))
            for keyword in [element.keyword for element in ds if element.tag.group in (0x18, 0x20)]:
                if not keyword.endswith("InstanceUID"):
                    delattr(ds, keyword)
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop_class
            ds.Modality, ds.ImageType, ds.PixelSpacing = code, ["DERIVED", "PRIMARY"], [0.2, 0.2]
            for keyword, value in attributes.items():
                setattr(ds, keyword, value)
            save(ds, folder / f"{number}.dcm")

    return make


def take(folder: Path, name: str) -> dict[str, int]:
    site = Site(name="a", data=folder / "data", modality=name, text_check="none", minimum_slices=1)
    try:
        ingest(site, classes=["a"], image_size=32, slices_per_patient=4, work=folder / "work")
    except DataError as error:
        assert "no usable patient" in str(error)
    return manifest.reasons(manifest.read(folder / "work" / "manifest.jsonl"))


def test_its_pictures_become_a_cohort_that_says_what_it_is(
    tmp_path: Path, toy: str, write: Callable[..., None]
) -> None:
    write(tmp_path / "data")
    assert take(tmp_path, toy) == {}
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    row = patient.x_SHW[0, 16].astype(int)
    assert patient.x_SHW.shape == (2, 32, 32) and row[0] == 0 and row[-1] == 255 and (np.diff(row) > 0).all()
    assert dataset.facts(tmp_path / "work").modality == "toy"
    said = manifest.load(tmp_path / "work" / "manifest.jsonl").header
    assert said["scaling"] == "from 0 to 4000" and "113102" not in str(said["options"])  # no face was removed
    assert not verify.verify_folder(tmp_path / "work", tmp_path / "data").findings


def test_its_files_are_rebuilt_and_judged_by_its_own_table(
    tmp_path: Path, toy: str, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "data", InstitutionName="QZJXWARD", ExposureTime="100")
    key = tmp_path / "key"
    run = ["deidentify", str(tmp_path / "data"), str(tmp_path / "out"), "--key", str(key), "--no-text-check"]
    cli.app([*run, "--modality", toy], standalone_mode=False)
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 2
    found = verify.verify_folder(tmp_path / "out", tmp_path / "data").findings
    assert {finding.rule for finding in found} <= {"dciodvfy"}  # the toy's table lacks what PS3.3 demands of a real one
    assert not expected_attributes.shapes(CR, (), 0x00181150, b"IS") and expected_attributes.shapes(
        CR, (), 0x00280030, b"DS"
    )
    cli.app(["deidentify", "--what-if", "--modality", toy], standalone_mode=False)
    assert "Pixel Spacing" in capsys.readouterr().out


def test_each_refuses_the_others_files(tmp_path: Path, toy: str, write: Callable[..., None]) -> None:
    write(tmp_path / "data")
    assert take(tmp_path, "mr") == {"modality": 2}
    write(tmp_path / "other" / "data", Modality="MR")
    assert take(tmp_path / "other", toy) == {"modality": 2}
