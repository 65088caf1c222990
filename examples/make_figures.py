"""Plot the README's figures and print their numbers: `python examples/make_figures.py`.

Both figures show runs of `examples/train.py experiment=drift` with two classes, on a stream at 99:1.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.systems import batch_distances, batches_to_arrive, markdown, one_class_share
from hydra import compose, initialize_config_dir
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from recipes import configs
from recipes.recovery import Recovery
from recipes.training import train

CONF = Path(__file__).resolve().parents[1] / "conf"
RARE, BATCH, MEMORY, RATIO = 1, 32, 16, 99
SHOWN_HISTORY, SMOOTHED = 20, 8  # batches
EXPERIMENT = (
    "experiment=drift",
    "model=mlp",
    f"data.batch_size={BATCH}",
    f"data.imbalance_ratio={RATIO}",
    *("data.num_classes=2", "model.num_classes=2"),
    *("logger=csv", "callbacks=none", "trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.limit_val_batches=0"),
)
# Without repeats the stream cannot be balanced while it is at 99:1, so a deficit builds up before its mix is reversed.
ONCE = ("data.buffer_size=4096", "data.max_reuse=1")
TURN_SIZE = 8096  # with this buffer the stream turns between two of the blocks that are read
FAIR, PLAIN = "with FairSampling", "without the plugin"
SHORT = "with FairSampling, buffers too small for a turn"
REBALANCED = {FAIR: ONCE, PLAIN: ("fair=off",)}
DRIFTED = {PLAIN: ("fair=off",), FAIR: (), SHORT: ("data.buffer_size=32", "data.max_reuse=16")}
# The palette of Okabe and Ito, which color-blind readers can distinguish.
COLORS = {FAIR: "#0072B2", SHORT: "#009E73", PLAIN: "#D55E00"}
LOST = "#E69F00"
INK, FAINT, BAND = "#222222", "#8a8a8a", "#ececec"
TARGET = {"color": FAINT, "linewidth": 0.9, "linestyle": (0, (4, 3))}
CLIPPED = ("mean clipped mass", "largest")
DPI = 160  # sharp on a fine screen when shown at 900 pixels, and below 200 kB


@dataclass(frozen=True)
class Trace:
    """One value for each batch of a run. Shares are those of the class that is rare in the first turn, in [0, 1].

    Attributes:
        stream: Share in each stretch of the stream with the length of a batch.
        arrived: Samples read up to the batch.
        share: Share in the batch.
        trained: Share in the trained mix after the batch.
        weight: Largest importance weight of a class in the batch.
        lost: Clipped mass of the batch, in [0, 1]: the part of the target that its loss does not stand for.
        turn: First batch after the stream's first turn.
    """

    stream: NDArray[np.float64]
    arrived: NDArray[np.int64]
    share: NDArray[np.float64]
    trained: NDArray[np.float64]
    weight: NDArray[np.float64]
    lost: NDArray[np.float64]
    turn: int


def run_trace(seed: int, *overrides: str) -> Trace:
    """Train as `examples/train.py` does, and return the trace."""
    recovery = Recovery(horizon=MEMORY)
    configs.register()
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*EXPERIMENT, f"output_dir={folder}", f"seed={seed}", *overrides])
        with contextlib.redirect_stdout(io.StringIO()):
            train(cfg, recovery)
        counts, arrived = np.array(recovery.counts), np.array(recovery.arrived)
        weight, lost = np.ones(len(counts)), np.zeros(len(counts))
        if cfg.fair:
            log = Path(folder, "csv", "metrics.csv")
            weight, lost = class_weights(log, cfg.fair.max_weight), read_log(log, "fair/clipped_mass")[:, 0]
    return Trace(
        (recovery.stream.labels == RARE).reshape(-1, BATCH).mean(axis=1),
        arrived,
        counts[:, RARE] / counts.sum(axis=1),
        np.array(recovery.mixes)[:, RARE],
        weight,
        lost,
        int(np.argmax(arrived > recovery.stream.turn_size)),
    )


def read_log(log: Path, *tags: str) -> NDArray[np.float64]:
    """Return what the callback has logged of each batch, shape ``(batches, tags)``."""
    with log.open(newline="") as file:
        return np.array([[float(row[tag]) for tag in tags] for row in csv.DictReader(file) if row[tags[0]]])


def class_weights(log: Path, max_weight: float) -> NDArray[np.float64]:
    """Return the largest weight of a class in each batch: ``0.5 / p``, at most ``max_weight``."""
    p = read_log(log, *(f"fair_class/prob/{c}" for c in "01"))
    largest: NDArray[np.float64] = np.divide(0.5, p, out=np.zeros_like(p), where=p > 0).max(axis=1)
    return np.minimum(largest, max_weight)


def rebalanced(seed: int) -> dict[str, Trace]:
    """Train each way over a single turn."""
    size = ("data.cycles=1", f"data.turn_size={TURN_SIZE}")
    return {name: run_trace(seed, *overrides, *size) for name, overrides in REBALANCED.items()}


def drifted(seed: int, cycles: int) -> dict[str, Trace]:
    """Train each way over a number of cycles."""
    return {name: run_trace(seed, *overrides, f"data.cycles={cycles}") for name, overrides in DRIFTED.items()}


def figure_rebalance(traces: Mapping[str, Trace], steps: int) -> Figure:
    """Plot the recovery from a history at 99:1, one column for each way to train."""
    figure = Figure(figsize=(9, 4.9), facecolor="white")
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[1.75, 1])
    for column, (name, trace) in enumerate(traces.items()):
        color, x = COLORS[name], np.arange(trace.share.size) - trace.turn + 0.5
        above, below = upper[column], lower[column]
        for axes in (above, below):
            axes.axvspan(-SHOWN_HISTORY, 0, color=BAND, linewidth=0, zorder=0)
            style(axes)
        shares(above)
        above.scatter(x, 100 * trace.stream[trace.arrived // BATCH - 1], s=6, color=FAINT, linewidths=0, zorder=2)
        if name != PLAIN:  # a batch of the plain run is a stretch of the stream
            above.scatter(x, 100 * trace.share, s=11, color=color, linewidths=0, zorder=3)
        above.plot(x, 100 * trace.trained, color=INK, linewidth=1.3, zorder=4)
        above.set_title(name, color=color, fontsize=11, fontweight="bold", pad=9)
        after = slice(trace.turn, None)
        below.scatter(x[after], trace.weight[after], s=8, color=color, linewidths=0)
    lower[0].set_ylim(0, 11)
    lower[0].set_yticks([1, 5, 10])
    lower[0].set_xlim(-SHOWN_HISTORY, steps)
    for below in lower:
        below.set_xlabel(f"batches (of {BATCH}) since the stream's mix was reversed", fontsize=10, color=INK)
    upper[0].set_ylabel("class 1, %", fontsize=10, color=INK)
    lower[0].set_ylabel("largest weight q/p", fontsize=10, color=INK)
    wait = batches_to_arrive(traces[FAIR].trained[traces[FAIR].turn :])
    settles = "does not settle" if wait is None else f"settles in {wait} batches"
    title(figure, f"From {RATIO}:1 to 50:50: with FairSampling the trained mix {settles}")
    figure.subplots_adjust(left=0.075, right=0.985, top=0.835, bottom=0.2, wspace=0.1, hspace=0.16)
    figure.align_ylabels()
    legend(
        figure,
        {
            "a drawn batch": dot(COLORS[FAIR]),
            f"trained mix (memory: {MEMORY} batches)": Line2D([], [], color=INK, linewidth=1.5),
            "mix arriving": dot(FAINT),
            "target 50:50": Line2D([], [], **TARGET),
            f"before, at {RATIO}:1": Patch(color=BAND),
        },
    )
    return figure


def figure_drift(traces: Mapping[str, Trace], cycles: int) -> Figure:
    """Plot the cycles of drift, one row for each way to train, and the distances from the target below."""
    figure = Figure(figsize=(9, 7), facecolor="white")
    rows = figure.subplots(4, 1, sharex=True, height_ratios=[1, 1, 1, 1])
    cycle = next(iter(traces.values())).stream.size * BATCH / cycles
    for row, (name, trace) in zip(rows, traces.items(), strict=False):
        shares(row)
        arriving = trace.stream.reshape(-1, SMOOTHED).mean(axis=1)
        x = (np.arange(arriving.size) + 0.5) * SMOOTHED * BATCH / cycle
        row.plot(x, 100 * arriving, color=FAINT, linewidth=0.9, drawstyle="steps-mid", zorder=2)
        lost = np.convolve(trace.lost, np.full(SMOOTHED, 1 / SMOOTHED), "same")
        row.fill_between(trace.arrived / cycle, 100 * lost, color=LOST, alpha=0.6, linewidth=0, zorder=1)
        row.plot(trace.arrived / cycle, 100 * trace.trained, color=COLORS[name], linewidth=1.8, zorder=3)
        rows[3].plot(trace.arrived / cycle, 100 * batch_distances(trace.trained), color=COLORS[name], linewidth=1.6)
        row.set_ylabel("class 1, %", fontsize=10, color=INK)
        row.set_title(name, color=COLORS[name], fontsize=11, fontweight="bold", loc="left", pad=5)
    for row in rows:
        style(row)
        for turn in range(cycles):
            row.axvspan(turn, turn + 0.5, color=BAND, linewidth=0, zorder=0)
    rows[3].set_ylim(-2, 52)
    rows[3].set_yticks([0, 25, 50])
    rows[3].set_title("all three", color=INK, fontsize=11, fontweight="bold", loc="left", pad=5)
    rows[3].set_ylabel("distance from\nthe target, %", fontsize=10, color=INK)
    rows[3].set_xlim(0, cycles)
    rows[3].set_xticks(range(cycles + 1))
    rows[3].set_xlabel(f"cycles of the stream, {cycle:,.0f} samples each", fontsize=10, color=INK)
    # Rounded up, at least 0.1.
    later = max(np.ceil(1000 * batch_distances(traces[FAIR].trained[traces[FAIR].turn :]).max()) / 10, 0.1)
    title(
        figure,
        f"{cycles} cycles of drift: after the first turn the trained mix stays within {later:.1f} % of the target",
    )
    figure.subplots_adjust(left=0.085, right=0.98, top=0.895, bottom=0.15, hspace=0.42)
    figure.align_ylabels()
    colors = list(dict.fromkeys(COLORS[name] for name in traces))
    legend(
        figure,
        {
            "mix arriving": Line2D([], [], color=FAINT, linewidth=1),
            f"trained mix (memory: {MEMORY} batches)": tuple(Line2D([], [], color=c, linewidth=1.8) for c in colors),
            f"clipped mass, % (mean of {SMOOTHED} batches)": Patch(color=LOST, alpha=0.6, linewidth=0),
            "target 50:50": Line2D([], [], **TARGET),
            f"the stream is at {RATIO}:1": Patch(color=BAND),
            f"at 1:{RATIO}": Patch(facecolor="white", edgecolor=FAINT, linewidth=0.6),
        },
    )
    return figure


def style(axes: Axes) -> None:
    """Remove the parts of the frame that carry no scale."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9, length=3, color=FAINT)


