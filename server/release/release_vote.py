"""Draw what would be released and ask every site whether it may go out: one bit from each, about its own patients.

The answers lie in sites_say.json beside the digest of the images they are about; a release of other images is not covered by
them. A site that does not answer, or refuses to, or whose answer cannot be opened, has not said yes; it holds up nobody else.

Left out: asking about a part of the images. A site sees all of them, so a very large release is a very large message.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import MessageType
from flwr.serverapp import Grid

from server import checkpoint
from server.dispatch import ask
from server.evaluation.heldout import Heldout
from server.events import Events
from server.release import seal
from server.release.draw import Draws, draw_all
from server.superlink.nodes import names
from shared import messages
from shared.config.experiment import Experiment
from shared.errors import FederationError, MessageError
from shared.files import write_bytes
from shared.models.base import GenerativeModel

ANSWERS = "sites_say.json"
TIMEOUT_S = 1800.0


def proposed(
    out: Path, experiment: Experiment, model: GenerativeModel, progress: Callable[[int, int], None] | None = None
) -> Draws:
    """The images of the best round, drawn once and for all into the server's folder `out`."""
    best = _best(out)
    model.load_state_dict(checkpoint.load(out / "checkpoints", best), strict=False)
    return draw_all(
        out / "draws",
        model,
        experiment.release,
        experiment.performance,
        seed=experiment.seed + 1,
        model_sha256=seal.digest(out / "checkpoints" / f"round-{best:03d}.safetensors"),
        progress=progress,
    )


def propose(
    grid: Grid,
    experiment: Experiment,
    model: GenerativeModel,
    nodes: Callable[[Grid], list[int]],
    heldout: Heldout,
    events: Events,
    out: Path,
) -> None:
    """Ask all sites, unless nothing is to be released, the check is not required, or they were asked about these images before."""
    if not experiment.release.images_per_class or "copies and membership" not in experiment.release.gate.required:
        return
    events.write("proposing", images=experiment.release.images_per_class * len(experiment.classes))
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done * 50 // total > told:  # the record gets a line for every fiftieth
            told = done * 50 // total
            events.write("drawn", images=done, total=total)

    drawn = proposed(out, experiment, model, tell)
    about = drawn.sha256()
    if (answers(out) or {}).get("images_sha256") == about:
        return
    events.write("asking", images=len(drawn))
    best = checkpoint.load(out / "checkpoints", _best(out))
    content = messages.pack_proposal(
        messages.Proposal(
            experiment,
            best,
            np.concatenate([x_BHW for _, x_BHW in drawn.batches()]),
            heldout.x_NHW,
            heldout.patient_N,
            heldout.label_N,
        )
    )
    said: dict[str, bool] = {}
    for answer in ask(grid, nodes(grid), content, MessageType.QUERY, patience_s=TIMEOUT_S, largest=0):
        known = names(out)
        site = (known or {}).get(answer.node, f"node {answer.node}")
        try:
            reply = answer.opened(messages.unpack_verdict, known)
            site = reply.site
            if isinstance(reply, messages.Refusal):
                raise MessageError(reply.reason)
            if site in said:
                raise MessageError("a second answer under the same name")
        except MessageError as error:
            events.write("site_did_not_judge", site=site, reason=str(error))
            continue
        said[site] = reply.passed
        events.write("site_judged", site=site, passed=reply.passed)
    found = {"images_sha256": about, "sites": dict(sorted(said.items()))}
    write_bytes(out / ANSWERS, json.dumps(found, indent=2).encode())


def answers(out: Path) -> dict[str, Any] | None:
    """What the sites said, or none where they were not asked."""
    try:
        found: dict[str, Any] = json.loads((out / ANSWERS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _best(out: Path) -> int:
    number = checkpoint.best(out / "checkpoints")
    if number is None:
        raise FederationError("no round was evaluated, so there is no best one to draw from")
    return number
