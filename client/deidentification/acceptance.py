"""Which instances may be rebuilt at all: decided on the header, before any pixel is decoded.

The kind of object decides first (SOP class), then whether a person was scanned at all (Synthetic Data, Quality Control
Subject and Image, species, breed, strain), then how the image came to be (Image Type, Conversion Type, Burned In Annotation,
complex component). Values are compared with fixed words and never repeated. A series description is not read.

Left out: text inside the pixels; faces.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from client.deidentification.manifest import Reason, Withheld
from client.modalities import reader_of
from shared.modalities.base import DEFAULT, Modality, sop_classes
from shared.modalities.base import modality as known

DICOMDIR = "1.2.840.10008.1.3.10"

# Words of Image Type or Frame Type (PS3.3 C.7.6.1.1.2, C.8.3.1, C.8.13.3 and vendors' own) that mean "do not use".
DENIED: dict[Reason, frozenset[str]] = {
    Reason.LOCALIZER: frozenset({"LOCALIZER", "SCOUT", "SURVEY"}),
    Reason.MOSAIC: frozenset({"MOSAIC"}),
    Reason.DERIVED: frozenset(
        {"DERIVED", "SECONDARY", "MPR", "MIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "SCREEN SAVE", "RESAMPLED"}
        | {"REFORMATTED", "CSA MPR", "CSA PARALLEL", "CSA RESAMPLED", "SYNTHETIC", "SUBTRACTION", "MODULUS SUBTRACT"}
        | {"IMAGE ADDITION", "MEAN", "STANDARDDEVIATION", "VOLUME RENDERING", "POSDISP"}
    ),
    Reason.NOT_MAGNITUDE: frozenset(
        {"P", "PHASE", "PHASE MAP", "PHASE SUBTRACT", "PHASE CONTRAST", "R", "REAL", "I", "IMAGINARY", "MIXED"}
        | {"ADC", "EADC", "TRACE", "TRACEW", "FA", "COLFA", "DIFFUSION MAP", "DIFFUSION ANISO", "TENSOR", "B0 MAP"}
        | {"FIELD MAP", "VELOCITY MAP", "VELOCITY", "CBF", "CBV", "MTT", "TTP", "RCBF", "RCBV", "TMAX", "DENSITY MAP"}
        | {"T1 MAP", "T2 MAP", "T2 STAR MAP", "R2 MAP", "R2 STAR MAP", "PROTON DENSITY MAP", "T TEST", "Z SCORE"}
        | {"PARAMETRIC MAP", "PERFUSION MAP"}
    ),
}

FLAGS = {  # PS3.3 C.12.1.1.1, C.7.1.1, C.7.6.1: what says yes is refused
    "SyntheticData": Reason.SYNTHETIC,
    "QualityControlSubject": Reason.QUALITY_CONTROL,
    "QualityControlImage": Reason.QUALITY_CONTROL,
}
YES = frozenset({"YES", "Y", "TRUE", "T", "1", "BOTH"})
BRED = ("PatientBreedDescription", "StrainDescription", "PatientSexNeutered")  # PS3.3 C.7.1.1: of an animal alone
BRED_GROUPS = ("PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainCodeSequence", "StrainStockSequence",
               "GeneticModificationsSequence")  # fmt: skip
HUMAN = frozenset({"HUMAN", "HOMO SAPIENS", "HOMO SAPIENS SAPIENS", "MAN", "MENSCH", "HUMAIN", "HUMANO", "UMANO"})
HUMAN_CODES = frozenset({("337915000", "SCT"), ("L-85B00", "SRT"), ("L-85B00", "SNM3")})  # PS3.16, CID 7454
SYNTHESIZER = ("109100", "DCM")  # PS3.16, CID 7005: purpose of contributing equipment
SUBJECT = frozenset(
    {
        *FLAGS,
        *BRED,
        *BRED_GROUPS,
        "PatientSpeciesDescription",
        "PatientSpeciesCodeSequence",
        "ContributingEquipmentSequence",
    }
)


@cache
def tag_of(keyword: str) -> BaseTag:
    """The tag of a keyword of the standard; looked up once, because a series asks for the same ones in every file."""
    return Tag(keyword)


def words(source: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of a text attribute in capitals without padding; empty when absent."""
    element = source.get(tag_of(keyword))
    value = element.value if element is not None else None
    if value is None:
        return ()
    values = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    return tuple(word for word in (str(item).strip(" \0").upper() for item in values) if word)


