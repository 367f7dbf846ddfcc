"""What the report claims, what it warns of and what to do about each reason, in words that change only with what ran.

Sources: option codes and names: DICOM PS3.16, CID 7050; GDPR Article 4(5); EDPB Guidelines 01/2025; linkage of
skull-stripped scans: arXiv:2602.10043. Engineering statements, not legal advice.

Left out: a judgement whether the data are anonymous for a recipient.
"""

from __future__ import annotations

from collections.abc import Mapping

CLEAN_PIXELS, CLEAN_FEATURES = "113101", "113102"
OPTIONS: dict[str, tuple[str, str]] = {
    "113100": ("Basic Application Confidentiality Profile", "every attribute outside the allow-list is absent"),
    CLEAN_PIXELS: ("Clean Pixel Data Option", "text was looked for in every picture that was kept"),
    CLEAN_FEATURES: ("Clean Recognizable Visual Features Option", "the face was removed and the removal checked"),
    "113103": ("Clean Graphics Option", "not needed: graphics and overlays are never kept"),
    "113104": ("Clean Structured Content Option", "not needed: structured reports are refused"),
    "113105": ("Clean Descriptors Option", "not needed: descriptions are never kept"),
    "113106": ("Retain Longitudinal Temporal Information Full Dates Option", "dates are removed"),
    "113107": ("Retain Longitudinal Temporal Information Modified Dates Option", "dates are removed, not shifted"),
    "113108": ("Retain Patient Characteristics Option", "sex, age, size and weight are removed"),
    "113109": ("Retain Device Identity Option", "device identity is removed"),
    "113110": ("Retain UIDs Option", "UIDs are replaced"),
    "113111": ("Retain Safe Private Option", "private attributes are removed"),
    "113112": ("Retain Institution Identity Option", "institution identity is removed"),
}

RISKS = (
    (
        "The same person can be recognised by the brain itself.",
        "Scans of one person can be linked across collections by the shape of the brain, with near-perfect accuracy, even "
        "after the face was removed (arXiv:2602.10043). No header rule changes that.",
    ),
    (
        "These are pseudonymised personal data, not anonymous data.",
        "Pseudonyms and UIDs are made with a key that stays at the hospital (GDPR Article 4(5)). Whoever holds the key and a "
        "list of patients can undo them: keep it apart from the data, and keep both inside the hospital.",
    ),
    (
        "Numbers that were kept can help to single somebody out.",
        "Timing, geometry and field strength are kept within ranges. A rare protocol may point to a site or to a period. A "
        "number of the right size in the right place cannot be told from an identifier.",
    ),
    (
        "What software does not see stays.",
        "A clean check is evidence, not proof. Look at the contact sheet and at a sample of whole series before you sign.",
    ),
)


