"""Extraction by cliques: images that a generator draws over and over, where nobody asked it to.

A model that has memorised an image draws it, or nearly it, again and again; independent draws of a good model are as far apart as
patients are (Carlini et al. 2023, https://arxiv.org/abs/2301.13188, section 4.2: cliques among a thousand draws found the memorised
images without a look at the training set). Two drawn images are alike when they are nearer than `tau`, the 0.1 % quantile of the
distance of a held-out image to the nearest one of another patient; features as in `privacy.copies.pixels`. Ten that are all alike
are a clique.

All images of the release are compared, in blocks; memory holds 4 kB for each. Where so many are alike that cliques cannot be
counted, every image of that lump is taken to be in one: the check fails closed.

Left out: mirrored repetitions; memorised images that are drawn fewer than ten times among these, which the sites' own check looks
for; a radiologist's look at what was found.
"""

from __future__ import annotations

import networkx as nx
import numpy as np

from privacy.copies import TAU, pixels
from server.evaluation.heldout import Heldout
from server.release.draw import Draws
from server.release.quality import Check
from shared.config.gate import Gate

SIZE = 10  # images of a clique
BLOCK = 2048
MANY = 200_000  # pairs that are alike; above, nothing is counted any more
TRIES = 100_000  # cliques that are looked at in one lump


def cliques(drawn: Draws, heldout: Heldout, settings: Gate) -> Check:
    """How many drawn images lie in groups of ten that are all alike."""
    tau = nearest_patients(heldout)
    feature_Nd = np.concatenate([pixels(x_BHW).astype(np.float32) for _, x_BHW in drawn.batches()])
    value = repeated(feature_Nd, tau)
    detail = (
        f"{value} of {len(drawn)} images lie in groups of {SIZE} or more that are all more alike than two patients "
        f"(correlation above {1 - tau**2 / 2:.3f})"
    )
    return Check(
        "cliques",
        value <= settings.cliques,
        detail,
        f"{settings.cliques} or fewer",
        float(value),
        limits=(None, settings.cliques),
    )


def nearest_patients(heldout: Heldout) -> float:
    """The distance below which hardly any held-out image has another patient's image. ValueError with fewer than two patients."""
    feature_Nd = pixels(heldout.x_NHW)
    likeness_NN = feature_Nd @ feature_Nd.T
    likeness_NN[heldout.patient_N[:, None] == heldout.patient_N[None, :]] = -np.inf
    nearest_N = likeness_NN.max(1)
    if not np.isfinite(nearest_N).all():
        raise ValueError("held-out images of one patient alone")
    return float(np.quantile(np.sqrt(np.maximum(2 - 2 * nearest_N, 0)), TAU))


def repeated(feature_Nd: np.ndarray, tau: float) -> int:
    """Rows (N, d) of unit norm that lie in a clique: at least SIZE rows that are pairwise nearer than `tau`."""
    graph, pairs = nx.Graph(), 0
    for start in range(0, len(feature_Nd), BLOCK):
        rows = feature_Nd[start : start + BLOCK]
        for other in range(start, len(feature_Nd), BLOCK):
            near = 2 - 2 * rows @ feature_Nd[other : other + BLOCK].T < tau**2
            if other == start:
                near = np.triu(near, 1)
            i, j = np.nonzero(near)
            pairs += len(i)
            if pairs > MANY:
                return len(feature_Nd)
            graph.add_edges_from(zip((i + start).tolist(), (j + other).tolist(), strict=True))
    core = nx.k_core(graph, SIZE - 1)  # who is in a clique has as many neighbours within it
    found: set[int] = set()
    for lump in nx.connected_components(core):
        for number, clique in enumerate(nx.find_cliques(core.subgraph(lump))):
            if number >= TRIES:
                found.update(lump)
                break
            if len(clique) >= SIZE:
                found.update(clique)
    return len(found)
