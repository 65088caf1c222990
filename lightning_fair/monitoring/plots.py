"""Pictures of a run, drawn with matplotlib's object interface: no display is needed, and no global state touched."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats

if TYPE_CHECKING:  # drawing is an extra, and takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 140
_INK, _FAINT, _LINE = "#222222", "#8a8a8a", "#0072B2"
_MOST_ROWS, _MOST_NAMES, _LONGEST_NAME = 30, 12, 24
_LEAST_SPAN = 0.25  # doublings: closer to its target a mix shows in pale colours


def mix_over_time(
    steps: NDArray[Any], over_target: NDArray[Any], class_counts: NDArray[Any], names: Sequence[str]
) -> Figure:
    """Draw the trained mix over its target as a heat map, class by step, the most frequent class on top.

    Args:
        steps: Steps, ascending and about evenly spaced, shape ``(T,)``.
        over_target: Trained mix over target at each of them, shape ``(T, K)``; NaN where a class had no target.
        class_counts: Training samples of each class, shape ``(K,)``.
        names: Name of each class.
    """
    K = len(names)
    order = np.argsort(-class_counts, kind="stable")
    with np.errstate(divide="ignore"):
        doublings = np.log2(over_target[:, order].T)
    there = np.abs(doublings[np.isfinite(doublings)])
    span = float(np.clip(np.percentile(there, 99), _LEAST_SPAN, 1.0)) if there.size else 1.0
    figure, axes = _figure(5.8, min(max(2.2 + 0.2 * K, 3.2), 5.0))
    axes.set_facecolor("#d0d0d0")
    half = (steps[-1] - steps[0]) / max(2 * (steps.size - 1), 1) or 0.5
    image = axes.imshow(
        np.clip(doublings, -span, span),
        aspect="auto",
        cmap="RdBu_r",
        vmin=-span,
        vmax=span,
        extent=(steps[0] - half, steps[-1] + half, K - 0.5, -0.5),
        interpolation="nearest" if K <= _MOST_ROWS else "antialiased",
        interpolation_stage="data",
    )
    bar = figure.colorbar(image, ax=axes, ticks=[-span, 0.0, span], pad=0.02)
    bar.ax.set_yticklabels(
        [f"{2**-span:.2g} times\nor less", "on\ntarget", f"{2**span:.2g} times\nor more"], fontsize=10
    )
    bar.outline.set_visible(False)
    rows = np.arange(K) if K <= _MOST_ROWS else np.linspace(0, K - 1, 6).round().astype(int)
    axes.set_yticks(rows, [f"{_text(names[c])} ({class_counts[c]:,})" for c in order[rows].tolist()])
    axes.set_ylabel("class (training samples)", color=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.set_title("Trained mix over its target", loc="left", fontsize=12, color=_INK)
    return figure


def recall_by_samples(recall: Floats, class_counts: NDArray[Any], names: Sequence[str], of: str) -> Figure:
    """Draw the recall of each class over its training samples.

    Args:
        recall: Recall of each class, in [0, 1], shape ``(K,)``; NaN for a class that was not tested.
        class_counts: Training samples of each class, shape ``(K,)``.
        names: Name of each class.
        of: What it is the recall of, such as "test".
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    K = len(names)
    figure, axes = _figure(5.8, 3.6)
    there = np.flatnonzero(~np.isnan(recall))
    there = there[np.argsort(class_counts[there], kind="stable")]
    x, y = np.maximum(class_counts[there], 0.5), recall[there]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda x, _: "0" if x == 0.5 else f"{x:,.0f}" if abs(x - round(x)) < 1e-6 else "")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot(x, y, "o", color=_LINE, markersize=6 if K <= _MOST_ROWS else 3.5, alpha=0.8, clip_on=False, zorder=3)
    if there.size:
        mean = float(y.mean())
        axes.axhline(mean, color=_FAINT, linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"mean {mean:.3f}",
            (1.0, mean),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=_FAINT,
        )
    for place in range(there.size if there.size <= _MOST_NAMES else 0):
        above = place % 2 == 0 and y[place] < 0.95
        axes.annotate(
            _text(names[there[place]]),
            (x[place], y[place]),
            xytext=(0, 7 if above else -7),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=10,
            color=_INK,
            zorder=5,
        )
    if there.size > _MOST_NAMES:  # beside the points they would cover each other
        worst = ", ".join(_text(names[c], 12) for c in there[y.argsort(kind="stable")[:5]].tolist())
        axes.text(0.99, 0.02, f"lowest: {worst}", transform=axes.transAxes, ha="right", fontsize=9, color=_INK)
    line, window = "", max(5, there.size // 20)
    if there.size > max(window, _MOST_ROWS):
        kernel = np.ones(window) / window
        middle = np.exp(np.convolve(np.log(x), kernel, "valid"))
        axes.plot(middle, np.convolve(y, kernel, "valid"), color=_INK, linewidth=1.6, zorder=4)
        line = f"; line: mean of {window} neighbours"
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(f"training samples of the class{line}", color=_INK)
    axes.set_ylabel("recall", color=_INK)
    axes.set_title(f"Recall of each class, {of}", loc="left", fontsize=12, color=_INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    return figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return the pixels of a figure, uint8, shape ``(height, width, 3)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names in a script that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    drawn: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    return drawn


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=10, length=3, color=_FAINT)
    return figure, axes


def _text(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name as it can stand in a figure: short, on one line, and no formula."""
    name = " ".join(name.split())
    short = name if len(name) <= longest else name[: longest - 1] + "…"
    return short.replace("$", r"\$")
