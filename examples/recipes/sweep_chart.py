"""The picture of a sweep: a heat map of each metric."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from recipes.report import METRICS
from recipes.sweep_table import DIGITS, Sweep, is_number, short

PANELS = (
    *("balanced_accuracy", "worst_class_recall", "mean_distance", "worst_distance"),
    *("recovery", "largest_weight", "clipped_mass", "effective_sample_size"),
)
_SMALL_IS_GOOD = ("mean_distance", "worst_distance", "recovery", "largest_weight", "clipped_mass")


def chart(sweep: Sweep, metrics: Sequence[str] = PANELS) -> Figure | None:
    """Return a heat map of each metric over the first two swept settings, averaged over the others.

    Metrics without results are left out; None if no metric has one. One setting gives a single row, and a sweep over
    seeds alone a cell for each run. A search that tries each value once, and so has no grid, gives scatter plots.
    Bright is good. A color scale spans at least the noise, so that chance has no strong colors.
    """
    shown = [metric for metric in metrics if sweep.runs[metric].notna().any()]
    if not shown:
        return None
    keys = ([*sweep.keys, "run", ""] if not sweep.keys else [*sweep.keys, ""])[:2]
    width, height = (sweep.runs[key].nunique() if key else 1 for key in keys)
    columns = min(len(shown), 4)
    rows = math.ceil(len(shown) / columns)
    is_grid = not (keys[1] and width * height > 2 * len(sweep.runs))
    cell = (1.5 + 0.8 * width, 1.1 + 0.55 * height) if is_grid else (3.6, 3.0)
    figure = Figure(figsize=(max(columns * cell[0], 5.0), 0.7 + rows * cell[1]), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, metric in zip(panels, shown, strict=False):
        _panel(axes, sweep, keys, metric)
    for axes in panels[len(shown) :]:
        axes.remove()
    text = textwrap.fill(_caption(sweep, keys), int(figure.get_figwidth() * 13))
    figure.suptitle(text, x=0.01, ha="left", fontsize=9)
    return figure


def _panel(axes: Axes, sweep: Sweep, keys: Sequence[str], metric: str) -> None:
    x, y = keys
    runs = sweep.runs.assign(**{"": ""})
    cells = runs.groupby([y, x], observed=False)[metric].agg(["mean", "std", "count", "size"])
    mean = cells["mean"].unstack()
    # Readable for the color-blind.
    colors = colormaps["cividis_r" if metric in _SMALL_IS_GOOD else "cividis"]
    norm = _norm(mean, sweep.noise(metric), metric)
    if y and mean.notna().to_numpy().mean() < 0.5 and all(map(is_number, [*mean.index, *mean.columns])):
        colored: ScalarMappable = axes.scatter(
            runs[x].astype(float), runs[y].astype(float), c=runs[metric], s=50, cmap=colors, norm=norm
        )
        for values, set_scale in ((mean.columns, axes.set_xscale), (mean.index, axes.set_yscale)):
            if spans_decades([float(value) for value in values]):
                set_scale("log")
    else:
        colored = axes.imshow(mean, cmap=colors, norm=norm, origin="lower", aspect="auto")
        _annotate(axes, cells, mean, colors, norm, metric)
    axes.set(xlabel=x, ylabel=y, facecolor="#f0f0f0")
    title = METRICS[metric] + (", test" if metric.endswith(("recall", "accuracy")) and "val" not in metric else "")
    is_unknown = len(sweep.groups()) > 1 and np.isnan(sweep.noise(metric))
    title += "\nwithin the noise" if sweep.within_noise(metric) else "\nnoise unknown" if is_unknown else "\n"
    axes.set_title(title, loc="left", fontsize=9)
    axes.figure.colorbar(colored, ax=axes)


def _norm(mean: pd.DataFrame, noise: float, metric: str) -> Normalize:
    low, high = float(mean.min(axis=None)), float(mean.max(axis=None))
    margin = max(0.0, np.nanmax([noise, 10.0 ** -DIGITS[metric]]) - (high - low)) / 2.0
    return Normalize(low - margin, high + margin)


def _annotate(
    axes: Axes, cells: pd.DataFrame, mean: pd.DataFrame, colors: Colormap, norm: Normalize, metric: str
) -> None:
    """Write the value of each cell into it, and `failed` into a cell whose runs have no result."""
    most, digits = cells["count"].max(), DIGITS[metric]
    for row, y in enumerate(mean.index):
        for column, x in enumerate(mean.columns):
            cell = cells.loc[(y, x)]
            text = f"{cell['mean']:.{digits}f}" if cell["count"] else "failed" if cell["size"] else ""
            if cell["count"] > 1:
                text += f"\n± {cell['std']:.{digits}f}"
            if 0 < cell["count"] < most:
                text += f"\nn = {cell['count']:.0f}"
            dark = cell["count"] and np.dot(colors(norm(cell["mean"]))[:3], (0.299, 0.587, 0.114)) < 0.45
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    names = [[_plain(value) for value in values] for values in (mean.columns, mean.index)]
    slant = 30 if max(map(len, names[0])) > 12 else 0  # longer names would overlap
    axes.set_xticks(range(len(names[0])), names[0], rotation=slant, ha="right" if slant else "center")
    axes.set_yticks(range(len(names[1])), names[1])


def _caption(sweep: Sweep, keys: Sequence[str]) -> str:
    others = [key for key in [*sweep.keys, *(sweep.seeds if sweep.keys else [])] if key not in keys]
    over = " and ".join(f"{key} ({', '.join(map(_plain, sweep.runs[key].cat.categories))})" for key in others)
    text = (
        f"Mean ± standard deviation over {textwrap.shorten(over, 200, placeholder='…')}." if over else "One run each."
    )
    if len(sweep.bad):
        text += f" {len(sweep.bad)} of {len(sweep.runs)} runs have no result."
    return text + " Bright is good; no color scale is narrower than the noise, where it is known."


def _plain(value: str) -> str:
    return short(value).replace("$", r"\$")  # matplotlib would read text between two of them as mathematics


def spans_decades(numbers: list[float]) -> bool:
    """Return whether positive numbers are better shown on a logarithmic scale.

    Example:
        >>> spans_decades([1e-6, 1e-3]), spans_decades([2, 8, 24]), spans_decades([0, 1, 1000])
        (True, False, False)
    """
    return min(numbers) > 0.0 and max(numbers) >= 50.0 * min(numbers)
