"""Who is one person, by what DICOM headers say of each other. In doubt two names are one person: it can only cost utility.

A person who counts as two has twice the epsilon that we print. Two people who count as one are each bounded by the one bound,
so joining is always safe, and it loses less than withholding: the images stay, shared out as those of one patient.

* One identifier of one issuer is one person. The same number from two issuers is two people.
* A study, a series and an instance belong to one person: names that have one in common are joined. So is an identifier that
  a header lists beside its own (Other Patient IDs), where files of it are there and no issuer speaks against it.
* Without an issuer, an identifier is that of the site's `default_issuer`; where there is none, that of the one issuer that
  other files give it. Of a number with two issuers nobody knows whose it is: withheld.
* More than MOST identifiers joined into one are no person but a UID that was copied: withheld, all of them.
* The pseudonym of joined names is one of theirs, by the key alone, and one with an issuer if there is any: the order of the
  files, and a file that lacks the issuer, change nothing.

A ledger that counts cohorts apart is told all pseudonyms of a person (`names`): of each identifier, with its issuer and without.

Identifiers that differ in case, zeros, blanks or signs alone are left apart and counted: the hospital must say.

Left out: names, birth dates and faces as evidence; folders of pictures and NIfTI (`client.readers.whose`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset
from scipy.cluster.hierarchy import DisjointSet

from client.deidentification import acceptance, pseudonym, rules
from client.deidentification.manifest import Reason
from client.deidentification.redaction import guarded

MOST = 4  # identifiers of one person: a correction, a merge, a second hospital; not a cohort
LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
WANTED = frozenset({"PatientID", "IssuerOfPatientID", "OtherPatientIDs", "OtherPatientIDsSequence", *LEVELS})

Name = tuple[str, str]  # issuer, identifier


@dataclass(frozen=True)
class Claim:
    """What one header says of its person. `uids`: of the study, series and instance; `others`: further identifiers."""

    issuer: str
    identifier: str
    uids: tuple[str, ...] = ()
    others: frozenset[Name] = frozenset()

    @property
    def name(self) -> Name:
        return self.issuer, self.identifier

    @property
    def study(self) -> str:
        return next((uid for uid in self.uids if uid.startswith(LEVELS[0])), "")


def claim_of(header: Dataset, default_issuer: str = "") -> Claim:
    """The claim of a header. Raises Withheld(NO_PATIENT) where it names nobody."""
    identifier = guarded(Reason.NO_PATIENT, lambda: rules.identifier_of(header))
    issuer = guarded(Reason.NO_ISSUER, lambda: rules.issuer_of(header)) or default_issuer
    uids = guarded(
        Reason.UNREADABLE,
        lambda: tuple(f"{level} {uid}" for level in LEVELS if (uid := "".join(acceptance.words(header, level)))),
    )
    others = guarded(Reason.UNREADABLE, lambda: frozenset(_others(header)))
    return Claim(issuer, identifier, uids, frozenset(name for name in others if name[1] and name[1] != identifier))


def _others(header: Dataset) -> Iterator[Name]:
    """Further identifiers in a header; the issuer is empty where it is not stated."""
    for value in rules.texts(header, "OtherPatientIDs"):
        yield "", value.strip(" \0")
    for item in header.get("OtherPatientIDsSequence") or []:
        issuers = [value.strip(" \0") for value in rules.texts(item, "IssuerOfPatientID")]
        for value in rules.texts(item, "PatientID"):
            yield "".join(issuers), value.strip(" \0")


def resolve(claims: Mapping[int, Claim], key: bytes) -> dict[int, str | Reason]:
    """Of each file the pseudonym of its person, or the reason why nobody knows who that is."""
    joined = DisjointSet({claim.name for claim in claims.values()})
    by_identifier: dict[str, list[Name]] = defaultdict(list)
    for issuer, identifier in joined:
        by_identifier[identifier].append((issuer, identifier))
    first: dict[str, Name] = {}
    for claim in claims.values():
        for uid in claim.uids:
            joined.merge(first.setdefault(uid, claim.name), claim.name)
        for issuer, other in claim.others:
            for name in by_identifier.get(other, ()):
                if issuer in ("", name[0]) or not name[0]:
                    joined.merge(name, claim.name)
    in_doubt: set[Name] = set()
    for identifier, names in by_identifier.items():
        issued, bare = [name for name in names if name[0]], ("", identifier)
        if bare in names and len(issued) == 1:
            joined.merge(bare, issued[0])
        elif bare in names and issued and not any(joined.connected(bare, name) for name in issued):
            in_doubt.add(bare)
    found: dict[Name, str | Reason] = {}
    for part in joined.subsets():
        person: str | Reason = min(
            pseudonym.pseudonym(key, *name) for name in [name for name in part if name[0]] or part
        )
        if len({identifier for _, identifier in part}) > MOST:
            person = Reason.MANY_NAMES
        elif part & in_doubt:
            person = Reason.NO_ISSUER
        found |= dict.fromkeys(part, person)
    return {file: found[claim.name] for file, claim in claims.items()}


def names(claim: Claim, key: bytes) -> set[str]:
    """The pseudonyms that the person of a claim may have in another cohort."""
    return {pseudonym.pseudonym(key, issuer, claim.identifier) for issuer in (claim.issuer, "")}


def plain(identifier: str) -> str:
    """The identifier without what people and spreadsheets change: case, zeros in front of a number, blanks and signs."""
    folded = unicodedata.normalize("NFKC", identifier).casefold()
    kept = "".join(letter for letter in folded if letter.isalnum())
    return re.sub(r"(?<!\d)0+(?=\d)", "", kept) or folded


def alike(people: Iterable[Iterable[str]]) -> int:
    """How many identifiers look like one of somebody else. `people`: the identifiers of each person."""
    looks: dict[str, set[int]] = defaultdict(set)
    several = [set(identifiers) for identifiers in people]
    for person, identifiers in enumerate(several):
        for identifier in identifiers:
            looks[plain(identifier)].add(person)
    return sum(len(looks[plain(identifier)]) > 1 for identifiers in several for identifier in identifiers)
