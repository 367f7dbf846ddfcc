"""Frozen settings, read from YAML and checked once, at the edge.

An experiment file holds an `Experiment`; a hospital's own file holds a `Site` (site.py). An unknown key is an error that names the
key, and a near one where there is one. Privacy and performance settings are two records: the first decide what a patient reveals,
the second never.

Left out: anything that reads data, and defaults that depend on the machine (see `models.device.device_for`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from shared.config.gate import Gate
from shared.config.model import ADAPTERS, ModelSettings, settings_last, unless_unknown
from shared.config.record import ModalityName, Positive, PositiveFloat, Record
from shared.config.site import Site, SiteName
from shared.modalities.base import DEFAULT, modality

Fraction = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0.01, le=100)]
Sampler = Literal["ddim", "dpm++", "ddpm"]


class Cohort(Record):
    """How a simulation makes its hospitals. Ignored where `Experiment.sites` names real ones.

    sites               how many hospitals are made
    patients_per_site   patients of each site; for a folder of images, all that are not held out are dealt out
    heldout_patients    patients kept centrally for evaluation, disjoint from every site
    slices_per_patient  axial slices kept of each patient, spread evenly over the usable range
    planted             name of the phantom site whose DICOM headers carry planted identifiers, or none
    """

    sites: Positive = 3
    patients_per_site: Positive = 24
    heldout_patients: Positive = 24
    slices_per_patient: Positive = 24
    planted: SiteName | None = None


class Training(Record):
    """The local loop. One patient is one micro-batch: `slices` x `draws` noised slices, one gradient.

    trainable   which parameters a site trains and sends: the name of an adapter (shared/adapters/)
    rounds      how often all sites train and their updates are combined
    steps       optimiser steps of a site in each round
    slices      of a patient that a step looks at
    draws       of noise for each of these slices: more draws make a patient's gradient steadier, and cost time
    optimizer   of a site's own steps
    learning_rate  of these steps; there is no momentum in "sgd"
    condition_dropout  probability that a draw hides label and latent, so that guidance works
    """

    trainable: str = "appearance"
    rounds: Positive = 4
    steps: Positive = 3
    slices: Positive = 4
    draws: Positive = 4
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: PositiveFloat = 0.9
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Statistics(Record):
    """Noisy figures that a coordinator asks of each site beside its update. A site gives only those that its file shares.

    Each is a noise multiplier with a price of its own, part of `privacy.epsilon`; none: not asked. See privacy/noisy_statistics.py.

    patient_count  standard deviation of the noise, in patients; asked once, in the first round
    mean_loss      noise on the mean training loss of the received weights, over all patients; asked in every round
    loss_bound     a patient's loss is clipped to [0, loss_bound]
    """

    patient_count: PositiveFloat | None = None
    mean_loss: PositiveFloat | None = None
    loss_bound: PositiveFloat = 1.0


class Privacy(Record):
    """What a patient reveals. Unit: the patient; neighbouring relation: add or remove all data of one patient.

    epsilon         target over all rounds of this run; none trains without privacy and can never be released as private
    delta           probability with which epsilon may fail to hold; a site refuses one that is larger than its own
    sampling_rate   probability that a patient takes part in a step (Poisson sampling)
    max_grad_norm   L2 bound of one patient's gradient
    clipping        "fixed" shortens a gradient that is longer than the bound; "automatic" brings every gradient near the bound
    expected_patients  public constant that divides each step's sum (times `sampling_rate`); none: the simulation's
                    `cohort.patients_per_site`. Never a site's true patient count
    max_nsr         refuse to start above this noise-to-signal ratio
    statistics      noisy figures beside the update; by default none is asked
    """

    epsilon: PositiveFloat | None = 8.0
    delta: Annotated[float, Field(gt=0, le=1e-3)] = 1e-5
    sampling_rate: Fraction = 1.0
    max_grad_norm: PositiveFloat = 1.5
    clipping: Literal["fixed", "automatic"] = "fixed"
    expected_patients: Positive | None = None
    max_nsr: PositiveFloat = 10.0
    statistics: Statistics = Statistics()


class Federation(Record):
    """Who is waited for, and how updates combine (server/strategy.py, server/aggregation).

    minimum_sites    a round needs as many good replies; none: what the release needs
    deadline_s       time for all replies of a round; a site that is later is left out of the round
    join_timeout_s   time for all sites to be there when a round begins
    attempts         a round with too few replies is asked again; the run ends when all attempts have failed
    aggregation      the rule, by the name of its file in server/aggregation: "mean" of updates with public weights; "median",
                     "trimmed-mean", "krum" and "multi-krum" withstand `assumed_bad_sites` sites that send nonsense. A rule that has
                     more settings is given as {rule: name, setting: value}
    assumed_bad_sites  how many sites may send nonsense, for the rules that withstand it
    weights          how much a site counts in "mean" and "multi-krum", by its name, 0.01 to 100; who is not named counts 1. The
                     coordinator's to say, public (every site is sent it), and never derived from patient counts
    server_optimizer what is done with the combined update: "average" adds it, "momentum" (FedAvgM), "adam" (FedAdam)
    server_learning_rate  factor on the combined update, by which it is added
    proximal         FedProx's mu: pulls a site's parameters back to the received ones in every step (Li et al. 2020, equation 2)
    """

    minimum_sites: Positive | None = None
    deadline_s: PositiveFloat = 3600.0
    join_timeout_s: PositiveFloat = 180.0
    attempts: Positive = 3
    aggregation: str | dict[str, str | bool | int | float] = "mean"
    assumed_bad_sites: Annotated[int, Field(ge=0)] = 1
    weights: dict[SiteName, Weight] = Field(default={})
    server_optimizer: Literal["average", "momentum", "adam"] = "average"
    server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @field_validator("aggregation", mode="before")
    @classmethod
    def _rule(cls, said: Any) -> Any:  # which rules there are, the server knows
        if not isinstance(said, str | dict):
            raise ValueError("give the name of a rule, or {rule: name, setting: value}")
        return said


class Performance(Record):
    """Speed and memory. Nothing here changes what a patient reveals.

    device          where it is computed; "auto" takes a GPU where there is one
    precision       of activations; "bfloat16" is faster where the processor knows it
    compile         let torch compile the model: slower to start, faster afterwards
    threads         of a process; 0: torch decides
    sampling_batch  images drawn at the same time; less takes less memory
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    sampling_batch: Positive = 120