def shares(axes: Axes) -> None:
    """Set the scale of a share, and plot the target."""
    axes.axhline(50, zorder=1, **TARGET)
    axes.set_ylim(-5, 105)
    axes.set_yticks([0, 50, 100])


def dot(color: str) -> Line2D:
    """Return a dot for a legend."""
    return Line2D([], [], color=color, linestyle="none", marker="o", markersize=4.5)


def legend(figure: Figure, handles: Mapping[str, object]) -> None:
    """Place one legend for all panels below them."""
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.008),
        ncols=len(handles) if len(handles) < 6 else 3,
        frameon=False,
        fontsize=9.5,
        columnspacing=1.6,
        handletextpad=0.6,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
    )


def title(figure: Figure, text: str) -> None:
    """Place a title in one line."""
    figure.text(0.012, 0.975, text, fontsize=12, fontweight="bold", color=INK, va="top")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colors, which halves its size, without metadata, so that the same figure is the same file."""
    FigureCanvasAgg(figure)
    png = io.BytesIO()
    figure.savefig(png, dpi=DPI)
    Image.open(png).convert("RGB").quantize(256).save(path, optimize=True)


def tables(rebalance: Mapping[str, Trace], drift: Mapping[str, Trace], steps: int) -> str:
    """Return the numbers of both figures as Markdown."""
    first = []
    for name, trace in rebalance.items():
        share, trained, weight = (
            part[trace.turn : trace.turn + steps] for part in (trace.share, trace.trained, trace.weight)
        )
        wait = batches_to_arrive(trained)
        row = [name, "never" if wait is None else str(wait), f"{100 * one_class_share(share):.1f} %"]
        row += [f"{batch_distances(share[steps // 2 :]).max():.3f}"]
        first.append([*row, f"{weight.max():,.2f}", f"{weight[steps // 2 :].max():,.2f}"])
    second = []
    for name, trace in drift.items():
        off, lost = batch_distances(trace.trained[trace.turn :]), trace.lost[trace.turn :]
        second.append([name, f"{off.mean():.3f}", f"{off.max():.3f}", f"{lost.mean():.3f}", f"{lost.max():.3f}"])
    header = (
        f"{RATIO}:1 to 50:50",
        "batches until the trained mix is within 1 %",
        "batches of one class",
        "distance of the worst batch, second half",
        "largest weight q/p",
        "... second half",
    )
    return "\n\n".join(
        (
            markdown(header, first),
            markdown(("drift, after the first turn", "mean distance of the trained mix", "largest", *CLIPPED), second),
        )
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets"), help="folder of the figures (default: assets)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the runs (default: 1)")
    parser.add_argument("--steps", type=int, default=140, help="batches shown after the turn (default: 140)")
    parser.add_argument("--cycles", type=int, default=10, help="cycles of drift (default: 10)")
    args = parser.parse_args(argv)
    rebalance, drift = rebalanced(args.seed), drifted(args.seed, args.cycles)
    args.out.mkdir(parents=True, exist_ok=True)
    save(figure_rebalance(rebalance, args.steps), args.out / "fair_rebalance.png")
    save(figure_drift(drift, args.cycles), args.out / "drift_recovery.png")
    print(tables(rebalance, drift, args.steps))


if __name__ == "__main__":
    main()
