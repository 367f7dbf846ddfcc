"""The synthetic release: checked, labelled, written whole or not at all.

A release is refused when a site's epsilon per patient passes the cap, when the model was trained without privacy, when sites are
missing, or when another check of the gate fails (see `gate`). Every file says synthetic, SHA256SUMS covers every file, and
SIGNATURE.json covers the sums (see `seal`).

Layout: images/<class>/*.png · dicom/<class>/*.dcm · images.npz · metadata.jsonl · DATA_CARD.md, the same as README.md ·
MODEL_CARD.md · gate.json · SHA256SUMS · SIGNATURE.json. `datasets.load_dataset("imagefolder", data_dir=FOLDER)` reads it as it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image, PngImagePlugin

from server.release import cards, dicom, seal
from server.release.cards import ReleaseStatement
from server.release.draw import Draws
from server.release.gate import Decision
from server.release.quality import Check
from shared.config.experiment import Release
from shared.errors import DataError, ReleaseRefused

__all__ = ["ReleaseStatement", "check", "formal", "refusal", "write"]

DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # IPTC's word for "generated"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE}"/></rdf:RDF></x:xmpmeta>'
)


def check(statement: ReleaseStatement, release: Release) -> None:
    """Raise ReleaseRefused, naming the figure, where the run does not meet the release's formal conditions."""
    problem = _privacy_problem(statement, release) or _sites_problem(statement, release)
    if problem:
        raise ReleaseRefused(problem)


def formal(statement: ReleaseStatement, release: Release) -> tuple[Check, Check]:
    """The same conditions as two checks of the gate: `privacy` and `sites`."""
    privacy, sites = _privacy_problem(statement, release), _sites_problem(statement, release)
    known = [e for e in statement.epsilon_per_patient.values() if e is not None and math.isfinite(e)]
    return (
        Check(
            "privacy",
            privacy is None,
            privacy or cards.guarantee(statement),
            f"epsilon per patient {release.epsilon_cap:g} or less at every site",
            max(known, default=None),
            limits=(None, release.epsilon_cap),
        ),
        Check(
            "sites",
            sites is None,
            sites or f"{cards.contributed(statement)} to every round",
            f"{release.minimum_sites or statement.sites_total} site(s) in every round, each with an epsilon",
        ),
    )


def _privacy_problem(statement: ReleaseStatement, release: Release) -> str | None:
    if not statement.private:
        sites = [site for site, e in statement.epsilon_per_patient.items() if cards.shown(e) == "none"]
        where = f" at {', '.join(sites)}" if sites else ""
        return f"the model was trained without differential privacy{where}; set `privacy.epsilon` and train again"
    for site, epsilon in statement.epsilon_per_patient.items():
        if epsilon is None or epsilon > release.epsilon_cap:
            return (
                f"epsilon per patient is {cards.shown(epsilon)} at {site}, above the cap of {release.epsilon_cap:g} "
                "(`release.epsilon_cap`); train with a smaller `privacy.epsilon`"
            )
    return None


def _sites_problem(statement: ReleaseStatement, release: Release) -> str | None:
    required = release.minimum_sites or statement.sites_total
    if statement.sites_contributed < required:
        return (
            f"only {cards.contributed(statement)} to every round and the experiment requires {required} "
            "(`release.minimum_sites`); run again when they are reachable"
        )
    if len(statement.epsilon_per_patient) < statement.sites_contributed:
        return (
            f"{statement.sites_contributed} sites contributed but an epsilon is known for only "
            f"{len(statement.epsilon_per_patient)}; a site that does not report its epsilon cannot be released"
        )
    return None


