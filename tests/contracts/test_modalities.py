"""What every modality must keep: a file that is added to the room is tested from the moment it is there."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import UID

from client.deidentification import acceptance
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import IDENTITY, Rule
from client.modalities import base as reader_base
from client.modalities import reader_of
from client.verification import expected_attributes
from server.evaluation import biomarkers
from shared.config.experiment import Experiment
from shared.config.loading import validate
from shared.config.site import Site
from shared.errors import ConfigError
from shared.modalities.base import Modality, modality, names, sop_classes

ROOT = Path(__file__).parents[2]
ROOMS = ("client", "server", "shared", "privacy", "simulations")
IN_SPACE = {
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
}  # what a picture without a place in the patient has not
each = pytest.mark.parametrize("name", names())


def judge(name: str) -> ModuleType:
    return next(module for module in expected_attributes.judged() if module.__name__.rpartition(".")[2] == name)


def header(wanted: Modality, **said: Any) -> Dataset:
    """The least that every modality's common tests look at."""
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = next(iter(wanted.sop_classes)), wanted.codes[0]
    ds.PhotometricInterpretation, ds.PatientID = wanted.photometric[0], "P1"
    ds.SamplesPerPixel = 1 if ds.PhotometricInterpretation.startswith("MONOCHROME") else 3
    ds.ImageType = [*wanted.image_types[0], "OTHER"]
    for keyword, value in said.items():
        setattr(ds, keyword, value)
    return ds


def verdict(source: Dataset, name: str) -> Reason:
    try:
        acceptance.check(source, name)
    except Withheld as withheld:
        return withheld.reason
    return Reason.OK


def test_the_rooms_hold_the_same_modalities() -> None:
    assert {"mr", "ct"} <= set(names())
    for room, besides in (("shared", {"base"}), ("client", {"base"}), ("client/verification", set())):
        files = {path.stem for path in (ROOT / room / "modalities").glob("*.py")} - {"__init__"} - besides
        assert files == set(names()), f"{room}/modalities"


@each
def test_a_record_is_complete(name: str) -> None:
    found = modality(name)
    assert found.name == name and re.fullmatch(r"[a-z][a-z0-9_]{0,19}", name) and dataclasses.is_dataclass(found)
    assert found.title and found.scaling and found.code
    assert found.channels in (1, 3) and found.faces in ("removed", "stay", "none")
    assert bool(found.codes) == bool(found.sop_classes) and all(
        re.fullmatch(r"[A-Z]{2,16}", code) for code in found.codes
    )
    assert all(UID(uid).is_valid and said for uid, said in found.sop_classes.items())
    assert found.photometric and found.image_types
    assert found.window is None or found.window.black < found.window.white
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "other"  # type: ignore[misc]


@each
def test_its_reader_has_an_allow_list_for_each_of_its_classes(name: str) -> None:
    reader, record = reader_of(name), modality(name)
    assert isinstance(reader, reader_base.Reader) and reader.modality is record
    assert reader.tables.keys() == record.sop_classes.keys()
    assert (record.faces == "removed") == bool(reader.steps()) == bool(reader.networks())
    assert all(dictionary_VR(keyword) for keyword in reader.words)
    for table in reader.tables.values():
        rules: dict[str, Rule] = {rule.keyword: rule for rule in table}
        assert len(rules) == len(table), "an attribute has two rules"
        assert all(dictionary_VR(keyword) for keyword in rules)
        assert {rule.keyword for rule in IDENTITY} - rules.keys() <= IN_SPACE
        assert rules["PatientID"].kind == "patient" and rules["PixelData"].kind == "pixels"
        assert {rules["Modality"].constant} | set(rules["Modality"].words) <= {*record.codes, None}


@each
def test_the_judge_has_a_table_of_his_own_for_the_same_classes(name: str) -> None:
    module, record = judge(name), modality(name)
    assert dict(record.sop_classes) == module.SOP_CLASSES and module.TABLES.keys() == record.sop_classes.keys()
    assert record.scaling == module.SCALING and record.scaling in expected_attributes.names()
    for uid in record.sop_classes:
        (shapes,) = expected_attributes.table(uid)[expected_attributes.TOP, 0x00080060].values()
        assert all(any(shape.fits(b"CS", code.encode()) for shape in shapes) for code in record.codes)
        assert not any(shape.fits(b"CS", b"ZZ") for shape in shapes)


@each
def test_an_attribute_of_another_class_is_a_finding_of_the_judge(name: str) -> None:
    for uid in modality(name).sop_classes:
        written = {rule.keyword for rule in reader_of(name).tables[uid]}
        for keyword in {
            rule.keyword for other in names() for t in reader_of(other).tables.values() for rule in t
        } - written:
            tag, vr = acceptance.tag_of(keyword), dictionary_VR(keyword).encode()
            assert not expected_attributes.shapes(uid, (), tag, vr), (name, keyword)


