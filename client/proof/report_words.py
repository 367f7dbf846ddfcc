"""What the report claims and what it warns of, in words that change only with what ran.

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
