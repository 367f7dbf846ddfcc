"""Builders that several tests share: small MR series as a scanner would write them, with nothing from a real person; a browser.

Left out: planted identifiers (`simulations.cohorts.planted`), and anything that needs files beside the repository.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: each, and all that it starts, computes on one
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from client.deidentification.manifest import Reason
from privacy.noise import SecureRandom

# Files that take long (`--durations`): whole federations, trainings, a PACS, a browser. `make test-fast` leaves them out
FIRST = (  # files that take minutes, begun first so that no worker ends with one of them alone
    "simulations/test_faults.py",
    "simulations/test_real.py",
    "simulations/test_federation.py",
    "client/test_real.py",
    "simulations/test_network.py",
    "client/deidentification/test_text.py",
    "client/deidentification/test_defacing.py",
    "client/test_fuzz.py",
)
SLOW = {
    *FIRST,
    "client/deidentification/test_suite_face.py",
    "client/deidentification/test_suite_runs.py",
    "client/pacs/test_dicomweb.py",
    "client/deidentification/test_ct.py",
    "client/readers/test_ingest.py",
    "client/readers/test_labels.py",
    "client/readers/test_persons.py",
    "client/deidentification/test_suite_subjects.py",
    "client/test_leaks.py",
    "client/test_release_check.py",
    "client/test_cli.py",
    "privacy/test_accounting.py",
    "privacy/test_filters.py",
    "privacy/test_properties.py",
    "privacy/test_cli.py",
    "server/evaluation/test_evaluate.py",
    "server/evaluation/test_compare.py",
    "server/release/test_gate.py",
    "client/supernode/test_boundary.py",
    "client/verification/test_verify.py",
    "contracts/test_metrics.py",
    "privacy/test_membership_inference.py",
    "client/pacs/test_pacs.py",
    "client/pacs/test_pull.py",
    "client/readers/test_resume.py",
    "client/supernode/test_isolation.py",
    "client/supernode/test_landlock.py",
    "client/supernode/test_prefork.py",
    "client/test_audit_run.py",
    "contracts/test_models.py",
    "privacy/test_audit.py",
    "privacy/test_ledger.py",
    "server/evaluation/test_utility.py",
    "server/reports/test_review.py",
    "server/reports/test_watch.py",
    "server/superlink/test_jobs.py",
    "server/superlink/test_serve.py",
    "shared/test_cli.py",
    "simulations/test_audit.py",
    "simulations/test_guardian.py",
}
KEY = bytes(range(32))
ROOT = "1.2.826.0.1.3680043.8.498.7"


def phantom(right: int = 16, anterior: int = 20, superior: int = 16) -> np.ndarray:
    """A head without any symmetry, indexed (right, anterior, superior): every corner of it can be told apart."""
    r, a, s = np.meshgrid(*(np.linspace(-1, 1, n) for n in (right, anterior, superior)), indexing="ij")
    body = ((r**2 + a**2 + (0.8 * s) ** 2) < 1) * 200.0
    return np.asarray(body + (r > 0.3) * (a > 0.3) * 300 + (s > 0.5) * 150 + (a < -0.4) * 80 + (r + a + s + 3) * 5)


@pytest.fixture
def key() -> bytes:
    return KEY


@pytest.fixture
def head() -> np.ndarray:
    return phantom()


@pytest.fixture
def make_slice() -> Callable[..., FileDataset]:
    """One axial slice; any attribute can be overridden, or removed with None."""

    def make(index: int = 0, pixels: np.ndarray | None = None, **attributes: Any) -> FileDataset:
        samples = np.full((8, 8), 100 + index, dtype=np.uint16) if pixels is None else pixels.astype(np.uint16)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        ds = FileDataset("", {}, preamble=bytes(128), file_meta=meta)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, f"{ROOT}.3.{index + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.4"
        ds.Modality, ds.ImageType, ds.PatientID, ds.PatientName = "MR", ["ORIGINAL", "PRIMARY", "M"], "P1", "A^B"
        ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType = ["GR", "IR"], ["SP", "MP"], "3D"
        ds.RepetitionTime, ds.EchoTime, ds.InversionTime, ds.FlipAngle = "2000", "2.98", "900", "9"
        ds.EchoTrainLength, ds.NumberOfAverages, ds.MagneticFieldStrength = "1", "1", "3"
        ds.PatientPosition, ds.InstanceNumber = "HFS", index + 1
        ds.SliceThickness = ds.SpacingBetweenSlices = "2"
        ds.PixelSpacing, ds.ImageOrientationPatient = ["1.5", "1.25"], [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-10.5, -12.25, 2.0 * index]
        ds.RescaleIntercept, ds.RescaleSlope, ds.LossyImageCompression = "0", "1", "00"
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.Rows, ds.Columns = samples.shape
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.PixelData = samples.tobytes()
        for keyword, value in attributes.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)
        meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        return ds

    return make


@pytest.fixture
def save() -> Callable[[Dataset, Path], Path]:
    """Write a dataset as a Part 10 file."""

    def write(ds: Dataset, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
        return path

    return write


@pytest.fixture
def write_series(
    make_slice: Callable[..., FileDataset], save: Callable[[Dataset, Path], Path]
) -> Callable[..., list[Path]]:
    """An axial series cut from a volume (right, anterior, superior), one file a slice; `change` may edit each dataset."""

    def write(
        folder: Path,
        volume_RAS: np.ndarray | None = None,
        change: Callable[[int, FileDataset], None] | None = None,
        **attributes: Any,
    ) -> list[Path]:
        volume = phantom() if volume_RAS is None else volume_RAS
        study = attributes.pop("study", "1")
        paths = []
        for index in range(volume.shape[2]):
            # DICOM columns run to the patient's left, rows to the back
            ds = make_slice(index, volume[::-1, ::-1, index].T, **attributes)
            ds.StudyInstanceUID, ds.SeriesInstanceUID = f"{ROOT}.{study}.1", f"{ROOT}.{study}.2"
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{study}.3.{index + 1}"
            if change is not None:
                change(index, ds)
            paths.append(save(ds, folder / f"IM{index:04d}.dcm"))
        return paths

    return write


@pytest.fixture(autouse=True)
def _no_debug_output() -> None:
    """pydicom quotes every value when debugging; no test may leave that on."""
    assert not pydicom.config.debugging


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """A folder of the real images beside the checkout; skips, saying so, where it is absent."""

    def locate(name: str) -> Path:
        path = Path(__file__).resolve().parents[2] / "shared" / "data" / name
        if not path.is_dir():
            pytest.skip(f"no real images at {path}")
        return path

    return locate


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise, sampling and coins in every run: a statistical test that passes once then always passes."""
    keys, start, rng = itertools.count(), SecureRandom._start, np.random.default_rng
    monkeypatch.setattr(SecureRandom, "_start", lambda self, _: start(self, next(keys).to_bytes(32, "big")))
    monkeypatch.setattr(np.random, "default_rng", lambda seed=7: rng(seed))