class Evaluation(Record):
    """Central evaluation on held-out patients. `every`: rounds between evaluations; round 0 and the last always.

    samples     images that are drawn for an evaluation, over all classes
    sampler, sampler_steps, guidance  how they are drawn, as in `release`
    bootstrap   resamples for each interval
    metrics     what is measured, by the names of the metrics' files in server/metrics, in this order
    select_by   the metric that says which round is best; one of `metrics`
    utility   once, on the best round's images: what classifiers that saw them alone know of real patients; half a minute
    """

    every: Positive = 1
    samples: Positive = 240
    sampler: Sampler = "dpm++"
    sampler_steps: Annotated[int, Field(ge=2, le=1000)] = 16
    guidance: Annotated[float, Field(ge=0, le=10)] = 1.0
    bootstrap: Annotated[int, Field(ge=20)] = 200
    metrics: tuple[str, ...] = ("FD-efflite0", "KID-efflite0", "MS-SSIM diversity gap", "NN-SSIM to held-out",
                                "NN-PSNR to held-out", "precision", "recall", "density", "coverage")  # fmt: skip
    select_by: str = "FD-efflite0"
    utility: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Evaluation:
        if self.select_by not in self.metrics:
            raise ValueError(
                f"`select_by` is {self.select_by[:60]!r}, which is not in `metrics`; add it, or name another"
            )
        return self


