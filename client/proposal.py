"""May this release go out, as far as this hospital's patients are concerned? Answered here, on their images: one bit.

The coordinator sends the images that it would publish, the model that drew them, and images of patients whom nobody trained on.
The hospital compares them with its own patients; pass or fail goes back and nothing else. Figures and reasons stay in
release-checks.jsonl in the work folder, for the hospital's own eyes.

near-copies      no proposed image may equal a training image, as it is or mirrored (`privacy.copies.find`)
closer_share     the proposed images may not lie nearer to training patients than to held-out ones: the lower end of the
                 interval is held against the threshold, because with few patients the share itself varies by a tenth
membership       the loss of a patient under the model, less that under the public base, may not tell training patients from
                 held-out ones: AUC against the threshold or what differential privacy allows. With 200 patients on either side
                 the upper end of the interval counts, with fewer the lower: few patients cannot show that nothing is there.
                 Fewer than five, or a loss that is not a number, is a refusal and so not a yes

Guarantee     none: the bit is computed from the patients without noise and is outside differential privacy. A coordinator who
              could ask at will could find out who is in the cohort, image by image. So the site's own file says how often it
              answers at all (`release_checks`), each answer is counted durably before it is sent, and the same question gets the
              same answer without being counted again
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client import dataset, figures
from client.dataset import Patient
from privacy import attacks, copies
from privacy.accounting import best_attack
from privacy.durable import replace, told
from shared import messages, weights
from shared.config import Experiment, Gate, Site
from shared.device import device_for
from shared.errors import PrivacyError
from shared.network import shapes

LOG = logging.getLogger("fedsynth.client")
RECORD = "release-checks.jsonl"
ENOUGH = 200  # patients on either side, for the upper end of the membership interval


def answer(content: RecordDict, site: Site, work: Path) -> messages.Verdict:
    """The site's bit. PrivacyError when its file permits no (more) answers."""
    experiment, arrays, images = messages.unpack_proposal(content)
    digest = hashlib.sha256(experiment.model_dump_json().encode())
    for record in (arrays, content["images"]):
        for name in sorted(record):
            digest.update(f"{name} {record[name].shape} ".encode() + record[name].data)
    question = digest.hexdigest()
    before = _read(work / RECORD)
    for line in before:
        if line["question"] == question and "passed" in line:
            return messages.Verdict(site.name, bool(line["passed"]))
    if len({line["question"] for line in before} - {question}) >= site.release_checks:
        raise PrivacyError(
            f"{site.name} answers {site.release_checks} question(s) about releases and has answered them; the hospital may raise "
            "`release_checks` in its file"
        )
    _append(work / RECORD, {"question": question})  # counted before anything is computed
    device = device_for(experiment.performance)
    cohort = dataset.load(work / "cohort")
    heldout = [
        Patient(str(p), int(images["heldout-label"][mine][0]), images["heldout"][mine])
        for p in np.unique(images["heldout-patient"])
        for mine in [images["heldout-patient"] == p]
    ]
    base = weights.load_base(experiment.base, experiment.network, experiment.classes).to(device)
    reference = [np.array(figures.losses(base, group, experiment, draws=1)) for group in (cohort, heldout)]
    received = messages.tensors(arrays, shapes(base.trainable(experiment.training.trainable)), "the proposal's arrays")
    base.load_state_dict(received, strict=False)
    gained = [
        before - np.array(figures.losses(base, group, experiment, draws=1))
        for before, group in zip(reference, (cohort, heldout), strict=True)
    ]
    found = check(images["proposed"], cohort, heldout, gained[0], gained[1], experiment)
    _append(work / RECORD, {"question": question} | found)
    LOG.info("a proposed release was judged; %s says why", RECORD)
    return messages.Verdict(site.name, bool(found["passed"]))


def check(
    proposed_SHW: np.ndarray,
    cohort: list[Patient],
    heldout: list[Patient],
    gained_M: np.ndarray,
    gained_N: np.ndarray,
    experiment: Experiment,
) -> dict[str, Any]:
    """All figures and `passed`. They are private: they stay at the site.

    gained   how much each training patient, and each held-out one, gained in loss from base to model
    """
    gate: Gate = experiment.release.gate
    groups = [
        copies.Group(
            copies.pixels(np.concatenate([p.x_SHW for p in patients])),
            np.repeat(np.arange(len(patients)), [len(p.x_SHW) for p in patients]),
        )
        for patients in (cohort, heldout)
    ]
    alike = copies.find(proposed_SHW, np.concatenate([p.x_SHW for p in cohort]))
    near = copies.nearness(
        copies.pixels(proposed_SHW),
        groups[0],
        groups[1],
        mirrored_Sd=copies.pixels(np.ascontiguousarray(proposed_SHW[:, :, ::-1])),
    )
    told = attacks.measure(gained_M, gained_N)
    allowed = gate.membership_auc
    if experiment.privacy.epsilon is not None:
        allowed = min(allowed, best_attack(experiment.privacy.epsilon, experiment.privacy.delta).auc)
    held = told.auc_high if min(len(gained_M), len(gained_N)) >= ENOUGH else told.auc_low
    verdicts = {
        "near-copies": alike.copies <= gate.copies,
        "closer_share": near.low <= gate.closer_share,
        "membership": bool(held <= allowed),
    }
    return {
        "passed": all(verdicts.values()),
        "verdicts": verdicts,
        "copies": alike.copies,
        "nearness": asdict(near),
        "membership": asdict(told) | {"allowed": allowed},
    }


def _append(path: Path, line: dict[str, Any]) -> None:
    """On the disk, for its owner alone, when this returns."""
    with told(path):
        before = path.read_bytes() if path.exists() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        replace(path, before + json.dumps(line).encode() + b"\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """Every line; a damaged one counts as a question of its own, so that damage never buys another answer."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            line = json.loads(text)
            line["question"]
        except (ValueError, KeyError, TypeError):
            line = {"question": f"damaged line {number}"}
        lines.append(line)
    return lines
