"""Figures of a run, made with matplotlib's object interface: without a display and without global state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats

if TYPE_CHECKING:  # matplotlib is optional, and slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 140
_INK, _FAINT, _BLUE = "#222222", "#8a8a8a", "#0072B2"
_MAX_ROWS, _MAX_NAMES, _MAX_LENGTH = 30, 12, 24
_MIN_SPAN = 0.25  # in doublings: a mix closer to its target shows in pale colors


def plot_mix(
    steps: NDArray[Any],
    over_target: NDArray[Any],
    class_counts: NDArray[Any],
    class_names: Sequence[str],
    noun: str = "class",
) -> Figure:
    """Plot the trained mix over its target as a heat map, class by step, the most frequent class on top.

    Args:
        steps: Steps, ascending and about evenly spaced, shape ``(T,)``.
        over_target: Trained mix over target at each step, shape ``(T, K)``; NaN for a class with target 0.
        class_counts: Training samples of each class, shape ``(K,)``.
        class_names: Name of each class.
        noun: Word for a class.
    """
    K = len(class_names)
    order = np.argsort(-class_counts, kind="stable")
    with np.errstate(divide="ignore"):
        doublings = np.log2(over_target[:, order].T)
    finite = np.abs(doublings[np.isfinite(doublings)])
    span = float(np.clip(np.percentile(finite, 99), _MIN_SPAN, 1.0)) if finite.size else 1.0
    height = min(max(2.2 + 0.2 * K, 3.2), 5.0)
    figure, axes = _new_figure(height, "Trained mix over its target", "step", f"{noun} (training samples)")
    axes.set_facecolor("#d0d0d0")
    half = (steps[-1] - steps[0]) / max(2 * (steps.size - 1), 1) or 0.5
    extent = steps[0] - half, steps[-1] + half, K - 0.5, -0.5
    interpolation = "nearest" if K <= _MAX_ROWS else "antialiased"
    image = axes.imshow(np.clip(doublings, -span, span), "RdBu_r", aspect="auto", vmin=-span, vmax=span, extent=extent)
    image.set(interpolation=interpolation, interpolation_stage="data")
    bar = figure.colorbar(image, ax=axes, ticks=[-span, 0.0, span], pad=0.02)
    ends = f"{2**-span:.2g} times\nor less", "on\ntarget", f"{2**span:.2g} times\nor more"
    bar.ax.set_yticklabels(ends, fontsize=10)
    bar.outline.set_visible(False)
    rows = np.arange(K) if K <= _MAX_ROWS else np.linspace(0, K - 1, 6).round().astype(int)
    axes.set_yticks(rows, [f"{_to_label(class_names[c])} ({class_counts[c]:,})" for c in order[rows].tolist()])
    return figure


def plot_recall(
    recall: Floats, class_counts: NDArray[Any], class_names: Sequence[str], stage: str, noun: str = "class"
) -> Figure:
    """Plot the recall of each class, shape ``(K,)``, over its training samples; see :func:`plot_mix`.

    A recall is in [0, 1], or NaN for a class that was not tested. The stage is in the title, for example "test".
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = _new_figure(3.6, f"Recall of each {noun}, {stage}", f"training samples of the {noun}", "recall")
    tested = np.flatnonzero(~np.isnan(recall))
    tested = tested[np.argsort(class_counts[tested], kind="stable")]
    x, y = np.maximum(class_counts[tested], 0.5), recall[tested]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda x, _: "0" if x == 0.5 else f"{x:,.0f}" if abs(x - round(x)) < 1e-6 else "")
    axes.xaxis.set_minor_formatter(NullFormatter())
    size = 6 if recall.size <= _MAX_ROWS else 3.5
    axes.plot(x, y, "o", color=_BLUE, markersize=size, alpha=0.8, clip_on=False, zorder=3)
    if tested.size:
        mean, to_right = y.mean(), axes.get_yaxis_transform()
        axes.axhline(mean, color=_FAINT, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.text(1.01, mean, f"mean {mean:.3f}", transform=to_right, va="center", fontsize=10, color=_FAINT)
    names = [class_names[c] for c in tested.tolist()]
    if tested.size <= _MAX_NAMES:
        _name_points(axes, x, y, names)
    else:  # beside the points the names would cover each other
        lowest = ", ".join(_to_label(names[i], 12) for i in y.argsort(kind="stable")[:5].tolist())
        axes.text(0.99, 0.02, f"lowest: {lowest}", transform=axes.transAxes, ha="right", fontsize=9, color=_INK)
    if tested.size > _MAX_ROWS:
        window = max(5, tested.size // 20)
        kernel = np.ones(window) / window
        middle = np.exp(np.convolve(np.log(x), kernel, "valid"))
        axes.plot(middle, np.convolve(y, kernel, "valid"), color=_INK, linewidth=1.6, zorder=4)
        axes.set_xlabel(f"{axes.get_xlabel()}; line: mean of {window} neighbors")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    return figure


def _name_points(axes: Axes, x: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        above = i % 2 == 0 and y[i] < 0.95
        place: dict[str, Any] = {"xytext": (0, 7 if above else -7), "textcoords": "offset points", "ha": "center"}
        place["va"] = "bottom" if above else "top"
        axes.annotate(_to_label(name), (x[i], y[i]), fontsize=10, color=_INK, **place)


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the pixels of a figure, uint8, shape ``(height, width, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # names in a script that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    return pixels


def _new_figure(height: float, title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.8, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    axes.set_xlabel(xlabel, color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=10, length=3, color=_FAINT)
    return figure, axes


def _to_label(name: str, max_length: int = _MAX_LENGTH) -> str:
    """Return a name that is short, on one line, and not taken as a formula."""
    name = " ".join(name.split())
    short = name if len(name) <= max_length else name[: max_length - 1] + "…"
    return short.replace("$", r"\$")