class Release(Record):
    """What is published, and when it is refused.

    images_per_class how many are drawn of each class
    sampler          "dpm++" and "ddim" take a few steps, "ddpm" is meant for 1000; a model that needs none leaves it aside
    sampler_steps    calls of the network for each image, twice that where `guidance` is not 1
    guidance         1 draws as the model learned; more draws images that are more like their class, and less varied
    epsilon_cap      refuse when any site's epsilon per patient is larger
    minimum_sites    refuse when fewer sites contributed to every round; none: all of them must
    watermark        add an invisible mark that `fedsynth detect` finds (server/release/watermark.py says what it can do)
    corner_label     write SYNTHETIC into a corner of every image
    """

    images_per_class: Annotated[int, Field(ge=0)] = 32
    sampler: Sampler = "dpm++"
    sampler_steps: Annotated[int, Field(ge=2, le=1000)] = 20
    guidance: Annotated[float, Field(ge=0, le=10)] = 1.0
    epsilon_cap: PositiveFloat = 8.0
    minimum_sites: Positive | None = None
    watermark: bool = False
    corner_label: bool = False
    gate: Gate = Gate()


class Experiment(Record):
    """One federation, whole.

    name      of the run, for its folder and its reports
    seed      of phantoms, the held-out part, first weights and drawn images; of privacy's noise only with `--repeatable`
    sites     the hospitals' files as a list, in a simulation with `data: sites`; see "The site's file"
    data      "phantoms", a folder class/patient/*.png|jpg, or "sites" when `sites` lists real ones
    classes   the labels in order; each maps to a label of the base ("healthy", ...) or to "any" (no label)
    modality  of the images, a name of shared/modalities; a site whose cohort has another takes no part
    base      name of a shipped base, or a path to base weights, or "none" (random start; full training only)
    model     what is trained: its `kind`, and that kind's own settings (shared/models/)
    plugins   files of your own, relative to the experiment's file (shared/plugins.py). In simulations only: they never travel
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    data: str = "phantoms"
    classes: dict[str, str] = Field(
        default={"healthy": "healthy", "atrophy": "atrophy", "lesion": "lesion"}, min_length=1
    )
    modality: ModalityName = DEFAULT
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    base: str = "phantoms-64"
    sites: tuple[Site, ...] = ()
    cohort: Cohort = Cohort()
    training: Training = Training()
    privacy: Privacy = Privacy()
    federation: Federation = Federation()
    performance: Performance = Performance()
    evaluation: Evaluation = Evaluation()
    release: Release = Release()
    plugins: tuple[str, ...] = Field(default=(), exclude=True)
    model: SerializeAsAny[ModelSettings] = Field(default_factory=dict, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, tree: Any) -> Any:
        tree = unless_unknown(cls, tree)
        training = tree.get("training") if isinstance(tree, dict) else None
        if isinstance(training, dict) and training.get("trainable") == "adapter":
            raise ValueError("`training.trainable: adapter` is called `appearance` now")
        return tree

    @classmethod
    def upgraded(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """Version 0.1: `network`, without a kind, and the adapter's old name."""
        tree = {("model" if key == "network" else key): value for key, value in tree.items()}
        if tree.get("training", {}).get("trainable") == "adapter":
            tree["training"] = tree["training"] | {"trainable": "appearance"}
        return tree

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_kind(cls, tree: object, info: ValidationInfo) -> ModelSettings:
        return settings_last(cls, tree, info)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if (self.data == "sites") != bool(self.sites):
            raise ValueError("`data: sites` and a list of `sites` go together; give both or neither")
        if len({site.name for site in self.sites}) != len(self.sites):
            raise ValueError("two sites have the same name; give each its own")
        unknown = sorted(set(self.federation.weights) - {site.name for site in self.sites})
        if self.training.trainable not in ADAPTERS.names():
            raise ValueError(
                f"`training.trainable` is `{self.training.trainable}`; there are {', '.join(ADAPTERS.names())}"
            )
        channels = modality(self.modality).channels
        if self.model.image_channels != channels:
            raise ValueError(
                f"`model.image_channels` is {self.model.image_channels}, images of `{self.modality}` have {channels}"
            )
        if self.sites and unknown:
            raise ValueError(f"`federation.weights` names `{unknown[0]}`, which is no site of the experiment")
        return self

    @property
    def expected_patients(self) -> int:
        """The public constant that divides a site's sums."""
        return self.privacy.expected_patients or self.cohort.patients_per_site
