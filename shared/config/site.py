"""What one hospital says about itself: its own file.

Left out: what an experiment says (experiment.py), the archive (pacs.py), and what the hospital permits (policy.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.config.pacs import Pacs
from shared.config.policy import Policy
from shared.config.record import ModalityName, Positive, PositiveFloat, Record
from shared.modalities.base import DEFAULT

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
SiteName = Annotated[str, Field(pattern=SITE_NAME)]


class Site(Record):
    """What one hospital says about itself; the hospital's own file, never sent.

    name            of the hospital, as it stands in reports and messages
    data            folder to read
    pacs            an archive to fetch DICOM from, instead of `data`
    format          "dicom", "nifti", or "images" (class/patient/*.png|jpg)
    modality        a name of shared/modalities, such as "mr" or "ct" (heads); a file of another modality is refused
    people          of NIfTI and images: how a path says whose a file is. "auto": by `sub-01`, a person's word and number, or a
                    folder a patient (client/readers/whose.py); "folder": each first folder (below the class) is a person; "image":
                    each file is another person; or a CSV with the columns file,person beside or inside the data
    default_issuer  of DICOM: who issued the patient identifiers of headers that name no issuer; none: nobody is known. With it a
                    PACS that writes the issuer into a part of its files gives one person one pseudonym
    labels          CSV with the columns patient_id,class beside or inside the data; none: every patient is unlabelled
    face_removal    "required" keeps the brain of T1-weighted heads and withholds all in doubt ("images" are refused); "none"
                    is the hospital's word that the input holds no face, or that it accepts the risk: slices never leave
    text_check      "required" withholds a series with text in its pixels; "none" is the hospital's word that there is none
    minimum_slices  a volume with fewer slices of the brain is withheld
    epsilon_cap     the most that any patient of this site may ever spend, over all runs of the cohort; null: no cap, also
                    training without privacy is allowed (rehearsals on public data only)
    delta           at which the cap holds, and the largest that is accepted from an experiment; none: 1e-5, or with more than
                    10,000 patients a tenth of one over their number, rounded down to a power of ten
    records         absolute path of the folder with this hospital's key and ledger; none: the work folder. Several cohorts
                    of one hospital name the same one, or their patients are counted twice over
    separate_cohorts  count only the cohorts that share a patient with the one at hand. Then the epsilon that is sent, and a
                    refusal, tell whether they do. Otherwise everything in `records` counts for everybody
    release_checks  how many times, over the cohort's life, the site says whether a proposed release holds near-copies of its
                    patients: one bit each, pass or fail, which is not differentially private. 0: never
    share           noisy figures that may leave beside the update: "patient-count", "mean-loss"; each has its price
    policy          limits and approvals for the deployed federation
    """

    name: SiteName
    data: Path | None = None
    pacs: Pacs | None = None
    format: Literal["dicom", "nifti", "images"] = "dicom"
    modality: ModalityName = DEFAULT
    people: Literal["auto", "folder", "image"] | Path = "auto"
    default_issuer: Annotated[str, Field(max_length=64, pattern=r"^\S(.*\S)?$|^$")] = ""
    labels: Path | None = None
    face_removal: Literal["required", "none"] = "required"
    text_check: Literal["required", "none"] = "required"
    minimum_slices: Positive = 15
    epsilon_cap: PositiveFloat | None = 8.0
    delta: Annotated[float, Field(gt=0, le=1e-3)] | None = None
    records: Path | None = None
    separate_cohorts: bool = False
    share: tuple[Literal["patient-count", "mean-loss"], ...] = ()
    release_checks: Annotated[int, Field(ge=0)] = 3
    policy: Policy = Policy()

    @model_validator(mode="before")
    @classmethod
    def _moved(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and "weight" in tree:
            raise ValueError(
                "`weight` is no longer a hospital's to say; leave it out, and the coordinator writes "
                "`federation.weights: {NAME: WEIGHT}` into the experiment"
            )
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> Site:
        if (self.data is None) == (self.pacs is None):
            raise ValueError("give `data`, a folder to read, or `pacs`, an archive to fetch from; one of the two")
        if self.pacs is not None and self.format != "dicom":
            raise ValueError("a PACS holds DICOM; leave `format` out")
        if self.format == "dicom" and self.people != "auto":
            raise ValueError(
                "`people` says whose a picture or a NIfTI file is; DICOM says it in its headers: leave it out"
            )
        if isinstance(self.people, Path) and self.people.suffix.lower() not in (".csv", ".tsv", ".txt"):
            raise ValueError("`people` must be auto, folder, image, or a table whose name ends in .csv, .tsv or .txt")
        if self.records is not None and not self.records.is_absolute():
            raise ValueError("`records` must be an absolute path: the same folder wherever a command runs")
        return self
