"""Small charts as SVG text: nothing to install, sharp at every width, in the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from lightning_fair.common.arrays import Floats

WIDTH, HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 28, 42
# Okabe and Ito's colours without the yellow: told apart also by those who do not see red or green.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_TICKS = 4
_SPACING = 10  # batches; ticks lie at multiples of it
_WIDEST_BAR = 72.0


def bin_counts(tallies: Mapping[int, int], most: int = 24) -> tuple[list[str], list[int]]:
    """Return labels and heights of a histogram of at most ``most`` bars, from how many numbers have each count.

    Counts that lie close together get a bar each, also those that no number has; others share bars of like width.

    Example:
        >>> bin_counts({0: 5, 2: 1})
        (['0', '1', '2'], [5, 0, 1])
        >>> bin_counts({0: 5, 99: 1}, most=2)
        (['0-49', '50-99'], [5, 1])
    """
    if not tallies:
        return [], []
    low, high = min(tallies), max(tallies)
    width = -(-(high - low + 1) // most)
    lows = range(low, high + 1, width)
    heights = [0] * len(lows)
    for count, numbers in tallies.items():
        heights[(count - low) // width] += numbers
    labels = [f"{first:,}" if width == 1 else f"{first:,}-{first + width - 1:,}" for first in lows]
    return labels, heights


def bar_chart(labels: Sequence[str], heights: Sequence[int], title: str, xlabel: str, ylabel: str) -> str:
    """Return a bar chart as SVG; a bar that is not zero is always at least two pixels high.

    Example:
        >>> bar_chart(["0", "1"], [3, 1], "Counts", "count", "numbers").count("<rect")
        2
    """
    top = max([*heights, 1])
    if top > _TICKS:
        top = -(-top // _TICKS) * _TICKS  # so that the ticks are whole numbers, evenly apart
    step = (WIDTH - _LEFT - _RIGHT) / max(len(heights), 1)
    floor = HEIGHT - _BOTTOM
    every = max(1, -(-len(labels) * (max(map(len, labels), default=1) + 2) * 9 // (WIDTH - _LEFT - _RIGHT)))
    parts = [_axes(0.0, float(top), xlabel, ylabel, whole=True)]
    for place, (label, height) in enumerate(zip(labels, heights, strict=True)):
        middle, wide = _LEFT + (place + 0.5) * step, min(step * 0.8, _WIDEST_BAR)
        tall = max((floor - _TOP) * height / top, 2.0) if height else 0.0
        name = escape(f"{label}: {height:,}")
        parts.append(
            f'<rect x="{middle - wide / 2:.1f}" y="{floor - tall:.1f}" width="{wide:.1f}" height="{tall:.1f}" '
            f'rx="2" fill="{COLOURS[0]}"><title>{name}</title></rect>'
        )
        if place % every == 0:
            half = 4.0 * len(label)  # a long one at either end would be cut off
            parts.append(_text(min(max(middle, half), WIDTH - half), floor + 17, label, "middle"))
    return _svg(title, parts)


def line_chart(
    series: Mapping[str, Floats],
    title: str,
    xlabel: str,
    ylabel: str,
    *,
    first: int = 0,
    marks: Sequence[int] = (),
    level: float | None = None,
    faint: Mapping[str, Floats] | None = None,
    floor: float = 0.0,
) -> str:
    """Return lines over batches as SVG, with a legend.

    Args:
        series: Name and values of each line, shape ``(batches,)``; a NaN leaves a gap.
        title: What the picture shows, for those who cannot see it.
        xlabel: What runs along the bottom.
        ylabel: What runs up the side.
        first: Batch of the first value.
        marks: Batches to mark by an upright line.
        level: Value to mark by a dashed line across.
        faint: Lines drawn thin and pale behind the others; each has the colour of the line with its name.
        floor: Least value of the axis.

    Example:
        >>> line_chart({"a": np.array([0.0, 1.0])}, "A", "batch", "share").count("<polyline")
        1
    """
    behind = faint or {}
    everything = np.concatenate([*series.values(), *behind.values(), [floor + 1e-9, level or 0.0]])
    top = _round_up(float(np.nanmax(everything)))
    length = max(len(values) for values in series.values())
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(series)}

    def x(batch: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (batch - first) / max(length - 1, 1)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * (value - floor) / (top - floor)

    def line(name: str, values: Floats, style: str) -> str:
        known = np.flatnonzero(np.isfinite(values))
        runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
        # A value alone between two gaps is a line from itself to itself: its round ends make a dot.
        ends = [run if len(run) > 1 else run.repeat(2) for run in runs]
        points = [" ".join(f"{x(first + at):.1f},{y(values[at]):.1f}" for at in run) for run in ends]
        style = f'fill="none" stroke="{colours[name]}" stroke-linecap="round" {style}'
        return "".join(f'<polyline points="{run}" {style}/>' for run in points)

    parts = [_axes(floor, top, xlabel, ylabel)]
    parts += [
        _text(x(first + at), HEIGHT - _BOTTOM + 17, str(first + at), "middle") for at in range(0, length, _tick(length))
    ]
    parts += [line(name, values, 'stroke-width="1.4" opacity="0.5"') for name, values in behind.items()]
    for mark in marks:
        parts.append(f'<path d="M{x(mark):.1f} {_TOP}V{HEIGHT - _BOTTOM}" stroke="currentColor" opacity="0.5"/>')
        parts.append(_text(x(mark) + 4, _TOP + 12, "turned over", "start"))
    if level is not None:
        parts.append(
            f'<path d="M{_LEFT} {y(level):.1f}H{WIDTH - _RIGHT}" stroke="currentColor" stroke-dasharray="5 4"/>'
        )
    parts += [line(name, values, 'stroke-width="2.2" stroke-linejoin="round"') for name, values in series.items()]
    legend = "".join(f'<span><i style="background:{colours[name]}"></i>{escape(name)}</span>' for name in series)
    return f'{_svg(title, parts)}<div class="legend">{legend}</div>'


def _axes(low: float, high: float, xlabel: str, ylabel: str, *, whole: bool = False) -> str:
    floor = HEIGHT - _BOTTOM
    parts = []
    values = [low + (high - low) * tick / _TICKS for tick in range(_TICKS + 1)]
    if whole:
        values = sorted({float(round(value)) for value in values})
    for value in values:
        y = floor - (floor - _TOP) * (value - low) / (high - low)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" stroke="currentColor" opacity="0.15"/>')
        parts.append(_text(_LEFT - 5, y + 4, _short(value), "end"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, xlabel, "middle"))
    parts.append(_text(4, 12, ylabel, "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" class="chart" '
        f'font-size="13" fill="currentColor">{body}</svg>'
    )


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _round_up(value: float) -> float:
    """Return the next larger of 1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8 times a power of ten: quarters of it read well."""
    scale = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * scale for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if step * scale >= value)


def _tick(length: int) -> int:
    return max(1, _SPACING * round(length / 6 / _SPACING)) if length > _SPACING else max(1, length // 4)
