"""The verifier finds whatever is planted in written files, says where without quoting it, and passes what is clean."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from typer.testing import CliRunner

from client import cli, modalities
from client.deidentification import export, manifest, profile
from client.readers.ingest import ingest
from client.verification import dicom_parser, expected_attributes, external_validators, search, source_values, verify
from client.verification.findings import RULES, Verification
from shared.config.site import Site
from shared.errors import DataError

NAME, MRN, INSTITUTION = "Grünewald^Ottilie", "MRN-7712345", "Klinik Nordstern"
SLICES = 4
OUTSIDE = external_validators.run


@pytest.fixture
def source(tmp_path: Path, write_series: Callable[..., list[Path]], head: np.ndarray) -> Path:
    def change(index: int, ds: FileDataset) -> None:
        ds.SpecificCharacterSet, ds.PatientName, ds.InstitutionName = "ISO_IR 192", NAME, INSTITUTION
        ds.PatientBirthDate, ds.StudyDescription, ds.AccessionNumber = "19471213", "Kopf nativ", "A9912345"
        ds.DeviceSerialNumber = "45321"

    write_series(tmp_path / "data" / "Grünewald", head[:, :, :SLICES], change=change, PatientID=MRN)
    return tmp_path / "data"


@pytest.fixture
def rebuilt(source: Path, tmp_path: Path, key: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    export.export(source, tmp_path / "out", key)
    monkeypatch.setattr(external_validators, "run", lambda *_: None)
    return tmp_path / "out"


@pytest.fixture
def work(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = Site(name="a", data=source, face_removal="none", minimum_slices=SLICES)
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    return tmp_path / "work"


def rules(folder: Path, source: Path | None = None, key: bytes | None = None) -> set[str]:
    result = verify.verify_folder(folder, source, key)
    text = json.dumps([f"{found.file} {found.rule}" for found in result.findings])
    assert not re.search("newald|Ottilie|7712345|Nordstern|9912345", text)
    return {found.rule for found in result.findings}


def one(folder: Path) -> Path:
    return sorted(folder.glob("*.dcm"))[0]


def vouch(folder: Path) -> None:
    """Bring the manifest's digests up to date, so that only what was planted is found."""
    import hashlib
    from dataclasses import replace

    found = manifest.load(folder / "manifest.jsonl")
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.dcm"))]
    passed = [entry for entry in found.entries if entry.sha256]
    rest = [entry for entry in found.entries if not entry.sha256]
    entries = [replace(entry, sha256=digest) for entry, digest in zip(passed, digests, strict=True)]
    manifest.write([*entries, *rest], folder / "manifest.jsonl", found.header)


def test_clean_output_passes_with_every_value_of_its_source(rebuilt: Path, source: Path, key: bytes) -> None:
    result = verify.verify_folder(rebuilt, source, key)
    assert not result.findings and result.files == SLICES + 1 and result.needles > 100
    assert any("inputs matched" in text for text in result.ran)
    result = verify.verify_folder(rebuilt)
    assert not result.findings and any("no --source" in text for text in result.skipped)


def test_a_clean_work_folder_passes(work: Path, source: Path) -> None:
    result = verify.verify_folder(work, source)
    assert (
        not result.findings and result.files == 9
    )  # cohort, its facts and list, manifests, and what is kept to go on with
    assert any(f"{SLICES} inputs matched" in text for text in result.ran)  # with the folder's own key


def edit(change: Callable[[Dataset], None]) -> Callable[[bytes], bytes]:
    def edited(content: bytes) -> bytes:
        ds = pydicom.dcmread(io.BytesIO(content))
        change(ds)
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    return edited


def sets(**values: object) -> Callable[[bytes], bytes]:
    return edit(lambda ds: [setattr(ds, keyword, value) for keyword, value in values.items()])  # type: ignore[arg-type, return-value]


def nested(ds: Dataset) -> None:
    ds.DeidentificationMethodCodeSequence[0].CodeMeaning = "Ottilie"


def into_samples(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:-100] + text + content[-100 + len(text) :]


def swapped(text: bytes) -> bytes:
    """As a big-endian writer would store it in 16-bit words."""
    return bytes(text[i ^ 1] for i in range(len(text)))


def spare_bits(content: bytes) -> bytes:
    return content[:-2] + struct.pack("<H", 0x8000 | 5)


