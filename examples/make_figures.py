"""Draw the README's figures and print their numbers: `python examples/make_figures.py`.

No model is trained. The library's controller and sampler run in a plain loop, and what is shown is the class mix.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmarks.systems import (
    COUNT,
    HISTORY,
    IID,
    OURS,
    SYSTEMS,
    System,
    Trace,
    batch_distances,
    batches_to_arrive,
    drift,
    markdown,
    one_class_share,
    rebalance,
    spread,
)
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

# Okabe and Ito's palette: told apart by the colour-blind.
COLOURS = {OURS: "#0072B2", COUNT: "#D55E00", IID: "#009E73"}
INK, FAINT, BAND = "#222222", "#8a8a8a", "#e9e9e9"
SHOWN_HISTORY, SHOWN_STEPS = 20, 140
DPI = 160  # shown at 900 pixels, the figures stay sharp on a fine screen, and below 200 kB


def style(axes: Axes) -> None:
    """Leave of the frame what carries a scale."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)


def draw_shares(axes: Axes, x: np.ndarray, trace: Trace, colour: str) -> None:
    """Draw the share of the rare class: a dot for each batch, a line for the trained mix."""
    share, chosen = 100 * np.asarray(trace.share), np.asarray(trace.chosen)
    axes.axhline(50, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.scatter(x[~chosen], share[~chosen], s=7, color=FAINT, linewidths=0, zorder=2)
    axes.scatter(x[chosen], share[chosen], s=11, color=colour, linewidths=0, zorder=3, clip_on=False)
    axes.plot(x, 100 * np.asarray(trace.trained), color=INK, linewidth=1.2, zorder=4)
    axes.set_ylim(-4, 104)
    axes.set_yticks([0, 50, 100], ["0", "50", "100"])
    style(axes)


def draw_weights(axes: Axes, x: np.ndarray, trace: Trace, colour: str, width: float = 1.6) -> None:
    """Draw the largest class weight of each batch."""
    axes.plot(x, trace.weight, color=colour, linewidth=width, solid_joinstyle="round", clip_on=False)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 1e6)
    axes.set_yticks([1, 1e2, 1e4, 1e6], ["1", "100", "10⁴", "10⁶"])
    axes.minorticks_off()
    style(axes)


def add_legend(figure: Figure, elsewhere: str, y: float = 0.015) -> None:
    """Put one legend for all panels below them."""
    dot = {"linestyle": "none", "marker": "o", "markersize": 4.5}
    dots = tuple(Line2D([], [], color=colour, **dot) for colour in COLOURS.values())
    handles = [
        dots,
        Line2D([], [], color=INK, linewidth=1.5),
        Line2D([], [], color=FAINT, linewidth=0.9, linestyle=(0, (4, 3))),
        (Patch(color=BAND), Line2D([], [], color=FAINT, **dot)),
    ]
    names = ["a batch that was drawn", "trained mix (memory: 16 batches)", "target", elsewhere]
    figure.legend(
        handles,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, y),
        ncols=4,
        frameon=False,
        fontsize=9.5,
        columnspacing=1.8,
        handletextpad=0.7,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
    )


def title(figure: Figure, text: str) -> None:
    """Say in one line what is seen."""
    figure.text(0.012, 0.975, text, fontsize=12.5, fontweight="bold", color=INK, va="top")


def figure_rebalance(seed: int) -> Figure:
    """Draw the adaptation from 99:1 to 50:50, one column a system."""
    figure = Figure(figsize=(9, 4.9), facecolor="white")
    upper, lower = figure.subplots(2, 3, sharex=True, sharey="row", height_ratios=[1.75, 1])
    x = np.arange(-SHOWN_HISTORY, SHOWN_STEPS) + 0.5
    for column, system in enumerate(SYSTEMS):
        whole = rebalance(system, seed, SHOWN_STEPS)
        trace = last(whole, x.size)
        for axes in (upper[column], lower[column]):
            axes.axvspan(-SHOWN_HISTORY, 0, color=BAND, linewidth=0, zorder=0)
        draw_shares(upper[column], x, trace, COLOURS[system])
        draw_weights(lower[column], x, trace, COLOURS[system])
        upper[column].set_title(system.name, color=COLOURS[system], fontsize=11, fontweight="bold", pad=9)
        if system is COUNT:
            mark_even_sum(upper[column], whole)
    lower[0].set_xlim(-SHOWN_HISTORY, SHOWN_STEPS)
    lower[0].set_xticks(range(0, SHOWN_STEPS + 1, 40))
    lower[1].set_xlabel("batches (of 256) since the sampler took over", fontsize=10, color=INK)
    upper[0].set_ylabel("rare class, %", fontsize=10, color=INK)
    lower[0].set_ylabel("largest weight q/p", fontsize=10, color=INK)
    title(figure, "From 99:1 to 50:50: the relative deficit settles in 12 batches, a count deficit never")
    figure.subplots_adjust(left=0.075, right=0.985, top=0.845, bottom=0.2, wspace=0.1, hspace=0.16)
    figure.align_ylabels()
    add_legend(figure, "trained before, at 99:1")
    return figure


