"""The audit's three pictures as PNG bytes: scores of the canaries, ROC curves, distances to the nearest patient."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from privacy.audit import Bound
from privacy.copies import Nearness
from privacy.membership_inference import Membership

Floats = NDArray[np.float64]
IN, OUT, QUIET, ALARM = "#b3402e", "#0f6b6b", "#7d8a94", "#f4d9d3"


def canaries(inside: Floats, outside: Floats, bound: Bound) -> bytes:
    """How far canaries that were in stand apart from those that were not."""
    axes = _axes(
        f"Canaries: epsilon is at least {bound.epsilon:.2f} ({bound.confidence:.0%}); stated {bound.stated:.2f}"
    )
    low, high = np.quantile(np.concatenate([inside, outside]), [0.001, 0.999])
    edges = np.linspace(low, max(high, low + 1e-9), 50).tolist()
    for scores, name, colour in ((outside, "not in the run", OUT), (inside, "in the run", IN)):
        axes.hist(np.clip(scores, low, high), edges, alpha=0.6, color=colour, label=f"{len(scores)} {name}")
    axes.axvline(bound.threshold, color=QUIET, linestyle="--", label="guessed in from here on")
    axes.set(xlabel="log likelihood ratio, in over out", ylabel="canaries")
    return _png(axes)


def membership(
    scores: Mapping[str, tuple[Floats, Floats]], figures: Mapping[str, Membership], mu: float, epsilon: float
) -> bytes:
    """ROC curves; shaded: what no attack on a model with this epsilon can reach on average, TPR > Phi(Phi^-1(FPR) + mu)."""
    first = next(iter(figures.values()))
    axes = _axes(f"Membership inference: {first.members} members, {first.nonmembers} others")
    x = np.concatenate([[0.0], np.geomspace(1e-4, 1, 400)])
    if mu < np.inf:
        axes.fill_between(x, ndtr(ndtri(x) + mu), 1, color=ALARM, label=f"beyond epsilon {epsilon:.3g}, but for chance")
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=":")
    for name, (member, other) in scores.items():
        steps = np.sort(np.concatenate([member, other, [np.inf]]))[::-1]
        m = figures[name]
        axes.step(
            [(other >= t).mean() for t in steps],
            [(member >= t).mean() for t in steps],
            where="post",
            label=f"{name}: AUC {m.auc:.2f} ({m.auc_low:.2f} to {m.auc_high:.2f})",
        )
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    return _png(axes, "lower right")


def copies(to_train: Floats, to_heldout: Floats, between: Floats, near: Nearness) -> bytes:
    """Distances of synthetic images to their nearest training and held-out patient, and of held-out images to training ones."""
    axes = _axes(
        f"Closer to a training patient: {near.closer_share:.0%} ({near.low:.0%} to {near.high:.0%}), 50 % by chance"
    )
    top = max(x.max() for x in (to_train, to_heldout, between))
    edges = np.linspace(0, top, 40).tolist()
    for distances, name, colour in (
        (between, "held-out image to nearest training image", QUIET),
        (to_heldout, "synthetic image to nearest held-out image", OUT),
        (to_train, "synthetic image to nearest training image", IN),
    ):
        axes.hist(distances, edges, density=True, histtype="stepfilled", alpha=0.45, color=colour, label=name)
    axes.axvline(near.tau, color="black", linestyle="--", linewidth=1, label="near-copy from here down (tau)")
    axes.set(xlabel="distance", ylabel="density", xlim=(0, top))
    axes.margins(y=0.45)
    return _png(axes, "upper left")


def _axes(title: str) -> Axes:
    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _png(axes: Axes, place: Literal["best", "lower right", "upper left"] = "best") -> bytes:
    axes.legend(loc=place, framealpha=0.9, edgecolor="none", fontsize=9)
    buffer = io.BytesIO()
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
