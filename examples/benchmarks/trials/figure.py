"""The picture of balanced accuracy and of the recall of the worst class, a point a method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.trials.images import ADDED, BALANCED, PLUGIN, WORST
from benchmarks.trials.results import Table
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_fair.common.arrays import Floats

# The palette of Okabe and Ito, which color-blind readers can distinguish.
OURS, OTHERS, OFFSETS = "#0072B2", "#555555", "#D55E00"
GAP = 0.042  # between two labels, as a part of the height
FAR = 0.06  # balanced accuracy below the best, at which a method is a line of text


def plot(tables: dict[str, Table], titles: dict[str, str], path: Path) -> None:
    """Write the picture, a panel for each kind of data that has both metrics.

    A point is the mean over the seeds, its bars are the standard deviation. Methods that train on the validation
    images are left out. Those that are far from the best, such as plain training, are lines of text.
    """
    shown = {data: table for data, table in tables.items() if table and list(_first(table))[:2] == [BALANCED, WORST]}
    if not shown:
        raise ValueError("No finished run has a balanced accuracy and a worst class, so there is nothing to plot.")
    figure = Figure(figsize=(6.0 * len(shown), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (data, table) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        _panel(axes, {row: runs for row, runs in table.items() if ADDED not in row})
        axes.set_title(titles[data], loc="left", fontsize=10)
    figure.savefig(path, dpi=130)


def cannot_plot(path: Path) -> str:
    """Return why the picture cannot be written to this path; empty if it can."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    types = FigureCanvasAgg.get_supported_filetypes()
    return "" if path.suffix[1:] in types else f"the name must end in one of {', '.join('.' + t for t in types)}"


def _first(table: Table) -> dict[str, float]:
    return next(iter(next(iter(table.values())).values()))


def _panel(axes: Axes, table: Table) -> None:
    best = max(np.mean([run[BALANCED] for run in runs.values()]) for runs in table.values())
    far = {row: runs for row, runs in table.items() if np.mean([run[BALANCED] for run in runs.values()]) < best - FAR}
    left_out = []
    for row, runs in far.items():
        means = [np.mean([run[metric] for run in runs.values()]) for metric in (BALANCED, WORST)]
        left_out.append(f"{row.replace('_', ' ')} {means[0]:.3f}, {means[1]:.2f}")
    table = {row: runs for row, runs in table.items() if row not in far}
    values = [
        np.array([[run[metric] for metric in (BALANCED, WORST)] for run in runs.values()]) for runs in table.values()
    ]
    means = np.array([runs.mean(axis=0) for runs in values])
    deviations = np.array([runs.std(axis=0, ddof=min(1, len(runs) - 1)) for runs in values])
    colors = [OFFSETS if "offsets" in row else OURS if row in PLUGIN else OTHERS for row in table]
    for (x, y), (dx, dy), color in zip(means, deviations, colors, strict=True):
        axes.errorbar(x, y, xerr=dx, yerr=dy, fmt="o", markersize=5, color=color, elinewidth=0.6, alpha=0.9)
    axes.set_xlabel("\n".join([BALANCED, f"left out: {'; '.join(left_out)}"] if left_out else [BALANCED]), loc="left")
    axes.set_ylabel(f"recall of the {WORST}")
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, list(table), means, colors)


def _label(axes: Axes, names: list[str], points: Floats, colors: list[str]) -> None:
    """Write the names in a column at the right, in the order of the points, each with a line to its point."""
    low, high = axes.get_ylim()
    order = np.argsort(points[:, 1])
    heights = (points[order, 1] - low) / (high - low)
    # From below, each at least a gap above the one before; then the column is moved so that it is not too high.
    places = np.maximum.accumulate(heights - GAP * np.arange(len(order))) + GAP * np.arange(len(order))
    places -= max(places[-1] - 1.0, (places - heights).mean(), 0.0)
    for place, i in zip(places, order, strict=True):
        axes.annotate(
            names[i].replace("_", " "),
            xy=tuple(points[i]),
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colors[i],
            arrowprops={
                "arrowstyle": "-",
                "color": colors[i],
                "linewidth": 0.3,
                "alpha": 0.6,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )
