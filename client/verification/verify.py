"""A second look at everything that was written, by code that did not write it.

`verify` re-reads the bytes of a folder of rebuilt DICOM or of a site's work folder: each DICOM file element by element
against its own table (`client.verification.expected_attributes`), each cohort file member by member, the manifest's chain, who
may read what, and that nothing else lies there. Given the source, it also takes every value of the source's headers and names
(`client.verification.source_values`) and looks for it in every written byte and name.

It cannot find what it does not look for: text drawn into a picture, a face, a value of three letters, a value that was
changed on the way. A clean result is evidence, not proof.

Left out: the site's own files beside the work (settings, scripts), and files that other programs keep.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from client.deidentification import manifest, pseudonym
from client.deidentification.manifest import Reason, Verdict
from client.verification import external_validators, findings, report, source_values, verify_cohort, verify_dicom
from client.verification.expected_attributes import names as names_of_modalities
from client.verification.findings import Verification
from client.verification.verify_dicom import Needles
from privacy import ledger
from shared.crypto import signing
from shared.errors import DataError, LedgerError, SignatureError

PAPERS = r"manifest\.jsonl|manifest\.seal|report\.html"
WORK_FILES = re.compile(
    PAPERS
    + r"|pseudonym\.key|ledger\.jsonl(\.[a-z0-9-]+)?|\.?ledger\.mark(\.new)?|ledger\.groups\.json|ledger\.members/[0-9a-f]{64}\.txt"
    r"|site\.yaml|reply\.kept|release-checks\.jsonl|\.release-checks\.lock|node/(node\.key(\.[0-9]+)?|kit\.json|cohort\.json|reply\.kept)"
    r"|cohort/([a-z2-7]{16}\.npz|cohort\.(id|names))"
    r"|finished/[0-9a-f]{24}/(manifest\.jsonl|[a-z2-7]{16}\.npz)"
)
REBUILT_FILES = re.compile(PAPERS + r"|2\.25\.[0-9]{1,39}\.dcm")
FORMS = {  # of what is written about a cohort as a whole, by the file's name or its folder's
    "cohort.id": rb"[0-9a-f]{32}",
    "cohort.names": rb"([a-z2-7]{16}\n)+",
    "ledger.members": rb"([a-z2-7]{16}\n)*",
}
TABLES = (".csv", ".tsv", ".txt")  # of labels and of people: read, and no input
FIELDS = {
    "token": r"[0-9a-f]{24}", "file": r"[0-9a-f]{24}", "series": r"[0-9a-f]{24}", "patient": r"[a-z2-7]{16}",
    "sha256": r"[0-9a-f]{64}", "hash": r"[0-9a-f]{64}", "previous": r"[0-9a-f]{64}", "table_sha256": r"[0-9a-f]{64}",
    "software": r"fedsynth [0-9a-z.+ ]{1,40}", "edition": r"DICOM PS3\.15 20[0-9]{2}[a-z], Annex E",
}  # fmt: skip
FIXED = frozenset(
    {reason.text for reason in Reason} | {reason.code for reason in Reason} | {verdict.value for verdict in Verdict}
    | {"header", "file", "totals", "DCM", "image", "nifti", "Basic Application Confidentiality Profile"}
    | {"8-bit samples as they are; deeper ones as bytes or fractions where they are such, else from the 0.5 to the 99.5 "
       "percentile of all pictures of a patient"}
    | {"113100", "113101", "113102", "Clean Pixel Data Option", "Clean Recognizable Visual Features Option"}
)  # fmt: skip


def verify_folder(
    folder: Path,
    source: Path | None = None,
    key: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Look at every file below `folder`. Findings never quote the data.

    folder    of rebuilt DICOM (`client deidentify`), or a work folder (`client ingest`)
    source    what it was made from: its values are looked for, and its files counted against the verdicts
    key       the site's key, to match each source file with its verdict; taken from a work folder by itself

    Raises DataError when there is nothing to look at.
    """
    folder = folder.resolve()
    if not folder.is_dir() or not any(folder.iterdir()):
        raise DataError(f"there is nothing to verify in {folder}; name the folder that was written")
    source = source.resolve() if source is not None else None
    if source is not None and not source.exists():
        raise DataError(f"the source {source} does not exist")
    result = Verification()
    work = (folder / "cohort").is_dir() or (folder / "pseudonym.key").exists()
    needles = Needles(source_values.needles(source) if source is not None else frozenset())
    result.needles = needles.count
    result.ran.append("every written byte" + (f", {needles.count} values of the source" if source else ""))
    if source is None:
        result.skipped.append("values of the source: no --source given")
    paths = sorted(path for path in folder.rglob("*") if source is None or not path.is_relative_to(source))
    digests: dict[str, str] = {}
    for number, path in enumerate(paths):
        relative = str(path.relative_to(folder))
        name = findings.token(relative, number)
        for _ in needles.text.find(b" " + relative.encode("utf-8", "surrogateescape") + b" "):
            result.add(name, "file-name")
        content = _content(path, name, result)
        if content is not None:
            result.files += 1
            result.bytes += len(content)
            if path.parent in (folder, folder / "cohort") and path.suffix in (".dcm", ".npz"):
                digests[path.stem] = hashlib.sha256(content).hexdigest()
            known = (WORK_FILES if work else REBUILT_FILES).fullmatch(relative) is not None
            _judge(path, name, content, needles, result, known=known)
        if progress is not None:
            progress(number + 1, len(paths))
    secret = key if key is not None or not work else _key(folder / "pseudonym.key")
    _manifest(folder, work, digests, source, secret, needles, result)
    if not work:
        external_validators.run(folder, sorted(folder.glob("*.dcm")), result)
    result.findings = sorted(set(result.findings))
    return result


def _judge(path: Path, name: str, content: bytes, needles: Needles, result: Verification, *, known: bool) -> None:
    """Judge one file by what its name says it is. The site's own settings are its people's words: they are not searched."""
    match path.name if known and path.suffix not in (".dcm", ".npz") else path.suffix if known else "":
        case ".dcm":
            verify_dicom.check(content, path.name, name, needles, result)
        case ".npz":
            verify_cohort.check(content, name, needles, result)
        case "pseudonym.key":
            if _key(path) is None:
                result.add(name, "key")
        case "manifest.jsonl" | "manifest.seal" | "site.yaml" | "reply.kept":
            pass  # judged later, or the site's and the federation's own, which hold nothing of the data
        case file if file in FORMS or path.parent.name in FORMS:
            if not re.fullmatch(FORMS.get(file) or FORMS[path.parent.name], content):
                result.add(name, "cohort-file")
        case "":
            result.add(name, "unexpected-file")
            _search(content, name, needles, result)
        case file:  # ledger, journal and report: their own words would match short ones of the source
            if file == "ledger.jsonl":
                _ledger(path, name, result)
            _search(content, name, needles, result, least=8)


def _content(path: Path, name: str, result: Verification) -> bytes | None:
    """The bytes of a plain file; links and special files are findings."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        result.add(name, "link")
        return None
    # Inside a folder that only its owner may enter, a file's own mode does not matter.
    if status.st_mode & 0o077 and _open_to_others(path.parent):
        result.add(name, "exposed")
    return path.read_bytes()


def _open_to_others(folder: Path) -> bool:
    return bool(folder.stat().st_mode & 0o077)


def _search(content: bytes, name: str, needles: Needles, result: Verification, least: int = 0) -> None:
    for offset, needle in needles.text.find(content):
        if len(needle) >= least:
            result.add(name, "source-value", offset)


def _key(path: Path) -> bytes | None:
    try:
        return pseudonym.load(path)
    except DataError:
        return None


def _ledger(path: Path, name: str, result: Verification) -> None:
    try:
        ledger.checked_records(path)
    except LedgerError:
        result.add(name, "ledger")


def _manifest(
    folder: Path,
    work: bool,
    digests: dict[str, str],
    source: Path | None,
    key: bytes | None,
    needles: Needles,
    result: Verification,
) -> None:
    try:
        found = manifest.load(folder / "manifest.jsonl")
    except DataError:
        result.add("manifest.jsonl", "manifest")
        return
    result.ran.append(f"the manifest's chain, {len(found.entries)} verdicts")
    _seal(folder, found, result)
    page = folder / "report.html"
    if page.is_file() and page.read_bytes() != report.render(folder):
        result.add("report.html", "report")
    for line in (folder / "manifest.jsonl").read_bytes().splitlines():
        for name, value in _leaves(json.loads(line)):
            _field(name, value, needles, result)
    vouched: dict[str, set[str]] = {}
    for entry in found.entries:
        if entry.reason.verdict is Verdict.PASS:
            vouched.setdefault((entry.patient or "") if work else (entry.sha256 or ""), set()).add(entry.sha256 or "")
    present = {name if work else digest: {digest} for name, digest in digests.items()}
    for name, digest in digests.items():
        if vouched.get(name if work else digest) != {digest}:
            result.add(f"cohort/{name}.npz" if work else f"{name}.dcm", "unlisted")
    for _ in vouched.keys() - present.keys():
        result.add("manifest.jsonl", "lost")
    if key is not None:
        _escaped(folder, key, result)
    if source is not None:
        _inputs(found, source, key, result)


def _escaped(folder: Path, key: bytes, result: Verification) -> None:
    """The key stands in no file but its own."""
    for path in (path for path in folder.rglob("*") if path.is_file() and path.name != "pseudonym.key"):
        content = path.read_bytes()
        if key in content or key.hex().encode() in content.lower():
            result.add(findings.token(str(path.relative_to(folder)), 0), "key")


def _seal(folder: Path, found: manifest.Manifest, result: Verification) -> None:
    """A seal, where there is one, must be of this very manifest."""
    path = folder / "manifest.seal"
    if not path.is_file():
        result.skipped.append("the seal: this manifest is not signed (`client verify --seal KEY` signs it)")
        return
    try:
        body, signer = signing.unseal(path.read_bytes())
    except SignatureError:
        result.add("manifest.seal", "seal")
        return
    if body != about(found):
        result.add("manifest.seal", "seal")
    result.ran.append(f"the seal, by the key {signing.fingerprint(signer)}")


def about(found: manifest.Manifest) -> dict[str, Any]:
    """What a seal is put under: the whole manifest, by its last hash, and what it says in short."""
    return {
        "kind": "manifest of de-identification",
        "last_hash": found.last_hash,
        "header": found.header,
        "verdicts": manifest.verdicts(found.entries),
    }


def _inputs(found: manifest.Manifest, source: Path, key: bytes | None, result: Verification) -> None:
    """Every file of the source has its verdict. Tables of labels and of people inside the source are no input."""
    base = source if source.is_dir() else source.parent
    files = [path for path in sorted(base.rglob("*")) if not path.is_dir() or path.is_symlink()]
    files = files if source.is_dir() else [source]
    if key is None:
        tables = sum(path.suffix.lower() in TABLES for path in files)
        if not len(files) - min(tables, 2) <= len(found.entries) <= len(files):
            result.add("manifest.jsonl", "verdicts")
        result.skipped.append("each input matched with its verdict: no --key given; the files were only counted")
        return
    tokens = {pseudonym.token(key, "file", str(path.relative_to(base))): path for path in files}
    judged = {entry.file for entry in found.entries}
    without = [tokens[token] for token in tokens.keys() - judged]
    if judged - tokens.keys() or [path for path in without if path.suffix.lower() not in TABLES] or len(without) > 2:
        result.add("manifest.jsonl", "verdicts")
    result.ran.append(f"{len(tokens)} inputs matched with their verdicts")


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(nearest key, text) of every string, and of every key that is not one of ours."""
    match tree:
        case dict():
            for key, value in tree.items():
                if not re.fullmatch(
                    r"[a-z_0-9]{1,40}|PASS|QUARANTINED|REFUSED|Code(Value|Meaning)|CodingSchemeDesignator|[a-z-]+", key
                ):
                    yield "", key
                yield from _leaves(value, key)
        case list():
            for value in tree:
                yield from _leaves(value, name)
        case str():
            yield name, tree
        case int() if abs(tree) >= 10_000_000:
            yield "", str(tree)


def _field(name: str, value: str, needles: Needles, result: Verification) -> None:
    if value in FIXED or value in names_of_modalities():
        return
    pattern = FIELDS.get(name, r"[0-9a-f]{64}")
    if not re.fullmatch(pattern, value):
        result.add("manifest.jsonl", "manifest-field")
    if name not in ("software", "edition") and any(True for _ in needles.text.find(f" {value} ".encode())):
        result.add("manifest.jsonl", "source-value")