def write(
    folder: Path,
    images: Draws | Mapping[str, np.ndarray],
    statement: ReleaseStatement,
    release: Release,
    *,
    seed: int | None = None,
    key: Ed25519PrivateKey | None = None,
    gate: Decision | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Check, then write the release into `folder`; an earlier release there is replaced, anything else is left alone.

    images   drawn by `draw.draw_all`, or class -> (n, H, W) uint8, all of one size; read batch by batch
    seed     makes the release the same to the byte for the same model and images; none: identifiers from the operating system
    key      signs it; none: checksums only
    gate     what the gate found, for gate.json and the cards; none: the cards say that nothing beyond the formal was checked

    ReleaseRefused: see `check`. DataError: no images, unlike sizes, a class that cannot name a folder, or a folder in use.
    """
    if gate is None:
        check(statement, release)
    elif not gate.passed and (not gate.forced or any(c.name == "privacy" for c in gate.failed)):
        raise ReleaseRefused(refusal(gate))
    elif problem := _privacy_problem(statement, release):
        raise ReleaseRefused(problem)
    drawn = images if isinstance(images, Draws) else _draws(images)
    _check_classes(drawn)
    if folder.exists() and any(folder.iterdir()) and not (folder / seal.SUMS).is_file():
        raise DataError(f"{folder} holds something that is not a release; name another folder or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.parent / f".{folder.name}.new"  # one name: what a killed attempt left is swept away
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(mode=0o755)
        _fill(new, drawn, statement, release, seed=seed, gate=gate, progress=progress)
        seal.close(new, statement.experiment, key)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(
    folder: Path,
    drawn: Draws,
    statement: ReleaseStatement,
    release: Release,
    *,
    seed: int | None,
    gate: Decision | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    provenance = dicom.Provenance(
        model=statement.experiment,
        model_sha256=statement.model_sha256,
        guarantee=f"(ε {cards.shown(statement.epsilon)}, δ {cards.small(statement.delta)})",
    )
    salt = secrets.token_hex(16) if seed is None else f"{seed} {statement.model_sha256} {statement.experiment}"
    classes, within, number = list(drawn.counts), Counter[str](), 0
    for label in classes:
        for kind in ("images", "dicom"):
            (folder / kind / label).mkdir(parents=True)
    with _Archive(folder / "images.npz", drawn, classes) as archive, (folder / "metadata.jsonl").open("w") as lines:
        for label_B, x_BHW in drawn.batches():
            archive.add(x_BHW)
            for label, x_HW in zip((classes[k] for k in label_B), x_BHW, strict=True):
                number += 1
                within[label] += 1
                identity = _identity(f"{salt} {number}")
                png, dcm = f"images/{label}/{within[label]:05d}.png", f"dicom/{label}/{within[label]:05d}.dcm"
                Image.fromarray(x_HW).save(folder / png, pnginfo=_marks(label, statement))
                dicom.write(folder / dcm, x_HW, number=number, label=label, identity=identity, provenance=provenance)
                line = {
                    "file_name": png,
                    "label": label,
                    "dicom": dcm,
                    "sop_instance_uid": identity.instance,
                    "synthetic": True,
                    "experiment": statement.experiment,
                    "model_sha256": statement.model_sha256,
                    "epsilon_per_patient": float(cards.shown(statement.epsilon)),
                    "delta": statement.delta,
                }
                lines.write(json.dumps(line) + "\n")
            if progress:
                progress(number, len(drawn))
    data = cards.data_card(statement, release, drawn.counts, drawn.size, gate)
    for name in ("DATA_CARD.md", "README.md"):  # the hub reads a data set's card under the second name
        (folder / name).write_text(data, encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(cards.model_card(statement, release, gate), encoding="utf-8")
    if gate is not None:
        gate.save(folder / "gate.json")


def refusal(gate: Decision) -> str:
    """What a refused release says: every failed check with its figure."""
    return "; ".join(f"{check.name}: {check.detail.rstrip('.')} (required: {check.threshold})" for check in gate.failed)


class _Archive:
    """images.npz, written batch by batch: `x_NHW`, `label_N` and `classes`, as numpy reads them, the same to the byte each time."""

    def __init__(self, path: Path, drawn: Draws, classes: list[str]) -> None:
        self.zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._whole("label_N", np.repeat(np.arange(len(classes)), list(drawn.counts.values())))
        self._whole("classes", np.array(classes, dtype=np.str_))
        self.file = self.zip.open("x_NHW.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(drawn), drawn.size, drawn.size)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def _whole(self, name: str, array: np.ndarray) -> None:
        with self.zip.open(f"{name}.npy", "w") as file:
            np.lib.format.write_array(file, array, allow_pickle=False)

    def add(self, x_BHW: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(x_BHW).data)

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.zip.close()


def _draws(images: Mapping[str, np.ndarray]) -> Draws:
    """Images in memory as a release takes them; DataError where they cannot be released."""
    if not sum(len(x_NHW) for x_NHW in images.values()):
        raise DataError("there is no image to release; set `release.images_per_class` to 1 or more")
    for label, x_NHW in images.items():
        if x_NHW.dtype != np.uint8 or x_NHW.ndim != 3 or x_NHW.shape[1] != x_NHW.shape[2]:
            raise DataError(
                f"images of the class {label[:40]} are {x_NHW.shape} {x_NHW.dtype}; they must be (n, H, H) uint8"
            )
    shapes = {x_NHW.shape[1:] for x_NHW in images.values()}
    if len(shapes) > 1:
        raise DataError(f"images of the classes differ in size: {sorted(shapes)}")
    return Draws.of(images)


def _check_classes(drawn: Draws) -> None:
    if not len(drawn):
        raise DataError("there is no image to release; set `release.images_per_class` to 1 or more")
    for label in drawn.counts:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", label):
            raise DataError(f"the class {label!r} cannot name a folder; use letters, digits, '.', '_' and '-'")


def _identity(salt: str) -> dicom.Identity:
    """Identifiers from a salt: UIDs under 2.25 (PS3.5 B.2) with 122 random bits, and a patient id."""

    def bits(purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{salt} {purpose}".encode()).digest()[:16])

    def uid(purpose: str) -> str:
        version_4 = bits(purpose) & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
        return f"2.25.{version_4}"

    return dicom.Identity(f"{bits('patient'):032X}"[:16], uid("study"), uid("series"), uid("instance"), uid("frame"))


def _marks(label: str, statement: ReleaseStatement) -> PngImagePlugin.PngInfo:
    """The PNG's text chunks: synthetic, for people and for machines."""
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Synthetic", "YES")
    marks.add_text("Description", "SYNTHETIC image drawn from a generative model; it does not show a patient.")
    marks.add_text("Class", label)
    marks.add_text("Model", f"{statement.experiment} sha256 {statement.model_sha256}")
    marks.add_text("Privacy", cards.guarantee(statement))
    marks.add_itxt("XML:com.adobe.xmp", XMP)
    return marks
