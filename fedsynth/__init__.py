"""fedsynth from Python: what the commands do, as functions.

    import fedsynth

    experiment = fedsynth.read_experiment("configs/demo.yaml", {"privacy.epsilon": 4.0})
    print(fedsynth.plan(experiment))                   # what it costs a patient, before anything runs
    run = fedsynth.simulate(experiment, "out/demo")    # a whole federation on this machine
    model = fedsynth.load_model(run)                   # the best round's
    images = fedsynth.draw(model, {"healthy": 12})     # (12, 64, 64) uint8
    print(fedsynth.evaluate("scans/heldout", run.release))

Settings are frozen records, checked when they are read. Every error is a `fedsynth.FedsynthError`, one line that says how to mend
it; the names below (ConfigError, ...) are kinds of it, in shared.errors. Importing this package loads no library of deep learning;
the functions load what they need.

Left out: deployed nodes and servers, which are started by their commands alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared import plugins
from shared.config.experiment import Experiment
from shared.config.loading import read, validate
from shared.config.site import Site
from shared.errors import ConfigError, DataError, FedsynthError

if TYPE_CHECKING:
    import numpy as np

    from server.metrics.base import Figure
    from server.plan import Plan
    from server.release.seal import Verified
    from shared.models.base import GenerativeModel

__all__ = [
    "Experiment",
    "FedsynthError",
    "Release",
    "Run",
    "Site",
    "draw",
    "evaluate",
    "load_model",
    "plan",
    "read_experiment",
    "read_release",
    "read_site",
    "simulate",
]


@dataclass(frozen=True)
class Run:
    """A finished run in its folder. What it holds raises DataError where the folder is another's, or the run has not finished."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """Metrics by round, epsilon by site, the best round, versions: summary.json."""
        import json

        found: dict[str, Any] = json.loads(
            _file(self.folder / "summary.json", "a finished run").read_text(encoding="utf-8")
        )
        return found

    @property
    def experiment(self) -> Experiment:
        """The settings that it ran with. ConfigError where a plug-in of theirs is not loaded: read the experiment's file first."""
        return read(_file(self.folder / "experiment.json", "a run"), Experiment)

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.folder / "report.html"

    @property
    def release(self) -> Path:
        """The folder of published images; it is absent where the gate said no."""
        return self.folder / "release"


@dataclass(frozen=True)
class Release:
    """A published set of images, after its signature and every file were checked.

    images    (N, H, W) uint8
    labels    (N,) index into `classes`
    verified  what was signed, and by which key
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    verified: Verified


def read_experiment(path: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment from its YAML file. Raises ConfigError, which names the key.

    changes   dotted keys that replace values of the file, such as {"privacy.epsilon": 4.0}

    Plug-ins that the file names are run, relative to it, and stay loaded in this process.
    """
    return plugins.read(Path(path), dict(changes or {}))


def read_site(path: str | Path) -> Site:
    """A hospital's own settings from its YAML file. Raises ConfigError, which names the key."""
    return read(Path(path), Site)


def plan(experiment: Experiment) -> Plan:
    """What a run costs a patient, and how much noise that takes; computes nothing else.

    Raises PrivacyError where the noise would drown the signal, ConfigError where a metric or a rule of aggregation is not there.
    """
    from server.plan import plan as planned

    return planned(experiment)


def simulate(experiment: Experiment, out: str | Path, *, quiet: bool = False) -> Run:
    """Run a whole federation on this machine into `out`, or go on where it stopped.

    quiet   print nothing

    Raises ReleaseRefused after the report is written, where the gate says no: the run is there all the same (`Run(out)`).
    ConfigError where `out` holds another run; PrivacyError and WeightsError before anything is made; DataError where a hospital has
    no usable patient; FederationError where the run cannot go on.
    """
    from rich.console import Console

    try:
        from simulations.run import simulate as simulated
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "simulations":
            raise
        raise ConfigError(
            "simulations are not part of the wheel; clone the repository and install it with `make install`"
        ) from error

    simulated(experiment, Path(out), Console(quiet=quiet))
    return Run(Path(out))


