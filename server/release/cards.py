"""The words that travel with a release: the privacy statement, the data card and the model card.

The statement follows NIST SP 800-226 (2025): unit of privacy, neighbouring relation, epsilon, delta, trust model, and what
lies outside the guarantee. The cards are Markdown with the front matter that model and data hubs read.

Left out: figures that nobody measured. What has not been checked is listed as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from server.evaluation import study
from server.release.gate import Decision
from shared.config.experiment import Release


@dataclass(frozen=True)
class ReleaseStatement:
    """What a run revealed of each patient, and how it came to be.

    epsilon_per_patient  site -> epsilon as its ledger counts it, over all runs; none where a site trained without privacy
    steps                optimiser steps over all rounds
    model_sha256         of the weights that the images are drawn from
    metrics              metric -> {value, floor, low, high} of the model that is released
    studied              its biomarkers and downstream utility (server/evaluation/study.py); empty where not measured
    """

    epsilon_per_patient: Mapping[str, float | None]
    delta: float
    sites_total: int
    sites_contributed: int
    rounds: int
    trainable: str
    noise_multiplier: float | None
    sampling_rate: float
    steps: int
    max_grad_norm: float
    accountant: str
    model_sha256: str
    experiment: str
    base: str
    metrics: Mapping[str, Mapping[str, float]]
    studied: Mapping[str, Any] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Every site has a finite epsilon, and noise was added."""
        epsilons = self.epsilon_per_patient.values()
        finite = [e is not None and math.isfinite(e) and e >= 0 for e in epsilons]
        return bool(finite) and all(finite) and bool(self.noise_multiplier)

    @property
    def epsilon(self) -> float:
        """The largest epsilon of any site; infinite without privacy."""
        return max(float(e) for e in self.epsilon_per_patient.values() if e is not None) if self.private else math.inf


def shown(epsilon: float | None) -> str:
    """An epsilon with two decimals, rounded up, so that print never promises more than was kept."""
    if epsilon is None or not math.isfinite(epsilon):
        return "none"
    return f"{math.ceil(epsilon * 100 - 1e-9) / 100:.2f}"


def small(delta: float) -> str:
    """1e-05 -> "1e-5"."""
    return f"{delta:g}".replace("e-0", "e-")


def _round(epsilon: float) -> str:
    """e^epsilon, two digits, rounded up."""
    factor = math.exp(min(epsilon, 700))
    unit = 10 ** (math.floor(math.log10(factor)) - 1)
    return f"{math.ceil(factor / unit) * unit:,.0f}" if factor >= 100 else f"{math.ceil(factor * 10) / 10:.1f}"


def contributed(statement: ReleaseStatement) -> str:
    return f"{statement.sites_contributed} of {statement.sites_total} sites contributed"


def guarantee(statement: ReleaseStatement) -> str:
    """One sentence: the guarantee, or that there is none."""
    if not statement.private:
        return (
            "Trained without differential privacy: there is no guarantee for any patient, and nothing may be released."
        )
    return (
        f"({shown(statement.epsilon)}, {small(statement.delta)})-differentially private per patient at every site; "
        f"{contributed(statement)}."
    )


