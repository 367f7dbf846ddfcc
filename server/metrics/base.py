"""The seam of the metrics. A metric is one file of this room: a class of `Metric` with a `name`, in the file that the name gives.

    class Brightness(Metric):
        name, better, digits = "brightness gap", "zero", 1
        reading = "Mean grey of drawn images less that of real ones. About 0 is right."

        def fit(self, held: Held) -> None: ...             what is known of the held-out images alone; the floor
        def __call__(self, drawn: Drawn) -> Figure: ...    the value, its interval, beside the floor

Every figure stands beside a floor, what real images score against other patients' real images, and a 95 % interval by bootstrap
over held-out patients (all their images together) and drawn images (all of one patient together where it is known whose they are).
Splits, resamples and pairs are drawn once and are the same for all metrics; what several metrics need (features, say) is computed
once for all, by `once` and `kept`.

The interval does not cover the training's own randomness: that takes several runs.

Left out: where images come from (server/evaluation), and how figures are shown (server/reports).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from shared.config.experiment import Evaluation
from shared.errors import ConfigError
from shared.plugins import Registry

Better = Literal["lower", "higher", "zero", "floor"]
Resample = tuple[np.ndarray, np.ndarray]  # how often each held-out image (N,) and each drawn image (M,) is taken
R = TypeVar("R")


@dataclass(frozen=True)
class Figure:
    """One measured number: its value, what real images score (floor), and a 95 % interval."""

    value: float
    floor: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Description:
    """What a metric says of itself, for whoever shows its figures; it is written beside them.

    better        where the best value is: "lower", "higher", "zero", or "floor": as near to real against real as can be
    digits        behind the point
    reading       how to read it, in one or two plain sentences
    factor        figures are shown times this
    has_interval  false: the ends of the interval are the value itself
    """

    name: str
    better: Better = "lower"
    digits: int = 3
    reading: str = ""
    factor: float = 1.0
    has_interval: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def title(self) -> str:
        return self.name if self.factor == 1 else f"{self.name} \u00d7 {self.factor:g}"

    @property
    def goal(self) -> str:
        """Where the best value is, as a sentence."""
        return {
            "lower": "Lower is nearer.",
            "higher": "Higher is nearer.",
            "zero": "About 0 is right.",
            "floor": "About what real images score is right.",
        }[self.better]

    def shown(self, value: float) -> str:
        return f"{value * self.factor:.{self.digits}f}".replace("-", "\u2212")

    def interval(self, low: float, high: float) -> str:
        return f"{self.shown(low)} to {self.shown(high)}" if self.has_interval else "no interval"

    def distance(self, value: float, floor: float, low: float, high: float) -> tuple[float, float, float]:
        """How far from the best: (value, low, high), smaller is better."""
        if self.better == "lower":
            return value, low, high
        if self.better == "higher":
            return -value, -high, -low
        best = floor if self.better == "floor" else 0.0
        ends = abs(low - best), abs(high - best)
        return abs(value - best), 0.0 if low <= best <= high else min(ends), max(ends)


@dataclass(frozen=True)
class Split:
    """The held-out patients in two halves.

    half_N        (N,) bool: images of the patients of the first half
    reference_N   (N,) 0 or 1: all images of the first half
    other_N       (N,) 0 or 1: as many of the second half as are drawn, or all that it has
    """

    half_N: np.ndarray
    reference_N: np.ndarray
    other_N: np.ndarray


@dataclass(kw_only=True)
class _Shared:
    """What metrics share, by name."""

    known: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], R]) -> R:
        """What `make` gives, made once for all metrics that ask under this name."""
        if name not in self.known:
            self.known[name] = make()
        found: R = self.known[name]
        return found


@dataclass(kw_only=True)
class Held(_Shared):
    """The held-out images, and what is drawn of them once.

    x_NHW      (N, H, H) uint8, 16 pixels or more · patient_N (N,) int, 0 to P - 1, whose image
    splits     random halvings of the patients, for floors
    pairs_K2   pairs of images of different patients
    samples    drawn images that an evaluation has
    seed       of whatever else a metric draws
    options    files of weights and switches that were given: "inception_weights", "lpips_weights", "radiomics"
    fitting    see `while_fitting`
    keep       keeps arrays between evaluations, where the user has named a folder for it
    """

    x_NHW: np.ndarray
    patient_N: np.ndarray
    splits: Sequence[Split]
    pairs_K2: np.ndarray
    samples: int
    seed: int
    options: Mapping[str, Path | bool] = field(default_factory=dict)
    fitting: _Shared = field(default_factory=_Shared)
    keep: Callable[[str, Callable[[], np.ndarray]], np.ndarray] = lambda name, make: make()

    def while_fitting(self, name: str, make: Callable[[], R]) -> R:
        """As `once`, for what is large and no longer needed when all metrics are fitted."""
        return self.fitting.once(name, make)

    def fitted(self) -> None:
        """All metrics are fitted."""
        self.fitting = _Shared()

    def file(self, option: str, metric: str) -> Path:
        """The file that was given as an option. ConfigError where none was."""
        path = self.options.get(option)
        if not isinstance(path, Path):
            raise ConfigError(f"{metric} needs a file of weights; give --{option.replace('_', '-')}, or leave it out")
        return path

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """As `once`, for an array that is dear to compute: also kept between evaluations of the same held-out images."""
        return self.once(name, lambda: self.keep(name, make))

    def mean_over_splits(self, name: str, score: Callable[[Split], float | Sequence[float]]) -> np.ndarray:
        """The mean of a score over all splits, kept under this name."""
        return self.kept(name, lambda: np.asarray(np.mean([score(split) for split in self.splits], axis=0)))


@dataclass(kw_only=True)
class Drawn(_Shared):
    """Drawn images, beside the held-out ones.

    x_MHW      (M, H, H) uint8
    resamples  of held-out and drawn images together, for intervals
    pairs_K2   pairs of drawn images, of different patients where it is known whose they are
    """

    x_MHW: np.ndarray
    resamples: Sequence[Resample]
    pairs_K2: np.ndarray


class Metric(ABC):
    """One metric. An object of it is fitted to one held-out cohort, and then called on each set of drawn images.

    option   what the user must give for it (see `Held.options`); where it is given the metric is added by itself. "": nothing
    """

    name: ClassVar[str]
    better: ClassVar[Better]
    digits: ClassVar[int]
    reading: ClassVar[str]
    factor: ClassVar[float] = 1.0
    has_interval: ClassVar[bool] = True
    option: ClassVar[str] = ""

    @abstractmethod
    def fit(self, held: Held) -> None:
        """Learn what follows from the held-out images alone."""

    @abstractmethod
    def __call__(self, drawn: Drawn) -> Figure:
        """The figure of drawn images."""

    @classmethod
    def described(cls) -> Description:
        return Description(cls.name, cls.better, cls.digits, cls.reading, cls.factor, cls.has_interval)


METRICS: Registry[Metric] = Registry("server.metrics", "Metric", "evaluation.metrics")


def check(settings: Evaluation) -> None:
    """ConfigError when the experiment names a metric that there is not, or that cannot stand beside the others."""
    for name in settings.metrics:
        if not METRICS[name].has_interval:
            raise ConfigError(
                f"`evaluation.metrics` names `{name}`, which has no interval; take it out, `fedsynth evaluate` has it"
            )


def describe(names: Sequence[str], written: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Description]:
    """Descriptions by name: those that were written beside the figures, else of the room, else the name alone."""
    found = {}
    for name in names:
        try:
            told = (written or {}).get(name)
            found[name] = Description(**told) if told else METRICS[name].described()
        except (ConfigError, TypeError):  # a metric of a plug-in, or of another version
            found[name] = Description(name)
    return found


def interval(value: float, spread: Sequence[float]) -> tuple[float, float]:
    """95 % percentile interval of a bootstrap; contains the value.

    Resampling with replacement repeats images and so moves a Frechet distance upwards: the percentiles are shifted so that the
    bootstrap's mean falls on the value.
    """
    low, high = np.quantile(spread, [0.025, 0.975]) + (value - float(np.mean(spread)))
    return min(value, float(low)), max(value, float(high))
