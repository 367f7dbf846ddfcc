"""May this release go out, as far as this hospital's patients are concerned? Answered here, on their images: one bit.

The coordinator sends the images that it would publish, the model that drew them, and images of patients whom nobody trained on.
The hospital compares them with its own patients; pass or fail goes back and nothing else. Figures and reasons stay here: in
release-checks.jsonl, or, where a node stands at the door, in the log of the app.

near-copies      no proposed image may equal a training image, as it is or mirrored (`privacy.copies.find`)
closer_share     the proposed images may not lie nearer to training patients than to held-out ones: the lower end of the
                 interval is held against the threshold, because with few patients the share itself varies by a tenth
membership       the loss of a patient under the model, less that under the public base, may not tell training patients from
                 held-out ones: AUC against the threshold or what differential privacy allows. With 200 patients on either side
                 the upper end of the interval counts, with fewer the lower: few patients cannot show that nothing is there.
                 Fewer than five, or a loss that is not a number, is no yes (app.py: whatever fails here is a no)

Guarantee     none: the bit is computed from the patients without noise and is outside differential privacy. How often it is
              given at all is bounded by the site's own file and counted in answers.py
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from client import private_statistics
from client.admission import Question, model_of
from client.dataset import Patient
from privacy import copies, membership_inference
from privacy.accounting import best_attack
from shared.config.experiment import Experiment
from shared.config.gate import Gate
from shared.models.device import device_for

ENOUGH = 200  # patients on either side, for the upper end of the membership interval


def judge(asked: Question, cohort: list[Patient]) -> dict[str, Any]:
    """All figures of a proposed release against the patients of this site, and `passed`. They are private: they stay here."""
    experiment, images = asked.experiment, asked.images
    device = device_for(experiment.performance)
    heldout = [
        Patient(str(p), int(images["heldout-label"][mine][0]), images["heldout"][mine])
        for p in np.unique(images["heldout-patient"])
        for mine in [images["heldout-patient"] == p]
    ]
    base, model = (model_of(experiment, received).to(device) for received in ({}, asked.received))
    gained = []
    for group in (cohort, heldout):
        before, after = (np.array(private_statistics.losses(m, group, experiment, times=1)) for m in (base, model))
        gained.append(before - after)
    return check(images["proposed"], cohort, heldout, gained[0], gained[1], experiment)


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
    told = membership_inference.measure(gained_M, gained_N)
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
