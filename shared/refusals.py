"""A site's no: one of these sentences and no other, so that a refusal never tells more than that it is one.

The reason itself stays in the site's log. Which sentence it is follows from the request, the site's own file and its ledger, never
from a patient: what depends on patients is answered with noise (client/app.py).

Left out: the text of any error. It may name files, numbers and settings of the site.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.config.experiment import Experiment
from shared.config.record import Record

WORDS = {
    "unreadable": "the request cannot be read; are coordinator and site of the same version?",
    "code": "the site has not approved the code of this run; its people look at it with `fedsynth client approve`",
    "policy": "the site's own file does not permit what is asked",
    "plan": "this is not the plan that the site reserved for the run: noise, rate, steps and rounds stay as they were",
    "budget": "the site's budget does not hold what the run asks for: plan more noise, fewer rounds or fewer steps",
    "cohort": "the experiment does not fit the site's cohort",
    "ledger": "the site's privacy office must look at its ledger first",
    "answers": "the site has answered as many questions about releases as it permits",
    "failed": "the site cannot answer; its own log says why",
}


def settings(kind: type[Record] = Experiment, prefix: str = "") -> frozenset[str]:
    """The dotted keys of an experiment, which a refusal may name."""
    found: set[str] = set()
    for name, field in kind.model_fields.items():
        found.add(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Record):
            found |= settings(field.annotation, f"{prefix}{name}.")
    return frozenset(found)


SETTINGS = settings()


@dataclass(frozen=True)
class Refusal:
    """A site's no. `word` is a key of WORDS; `setting`, where there is one, a key of the experiment that is not permitted.

    Raises ValueError for any other word or setting.
    """

    site: str
    word: str
    setting: str = ""

    def __post_init__(self) -> None:
        if self.word not in WORDS or self.setting not in {"", *SETTINGS}:
            raise ValueError("a refusal says one of a few sentences")

    @property
    def reason(self) -> str:
        """The sentence, for people."""
        return WORDS[self.word] + (f" (`{self.setting}`)" if self.setting else "")