def privacy_statement(statement: ReleaseStatement) -> dict[str, str]:
    """Heading -> plain text, in the terms of NIST SP 800-226."""
    if not statement.private:
        return {"Guarantee": guarantee(statement)}
    per_site = ", ".join(f"{site} {shown(e)}" for site, e in statement.epsilon_per_patient.items())
    return {
        "Guarantee": guarantee(statement),
        "In plain words": "Take any patient, and any model or image that could come out of this work. With that patient's "
        f"scans in the training data its chance is at most e^{shown(statement.epsilon)} (about {_round(statement.epsilon)}) "
        f"times its chance without them, and the other way round, plus {small(statement.delta)}. This bounds the worst case, "
        "against an observer who knows all the other patients. Below 1 is a strong promise, up to about 10 is in common "
        "use, more means little.",
        "Unit of privacy": "The patient: all slices of all studies of one person at a site.",
        "Neighbouring relation": "Add or remove all data of one patient at one site.",
        "Epsilon per patient": f"{per_site}; delta {small(statement.delta)}; rounded up. As each hospital's own ledger counts it: "
        f"all {statement.rounds} round(s) of this run and every earlier run on the same patients.",
        "Mechanism": f"Patient-level DP-SGD at each hospital: Poisson sampling of patients at rate {statement.sampling_rate:g}, "
        f"one gradient per patient clipped to an L2 norm of {statement.max_grad_norm:g}, Gaussian noise with multiplier "
        f"{statement.noise_multiplier:.4g}, {statement.steps} step(s). Trained parameters: {statement.trainable}. "
        f"Accountant: {statement.accountant}.",
        "Trust model": "Noise is added inside each hospital before anything leaves it. The guarantee holds against the "
        "coordinator, the other hospitals and the public; a patient trusts only the hospital that holds the scans.",
        "Several sites": f"{contributed(statement)}. Sites are taken to hold different patients. A patient whose data lie at "
        "several sites is covered by the sum of those sites' epsilons and deltas, not by each alone.",
        "Outside the guarantee": f"The public base ({statement.base}), which no hospital's data entered; the held-out cohort "
        "on which figures were measured and the best round chosen; which sites took part and when; where the gate asked "
        "for it, one yes or no of each site about its own patients; settings and "
        "pre-processing chosen by looking at the same patients outside this run.",
    }


def gate_section(gate: Decision | None) -> str:
    """What the gate found, check by check; that it was overruled, and why, where it was."""
    if gate is None:
        return f"## The release gate\n\n{NOT_CHECKED}"
    rows = [f"| {c.name} | {'pass' if c.passed else '**FAIL**'} | {c.detail} | {c.threshold} |" for c in gate.checks]
    table = "| check | verdict | found | required |\n|---|---|---|---|\n" + "\n".join(rows)
    forced = (
        f"**This release did not pass its gate. It was published by force, for this reason: {_plain(gate.forced or '')}**\n\n"
        if not gate.passed
        else ""
    )
    return f"## The release gate\n\n{forced}{table}\n\n{NOT_MEASURED}"


def _plain(text: str) -> str:
    """A person's words on one line of Markdown, without its signs."""
    return " ".join("".join(c for c in text if c not in "*_`<>|[]#\\").split())


NOT_MEASURED = (
    "The answers of the sites are one bit each, computed on their patients without noise: they are outside the privacy guarantee. "
    "Not measured: review by radiologists unless it is reported."
)
NOT_CHECKED = (
    "This release was admitted on its formal guarantee and on the sites that contributed. Not measured for it: near-copies of "
    "training patients, membership inference, and review by radiologists."
)
USES = (
    "Teaching, software tests, method development and augmentation in research.",
    "Not for diagnosis, treatment, or any decision about a person; not as evidence about the patients or the sites.",
    "Do not attempt to re-identify anybody or to infer who took part.",
    "Keep the synthetic markers in every copy and derivative.",
)


