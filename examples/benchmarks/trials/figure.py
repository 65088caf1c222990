"""The picture of balanced accuracy against the recall of the worst class, a point a method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from benchmarks.trials.images import BALANCED, PLUGIN, WORST
from benchmarks.trials.results import Table, interval
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# The palette of Okabe and Ito, which color-blind readers can distinguish.
OURS, OTHERS, OFFSETS = "#0072B2", "#555555", "#D55E00"


def plot(tables: dict[str, Table], titles: dict[str, str], path: Path) -> None:
    """Write the picture, a panel for each kind of data that has both metrics."""
    shown = {data: table for data, table in tables.items() if table and WORST in _first(table)}
    figure = Figure(figsize=(5.6 * len(shown), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (data, table) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        _panel(axes, table)
        axes.set_title(titles[data], loc="left", fontsize=10)
    figure.savefig(path, dpi=130)


def _first(table: Table) -> dict[str, float]:
    return next(iter(next(iter(table.values())).values()))


def _panel(axes: Axes, table: Table) -> None:
    for row, runs in table.items():
        x, y = (np.array([run[name] for run in runs.values()]) for name in (BALANCED, WORST))
        color = OFFSETS if "offsets" in row else OURS if row.split("+")[0] in PLUGIN else OTHERS
        errors = [(interval(values)[1] - interval(values)[0]) / 2 if values.size > 1 else 0 for values in (x, y)]
        axes.errorbar(x.mean(), y.mean(), xerr=errors[0], yerr=errors[1], fmt="o", color=color, elinewidth=0.7)
        axes.annotate(row, (x.mean(), y.mean()), textcoords="offset points", xytext=(5, 4), fontsize=7, color=color)
    axes.set_xlabel(BALANCED)
    axes.set_ylabel(f"recall of the {WORST}")
    axes.spines[["top", "right"]].set_visible(False)