@pytest.fixture
def through(tmp_path: Path) -> Callable[..., tuple[Reason, bytes]]:
    """One file, as a dataset or as bytes, through `client deidentify`: its verdict, and all bytes that were written.

    Whatever the verdict, the written folder must be clean to the verifier, which looks for every value of the source.
    """
    from client.deidentification import export
    from client.verification import source_values, verify_dicom
    from client.verification.findings import Verification

    runs = iter(range(10**6))

    def run(source: Dataset | bytes, name: str = "source.dcm", *, text_check: bool = False) -> tuple[Reason, bytes]:
        place = tmp_path / f"run{next(runs)}"
        (place / "data").mkdir(parents=True)
        if isinstance(source, bytes):
            (place / "data" / name).write_bytes(source)
        else:
            with pydicom.config.disable_value_validation():
                source.save_as(place / "data" / name, enforce_file_format=True)
        (entry,) = export.export(place / "data", place / "out", KEY, text_check=text_check)
        written = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
        needles = verify_dicom.Needles(source_values.needles(place / "data"))
        result = Verification()
        for file, content in written.items():
            assert b"qzjx" not in content.lower() and "qzjx" not in file.lower()
            if file.endswith(".dcm"):
                verify_dicom.check(content, file, file, needles, result)
        assert not result.findings, {(found.rule, found.offset) for found in result.findings}
        assert len(written) == 1 + (entry.reason is Reason.OK)
        return entry.reason, b"".join(content for file, content in written.items() if file.endswith(".dcm"))

    return run


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, and pacs.pem and us.pem that it signed for 127.0.0.1, each with its .key; stranger.pem is another authority."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)

    def make(name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None) -> tuple[x509.Name, Any]:
        key, subject = (
            ec.generate_private_key(ec.SECP256R1()),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]),
        )
        signer, signing_key = issuer or (subject, key)
        built = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(signer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        )  # fmt: skip
        if issuer is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            built = built.add_extension(names, critical=False)
        else:
            usage = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
                                  key_encipherment=False, data_encipherment=False, key_agreement=False,
                                  encipher_only=False, decipher_only=False)  # fmt: skip
            built = built.add_extension(usage, critical=True)
        pem = built.sign(signing_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for suffix, content in ((".pem", pem), (".key", secret)):
            (folder / f"{name}{suffix}").write_bytes(content)
            (folder / f"{name}{suffix}").chmod(0o600)
        return subject, key

    authority = make("ca", None)
    make("stranger", None)
    for name in ("pacs", "us"):
        make(name, authority)
    return folder


class Browser:
    """A real chromium, by its own debugging protocol."""

    def __init__(self, profile: Path) -> None:
        from websockets.sync.client import connect

        quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
        base = [shutil.which("chromium") or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *quiet]
        self.process = subprocess.Popen(
            [*base, "--remote-debugging-port=0", f"--user-data-dir={profile}", "--window-size=1280,800", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not (profile / "DevToolsActivePort").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        port = (profile / "DevToolsActivePort").read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as reply:
            pages = json.loads(reply.read())
        address = next(page for page in pages if page["type"] == "page")["webSocketDebuggerUrl"]
        self.stack = ExitStack()
        self.socket = self.stack.enter_context(connect(address, max_size=None))
        self.number = 0

    def send(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (reply := json.loads(self.socket.recv(timeout=30))).get("id") != self.number:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def see(self, expression: str) -> Any:
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait(self, expression: str) -> None:
        deadline = time.monotonic() + 30
        while not self.see(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def press(self, *keys: str) -> None:
        for key in keys:
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def picture(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self.stack.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not shutil.which("chromium"):
        assert not os.environ.get("CI"), "CI must have chromium"
        pytest.skip("chromium is absent; apt-get install chromium")
    found = Browser(tmp_path / "profile")
    yield found
    found.close()


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.relative_to(Path(__file__).parent).as_posix() in SLOW:
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)  # after the order has been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `in_order` tell one story about one set of processes: they keep the order of their file."""
    places = [place for place, item in enumerate(items) if item.get_closest_marker("in_order")]
    told = sorted((items[place] for place in places), key=lambda item: (str(item.path), item.location[1] or 0))
    for place, item in zip(places, told, strict=True):
        items[place] = item
    turn = {file: place for place, file in enumerate(FIRST)}
    items.sort(key=lambda item: turn.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(FIRST)))