def data_card(
    statement: ReleaseStatement, release: Release, counts: Mapping[str, int], size: int, gate: Decision | None = None
) -> str:
    """DATA_CARD.md: hub front matter, what is in the folder, how it was drawn, the privacy statement, its limits."""
    total = sum(counts.values())
    front = {
        "pretty_name": f"{statement.experiment}: synthetic MRI slices",
        "license": "other",
        "task_categories": ["unconditional-image-generation", "image-classification"],
        "tags": ["synthetic", "medical", "mri", "differential-privacy", "federated-learning"],
        "size_categories": [_size_category(total)],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": ["images/**", "metadata.jsonl"]}]}
        ],
    }
    rows = "\n".join(f"| {name} | {count} |" for name, count in counts.items())
    return _card(
        front,
        f"# {statement.experiment}: synthetic MRI slices",
        f"**Every image here is synthetic. None shows a patient.** {total} grey images of {size} x {size} pixels, drawn from "
        f"a diffusion model that hospitals trained together without moving their scans. {guarantee(statement)}",
        "## Contents\n\n| class | images |\n|---|---|\n" + rows,
        "- `images/<class>/*.png`: 8 bit grey, with text chunks that say synthetic\n"
        "- `dicom/<class>/*.dcm`: the same pixels as MR Image Storage, Synthetic Data (0008,001C) = YES; pixel spacing is nominal\n"
        "- `images.npz`: `x_NHW` uint8, `label_N`, `classes`\n"
        "- `metadata.jsonl`: one line an image: file, class, provenance\n"
        "- `gate.json`: what the release was checked for, and what was found\n"
        "- `SHA256SUMS`, `SIGNATURE.json`: check with `fedsynth verify FOLDER --public-key KEY`, or `sha256sum -c SHA256SUMS`",
        "## How it was drawn\n\n"
        f"Sampler {release.sampler}, {release.sampler_steps} steps, guidance {release.guidance:g}, from the model with sha256 "
        f"`{statement.model_sha256}` (see MODEL_CARD.md). Classes are drawn in equal numbers: they say nothing about how "
        "common a condition is.",
        _marks(release),
        _figures(statement),
        study.markdown(statement.studied),
        _privacy(statement),
        gate_section(gate),
        "## Uses and limits\n\n" + "\n".join(f"- {use}" for use in USES),
    )


def _marks(release: Release) -> str:
    lines = ["Every file says synthetic in its own fields (PNG text and XMP, DICOM attributes, metadata.jsonl)."]
    if release.watermark:
        lines.append(
            "The pixels carry an invisible mark that `fedsynth detect` finds; it is public, can be removed, and its absence proves "
            "nothing."
        )
    if release.corner_label:
        lines.append("A corner of every image reads SYNTHETIC, or SYN.")
    return "## Marks\n\n" + " ".join(lines)


def model_card(statement: ReleaseStatement, release: Release, gate: Decision | None = None) -> str:
    """MODEL_CARD.md: hub front matter, training, figures, the privacy statement, its limits."""
    front = {
        "license": "other",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["diffusion", "synthetic", "medical", "mri", "differential-privacy", "federated-learning"],
    }
    return _card(
        front,
        f"# {statement.experiment}: diffusion model of MRI slices",
        f"A conditional diffusion model. {guarantee(statement)}",
        "## Training\n\n"
        f"Public base: {statement.base}. Then {statement.rounds} federated round(s), {statement.steps} step(s) in all, of the "
        f"parameters `{statement.trainable}`; {contributed(statement)}. Weights with sha256 `{statement.model_sha256}`. "
        f"Images are drawn with {release.sampler}, {release.sampler_steps} steps, guidance {release.guidance:g}.",
        _figures(statement),
        study.markdown(statement.studied),
        _privacy(statement),
        gate_section(gate),
        "## Uses and limits\n\n" + "\n".join(f"- {use}" for use in USES),
    )


def _card(front: dict[str, Any], *parts: str) -> str:
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n" + "\n\n".join(parts) + "\n"


def _privacy(statement: ReleaseStatement) -> str:
    lines = [f"**{heading}.** {text}" for heading, text in privacy_statement(statement).items()]
    return "## Privacy statement\n\n" + "\n\n".join(lines)


def _figures(statement: ReleaseStatement) -> str:
    rows = [
        f"| {name} | {m['value']:.4g} | {m['low']:.4g} to {m['high']:.4g} | {m['floor']:.4g} |"
        for name, m in statement.metrics.items()
        if m
    ]
    if not rows:
        return "## Figures\n\nNone were measured for this model."
    return (
        "## Figures\n\nOn patients that no site trained on. Floor: what real images of other patients score. Interval: 95 %, "
        "bootstrap over patients and images.\n\n| metric | value | interval | floor |\n|---|---|---|---|\n"
        + "\n".join(rows)
    )


def _size_category(total: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if total < limit:
            return name
    return "100K<n<1M"