CURES: dict[str, str] = {  # reason code -> what the hospital can do; nothing where that is as it should be
    "symlink": "copy the file itself into the folder",
    "not-regular": "nothing: no device or pipe is read",
    "too-large": "nothing, unless the file is an image: split it by series",
    "not-dicom": "nothing, unless the file is an image: export it as a DICOM Part 10 file",
    "dicomdir": "nothing: the images that it lists are read by themselves",
    "unreadable": "copy or export the file again",
    "not-an-image": "nothing, unless `format` in the site file is another one than the folder's",
    "sop-class": "nothing: only images of the site's kind are used",
    "modality": "nothing, unless `modality` in the site file is wrong",
    "transfer-syntax": "export the series uncompressed",
    "colour": "nothing: only grey images are used",
    "pixel-format": "export the series again with 8 or 16 bits a sample, without NaN",
    "synthetic": "nothing: only what was acquired from a person is used; if that is wrong, correct Synthetic Data (0008,001C)",
    "quality-control": "nothing: phantoms are no patients; if that is wrong, correct Quality Control Subject or Image",
    "animal": "nothing: only people are used; if that is wrong, correct the species and breed in the header",
    "converted": "export the series from the scanner or the archive, not a picture of it",
    "truncated": "export the series again",
    "required": "export the series again with all of its attributes",
    "no-patient": "say whose the files are: Patient ID in DICOM; else names such as sub-01 or patient01, or `people` in the site "
    "file: folder, image where each file is another person, or a CSV with the columns file,person",
    "two-names": "rename the file or its folder, so that both name one person, or set `people` to a CSV with file,person",
    "no-issuer": "set `default_issuer` in the site file to the issuer of the identifiers that name none",
    "many-names": "give every study a UID of its own: the tool that exported these copied one",
    "shared-study": "correct the identifier in the archive, so that the study belongs to one patient",
    "burned-in": "nothing: text may stand in the picture; if that is wrong, correct Burned In Annotation (0028,0301)",
    "text": "look at the series; export it without annotations",
    "derived": "export the original series, not what was computed from it",
    "localizer": "nothing: localizers are not used",
    "not-magnitude": "nothing: only magnitude images are used",
    "mosaic": "export the series as single slices",
    "not-axial": "nothing, unless an axial series of the study exists",
    "not-a-head": "nothing: only heads are used",
    "duplicate": "nothing: it is used once",
    "two-classes": "move the patient's files into one class folder",
    "few-slices": "lower `minimum_slices` in the site file, or export the whole series",
    "geometry": "export the series again, whole and without doubles",
    "other-volume": "nothing: one volume of a series is used",
    "ambiguous": "export the volumes of the series apart",
    "other-series": "nothing: one series of a study is used",
    "orientation": "write the orientation into the file (sform or qform)",
    "label-map": "nothing: masks are no scans",
    "flat": "look at the picture; leave it out, or export it again with its own window",
    "black": "look at the picture; leave it out, or export it again with its own window",
    "not-clean": "tell the makers: this should not happen",
    "derivatives": "nothing: derived data is not used",
    "incomplete": "run the ingest again",
    "not-reached": "run the ingest again",
    "not-found": "nothing, unless the list of patients is wrong",
    "other-patient": "correct the list of patients or the archive",
    "not-t1": "nothing, unless faces need not be removed: `face_removal: none`",
    "coverage": "nothing, unless a series of the whole head exists",
    "no-brain": "look at the series: is it a head?",
    "brain-volume": "look at the series: is it a whole head?",
    "brain-pieces": "look at the series: is it one whole head?",
    "masks-differ": "look at the series; it cannot be checked that the face is gone",
    "face-left": "look at the series; it cannot be checked that the face is gone",
    "brain-low": "look at the series: is it upside down or cut off?",
    "outside-mask": "tell the makers: this should not happen",
}


def counted(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What was counted beside the verdicts, in sentences: only numbers, never an identifier."""
    said = []
    people, labels = counts.get("people", {}), counts.get("labels", {})
    if people.get("joined"):
        said.append(
            f"{_of(people['joined'], 'patient identifier')} of {people['identifiers']} joined to another one: they have a study, a "
            "series or an image in common, or a header names both, so they are one person."
        )
    if people.get("alike"):
        said.append(
            f"{people['alike']} of {people['identifiers']} patient identifiers look like one of somebody else but for case, zeros, "
            "blanks or signs. If they are one person, that person counts as several: correct the identifiers at their source."
        )
    if labels:
        number = labels["matched"] + labels["unmatched"]
        said.append(
            f"{labels['matched']} of {number} patient identifiers have a row in the labels table; {labels['surplus']} of its "
            f"{labels['rows']} rows {'is' if labels['surplus'] == 1 else 'are'} of nobody here."
        )
        if labels.get("alike"):
            said.append(
                f"{labels['alike']} more would have one, were case, leading zeros, blanks and signs ignored: look whether a "
                "spreadsheet changed them."
            )
        if labels.get("unlabelled"):
            said.append(f"{_of(labels['unlabelled'], 'patient')} unlabelled.")
    return said


def _of(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


def statement(claimed: set[str]) -> str:
    """The claim in one sentence, with the codes that ran and no others."""
    codes = ", ".join(sorted(claimed)) or "no option"
    return (
        f"The files that passed were rebuilt in accordance with DICOM PS3.15 2026d, Annex E, with the codes {codes} of CID "
        "7050. They are pseudonymised in the sense of GDPR Article 4(5). They are not claimed to be anonymous."
    )


def ran(claimed: set[str], models: Mapping[str, str]) -> list[tuple[str, bool, str]]:
    """(what, whether it ran on every file that passed, what follows)."""
    text = CLEAN_PIXELS in claimed or any("ocr" in name for name in models)  # a cohort names the network, not the code
    face = CLEAN_FEATURES in claimed
    found = [
        ("Rebuild from the allow-list", True, "what is not listed cannot survive, at any level"),
        ("Samples cut to their bits and their length", True, "nothing hides beside the picture"),
        (
            "Search for text in the pictures",
            text,
            "no text was found in what was kept" if text else "burned-in text may remain: look at the pictures",
        ),
        (
            "Removal of the face",
            face,
            "no face was found in what was kept" if face else "faces may remain, unless the input held none",
        ),
    ]
    found += [(f"Model {name}", True, f"SHA-256 {digest}") for name, digest in sorted(models.items())]
    return found
