"""What a release must pass: the part `release.gate` of an experiment.

Left out: the checks themselves (server/release/gate.py, quality.py, cliques.py; client/release_check.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.config.record import Record

CheckName = Literal[
    "privacy", "sites", "audit", "classes", "diversity", "sharpness", "likeness", "cliques", "copies and membership"
]  # fmt: skip


class Gate(Record):
    """What a release must pass; every threshold with its reason. `required`: checks that must have run and passed.

    "audit" is one more: it wants the result of `fedsynth privacy audit --out RUN` in the run's folder, and takes minutes

    collapse         largest lower end of the MS-SSIM diversity gap: drawn images may not be clearly more alike than patients are
    sharpness        the power of fine detail (above a quarter of the sampling rate) in drawn images over that in real ones: at
                     least this much, and at most its inverse. A blur leaves a tenth, noise gives thirty times as much
    likeness         least NN-SSIM to held-out patients, as a share of what real images of other patients score
    classes          how far, of the way from chance to what real images reach, drawn classes must be told apart. Only where
                     real held-out classes can be told apart at all
    cliques          images that may lie in groups of ten which are all more alike than two held-out patients are
    copies           near-copies of training patients that a site may find among the proposed images (correlation 0.99, SSIM 0.98)
    closer_share     largest lower end of the share of images nearer to training than to held-out patients; without copying 0.5
    membership_auc   largest AUC of membership inference, or what differential privacy allows, whichever is smaller
    """

    required: tuple[CheckName, ...] = ("privacy", "sites", "classes", "diversity", "sharpness", "likeness", "cliques",
                                       "copies and membership")  # fmt: skip
    collapse: Annotated[float, Field(ge=0, le=1)] = 0.1
    sharpness: Annotated[float, Field(gt=0, le=1)] = 0.25
    likeness: Annotated[float, Field(ge=0, le=1)] = 0.25
    classes: Annotated[float, Field(ge=0, le=1)] = 0.25
    cliques: Annotated[int, Field(ge=0)] = 0
    copies: Annotated[int, Field(ge=0)] = 0
    closer_share: Annotated[float, Field(ge=0.5, le=1)] = 0.53
    membership_auc: Annotated[float, Field(ge=0.5, le=1)] = 0.6
