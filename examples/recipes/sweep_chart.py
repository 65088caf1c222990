"""The picture of a sweep: a heat map over two settings, a line or bars over one, points where there is no grid."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from recipes.sweep_results import METRICS, Group, Sweep, is_number, short

COLOURS = colormaps["cividis"]  # made to be read by the colour-blind
BLUE, INK, FAINT, EMPTY = "#0072B2", "#222222", "#8a8a8a", "#f0f0f0"
DPI = 160


def chart(sweep: Sweep, metric: str = "balanced_accuracy") -> Figure | None:
    """Draw the metric over what was swept; None if no run has it.

    Two settings make a heat map, with a cell for each pair of values; of more than two, those two that the
    metric depends on most, averaged over the rest. A search that tries every value once has no grid: a point for
    each. One setting makes a line if it is a number, else bars; none makes a bar for each run.
    """
    if not any(metric in run.metrics for run in sweep.runs):
        return None
    keys = shown_keys(sweep, metric)
    groups = sweep.groups(keys) if keys else [Group({"run": run.name}, [run]) for run in sweep.runs]
    figure = Figure(facecolor="white", layout="constrained")
    if len(keys) == 2:
        columns, rows = (sweep.values_of(key) for key in keys)
        numeric = all(is_number(value) for value in (*columns, *rows))
        full = len(groups) >= len(columns) * len(rows) / 2
        draw = heat_map if full or not numeric else points
    else:
        draw = line if keys and all(is_number(value) for value in sweep.values_of(keys[0])) else bars
    axes = figure.add_subplot()
    draw(axes, sweep, groups, list(groups[0].settings), metric)
    label(figure, sweep, keys, metric)
    return figure


def shown_keys(sweep: Sweep, metric: str) -> list[str]:
    """Return the keys on the axes: all, or the two of most effect, in the order of the command line."""
    if len(sweep.keys) <= 2:
        return list(sweep.keys)
    most = sorted(sweep.keys, key=lambda key: -effect(sweep, key, metric))[:2]
    return [key for key in sweep.keys if key in most]


def effect(sweep: Sweep, key: str, metric: str) -> float:
    """Return by how much the mean of the metric varies over a key's values.

    More than five values, as a search draws them, are taken together in five parts of equal size.
    """
    parts = np.array_split(np.array(sweep.values_of(key), dtype=object), min(5, len(sweep.values_of(key))))
    means = []
    for part in parts:
        runs = [run for run in sweep.runs if run.settings.get(key, "default") in part and metric in run.metrics]
        if runs:
            means.append(np.mean([run.metrics[metric] for run in runs]))
    return float(np.ptp(means)) if means else 0.0


def heat_map(axes: Axes, sweep: Sweep, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    """Draw a cell for each pair of values, with its number; the first key runs to the right, the second up."""
    columns, rows = (sweep.values_of(key) for key in keys)
    figure = axes.figure
    assert isinstance(figure, Figure)
    several = any(len(group.values(metric)) > 1 for group in groups)
    figure.set_size_inches(max(4.8, 2.6 + (1.25 if several else 1.0) * len(columns)), max(3.4, 2.0 + 0.7 * len(rows)))
    means = [float(np.mean(group.values(metric))) for group in groups if group.values(metric)]
    scale = _scale(means)
    # Where no run was at all, the ground shows.
    axes.set_facecolor(EMPTY)
    for group in groups:
        x, y = columns.index(group.settings[keys[0]]), rows.index(group.settings[keys[1]])
        values = group.values(metric)
        if values:
            fill = COLOURS(scale(float(np.mean(values))))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=fill, edgecolor="white"))
            ink = "white" if np.dot(fill[:3], (0.299, 0.587, 0.114)) < 0.45 else "black"
        else:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="white", edgecolor=FAINT, hatch="///"))
            ink = "black"
        box = None if values else {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(x, y, _cell(group, metric), ha="center", va="center", color=ink, fontsize=10, bbox=box)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    _name_columns(axes, [_plain(value) for value in columns])
    axes.set_yticks(range(len(rows)), [_plain(value) for value in rows])
    axes.tick_params(length=0, labelsize=10, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(keys[0], fontsize=11, color=INK)
    axes.set_ylabel(keys[1], fontsize=11, color=INK)
    _colour_bar(figure, axes, scale, metric)


def points(axes: Axes, sweep: Sweep, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    """Draw a point for each pair of values that was tried, and a cross where the run failed."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(6.4, 4.6)
    done = [group for group in groups if group.values(metric)]
    bad = [group for group in groups if not group.values(metric)]
    means = [float(np.mean(group.values(metric))) for group in done]
    scale = _scale(means)
    (x, y), (bad_x, bad_y) = ([[float(group.settings[key]) for group in part] for key in keys] for part in (done, bad))
    axes.scatter(x, y, c=means, s=70, cmap=COLOURS, norm=scale, edgecolors=INK, linewidths=0.6, zorder=3)
    best = int(np.argmax(means))
    axes.annotate(f"{means[best]:.3f}", (x[best], y[best]), xytext=(7, 5), textcoords="offset points")
    axes.scatter(bad_x, bad_y, marker="x", s=45, color=INK)
    axes.set_xlabel(keys[0], fontsize=11, color=INK)
    axes.set_ylabel(keys[1], fontsize=11, color=INK)
    if spans_decades(sweep.values_of(keys[0])):
        axes.set_xscale("log")
    if spans_decades(sweep.values_of(keys[1])):
        axes.set_yscale("log")
    axes.grid(color=EMPTY, zorder=0)
    _open(axes)
    _colour_bar(figure, axes, scale, metric)