PLANTS: dict[str, tuple[set[str], Callable[[bytes], bytes]]] = {
    "private tag": ({"private"}, edit(lambda ds: ds.add_new(0x00990010, "LO", "x"))),
    "private tag in a sequence": (
        {"private"}, edit(lambda ds: ds.DeidentificationMethodCodeSequence[0].add_new(0x00990010, "LO", "x"))),
    "group length": ({"unknown-attribute"}, edit(lambda ds: ds.add_new(0x00090000, "UL", 4) or ds.add_new(0x00186000, "DS", "1"))),
    "name": ({"value", "source-value"}, sets(PatientName="GRUNEWALD^OTTILIE")),
    "name in its own spelling": ({"value", "source-value"}, sets(SpecificCharacterSet="ISO_IR 192", PatientName=NAME)),
    "unlisted text": ({"unknown-attribute", "source-value"}, sets(InstitutionName=INSTITUTION)),
    "accession number": ({"value", "source-value"}, sets(AccessionNumber="A9912345")),
    "birth date, other spelling": ({"unknown-attribute", "source-value"}, sets(PatientComments="born 13.12.1947")),
    "patient id": ({"value", "source-value"}, sets(PatientID=MRN)),
    "text in a kept word": ({"value", "source-value"}, sets(SequenceVariant="OTTILIE")),
    "number out of range": ({"value"}, sets(RepetitionTime="770000")),
    "nested text": ({"value", "source-value"}, edit(nested)),
    "source uid": ({"value", "source-value"}, sets(StudyInstanceUID="1.2.826.0.1.3680043.8.498.7.1.1")),
    "plain hash of the patient id": (
        {"unknown-attribute", "source-value"},
        sets(PatientComments=__import__("hashlib").md5(MRN.encode()).hexdigest())),
    "text in utf-16": ({"unknown-attribute", "source-value"},
                       edit(lambda ds: ds.add_new(0x00420011, "OB", "Ottilie".encode("utf-16-le")))),
    "text in the samples": ({"source-samples", "spare-bits"}, into_samples(b"Klinik Nordstern")),
    "swapped text in the samples": ({"source-samples", "spare-bits"}, into_samples(swapped(b"Klinik Nordstern"))),
    "wide text in the samples": ({"source-samples"}, into_samples("Klinik Nordstern".encode("utf-16-le"))),
    "spare bits": ({"spare-bits"}, spare_bits),
    "trailing bytes": ({"trailing"}, lambda content: content + b"xxxx"),
    "trailing source value": ({"trailing", "source-value"}, lambda content: content + b"\0\0Ottilie\0"),
    "long samples": ({"pixel-length"}, edit(lambda ds: setattr(ds, "PixelData", ds.PixelData + b"\1\0"))),
    "preamble": ({"preamble", "source-value"}, lambda content: b"Ottilie".ljust(128, b"\0") + content[128:]),
    "preamble beside ours": ({"preamble"}, lambda content: content[:120] + b"X" * 8 + content[128:]),
    "file meta": (
        {"unknown-attribute"}, edit(lambda ds: setattr(ds.file_meta, "SourceApplicationEntityTitle", "WARD7"))),
    "two uids": ({"uid"}, edit(lambda ds: setattr(ds, "SOPInstanceUID", "2.25.77"))),
    "no marker": ({"missing"}, edit(lambda ds: delattr(ds, "PatientIdentityRemoved"))),
    "after the pixels": ({"private"}, edit(lambda ds: ds.add_new(0x7FE10010, "LO", "x"))),
    "truncated": ({"length"}, lambda content: content[:-10]),
    "no dicom": ({"not-part-10"}, lambda content: content[:128] + b"XXXX" + content[132:]),
    "overlay": ({"unknown-attribute"}, edit(lambda ds: ds.add_new(0x60003000, "OW", b"ab"))),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_in_a_written_file_is_found(rebuilt: Path, source: Path, key: bytes, plant: str) -> None:
    wanted, change = PLANTS[plant]
    path = one(rebuilt)
    path.write_bytes(change(path.read_bytes()))
    assert "unlisted" in rules(rebuilt)
    vouch(rebuilt)
    assert rules(rebuilt, source, key) >= wanted, plant
    without = {rule for rule in wanted if not rule.startswith("source")}
    assert rules(rebuilt) >= without and (without or not rules(rebuilt))


def test_a_source_value_in_a_file_name_is_found(rebuilt: Path, source: Path) -> None:
    one(rebuilt).rename(rebuilt / "Ottilie.dcm")
    assert rules(rebuilt, source) >= {"file-name", "unexpected-file"}


def test_sidecar_files_links_and_open_doors_are_found(rebuilt: Path) -> None:
    (rebuilt / "notes.txt").write_text("x")
    assert rules(rebuilt) == {"unexpected-file"}
    (rebuilt / "notes.txt").unlink()
    (rebuilt / "link.dcm").symlink_to(one(rebuilt))
    assert rules(rebuilt) == {"link"}
    (rebuilt / "link.dcm").unlink()
    one(rebuilt).chmod(0o644)
    assert rules(rebuilt) == set()  # the folder is closed
    rebuilt.chmod(0o755)
    assert rules(rebuilt) == {"exposed"}


def test_m04_lost_doubled_and_unjudged_files_are_found(rebuilt: Path, source: Path, key: bytes) -> None:
    content = one(rebuilt).read_bytes()
    one(rebuilt).unlink()
    assert rules(rebuilt) == {"lost"}
    (rebuilt / "2.25.7.dcm").write_bytes(content)
    assert "uid" in rules(rebuilt)
    (rebuilt / "2.25.7.dcm").unlink()
    (source / "late.dcm").write_bytes(b"x")
    assert "verdicts" in rules(rebuilt, source) and "verdicts" in rules(rebuilt, source, key)


@pytest.mark.parametrize("bad", ["record changed", "field", "missing"])
def test_m04_a_manifest_in_doubt_is_found(rebuilt: Path, source: Path, bad: str) -> None:
    from dataclasses import replace

    path = rebuilt / "manifest.jsonl"
    if bad == "missing":
        path.unlink()
        assert rules(rebuilt) == {"manifest", "unlisted"} - {"unlisted"}
    elif bad == "record changed":
        path.write_bytes(path.read_bytes().replace(b"PASS", b"PASs", 1))
        assert rules(rebuilt) == {"manifest"}
    else:
        found = manifest.load(path)
        entries = [replace(found.entries[0], series="Ottilie"), *found.entries[1:]]
        manifest.write(entries, path, found.header)
        assert rules(rebuilt, source) == {"manifest-field", "source-value"}
        assert rules(rebuilt) == {"manifest-field"}


def test_m04_a_seal_is_of_one_manifest_and_no_other(rebuilt: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["verify", str(rebuilt), *arguments], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    code, said = run("--seal", str(tmp_path / "office.pem"))
    assert code == 0 and "signed:" in said
    code, said = run()
    assert code == 0 and "the seal, by the key" in said
    found = manifest.load(rebuilt / "manifest.jsonl")
    manifest.write(found.entries, rebuilt / "manifest.jsonl", {**found.header, "software": "fedsynth 9.9"})
    assert rules(rebuilt) == {"seal"}  # a manifest written anew is whole, and still not the one that was signed
    (rebuilt / "manifest.seal").unlink()
    (rebuilt / "notes.txt").write_text("x")
    assert run("--seal", str(tmp_path / "office.pem"))[0] == 1 and not (rebuilt / "manifest.seal").exists()


def rezip(path: Path, change: Callable[[zipfile.ZipFile], None]) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)


@pytest.mark.parametrize("plant", ["comment", "member", "time", "trailing", "between", "shape"])
def test_a_cohort_file_holds_two_arrays_and_not_a_byte_more(work: Path, plant: str) -> None:
    (path,) = (work / "cohort").glob("*.npz")
    content = path.read_bytes()
    if plant == "comment":
        rezip(path, lambda archive: setattr(archive, "comment", b"Ottilie"))
    elif plant == "member":
        rezip(path, lambda archive: archive.writestr("name.txt", "Ottilie"))
    elif plant == "time":
        path.write_bytes(content[:10] + b"\x55\x55" + content[12:])
    elif plant == "trailing":
        path.write_bytes(content + b"Ottilie")
    elif plant == "between":
        path.write_bytes(b"Ottilie" + content)
    else:
        with np.load(path) as arrays:
            np.savez_compressed(path, x=arrays["x"].astype(np.uint16), label=arrays["label"])
    assert rules(work) >= {"cohort-file", "unlisted"}


def test_a_key_or_ledger_in_doubt_is_found(work: Path) -> None:
    key = (work / "pseudonym.key").read_bytes()
    (work / "ledger.jsonl").write_text("{}\n")
    assert rules(work) == {"ledger"}
    (work / "ledger.jsonl").unlink()
    (work / "site.yaml").write_text(key.hex())
    assert rules(work) == {"key"}
    (work / "site.yaml").unlink()
    (work / "pseudonym.key").chmod(0o644)
    assert rules(work) == {"key"}


def test_the_verifiers_table_and_the_writers_agree() -> None:
    """Two tables, made apart: what one permits at a place of a SOP class the other must permit there too."""
    tag = pydicom.datadict.tag_for_keyword
    written = {uid: _written(table) for uid, table in modalities.tables().items()}
    judged = {uid: {place for place in expected_attributes.table(uid) if place[1] >> 16 != 2} for uid in written}
    for uid, places in written.items():
        assert places == judged[uid] - {(expected_attributes.TOP, tag("SOPClassUID"))}, (
            f"an attribute of {uid} was added to one table only: add it by hand to client/verification/modalities as well"
        )


def _written(table: tuple[profile.Rule, ...]) -> set[tuple[int, int]]:
    """(sequence around it or TOP, tag) of everything that a writer's table lets through."""
    tag = pydicom.datadict.tag_for_keyword
    top = [*(rule.keyword for rule in table), "BurnedInAnnotation"]  # the last where text was looked for
    places = {expected_attributes.TOP: top, tag("DeidentificationMethodCodeSequence"): list(profile.BASIC_PROFILE)}
    groups = {rule.keyword for rule in table if rule.kind == "group"}
    places |= {tag(around): list(profile.GROUPS) for around in groups}
    places |= {tag(name): [rule.keyword for rule in rules] for name, rules in profile.GROUPS.items() if groups}
    return {(int(place), int(tag(keyword))) for place, keywords in places.items() for keyword in keywords}


def test_a_walk_takes_every_byte_of_what_pydicom_writes(make_slice: Callable[..., FileDataset]) -> None:
    """Sequences with stated and with open lengths, nested, empty."""
    ds = make_slice()
    inner = Dataset()
    inner.CodeValue = "1"
    inner.PurposeOfReferenceCodeSequence = [Dataset(), Dataset()]
    ds.ReferencedImageSequence = [inner, Dataset()]
    ds.RequestAttributesSequence = []
    for undefined in (False, True):
        ds["ReferencedImageSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        content = buffer.getvalue()
        read = pydicom.dcmread(io.BytesIO(content))
        walked = list(dicom_parser.elements(content))
        assert len(walked) == len(list(read.iterall())) + len(read.file_meta)
        assert walked[-1].start + len(walked[-1].value) == len(content)
        for length in range(150, len(content), 7):
            try:  # a cut between two elements shows in what is missing, any other is a fault
                assert len(list(dicom_parser.elements(content[:length]))) < len(walked)
            except dicom_parser.Fault as fault:
                assert fault.offset <= length


def test_the_search_finds_every_needle_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    needles = [bytes(rng.integers(97, 123, int(rng.integers(4, 30)), dtype=np.uint8)) for _ in range(3000)]
    content = bytearray(rng.integers(0, 32, 200_000, dtype=np.uint8))
    places = {}
    for number, needle in enumerate(needles):
        place = 60 * number + int(rng.integers(0, 20))
        content[place : place + len(needle)] = needle.upper()
        places[place] = needle
    found = set(search.Search(needles).find(bytes(content)))
    assert set(places.items()) <= found
    assert all(bytes(content[place : place + len(needle)]).lower() == needle for place, needle in found)


def test_the_search_finds_a_needle_across_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CHUNK", 64)
    for place in range(50, 80):
        content = b"\1" * place + b"ottilie" + b"\1" * 90
        assert list(search.Search([b"ottilie"]).find(content)) == [(place, b"ottilie")]


def test_short_words_and_numbers_count_only_alone() -> None:
    looking = search.Search([b"anna", b"45321", b"19471213"])
    assert not list(looking.find(b"banana susannas a453210 x453210 319471213"))
    assert len(list(looking.find(b"Anna^B 45321, d19471213"))) == 3


def test_names_dates_and_foreign_letters_become_needles() -> None:
    made = source_values.words(["Grünewald^Ottilie", "19471213", "王^小东", "45321", "Bo", "123", "1.2.840.10008.1.2"])
    for value in ("grünewald", "ottilie", "13.12.1947", "1947-12-13", "13dec1947", "45321"):
        assert value.encode() in made
    assert {"GRÜNEWALD".encode("latin-1").lower(), "小东".encode(), "小东王"[:2].encode("utf-16-le").lower()} & made
    assert not {b"bo", b"123"} & made and not any(b"10008" in needle for needle in made)


def test_the_command_prints_findings_without_values_and_fails(rebuilt: Path, source: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["verify", *arguments], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    code, said = run(str(rebuilt), "--source", str(source))
    assert code == 0 and "clean: nothing was found" in said and "skipped:" in said
    path = one(rebuilt)
    path.write_bytes(sets(PatientName=NAME)(path.read_bytes()))
    code, said = run(str(rebuilt), "--source", str(source))
    assert code == 1 and "source-value" in said and path.name in said and "Ottilie" not in said
    code, said = run(str(rebuilt), "--json")
    tree = json.loads(said)
    assert code == 1 and not tree["clean"] and {"value", "unlisted"} <= {found["rule"] for found in tree["findings"]}
    with pytest.raises(DataError, match="nothing to verify"):
        verify.verify_folder(rebuilt / "nowhere")


def test_e03_other_peoples_validators_pass_what_is_clean_and_see_what_is_not(rebuilt: Path) -> None:
    result = Verification()
    OUTSIDE(rebuilt, sorted(rebuilt.glob("*.dcm")), result)
    assert not result.findings and any(text.startswith("dicomqc on 4 files") for text in result.ran)
    one(rebuilt).write_bytes(sets(PatientName="Doe^Jane", PatientBirthDate="19471213")(one(rebuilt).read_bytes()))
    OUTSIDE(rebuilt, sorted(rebuilt.glob("*.dcm")), result)
    assert "dicomqc" in {found.rule for found in result.findings}


def test_missing_validators_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = Verification()
    external_validators.run(tmp_path, [], result)
    assert [text.split(":")[0] for text in result.skipped] == ["dciodvfy", "dicomqc"] and not result.ran
    assert "not installed" in result.skipped[0]


def test_every_rule_can_be_found_by_some_plant() -> None:
    """No rule of the table is an empty promise: each is the expectation of a test here or names another program."""
    text = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {"dciodvfy", "dicomqc", "report", "meta-length", "meta-group", "order", "vr", "item", "depth"}
    assert {rule for rule in RULES if f'"{rule}"' not in text} <= elsewhere


def nest(depth: int) -> bytes:
    content = b""
    for _ in range(depth):
        item = b"\xfe\xff\0\xe0" + struct.pack("<I", len(content)) + content
        content = b"\x08\0\x40\x11SQ\0\0" + struct.pack("<I", len(item)) + item
    return content


@pytest.mark.parametrize(("rule", "content"), [
    ("meta-length", b"\x02\0\0\0UL\x04\0\xff\xff\0\0"),
    ("order", b"\x02\0\0\0UL\x04\0\0\0\0\0" + b"\x10\0\x20\0LO\x02\0ab" + b"\x10\0\x10\0PN\0\0"),
    ("vr", b"\x02\0\0\0UL\x04\0\0\0\0\0" + b"\x10\0\x20\0XX\x02\0ab" + bytes(20)),
    ("meta-group", b"\x02\0\0\0UL\x04\0\0\0\0\0" + b"\x04\0\x20\0LO\x02\0ab"),
    ("meta-group", b"\x02\0\0\0UL\x04\0\x0a\0\0\0" + b"\x10\0\x20\0LO\x02\0ab"),
    ("item", b"\x02\0\0\0UL\x04\0\0\0\0\0" + b"\x08\0\x40\x11SQ\0\0\x08\0\0\0" + bytes(8)),
    ("depth", b"\x02\0\0\0UL\x04\0\0\0\0\0" + nest(12)),
    ("length", b"\x02\0\0\0UL\x04\0\0\0\0\0" + b"\x10\0\x20\0LO\x03\0abc"),
])  # fmt: skip
def test_bytes_that_we_do_not_write_are_a_fault_with_an_offset(rule: str, content: bytes) -> None:
    with pytest.raises(dicom_parser.Fault) as caught:
        list(dicom_parser.elements(bytes(128) + b"DICM" + content))
    assert caught.value.rule == rule and caught.value.offset <= 132 + len(content)


def test_mutated_files_never_stop_the_verifier(rebuilt: Path) -> None:
    rng = np.random.default_rng(7)
    whole = bytearray(one(rebuilt).read_bytes())
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(int(rng.integers(1, 5))):
            content[int(rng.integers(0, len(content)))] = int(rng.integers(0, 256))
        result = Verification()
        from client.verification import verify_dicom

        verify_dicom.check(bytes(content), one(rebuilt).name, "x", verify_dicom.Needles(), result)
    assert os.path.exists(rebuilt)  # noqa: PTH110
