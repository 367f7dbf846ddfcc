"""The gate: named checks between a trained model and a published image. It fails closed: what could not run has failed.

privacy          every site's epsilon per patient is finite and within the cap
sites            as many sites as the experiment requires are in every round
audit            where it is required: the canaries of `fedsynth privacy audit` do not contradict the stated epsilon. The result
                 must be of the same mechanism: noise, sampling rate, steps
classes          every class has its images, and drawn classes are told apart where real ones are: 1-nearest-neighbour on
                 averaged pixels against held-out patients (of other patients, for the real ones), balanced over classes
diversity        MS-SSIM diversity gap (see `evaluate`): no collapse
sharpness        power above a quarter of the sampling rate, median over images, drawn over real: neither blurred nor noise
likeness         NN-SSIM to held-out patients over what real images of other patients score: these are such images at all
cliques          no ten drawn images that are all more alike than two patients are: drawn over and over, so memorised
copies and       one bit from every site, computed there on its own patients (see client/release_check.py): no near-copies, and
membership       membership inference within what the guarantee allows. It binds itself to these very images

The thresholds are `release.gate` of the experiment. They keep degenerate generators out; they are no claim of quality: that is
what `evaluate` measures, and it is published whatever it says. Only images held out and the sites' bits are looked at; the
central checks see no training patient. The bits are computed on private patients without noise and are outside the guarantee.

Left out: text in pixels (the hospital's business, before training), a radiologist's look at the pairs most alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.evaluation.heldout import Heldout
from server.release.cliques import cliques
from server.release.draw import Draws
from server.release.quality import SEEN, Check, classes, diversity, likeness, sharpness
from shared.config.gate import Gate
from shared.errors import in_words
from shared.files import write_bytes


@dataclass(frozen=True)
class Decision:
    """All checks. `forced`: why the release goes out in spite of a failed one; none where it does not need it."""

    checks: tuple[Check, ...]
    images_sha256: str
    forced: str | None = None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    def to_json(self) -> bytes:
        tree = {"passed": self.passed, "forced": self.forced, "images_sha256": self.images_sha256}
        return json.dumps(tree | {"checks": [asdict(check) for check in self.checks]}, indent=2).encode() + b"\n"

    def save(self, path: Path) -> None:
        write_bytes(path, self.to_json())

    @staticmethod
    def load(path: Path) -> Decision:
        """Read what `save` wrote; OSError, ValueError, KeyError or TypeError otherwise."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        checks = tuple(Check(**(c | {"limits": tuple(c["limits"])})) for c in tree["checks"])
        return Decision(checks, tree["images_sha256"], tree["forced"])


def judge(
    drawn: Draws,
    heldout: Heldout | None,
    settings: Gate,
    formal: Callable[[], tuple[Check, Check]],
    said: Mapping[str, Any] | None,
    sites: int,
    audit: Callable[[], Check] | None = None,
) -> Decision:
    """Run every required check on the images that would be published.

    heldout   none where it could not be read: every check that needs it fails
    formal    the checks `privacy` and `sites`, from the run's statement
    said      what the sites answered (see `propose.answers`), none where nobody asked them
    sites     how many sites must have said yes
    audit     the check `audit` (see `audited`); none: it cannot run
    """
    about = drawn.sha256()
    sample, label_N = _sample(drawn)
    run: dict[str, Callable[[], Check]] = {
        "privacy": lambda: formal()[0],
        "sites": lambda: formal()[1],
        "audit": audit or _cannot,
        "classes": lambda: classes(sample, label_N, drawn.counts, _need(heldout), settings),
        "diversity": lambda: diversity(sample, _need(heldout), settings),
        "sharpness": lambda: sharpness(sample, _need(heldout), settings),
        "likeness": lambda: likeness(sample, _need(heldout), settings),
        "cliques": lambda: cliques(drawn, _need(heldout), settings),
        "copies and membership": lambda: agreed(said, about, sites),
    }
    checks = []
    for name, check in run.items():
        if name not in settings.required:
            continue
        try:
            checks.append(check())
        except Exception as error:  # noqa: BLE001 - whatever keeps a check from running, the release does not pass it
            checks.append(Check(name, False, f"could not run: {in_words(error)}", "must run"))
    return Decision(tuple(checks), about)


def audited(path: Path, noise_multiplier: float, sampling_rate: float, steps: int) -> Check:
    """What the audit of this mechanism found, from its audit.json; raises where that is absent or of another mechanism."""
    found = json.loads(path.read_text(encoding="utf-8"))
    stated, bound, problems = found["stated"], found["canaries"], list(found["problems"])
    same = math.isclose(stated["noise_multiplier"], noise_multiplier, rel_tol=1e-6)
    if not same or stated["sampling_rate"] != sampling_rate or stated["steps"] != steps:
        return Check(
            "audit", False, "could not run: audit.json is about another mechanism than this run's", "same mechanism"
        )
    value, limit = float(bound["epsilon"]), float(bound["stated"])
    detail = "; ".join(problems) or f"canaries show epsilon {value:.2f} at least, stated is {limit:.2f}"
    return Check("audit", not problems and value <= limit, detail, "no more than stated", value, limits=(None, limit))


def agreed(said: Mapping[str, Any] | None, about: str, sites: int) -> Check:
    """Every site said yes, to these very images."""
    name, words = "copies and membership", f"yes from {sites} site(s)"
    if said is None:
        return Check(name, False, "could not run: no site was asked about these images", words)
    if said.get("images_sha256") != about:
        return Check(name, False, "could not run: the sites were asked about other images than these", words)
    answers = {str(site): passed is True for site, passed in dict(said.get("sites", {})).items()}
    no = sorted(site for site, passed in answers.items() if not passed)
    if no:
        return Check(name, False, f"{len(no)} of {len(answers)} sites said no; each keeps its reasons", words)
    if len(answers) < sites:
        return Check(name, False, f"{len(answers)} of {sites} sites answered", words)
    return Check(name, True, f"{len(answers)} sites said yes, each on its own patients, in one bit", words)


def _cannot() -> Check:
    raise ValueError


def _need(heldout: Heldout | None) -> Heldout:
    if heldout is None:
        raise ValueError
    heldout.check()
    return heldout


def _sample(drawn: Draws) -> tuple[np.ndarray, np.ndarray]:
    """At most SEEN images and their labels, spread evenly over all."""
    wanted = set(np.linspace(0, len(drawn) - 1, min(SEEN, len(drawn))).astype(int).tolist())
    images, labels, number = [], [], 0
    for label_B, x_BHW in drawn.batches():
        for label, x_HW in zip(label_B, x_BHW, strict=True):
            if number in wanted:
                images.append(x_HW)
                labels.append(int(label))
            number += 1
    return np.stack(images), np.array(labels)
