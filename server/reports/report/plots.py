"""The report's pictures as PNG bytes: mosaics of slices, and charts in a light and a dark version.

Nothing is cherry-picked: images are the first of each class as they were drawn, and real ones are spread evenly over the
held-out patients. Charts start at zero.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from server.metrics.base import Description
from server.summary import Measured

GAP = 2  # pixels between slices
DENSE = 30  # rounds; above it a chart has no point markers
LABELS = 6  # lines of epsilon that are named one by one
SCALE = 2  # slices are enlarged, for dense screens and print


@dataclass(frozen=True)
class Theme:
    name: str
    text: str
    quiet: str
    line: str
    alarm: str


class Figured(Protocol):
    """A figure with its floor and interval, wherever it comes from."""

    @property
    def value(self) -> float: ...
    @property
    def floor(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Limited(Protocol):
    """A check of the gate with its figure and limits."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def limits(self) -> tuple[float | None, float | None]: ...


LIGHT = Theme("light", text="#27313a", quiet="#7d8a94", line="#0f6b6b", alarm="#b3402e")
DARK = Theme("dark", text="#dbe3e8", quiet="#8c99a3", line="#57c2bb", alarm="#f08a73")


def mosaic(rows: Sequence[np.ndarray], columns: int) -> bytes:
    """Slices in rows, each (n, H, W) uint8, at most `columns` of them; short rows end in black."""
    height, width = rows[0].shape[1:]
    canvas = np.zeros((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP), np.uint8)
    for i, row in enumerate(rows):
        for j, x_HW in enumerate(row[:columns]):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = x_HW
    picture = Image.fromarray(canvas)
    picture = picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def by_class(
    x_NHW: np.ndarray, label_N: np.ndarray, labels: Sequence[int], columns: int, group_N: np.ndarray | None
) -> list[np.ndarray]:
    """One row of images for each label: the first ones, or where groups (patients) are given one of each in turn."""
    rows = []
    for label in labels:
        found = np.flatnonzero(label_N == label)
        if group_N is not None and len(found):
            # the middle image of every patient first, then its neighbours: patients before slices
            rank = np.zeros(len(found))
            for group in np.unique(group_N[found]):
                mine = np.flatnonzero(group_N[found] == group)
                rank[mine] = np.abs(np.arange(len(mine)) - len(mine) // 2)
            found = found[np.argsort(rank, kind="stable")]
        rows.append(x_NHW[found[:columns]])
    return rows


def over_rounds(
    trace: Sequence[tuple[int, Measured]], label: str, factor: float, best: int | None, theme: Theme
) -> bytes:
    """A distance over the rounds, with its interval, beside the floor that real images score."""
    figure, axes = new_axes(theme, label)
    x = [number for number, _ in trace]
    value = np.array([m.value for _, m in trace]) * factor
    low, high = (np.array([getattr(m, side) for _, m in trace]) * factor for side in ("low", "high"))
    floor = trace[-1][1].floor * factor
    axes.fill_between(x, low, high, color=theme.line, alpha=0.18, linewidth=0)
    axes.plot(x, value, color=theme.line, linewidth=1.8)
    if len(x) <= DENSE:
        axes.errorbar(x, value, yerr=[value - low, high - value], color=theme.line, elinewidth=1, fmt="o", markersize=4)
    _reference(axes, floor, f"real against real {floor:.3g}", theme.quiet)
    for number, v in {
        x[0]: value[0],
        x[-1]: value[-1],
        **{n: w for n, w in zip(x, value, strict=True) if n == best},
    }.items():
        axes.annotate(
            f"{v:.3g}",
            (number, v),
            (7, 6),
            textcoords="offset points",
            color=theme.text,
            fontsize=9.5,
            fontweight="bold" if number == best else "normal",
        )
    bottom = min(0.0, float(low.min()))
    axes.set_ylim(bottom * 1.1, max(float(high.max()), floor) * 1.14 or 1.0)
    _rounds(axes, x)
    return to_png(figure, theme)


def epsilons(spent: Mapping[str, Sequence[tuple[int, float]]], cap: float | None, theme: Theme) -> bytes:
    """Epsilon per patient of each site over the rounds, under the cap. Sites that spent the same share one line."""
    figure, axes = new_axes(theme, "epsilon per patient")
    groups: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for site, points in spent.items():
        groups.setdefault(tuple((n, round(e, 3)) for n, e in points), []).append(site)
    top = max([e for points in spent.values() for _, e in points] + ([cap] if cap else [])) or 1.0
    ends: list[float] = []
    ordered = sorted(groups.items(), key=lambda item: item[0][-1][1])
    for i, (points, names) in enumerate(ordered):
        x, y = [n for n, _ in points], [e for _, e in points]
        marker = "os^DvP"[i % 6] if len(x) <= DENSE else ""
        axes.plot(x, y, color=theme.line, alpha=max(0.35, 1 - 0.2 * i), marker=marker, markersize=4, linewidth=1.8)
        if len(ordered) > LABELS and 0 < i < len(ordered) - 1:
            continue  # the lowest and the highest speak for the rest
        place = max(y[-1], ends[-1] + 0.07 * top) if ends else y[-1]
        ends.append(place)
        text = ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"
        axes.annotate(
            text if len(text) <= 22 else text[:21] + "…",
            (1, place),
            (6, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=theme.text,
            fontsize=8.5,
            parse_math=False,
            annotation_clip=False,
        )
    if cap:
        _reference(axes, cap, f"cap {cap:g}: no release above", theme.alarm)
    axes.set_ylim(0, top * 1.16)
    _rounds(axes, [n for points in spent.values() for n, _ in points])
    figure.subplots_adjust(right=0.74)
    return to_png(figure, theme)


def panels(
    figures: Mapping[str, Figured],
    descriptions: Mapping[str, Description],
    theme: Theme,
) -> bytes:
    """One small panel a figure: the value and its interval as a dot and a bar, what real images score as a dashed line."""
    rows = []
    for name, f in figures.items():
        told = descriptions[name]
        k = told.factor
        rows.append((told.title, f.value * k, f.low * k, f.high * k, [f.floor * k]))
    return _strips(rows, theme)


def limits(checks: Sequence[Limited], theme: Theme) -> bytes:
    """The same for checks: dashed lines are the limits that a figure had to keep."""
    rows = []
    for check in checks:
        assert check.value is not None, "the caller keeps to checks with a figure"
        low = check.value if check.low is None else check.low
        high = check.value if check.high is None else check.high
        rows.append((check.name, check.value, low, high, [limit for limit in check.limits if limit is not None]))
    return _strips(rows, theme)


def _strips(panels: Sequence[tuple[str, float, float, float, list[float]]], theme: Theme) -> bytes:
    """Panels in rows of three: title, value, interval, dashed lines; each with a scale of its own that shows zero."""
    columns = 3
    rows = -(-len(panels) // columns)
    picture = Figure(figsize=(10.8, 0.95 * rows + 0.2), dpi=180)
    FigureCanvasAgg(picture)
    grid = picture.subplots(rows, columns, squeeze=False)
    picture.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.3 / (rows + 0.2), bottom=0.22 / rows, hspace=1.5, wspace=0.14
    )
    for axes, panel in itertools.zip_longest(grid.flat, panels):
        if panel is None:
            axes.set_visible(False)
            continue
        title, value, low, high, dashed = panel
        axes.hlines(0, low, high, color=theme.line, linewidth=5, alpha=0.3)
        axes.plot([value], [0], "o", color=theme.line, markersize=6)
        for x in dashed:
            axes.axvline(x, color=theme.quiet, linewidth=1.2, linestyle=(0, (4, 3)))
        ends = [0.0, low, high, *dashed]
        width = (max(ends) - min(ends)) or 1.0
        axes.set_xlim(min(ends) - 0.06 * width, max(ends) + 0.06 * width)
        axes.set_ylim(-1, 1)
        axes.set_yticks([])
        axes.set_title(title, loc="left", fontsize=9, color=theme.text, pad=3)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(theme.quiet)
        axes.tick_params(colors=theme.quiet, labelsize=8, length=2)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return to_png(picture, theme)


def new_axes(theme: Theme, label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.1), dpi=180)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.1, right=0.93, top=0.9, bottom=0.15)
    axes.set_title(label, loc="left", fontsize=10, color=theme.text, pad=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.quiet)
    axes.tick_params(colors=theme.quiet, labelsize=8.5, length=0)
    axes.grid(axis="y", color=theme.quiet, alpha=0.18, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _reference(axes: Axes, value: float, text: str, color: str) -> None:
    """A dashed line across the plot, named at its left end."""
    axes.axhline(value, color=color, linewidth=1.1, linestyle=(0, (5, 4)))
    axes.annotate(
        text,
        (0, value),
        (4, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=color,
        fontsize=8.5,
    )


def _rounds(axes: Axes, x: Sequence[int]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlim(min(x) - 0.15, max(x) + 0.35)
    axes.set_xlabel(
        "round (0 is the public base)" if min(x) == 0 else "round",
        fontsize=8.5,
        color=axes.spines["bottom"].get_edgecolor(),
    )


def to_png(figure: Figure, theme: Theme) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": "fedsynth", "Comment": theme.name})
    return buffer.getvalue()