def check(source: Dataset, modality: str = DEFAULT) -> str:
    """The name of the SOP class if this header may go on; else raises Withheld with the reason.

    modality   of the site, a name of shared/modalities; files of another one are refused
    """
    sop_class = "".join(words(source, "SOPClassUID"))
    if sop_class == DICOMDIR or "DirectoryRecordSequence" in source:
        raise Withheld(Reason.DICOMDIR)
    if sop_class not in sop_classes():
        raise Withheld(Reason.SOP_CLASS)
    wanted = known(modality)
    if sop_class not in wanted.sop_classes or words(source, "Modality") not in {(code,) for code in wanted.codes}:
        raise Withheld(Reason.MODALITY)
    for place in (source, *_converted(source)):
        check_subject(place)
    reader_of(modality).check_header(source)
    check_colour(source, wanted)
    if words(source, "ConversionType") or words(source, "SecondaryCaptureDeviceManufacturer"):
        raise Withheld(Reason.CONVERTED)
    if words(source, "BurnedInAnnotation") not in {(), *((word,) for word in wanted.burned_in)}:
        raise Withheld(Reason.BURNED_IN)
    check_type(words(source, "ImageType"), wanted.image_types)
    check_component(source)
    if not "".join(words(source, "PatientID")):
        raise Withheld(Reason.NO_PATIENT)
    return wanted.sop_classes[sop_class]


def check_colour(source: Dataset, wanted: Modality) -> None:
    """Only samples that the modality knows: one of a grey pixel, three of a colour."""
    samples = {"1" if said.startswith("MONOCHROME") else "3" for said in wanted.photometric}
    known_samples = words(source, "SamplesPerPixel") in {(), *((count,) for count in samples)}
    if not known_samples or not set(words(source, "PhotometricInterpretation")) <= set(wanted.photometric):
        raise Withheld(Reason.COLOUR)


def check_subject(source: Dataset) -> None:
    """Only what was acquired, and of a person."""
    for keyword, reason in FLAGS.items():
        if YES.intersection(words(source, keyword)):
            raise Withheld(reason)
    if any(
        SYNTHESIZER in _codes(item, "PurposeOfReferenceCodeSequence")
        for item in _items(source, "ContributingEquipmentSequence")
    ):
        raise Withheld(Reason.SYNTHETIC)
    species = set(words(source, "PatientSpeciesDescription")) <= HUMAN
    species = species and _codes(source, "PatientSpeciesCodeSequence") <= HUMAN_CODES
    if not species or any(words(source, name) for name in BRED) or any(_items(source, name) for name in BRED_GROUPS):
        raise Withheld(Reason.ANIMAL)


def _converted(source: Dataset) -> list[Dataset]:
    """What a conversion to many frames could not place: items inside the groups of the frames."""
    return [
        item
        for which in ("Shared", "PerFrame")
        for group in _items(source, f"{which}FunctionalGroupsSequence")
        for item in _items(group, f"Unassigned{which}ConvertedAttributesSequence")
    ]


def _items(source: Dataset, keyword: str) -> list[Dataset]:
    element = source.get(tag_of(keyword))
    value = element.value if element is not None else None
    return [item for item in value if isinstance(item, Dataset)] if isinstance(value, Sequence) else []


def _codes(source: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {
        ("".join(words(item, "CodeValue")), "".join(words(item, "CodingSchemeDesignator")))
        for item in _items(source, keyword)
    }


def check_type(image_type: tuple[str, ...], accepted: Collection[tuple[str, str]] = (("ORIGINAL", "PRIMARY"),)) -> None:
    """Only images that begin with what is `accepted`; none of the denied words anywhere else in the type."""
    begins = image_type[:2] in accepted
    said = image_type[2:] if begins else image_type
    spelled = {word.replace("_", " ") for word in said} | set(said)
    for reason, denied in DENIED.items():
        if denied & spelled:
            raise Withheld(reason)
    if not begins:
        raise Withheld(Reason.DERIVED)


def check_component(source: Dataset) -> None:
    if not set(words(source, "ComplexImageComponent")) <= {"MAGNITUDE"}:
        raise Withheld(Reason.NOT_MAGNITUDE)