def line(axes: Axes, sweep: Sweep, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:
    """Draw the means over a number, with the standard deviations."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(6.0, 4.0)
    done = [group for group in groups if group.values(metric)]
    x = [float(group.settings[keys[0]]) for group in done]
    means = [float(np.mean(group.values(metric))) for group in done]
    axes.errorbar(x, means, _deviations(done, metric), color=BLUE, marker="o", capsize=4, linewidth=1.6)
    for index, (at, mean) in enumerate(zip(x, means, strict=True)):
        # On the side that the line leaves free.
        below = mean < np.mean(means[max(index - 1, 0) : index + 2])
        offset = (7, -13 if below else 6)
        axes.annotate(f"{mean:.3f}", (at, mean), xytext=offset, textcoords="offset points", fontsize=9, color=INK)
    values = sweep.values_of(keys[0])
    if spans_decades(values):
        axes.set_xscale("log")
    axes.set_xticks([float(value) for value in values], [short(value) for value in values])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.2)
    axes.set_xlabel(keys[0], fontsize=11, color=INK)
    axes.set_ylabel(METRICS[metric], fontsize=11, color=INK)
    _open(axes)


def bars(axes: Axes, sweep: Sweep, groups: Sequence[Group], keys: Sequence[str], metric: str) -> None:  # noqa: ARG001
    """Draw a bar for each value, from zero, with the standard deviation."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_size_inches(max(4.8, 1.6 + 0.9 * len(groups)), 4.0)
    means = [float(np.mean(group.values(metric))) if group.values(metric) else 0.0 for group in groups]
    deviations = _deviations(groups, metric)
    axes.bar(range(len(groups)), means, 0.7, yerr=deviations, color=BLUE, capsize=4)
    tops = np.add(means, deviations if deviations is not None else 0.0)
    for x, (group, top) in enumerate(zip(groups, tops, strict=True)):
        text = f"{means[x]:.3f}" if group.values(metric) else _cell(group, metric)
        axes.annotate(text, (x, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9, color=INK)
    names = [_plain(group.settings[keys[0]]) for group in groups]
    _name_columns(axes, names)
    axes.margins(y=0.15)
    axes.set_xlabel(keys[0], fontsize=11, color=INK)
    axes.set_ylabel(METRICS[metric], fontsize=11, color=INK)
    _open(axes)


def label(figure: Figure, sweep: Sweep, keys: Sequence[str], metric: str) -> None:
    """Put above the picture what is shown, and what was averaged, and leave it the room."""
    where = "" if "validation" in METRICS[metric] or metric in ("largest_weight", "effective_sample_size") else ", test"
    rest = [key for key in sweep.keys if key not in keys]
    over = [f"{key} ({_listed(sweep.values_of(key))})" for key in [*rest, *(sweep.seeds if keys else ())]]
    several = any(len(group.values(metric)) > 1 for group in sweep.groups(keys)) if keys else False
    if several:
        sentences = [f"Mean ± standard deviation over {' and '.join(over)}."]
    else:
        sentences = [f"One run each, that differ in {' and '.join(over)} too." if over else "One run each."]
    if rest:
        sentences.append(f"Of {len(sweep.keys)} swept settings these two have the largest effect.")
    if sweep.bad:
        sentences.append(f"{len(sweep.bad)} of {len(sweep.runs)} runs have no result.")
    width, height = figure.get_size_inches()
    caption = textwrap.fill(" ".join(sentences), int(width * 14))
    room = 0.42 + 0.17 * (caption.count("\n") + 1)
    left = 0.12 / width
    name = METRICS[metric][0].upper() + METRICS[metric][1:] + where
    figure.text(left, 1 - 0.1 / height, name, fontsize=12.5, fontweight="bold", color=INK, va="top")
    figure.text(left, 1 - 0.36 / height, caption, fontsize=9, color=INK, va="top")
    layout = figure.get_layout_engine()
    assert isinstance(layout, ConstrainedLayoutEngine)
    layout.set(rect=(0, 0, 1, 1 - room / height))


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; without the version of matplotlib in it, so that the same sweep is the same file."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def spans_decades(values: Sequence[str]) -> bool:
    """Return whether positive numbers are better shown by their logarithm.

    Example:
        >>> spans_decades(["1e-6", "1e-3"]), spans_decades(["2", "8", "24"]), spans_decades(["0", "1", "1000"])
        (True, False, False)
    """
    numbers = [float(value) for value in values]
    return min(numbers) > 0.0 and max(numbers) >= 50.0 * min(numbers)


def _scale(means: Sequence[float]) -> Normalize:
    low, high = min(means), max(means)
    # All alike: the middle of the colours, and a bar that has two ends.
    return Normalize(low, high) if high > low else Normalize(low - 0.01, high + 0.01)


def _cell(group: Group, metric: str) -> str:
    mean, _, deviation = group.text(metric).partition(" ± ")
    values = len(group.values(metric))
    return f"{mean}\n± {deviation}\nn = {values}" if deviation else mean


def _deviations(groups: Sequence[Group], metric: str) -> list[float] | None:
    several = [group.values(metric) for group in groups]
    if all(len(values) < 2 for values in several):
        return None
    return [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in several]


def _listed(values: Sequence[str]) -> str:
    if len(values) <= 6:
        return ", ".join(map(_plain, values))
    return f"{len(values)} values from {_plain(values[0])} to {_plain(values[-1])}"


def _plain(value: str) -> str:
    # Between two of them matplotlib takes what stands there for mathematics.
    return short(value).replace("$", r"\$")


def _colour_bar(figure: Figure, axes: Axes, scale: Normalize, metric: str) -> None:
    bar = figure.colorbar(ScalarMappable(scale, COLOURS), ax=axes, fraction=0.06, aspect=22, pad=0.03)
    bar.set_label(METRICS[metric], fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=9, colors=INK)
    bar.outline.set_visible(False)


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    # Longer names would run into one another.
    slant = 30 if max(map(len, names)) > 12 else 0
    axes.set_xticks(range(len(names)), names, rotation=slant, ha="right" if slant else "center")


def _open(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9.5, length=3, color=FAINT)