def load_model(of: Run | str | Path) -> GenerativeModel:
    """A model that draws: of a run the best round's, else a base by its name or path.

    Raises WeightsError where weights are absent or were altered, DataError where no round of the run was evaluated.
    """
    from server import checkpoint
    from shared.adapters.base import attach
    from shared.models import weights

    if not isinstance(of, Run):
        about = weights.card(str(of))
        return weights.load_base(str(of), weights.made_for(str(of)), {name: name for name in about["labels"]}).eval()
    experiment, rounds = of.experiment, of.folder / "server" / "checkpoints"
    best = checkpoint.best(rounds)
    if best is None:
        raise DataError(f"{of.folder} holds no evaluated round; run the simulation to its end")
    model = weights.load_base(experiment.base, experiment.model, experiment.classes)
    attach(model, experiment.training.trainable)  # it may have put parameters of its own into the model
    model.load_state_dict(checkpoint.load(rounds, best), strict=False)
    return model.eval()


def draw(
    model: GenerativeModel,
    counts: Mapping[str, int],
    *,
    sampler: str = "dpm++",
    steps: int = 20,
    guidance: float = 1.0,
    seed: int = 0,
) -> np.ndarray:
    """Images (N, H, W) uint8, class after class, in the order of `counts`: class -> how many. The same seed draws the same images.

    sampler    "dpm++", "ddim" or "ddpm"     steps      of it, 2 to 1000     guidance   1: none; up to 10

    Raises DataError for a class that the model does not know, ConfigError for a setting that is out of range. Fewer than 8 images
    of a model that has learned the hospitals' appearance come back without it (shared/models/appearance.py).
    """
    import torch

    from server.release.draw import draw as drawn
    from shared.config.experiment import Performance
    from shared.config.experiment import Release as Settings

    unknown = sorted(set(counts) - set(model.classes))
    if unknown:
        raise DataError(f"the model knows no class `{unknown[0]}`; it draws {', '.join(model.classes)}")
    labels = [model.classes.index(name) for name, count in counts.items() for _ in range(count)]
    settings = validate({"sampler": sampler, "sampler_steps": steps, "guidance": guidance}, Settings, source="draw")
    return drawn(model, torch.tensor(labels, dtype=torch.long), settings, Performance(), seed=seed)


def evaluate(
    real: str | Path, synthetic: str | Path, *, patients: str = "auto", images: int = 1000, seed: int = 0
) -> dict[str, Figure]:
    """Measure how near synthetic images are to real ones: name -> value, 95 % interval, and what real images score.

    real, synthetic   folders of PNG, JPEG, DICOM or NPZ, NPZ files, or releases
    patients          whose the real images are: auto, folder (each is a patient), image, or a CSV file,patient
    images            at most so many of either

    Raises DataError where a folder cannot be read or holds too few images or patients.
    """
    from server.evaluation.compare import compare

    return dict(compare(Path(real), Path(synthetic), patients=patients, images=images, seed=seed).figures)


def read_release(folder: str | Path, public_key: str | Path | None = None) -> Release:
    """A release that was received, checked first.

    Raises SignatureError where a byte was changed, a file is missing or was added; DataError where the folder is no release.

    public_key   the coordinator's, PEM, from somewhere else than the release; without it the key is only named in `verified`
    """
    import numpy as np

    from server.release import seal

    verified = seal.verify_release(Path(folder), Path(public_key) if public_key is not None else None)
    with np.load(Path(folder) / "images.npz", allow_pickle=False) as arrays:
        return Release(arrays["x_NHW"], arrays["label_N"], tuple(map(str, arrays["classes"])), verified)


def _file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path.parent} holds no {path.name}: it is not the folder of {what}")
    return path
