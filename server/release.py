"""The synthetic release: checked, labelled, written whole or not at all.

A release is refused when a site's epsilon per patient passes the cap, when the model was trained without privacy, or when
sites are missing. Every file says synthetic, and SHA256SUMS covers every file.

Layout: images/<class>/*.png · dicom/<class>/*.dcm · images.npz · metadata.jsonl · DATA_CARD.md · MODEL_CARD.md · SHA256SUMS

Left out: empirical evidence (near-copies, membership inference); the cards say that it was not measured.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from server import cards, dicom
from server.cards import Statement
from shared.config import Release
from shared.errors import DataError, ReleaseRefused

__all__ = ["Statement", "check", "write"]

DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"  # IPTC's word for "generated"
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE}"/></rdf:RDF></x:xmpmeta>'
)


def check(statement: Statement, release: Release) -> None:
    """Raise ReleaseRefused, naming the figure, where the run does not meet the release's conditions."""
    if not statement.private:
        sites = [site for site, e in statement.epsilon_per_patient.items() if cards.shown(e) == "none"]
        where = f" at {', '.join(sites)}" if sites else ""
        raise ReleaseRefused(
            f"the model was trained without differential privacy{where}; set `privacy.epsilon` and train again"
        )
    for site, epsilon in statement.epsilon_per_patient.items():
        if epsilon is not None and epsilon > release.epsilon_cap:
            raise ReleaseRefused(
                f"epsilon per patient is {cards.shown(epsilon)} at {site}, above the cap of {release.epsilon_cap:g} "
                "(`release.epsilon_cap`); train with a smaller `privacy.epsilon`"
            )
    required = release.minimum_sites or statement.sites_total
    if statement.sites_contributed < required:
        raise ReleaseRefused(
            f"only {cards.contributed(statement)} to every round and the experiment requires {required} "
            "(`release.minimum_sites`); run again when they are reachable"
        )
    if len(statement.epsilon_per_patient) < statement.sites_contributed:
        raise ReleaseRefused(
            f"{statement.sites_contributed} sites contributed but an epsilon is known for only "
            f"{len(statement.epsilon_per_patient)}; a site that does not report its epsilon cannot be released"
        )


def write(
    folder: Path,
    images: Mapping[str, np.ndarray],
    statement: Statement,
    release: Release,
    *,
    seed: int | None = None,
) -> None:
    """Check, then write the release into `folder`; an earlier release there is replaced, anything else is left alone.

    images   class -> (n, H, W) uint8, all of one size
    seed     makes the identifiers reproducible for the same model and images; none: from the operating system

    ReleaseRefused: see `check`. DataError: no images, unlike sizes, a class that cannot name a folder, or a folder in use.
    """
    check(statement, release)
    size = _check_images(images)
    if folder.exists() and any(folder.iterdir()) and not (folder / "SHA256SUMS").is_file():
        raise DataError(f"{folder} holds something that is not a release; name another folder or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new.chmod(0o755)
        _fill(new, images, statement, release, seed=seed, size=size)
        if folder.exists():
            shutil.rmtree(folder)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(
    folder: Path,
    images: Mapping[str, np.ndarray],
    statement: Statement,
    release: Release,
    *,
    seed: int | None,
    size: int,
) -> None:
    provenance = dicom.Provenance(
        model=statement.experiment,
        model_sha256=statement.model_sha256,
        guarantee=f"(ε {cards.shown(statement.epsilon)}, δ {cards.small(statement.delta)})",
    )
    salt = secrets.token_hex(16) if seed is None else f"{seed} {statement.model_sha256} {statement.experiment}"
    lines, number = [], 0
    for label, x_NHW in images.items():
        for kind in ("images", "dicom"):
            (folder / kind / label).mkdir(parents=True)
        for i, x_HW in enumerate(x_NHW):
            number += 1
            identity = _identity(f"{salt} {number}")
            png, dcm = f"images/{label}/{i + 1:05d}.png", f"dicom/{label}/{i + 1:05d}.dcm"
            Image.fromarray(x_HW).save(folder / png, pnginfo=_marks(label, statement))
            dicom.write(folder / dcm, x_HW, number=number, label=label, identity=identity, provenance=provenance)
            lines.append(
                {
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
            )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    counts = {label: len(x_NHW) for label, x_NHW in images.items()}
    with (folder / "images.npz").open("wb") as file:
        np.savez_compressed(
            file,
            x_NHW=np.concatenate(list(images.values())),
            label_N=np.repeat(np.arange(len(counts)), list(counts.values())),
            classes=np.array(list(counts), dtype=np.str_),
        )
    (folder / "DATA_CARD.md").write_text(cards.data_card(statement, release, counts, size), encoding="utf-8")
    (folder / "MODEL_CARD.md").write_text(cards.model_card(statement, release), encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n" for path in files
    ]
    (folder / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def _check_images(images: Mapping[str, np.ndarray]) -> int:
    """The width of the images; DataError where they cannot be released."""
    if not sum(len(x_NHW) for x_NHW in images.values()):
        raise DataError("there is no image to release; set `release.images_per_class` to 1 or more")
    for label, x_NHW in images.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", label):
            raise DataError(f"the class {label!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
        if x_NHW.dtype != np.uint8 or x_NHW.ndim != 3:
            raise DataError(
                f"images of the class {label} are {x_NHW.shape} {x_NHW.dtype}; they must be (n, H, W) uint8"
            )
    shapes = {x_NHW.shape[1:] for x_NHW in images.values()}
    if len(shapes) > 1:
        raise DataError(f"images of the classes differ in size: {sorted(shapes)}")
    return int(shapes.pop()[1])


def _identity(salt: str) -> dicom.Identity:
    """Identifiers from a salt: UIDs under 2.25 (PS3.5 B.2) with 122 random bits, and a patient id."""

    def bits(purpose: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{salt} {purpose}".encode()).digest()[:16])

    def uid(purpose: str) -> str:
        version_4 = bits(purpose) & ~(0xF << 76) & ~(0x3 << 62) | (0x4 << 76) | (0x2 << 62)
        return f"2.25.{version_4}"

    return dicom.Identity(f"{bits('patient'):032X}"[:16], uid("study"), uid("series"), uid("instance"), uid("frame"))


def _marks(label: str, statement: Statement) -> PngImagePlugin.PngInfo:
    """The PNG's text chunks: synthetic, for people and for machines."""
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Synthetic", "YES")
    marks.add_text("Description", "SYNTHETIC image drawn from a generative model; it does not show a patient.")
    marks.add_text("Class", label)
    marks.add_text("Model", f"{statement.experiment} sha256 {statement.model_sha256}")
    marks.add_text("Privacy", cards.guarantee(statement))
    marks.add_itxt("XML:com.adobe.xmp", XMP)
    return marks
