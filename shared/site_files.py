"""What a hospital's files are and how they say whose they are: part of the site's own file, never sent.

Left out: how the paths are read (`client.intake.whose`), and how headers are (`client.intake.persons`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shared.record import Record

TABLES = (".csv", ".tsv", ".txt")


class SiteFiles(Record):
    """The files of a site.

    format          "dicom", "nifti", or "images" (class/patient/*.png|jpg)
    people          of NIfTI and images: how a path says whose a file is. "auto": by `sub-01`, a person's word and number, or a
                    folder a patient (docs/persons.md); "folder": each first folder (below the class) is a person; "image":
                    each file is another person; or a CSV with the columns file,person beside or inside the data
    default_issuer  of DICOM: who issued the patient identifiers of headers that name no issuer; none: nobody is known. With it a
                    PACS that writes the issuer into a part of its files gives one person one pseudonym
    """

    format: Literal["dicom", "nifti", "images"] = "dicom"
    people: Literal["auto", "folder", "image"] | Path = "auto"
    default_issuer: Annotated[str, Field(max_length=64, pattern=r"^(\S(.*\S)?)?$")] = ""

    @model_validator(mode="after")
    def _whose(self) -> SiteFiles:
        if self.format == "dicom" and self.people != "auto":
            raise ValueError(
                "`people` says whose a picture or a NIfTI file is; DICOM says it in its headers: leave it out"
            )
        if isinstance(self.people, Path) and self.people.suffix.lower() not in TABLES:
            raise ValueError("`people` must be auto, folder, image, or a table whose name ends in .csv, .tsv or .txt")
        return self
