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
copies and       one bit from every site, computed there on its own patients (see client/proposal.py): no near-copies, and
membership       membership inference within what the guarantee allows. It binds itself to these very images

The thresholds are `release.gate` of the experiment. They keep degenerate generators out; they are no claim of quality: that is
what `evaluate` measures, and it is published whatever it says. Only images held out and the sites' bits are looked at; the
central checks see no training patient. The bits are computed on private patients without noise and are outside the guarantee.

Left out: text in pixels (the hospital's business, before training), clique search for extraction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server import similarity
from server.draw import Draws
from server.heldout import Heldout
from shared.config import Gate
from shared.weights import write_bytes

SEEN = 500  # drawn images that the central checks look at, spread over all
BOOTSTRAP = 200
SEED = 0


@dataclass(frozen=True)
class Check:
    """One check and its verdict.

    value, low, high   its figure with a 95 % interval; none where it is not a number
    threshold          what the figure is held against, in words
    limits             lower and upper limit of the figure, for the plot
    """

    name: str
    passed: bool
    detail: str
    threshold: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limits: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Verdict:
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
    def load(path: Path) -> Verdict:
        """Read what `save` wrote; OSError, ValueError, KeyError or TypeError otherwise."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        checks = tuple(Check(**(c | {"limits": tuple(c["limits"])})) for c in tree["checks"])
        return Verdict(checks, tree["images_sha256"], tree["forced"])


def judge(
    drawn: Draws,
    heldout: Heldout | None,
    settings: Gate,
    formal: Callable[[], tuple[Check, Check]],
    said: Mapping[str, Any] | None,
    sites: int,
    audit: Callable[[], Check] | None = None,
) -> Verdict:
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
        "copies and membership": lambda: agreed(said, about, sites),
    }
    checks = []
    for name, check in run.items():
        if name not in settings.required:
            continue
        try:
            checks.append(check())
        except Exception as error:  # noqa: BLE001 - whatever keeps a check from running, the release does not pass it
            checks.append(Check(name, False, f"could not run: {type(error).__name__}", "must run"))
    return Verdict(tuple(checks), about)


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


def classes(
    x_NHW: np.ndarray, label_N: np.ndarray, counts: Mapping[str, int], heldout: Heldout, settings: Gate
) -> Check:
    """Every class is there, and told apart where real patients' classes are."""
    name, words = "classes", f"at least {settings.classes:g} of the way from chance to real images"
    empty = [label for label, count in counts.items() if count == 0]
    if empty or not counts:
        return Check(name, False, f"no image of the class {empty[0]}" if empty else "no class", words)
    present = sorted(set(heldout.label_N.tolist()) & set(label_N.tolist()))
    chance = 1 / max(len(present), 1)
    if len(present) < 2:
        return Check(name, True, "one class: nothing to tell apart", words)
    kept_N = np.isin(heldout.label_N, present)
    x_real, y_real, patient = heldout.x_NHW[kept_N], heldout.label_N[kept_N], heldout.patient_N[kept_N]
    real, drawn = _features(x_real), _features(x_NHW)
    other = real @ real.T
    other[patient[:, None] == patient[None, :]] = -np.inf
    hit_real = y_real[other.argmax(1)] == y_real
    value, low, _ = _balanced(hit_real, y_real, patient, present)
    if low <= chance:
        return Check(
            name,
            True,
            f"real classes cannot be told apart here ({value:.2f}, chance {chance:.2f}): nothing is asked",
            words,
        )
    limit = chance + settings.classes * (value - chance)
    hit = y_real[(drawn @ real.T).argmax(1)] == label_N
    inside = np.isin(label_N, present)
    found, low, high = _balanced(hit[inside], label_N[inside], np.arange(int(inside.sum())), present)
    detail = f"drawn classes are recognised in {found:.2f} of cases, real ones in {value:.2f}, chance is {chance:.2f}"
    return Check(name, found >= limit, detail, f"{limit:.2f} or more", found, low, high, (limit, None))


def diversity(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """Drawn images may not be clearly more alike than patients are."""
    rng = np.random.default_rng(SEED)
    small, real = similarity.shrink(x_NHW), similarity.shrink(heldout.x_NHW)
    drawn_K = similarity.ms_ssim(small, small, similarity.pairs(np.arange(len(small)), rng, 400))
    real_K = similarity.ms_ssim(real, real, similarity.pairs(heldout.patient_N, rng, 400))
    value = float(drawn_K.mean() - real_K.mean())
    spread = [_resampled(drawn_K, rng) - _resampled(real_K, rng) for _ in range(BOOTSTRAP)]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    detail = f"MS-SSIM of two drawn images less that of two patients: {value:+.3f} ({low:+.3f} to {high:+.3f})"
    ok = math.isfinite(value) and low <= settings.collapse
    return Check(
        "diversity", ok, detail, f"lower end {settings.collapse:g} or less", value, low, high, (None, settings.collapse)
    )


def sharpness(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """Fine detail neither lost nor made of noise."""
    rng = np.random.default_rng(SEED)
    drawn_N, real_N = detail_power(x_NHW), detail_power(heldout.x_NHW)
    value = float(np.median(drawn_N) / np.median(real_N))
    spread = [
        np.median(rng.choice(drawn_N, len(drawn_N))) / np.median(rng.choice(real_N, len(real_N)))
        for _ in range(BOOTSTRAP)
    ]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    least, most = settings.sharpness, 1 / settings.sharpness
    detail = f"power of fine detail, drawn over real: {value:.3g} ({low:.3g} to {high:.3g})"
    return Check(
        "sharpness", bool(least <= value <= most), detail, f"{least:g} to {most:g}", value, low, high, (least, most)
    )


def likeness(x_NHW: np.ndarray, heldout: Heldout, settings: Gate) -> Check:
    """At least remotely like a held-out patient."""
    rng = np.random.default_rng(SEED)
    kept = np.sort(rng.permutation(len(heldout.x_NHW))[:SEEN])
    real, patient = similarity.shrink(heldout.x_NHW[kept]), np.unique(heldout.patient_N[kept], return_inverse=True)[1]
    near = similarity.nearest(similarity.shrink(x_NHW), real, patient).max(1)
    own = similarity.nearest(real, real, patient)
    own[np.arange(len(patient)), patient] = -np.inf
    floor = float(own.max(1).mean())
    value = float(near.mean()) / floor
    spread = [_resampled(near, rng) / floor for _ in range(BOOTSTRAP)]
    low, high = (float(q) for q in np.quantile(spread, [0.025, 0.975]))
    detail = f"NN-SSIM to held-out patients {near.mean():.3f}, other real patients {floor:.3f}: {value:.2f} of it"
    ok = floor > 0 and value >= settings.likeness
    return Check(
        "likeness", bool(ok), detail, f"{settings.likeness:g} or more", value, low, high, (settings.likeness, None)
    )


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


def detail_power(x_NHW: np.ndarray) -> np.ndarray:
    """Power of each image (N,) at more than a quarter of the sampling rate, per pixel."""
    x = x_NHW.astype(np.float64) / 255
    power = np.abs(np.fft.fft2(x - x.mean((1, 2), keepdims=True))) ** 2
    f = np.fft.fftfreq(x.shape[1])
    return np.asarray(power[:, np.hypot(f[:, None], f[None, :]) > 0.25].sum(1) / x[0].size ** 2)


def _features(x_NHW: np.ndarray) -> np.ndarray:
    """Averaged to 16 x 16, centred, unit norm: correlation as an inner product."""
    n, height, _ = x_NHW.shape
    block = height // 16
    small = x_NHW[:, : 16 * block, : 16 * block].reshape(n, 16, block, 16, block).mean((2, 4)).reshape(n, -1)
    small -= small.mean(1, keepdims=True)
    return np.asarray(small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-12))


def _balanced(
    hit_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, present: list[int]
) -> tuple[float, float, float]:
    """Mean over classes of the share of hits, with a 95 % bootstrap over groups within each class."""
    rng = np.random.default_rng(SEED)
    per_class = []
    for label in present:
        mine = label_N == label
        groups, inverse = np.unique(group_N[mine], return_inverse=True)
        hits, sizes = np.bincount(inverse, hit_N[mine]), np.bincount(inverse)
        drawn = rng.integers(len(groups), size=(BOOTSTRAP, len(groups)))
        per_class.append((float(hit_N[mine].mean()), hits[drawn].sum(1) / sizes[drawn].sum(1)))
    spread = np.mean([s for _, s in per_class], axis=0)
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(np.mean([v for v, _ in per_class])), float(low), float(high)


def _resampled(values: np.ndarray, rng: np.random.Generator) -> float:
    return float(values[rng.integers(len(values), size=len(values))].mean())


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