def test_modalities_that_have_a_class_in_common_call_it_and_write_it_alike() -> None:
    for one, other in itertools.combinations(names(), 2):
        for uid in modality(one).sop_classes.keys() & modality(other).sop_classes.keys():
            assert modality(one).sop_classes[uid] == modality(other).sop_classes[uid] == sop_classes()[uid]
            assert reader_of(one).tables[uid] == reader_of(other).tables[uid]


@each
def test_its_biomarkers_exist(name: str) -> None:
    assert set(modality(name).biomarkers) <= set(biomarkers.NAMES)


@each
def test_a_file_is_withheld_with_the_true_reason(name: str) -> None:
    record = modality(name)
    if not record.codes:
        pytest.skip("it does not come as DICOM")
    common = {Reason.MODALITY, Reason.SOP_CLASS, Reason.COLOUR, Reason.BURNED_IN, Reason.DERIVED, Reason.NO_PATIENT}
    assert verdict(header(record), name) not in common
    assert verdict(header(record, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"), name) is Reason.SOP_CLASS  # a PDF
    assert verdict(header(record, Modality="ZZ"), name) is Reason.MODALITY
    for other in set(names()) - {name}:
        source = header(modality(other)) if modality(other).codes else None
        if source is not None and not (source.SOPClassUID in record.sop_classes and source.Modality in record.codes):
            assert verdict(source, name) is Reason.MODALITY, other
    if "YES" not in record.burned_in:
        assert verdict(header(record, BurnedInAnnotation="YES"), name) in {
            Reason.BURNED_IN,
            verdict(header(record), name),
        }


def test_an_unknown_modality_is_refused_with_the_list() -> None:
    said = f"there is no modality `mri`; there are {', '.join(names())}"
    with pytest.raises(ConfigError, match=re.escape(f"site.yaml: modality: {said}")):
        validate({"name": "a", "data": "/data", "modality": "mri"}, Site, "site.yaml")
    with pytest.raises(ConfigError, match=re.escape(f"e.yaml: modality: {said}")):
        validate({"name": "e", "modality": "mri"}, Experiment, "e.yaml")
    for ask in (modality, reader_of):
        for name in ("mri", "base", "../mr", "mr.__init__", "", "shared.modalities.mr"):
            with pytest.raises(ConfigError, match="there is no modality"):
                ask(name)


@each
def test_a_site_and_an_experiment_may_name_it(name: str) -> None:
    assert validate({"name": "a", "data": "/data", "modality": name}, Site, "site.yaml").modality == name
    assert validate({"name": "e", "modality": name}, Experiment, "e.yaml").modality == name
    assert Site(name="a", data=Path("/data")).modality == Experiment(name="e").modality == "mr"


def test_the_records_need_neither_pydicom_nor_torch_nor_numpy() -> None:
    look = (
        "import sys; from shared.modalities.base import modality, names; [modality(name) for name in names()];"
        "print(*{'pydicom', 'torch', 'numpy', 'pydantic', 'client'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_branch_of_the_pipeline_names_a_modality() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.parent.name != "modalities"]
    assert len(files) > 200
    found = {f"{path.relative_to(ROOT)}:{line}" for path in files for line in _branches(path)}
    assert not found, "ask the record (shared/modalities) or the reader (client/modalities)"


def _branches(path: Path) -> Iterator[int]:
    """Lines that compare with the name or code of a modality, or look something up by it."""
    said = {*names(), *(code for name in names() for code in modality(name).codes)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Compare():
                places = [node.left, *node.comparators]
            case ast.Dict():
                places = [key for key in node.keys if key is not None]
            case ast.Subscript():
                places = [node.slice]
            case ast.MatchValue():
                places = [node.value]
            case _:
                places = []
        constants = [part for place in places for part in ast.walk(place) if isinstance(part, ast.Constant)]
        yield from (part.lineno for part in constants if isinstance(part.value, str) and part.value in said)


@pytest.mark.parametrize("code", [
    'if site.modality == "ct": pass', 'x = {"mr": 1}', 'rules["ct"]', 'kind: Literal["mr", "ct"]', 'ok = m in ("mr", "us")',
    'match m:\n    case "ct": pass', 'if ds.Modality != "MR": pass',
])  # fmt: skip
def test_such_a_branch_would_be_found(tmp_path: Path, code: str) -> None:
    (tmp_path / "module.py").write_text(code)
    assert list(_branches(tmp_path / "module.py"))