def mark_even_sum(axes: Axes, trace: Trace) -> None:
    """Mark the batch from which on the sum of all batches so far is balanced."""
    so_far = np.cumsum(trace.share) / np.arange(1, len(trace.share) + 1)
    even = int(np.argmax(so_far >= 0.5)) + 1 - HISTORY
    axes.annotate(
        "all batches so far\nadd up to 50:50,\neach is of one class",
        xy=(even, 1),
        xytext=(even - 10, 22),
        ha="right",
        va="center",
        fontsize=9,
        color=INK,
        arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 0.9, "shrinkA": 2, "shrinkB": 4},
    )


def figure_drift(seed: int) -> Figure:
    """Draw ten cycles of drift and recovery, one row a system, and the weights of all three below."""
    figure = Figure(figsize=(9, 6.6), facecolor="white")
    rows = figure.subplots(4, 1, sharex=True, height_ratios=[1, 1, 1, 0.85])
    for row, system in zip(rows, SYSTEMS, strict=False):
        trace = drift(system, seed)
        x = np.arange(len(trace.share)) + 0.5
        draw_shares(row, x, trace, COLOURS[system])
        draw_weights(rows[3], x, trace, COLOURS[system])
        row.set_ylabel("rare class, %", fontsize=10, color=INK)
        row.set_title(system.name, color=COLOURS[system], fontsize=11, fontweight="bold", loc="left", pad=5)
    for row in rows:
        shade_elsewhere(row, trace)
    rows[3].set_title("all three", color=INK, fontsize=11, fontweight="bold", loc="left", pad=5)
    rows[3].set_ylabel("largest\nweight q/p", fontsize=10, color=INK)
    rows[3].set_xlim(0, x.size)
    rows[3].set_xlabel("batches (of 256)", fontsize=10, color=INK)
    title(figure, "Ten cycles of drift: the relative deficit recovers within ten batches and then rests")
    figure.subplots_adjust(left=0.085, right=0.98, top=0.895, bottom=0.135, hspace=0.42)
    figure.align_ylabels()
    add_legend(figure, "drift: batches from elsewhere", y=0.005)
    return figure


def shade_elsewhere(axes: Axes, trace: Trace) -> None:
    """Shade the batches that the sampler did not choose."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], ~np.asarray(trace.chosen), [0])).astype(int)))
    for start, end in edges.reshape(-1, 2):
        axes.axvspan(start, end, color=BAND, linewidth=0, zorder=0)


def last(trace: Trace, batches: int) -> Trace:
    """Return the last batches of a run."""
    return Trace(*(getattr(trace, name)[-batches:] for name in ("share", "trained", "weight", "chosen")))


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; without the version of matplotlib in it, so that the same figure is the same file."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def row_of(system: System, runs: Sequence[Sequence[Trace]], settled: int) -> list[str]:
    """Return one system's numbers; a run is one stretch of own batches, or several of them."""
    parts = [part for run in runs for part in run]
    waits = [batches_to_arrive(part.trained) for part in parts]
    arrived = [wait for wait in waits if wait is not None]
    missed = len(waits) - len(arrived)
    after = [worst(run, settled) for run in runs]
    return [
        system.name,
        spread([batch_distances(part.share)[0] for part in parts]),
        spread(after),
        spread([100 * one_class_share(joined(run)) for run in runs], 1) + " %",
        spread([100 * one_class_share(joined(run, settled)) for run in runs], 1) + " %",
        "never" if not arrived else spread(arrived, 1) + (f" ({missed} of {len(waits)}: never)" if missed else ""),
        f"{max(max(part.weight) for part in parts):,.2f}",
        f"{max(max(part.weight[settled:]) for part in parts):,.2f}",
    ]


def joined(run: Sequence[Trace], settled: int = 0) -> list[float]:
    """Return the shares of all stretches of a run, without the first ``settled`` batches of each."""
    return [share for part in run for share in part.share[settled:]]


def worst(run: Sequence[Trace], settled: int) -> float:
    """Return the distance of the worst batch after the first ``settled`` of each stretch."""
    return max(float(batch_distances(part.share[settled:]).max()) for part in run)


def tables(seeds: Sequence[int], steps: int = 200, cycles: int = 10) -> str:
    """Return the numbers behind both figures as Markdown."""
    header = (
        "distance of the first batch",
        "of the worst batch, later",
        "batches of one class",
        "... later",
        "batches until the trained mix is within 1 %",
        "largest weight q/p",
        "... later",
    )
    settled = min(30, steps // 2)
    first = [row_of(system, [rebalance(system, seed, steps).split() for seed in seeds], settled) for system in SYSTEMS]
    settled_again = 20
    second = [
        row_of(system, [drift(system, seed, cycles).split() for seed in seeds], settled_again) for system in SYSTEMS
    ]
    return "\n\n".join(
        (
            f"From 99:1 ({HISTORY} batches) to 50:50, {steps} batches; {len(seeds)} seeds; later: after {settled}",
            markdown(("system", *header), first),
            f"{cycles} cycles of drift and recovery; {len(seeds)} seeds; later: after {settled_again} of a recovery",
            markdown(("system", *header), second),
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="folder of the figures (default: assets)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the figures, and first seed of the tables")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds in the tables (default: 10)")
    parser.add_argument("--steps", type=int, default=200, help="batches drawn after 99:1, in the tables (default: 200)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    save(figure_rebalance(args.seed), args.out / "fair_rebalance.png")
    save(figure_drift(args.seed), args.out / "drift_recovery.png")
    print(tables(range(args.seed, args.seed + args.seeds), args.steps))


if __name__ == "__main__":
    main()
