"""Pictures of a run, as arrays of pixels: drawn with matplotlib's object interface, so no display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.simplex import Floats

if TYPE_CHECKING:  # drawing is an extra, and takes long to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 140
_INK, _FAINT, _LINE = "#222222", "#8a8a8a", "#0072B2"
_MOST_LABELS = 30


def mix_over_time(
    steps: NDArray[Any], over_target: NDArray[Any], class_counts: NDArray[Any], names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw the trained mix over its target as a heat map, class by step, the most frequent class on top.

    Args:
        steps: Steps, ascending, shape ``(T,)``.
        over_target: Trained mix over target at each of them, shape ``(T, K)``; NaN where a class had no target.
        class_counts: Training samples of each class, shape ``(K,)``.
        names: Name of each class.

    Returns:
        The pixels, uint8, shape ``(height, width, 3)``.
    """
    from matplotlib.colors import TwoSlopeNorm

    K = len(names)
    order = np.argsort(-class_counts, kind="stable")
    with np.errstate(divide="ignore"):
        doublings = np.log2(over_target[:, order].T)
    figure, axes = _figure(5.8, min(max(2.2 + 0.2 * K, 3.2), 5.0))
    axes.set_facecolor("#d0d0d0")
    # From the edge of the first step to that of the last, for steps are evenly spaced.
    half = (steps[-1] - steps[0]) / max(2 * (steps.size - 1), 1) or 0.5
    image = axes.imshow(
        np.clip(doublings, -1.0, 1.0),
        aspect="auto",
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0.0, -1.0, 1.0),
        extent=(steps[0] - half, steps[-1] + half, K - 0.5, -0.5),
        interpolation="nearest" if K <= _MOST_LABELS else "antialiased",
    )
    bar = figure.colorbar(image, ax=axes, ticks=[-1.0, 0.0, 1.0], pad=0.02)
    bar.ax.set_yticklabels(["half\nor less", "on\ntarget", "double\nor more"], fontsize=10)
    bar.outline.set_visible(False)
    rows = np.arange(K) if K <= _MOST_LABELS else np.linspace(0, K - 1, 6).round().astype(int)
    labels = [f"{names[order[row]]} ({class_counts[order[row]]:,})" for row in rows.tolist()]
    axes.set_yticks(rows, labels)
    axes.set_ylabel("class (training samples)", color=_INK)
    axes.set_xlabel("step", color=_INK)
    axes.set_title("Trained mix over its target", loc="left", fontsize=12, color=_INK)
    return _pixels(figure)


def recall_by_images(recall: Floats, class_counts: NDArray[Any], names: Sequence[str], of: str) -> NDArray[np.uint8]:
    """Draw the recall of each class over its training samples.

    Args:
        recall: Recall of each class, in [0, 1], shape ``(K,)``; NaN for a class that was not tested.
        class_counts: Training samples of each class, shape ``(K,)``.
        names: Name of each class.
        of: What it is the recall of, such as "test".

    Returns:
        The pixels, uint8, shape ``(height, width, 3)``.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    K = len(names)
    figure, axes = _figure(5.8, 3.6)
    there = np.flatnonzero((class_counts > 0) & ~np.isnan(recall))
    there = there[np.argsort(class_counts[there], kind="stable")]
    x, y = class_counts[there], recall[there]
    title = f"Recall of each class, {of}"
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.plot(x, y, "o", color=_LINE, markersize=6 if K <= _MOST_LABELS else 3.5, alpha=0.8, clip_on=False, zorder=3)
    mean = float(np.nanmean(recall))
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
    if K <= _MOST_LABELS:
        for place, (name, at) in enumerate(
            zip((names[c] for c in there.tolist()), zip(x, y, strict=True), strict=True)
        ):
            above = place % 2 == 0 and at[1] < 0.95
            axes.annotate(
                name,
                at,
                xytext=(0, 8 if above else -8),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
                fontsize=10,
                color=_INK,
            )
    else:
        window = max(5, there.size // 20)
        kernel = np.ones(window) / window
        middle = np.exp(np.convolve(np.log(x), kernel, "valid"))
        axes.plot(middle, np.convolve(y, kernel, "valid"), color=_INK, linewidth=1.6, zorder=4)
        title += f", and the mean over {window} neighbours"
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("training samples of the class", color=_INK)
    axes.set_ylabel("recall", color=_INK)
    axes.set_title(title, loc="left", fontsize=12, color=_INK)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    return _pixels(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=10, length=3, color=_FAINT)
    return figure, axes


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: NDArray[np.uint8] = np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
    return pixels
