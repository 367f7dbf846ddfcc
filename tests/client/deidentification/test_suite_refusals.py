"""Case E04 of the de-identification suite: refusals that no other case comes by. `simulations.benchmarks.mutants` finds such."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset

from client.deidentification import acceptance, deidentify, enhanced, export, manifest, pixels, pseudonym, reader, rules
from client.deidentification.manifest import Entry, Reason, Withheld
from client.readers import labels, nifti, series, text, volumes
from client.readers.ingest import ingest
from shared.config.site import Site
from shared.errors import DataError
from shared.journal import chain

Make = Callable[..., FileDataset]
Save = Callable[[Dataset, Path], Path]
Write = Callable[..., list[Path]]


def withheld(run: Callable[[], object]) -> Reason:
    with pytest.raises(Withheld) as caught:
        run()
    return caught.value.reason


def test_e04_frames_without_groups_of_their_own_and_two_shared_items_are_in_doubt(make_slice: Make) -> None:
    source, plane = make_slice(), Dataset()
    for keyword in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
        setattr(plane, keyword, [Dataset()])
    source.SharedFunctionalGroupsSequence, source.PerFrameFunctionalGroupsSequence = [Dataset()], [plane]
    assert enhanced.frame_groups(source, 0)
    assert withheld(lambda: enhanced.frame_groups(source, 1)) is Reason.REQUIRED
    source.SharedFunctionalGroupsSequence = [Dataset(), Dataset()]
    assert withheld(lambda: enhanced.frame_groups(source, 0)) is Reason.REQUIRED


def test_e04_an_instance_that_comes_twice_is_written_once(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes
) -> None:
    for name in ("a", "b"):
        save(make_slice(), tmp_path / "data" / f"{name}.dcm")
    entries = export.export(tmp_path / "data", tmp_path / "out", key, text_check=False)
    assert sorted(entry.reason.code for entry in entries) == ["duplicate", "ok"]
    assert len(list((tmp_path / "out").glob("*.dcm"))) == 1


def test_e04_what_does_not_pass_its_own_check_is_removed(
    tmp_path: Path, make_slice: Make, save: Save, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_slice(), tmp_path / "data" / "a.dcm")
    encode = deidentify.encode
    monkeypatch.setattr(deidentify, "encode", lambda rebuilt: encode(rebuilt) + b"QZJXQZJX")
    (entry,) = export.export(tmp_path / "data", tmp_path / "out", key, text_check=False)
    assert entry.reason is Reason.NOT_CLEAN
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.jsonl"]


def test_e04_an_attribute_of_the_list_as_unknown_bytes_does_not_pass_the_check(make_slice: Make, key: bytes) -> None:
    written = deidentify.encode(deidentify.rebuild(make_slice(), key))
    place = written.index(b"\x10\0\x20\0LO")
    length = int.from_bytes(written[place + 6 : place + 8], "little")
    unknown = b"\x10\0\x20\0UN\0\0" + length.to_bytes(4, "little")
    assert export.within_allow_list(written)
    assert not export.within_allow_list(written[:place] + unknown + written[place + 8 :])


def test_e04_a_series_that_showed_text_is_not_looked_at_again(
    tmp_path: Path, write_series: Write, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []

    def shows_text(slices: np.ndarray) -> None:
        looked.append(len(slices))
        raise Withheld(Reason.TEXT)

    monkeypatch.setattr(text, "check", shows_text)
    write_series(tmp_path / "data")
    write_series(tmp_path / "data" / "other", study="2")
    entries = export.export(tmp_path / "data", tmp_path / "out", key)
    assert {entry.reason for entry in entries} == {Reason.TEXT} and len(looked) == 2
    assert manifest.read(tmp_path / "out" / "manifest.jsonl") and not list((tmp_path / "out").glob("*.dcm"))


def test_e04_a_header_without_a_patient_is_refused_before_anything_is_made_of_it(make_slice: Make) -> None:
    nobody = make_slice(PatientID=" ")
    assert withheld(lambda: acceptance.check(nobody)) is Reason.NO_PATIENT
    assert withheld(lambda: rules.identifier_of(nobody)) is Reason.NO_PATIENT


def rechained(records: list[dict[str, Any]]) -> bytes:
    """Records of a manifest in a chain that holds."""
    lines: list[bytes] = []
    for record in records:
        body = {key: value for key, value in record.items() if key not in ("index", "previous", "hash")}
        lines.append(chain.line(body, json.loads(lines[-1]) if lines else None))
    return b"".join(lines)


@pytest.mark.parametrize(
    "changes", [{"kind": "other"}, {"text": "QZJX"}, {"verdict": "PASS"}, {"reason": "qzjx"}, {"more": 1}]
)
def test_e04_a_record_that_no_version_wrote_is_refused_though_its_chain_holds(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = tmp_path / "manifest.jsonl"
    manifest.write([Entry("0" * 24, Reason.DERIVED, file="0" * 24)], path)
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    path.write_bytes(rechained(records))
    assert len(manifest.read(path)) == 1
    records[1] |= changes
    path.write_bytes(rechained(records))
    with pytest.raises(DataError, match="record 1 is no verdict"):
        manifest.read(path)


def test_e04_a_picture_that_decodes_to_something_else_is_not_used(
    make_slice: Make, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_slice()
    source.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    whole = np.zeros((1, 8, 8), np.uint16)
    for array, reason in (
        (whole, None),
        (whole[:, :7], Reason.TRUNCATED),
        (whole.astype(np.float32), Reason.TRUNCATED),
    ):
        decoder = SimpleNamespace(as_array=lambda *_, **__: (array, {}))  # noqa: B023
        monkeypatch.setattr(pixels, "get_decoder", lambda _: decoder)  # noqa: B023
        if reason is None:
            assert deidentify.rebuild(source, key)
        else:
            assert withheld(lambda: deidentify.rebuild(source, key)) is reason


def test_e04_a_picture_larger_than_the_limit_is_refused(
    make_slice: Make, key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "LIMIT_SAMPLES", 63)
    assert withheld(lambda: deidentify.rebuild(make_slice(), key)) is Reason.TOO_LARGE


def test_e04_a_key_that_cannot_be_made_or_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot make the key file"):
        pseudonym.load_or_make(tmp_path / "not there" / "key")
    with pytest.raises(DataError, match="cannot read the key file"):
        pseudonym.load(tmp_path / "key")
    pseudonym.load_or_make(tmp_path / "key")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(DataError, match="must be a regular file"):
        pseudonym.load(tmp_path / "link")


def test_e04_a_file_that_is_gone_when_it_is_looked_at_has_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "walk", lambda *_, **__: iter([(str(tmp_path), [], ["gone"])]))
    assert list(reader.files_in(tmp_path)) == [(tmp_path / "gone", Reason.UNREADABLE)]


def test_e04_a_file_without_a_dataset_is_refused_by_the_reader_itself(
    tmp_path: Path, make_slice: Make, save: Save
) -> None:
    path = save(make_slice(), tmp_path / "a.dcm")
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")  # of the dataset
    assert reader.whole(path)
    path.write_bytes(content[:start])
    assert withheld(lambda: reader.whole(path)) is Reason.UNREADABLE


def ingested(folder: Path, kind: str = "dicom", **site: Any) -> dict[str, int]:
    settings = Site(name="a", data=folder / "data", format=kind, face_removal="none", text_check="none", **site)
    return ingest(settings, classes=["x"], image_size=16, slices_per_patient=4, work=folder / "work").reasons


def test_e04_an_image_without_its_study_or_series_belongs_to_none(tmp_path: Path, write_series: Write) -> None:
    def change(index: int, ds: FileDataset) -> None:
        if index < 2:
            delattr(ds, ("StudyInstanceUID", "SeriesInstanceUID")[index])

    write_series(tmp_path / "data", change=change)
    assert ingested(tmp_path, minimum_slices=4) == {"required": 2}


def test_e04_a_series_of_which_one_slice_cannot_be_rebuilt_is_withheld_whole(
    tmp_path: Path, write_series: Write
) -> None:
    def change(index: int, ds: FileDataset) -> None:
        ds.PixelData = ds.PixelData[: len(ds.PixelData) // (2 if index == 0 else 1)]

    write_series(tmp_path / "data", change=change)
    with pytest.raises(DataError, match="geometry 15, truncated 1"):
        ingested(tmp_path, minimum_slices=4)


@pytest.mark.parametrize("row", [b"\xff\xfe,x\n", b'"' + b"y" * 200_000 + b'",x\n'], ids=["not UTF-8", "endless"])
def test_e04_a_table_that_is_no_csv_is_refused(tmp_path: Path, key: bytes, row: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(b"patient_id,class\n" + row)
    with pytest.raises(DataError, match="not CSV in UTF-8"):
        labels.read(tmp_path / "labels.csv", ["x"], key)
    with pytest.raises(DataError, match="cannot read the labels table"):
        labels.read(tmp_path / "none.csv", ["x"], key)


def test_e04_nifti_that_is_no_grey_volume_is_refused(tmp_path: Path) -> None:
    colour = np.zeros((8, 8, 8), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "colour.nii")
    assert withheld(lambda: nifti.volume(tmp_path / "colour.nii")) is Reason.COLOUR
    (tmp_path / "text.nii").write_bytes(b"QZJX" * 200)
    assert withheld(lambda: nifti.volume(tmp_path / "text.nii")) is Reason.NOT_AN_IMAGE
    (tmp_path / "data" / "p").mkdir(parents=True)
    values = np.arange(16 * 16 * 4, dtype=np.float32).reshape(16, 16, 4)
    for name, volume in (("thin", values), ("whole", np.repeat(values, 4, axis=2))):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "data" / "p" / f"t1_{name}.nii")
    with pytest.raises(DataError, match="few-slices 2"):
        ingested(tmp_path, "nifti", minimum_slices=17)
    assert ingested(tmp_path, "nifti", minimum_slices=5) == {"other-series": 1}


def frames(*places: tuple[float, float | None]) -> list[series.Frame]:
    """Single-frame files at a height, with an instance number."""
    nothing = dict.fromkeys(series.KEYS)
    return [series.Frame(file, 0, (0, 0, height), (1, 0, 0, 0, 1, 0), (1, 1), (8, 8), {**nothing, "instance": instance})
            for file, (height, instance) in enumerate(places)]  # fmt: skip


@pytest.mark.parametrize("places", [
    [(0, 1), (1, None), (0, 3), (1, 4)],  # no number
    [(0, 1), (1, 2), (0, 2), (1, 1)],  # numbers that come twice
    [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)],  # not as many of one place as of the other
    [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5)],  # the same, in whole runs
    [(0, 1), (0, 2), (1, 3), (0, 4), (1, 5), (1, 6)],  # neither volume after volume nor slice after slice
])  # fmt: skip
def test_e04_volumes_that_cannot_be_told_apart_are_ambiguous(places: list[tuple[float, float | None]]) -> None:
    assert withheld(lambda: series.first_volume(frames(*places))) is Reason.AMBIGUOUS


def test_e04_volumes_that_follow_each_other_are_told_apart() -> None:
    by_volume, by_slice = frames((0, 1), (1, 2), (0, 3), (1, 4)), frames((0, 1), (0, 2), (1, 3), (1, 4))
    assert [frame.file for frame in series.first_volume(by_volume)] == [0, 1]
    assert [frame.file for frame in series.first_volume(by_slice)] == [0, 2]
    turned = [replace(by_volume[0], orientation=(0, 1, 0, 0, 0, 1)), by_volume[1]]
    assert withheld(lambda: series.first_volume(turned)) is Reason.GEOMETRY
    larger = [replace(by_volume[0], size=(9, 8)), by_volume[1]]
    assert withheld(lambda: series.first_volume(larger)) is Reason.GEOMETRY


@pytest.mark.parametrize("missing", ["Rows", "ImagePositionPatient", "PixelSpacing"])
def test_e04_a_slice_without_its_geometry_is_not_placed(make_slice: Make, missing: str) -> None:
    assert withheld(lambda: series.frames_of(make_slice(**{missing: None}), 0)) is Reason.REQUIRED


def test_e04_a_network_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "NETWORKS", {"Det.model_path": "none.onnx"})
    with pytest.raises(DataError, match=r"none\.onnx is not inside"):
        text.models()


@pytest.mark.parametrize("brain", [np.zeros((8, 8, 8), bool), np.ones((8, 8, 8), bool)])
def test_e04_a_brain_that_is_nothing_or_of_one_value_makes_no_picture(brain: np.ndarray) -> None:
    volume = np.full((8, 8, 8), 7.0, np.float32)
    assert withheld(lambda: volumes.axial(volume, (1, 1, 1), size=8, count=2, brain=brain)) is Reason.LABEL_MAP
