"""Measure the noise and the cost of draws: `python examples/benchmarks/draws.py`.

The first half compares the library's sampler with the count deficit and with independent draws, all of them on the
library's own controller and sampler and, with workers, torch's loader. Its results are a function of the seeds.

The second half compares the time of a draw with that of other samplers, for each number of items (`--sizes`) and
classes (`--classes`), with long-tailed labels in random order. Each sampler has a process of its own, and they take
turns. Other libraries come with `pip install lightning-fair[bench]`; the output names those that are not installed. A
table of the costs and a picture (`--picture`) come last. `--only costs` or `--only worth` selects one half.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import multiprocessing
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import numpy as np
import torch
from benchmarks.systems import (
    BATCH,
    IID,
    OURS,
    RARE,
    SYSTEMS,
    System,
    batch_distances,
    long_tail_labels,
    machine,
    markdown,
    mean_std,
    one_class_share,
    rare_labels,
    rebalance,
)
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler
from tqdm import tqdm

from lightning_fair.control.weights import class_weights

LOSS_CLASSES, LOSS_BATCH = 10, 128
NUM_PREFETCHED = 16


def first_batch(system: System, seed: int) -> float:
    """Return the distance of the first batch from 50:50, with data at 99:1."""
    return float(batch_distances(rebalance(system, seed, 1, history=0).share)[0])


def first_batch_after_history(system: System, seed: int) -> float:
    """Return the same distance after a history of 100 batches at 99:1."""
    trace = rebalance(system, seed, 1)
    return float(batch_distances(trace.share)[-1])


def shares_with_workers(system: System, seed: int, workers: int, steps: int) -> NDArray[np.float64]:
    """Return the share of the rare class in each batch of a plain loop over a torch ``DataLoader``."""
    labels = rare_labels()
    sampler = system.sampler(labels, BATCH, steps, seed=seed)
    loader = DataLoader(TensorDataset(torch.from_numpy(labels)), batch_sampler=sampler, num_workers=workers)
    controller, shares = sampler.controller, []
    for (y,) in loader:
        controller.get_probs()
        controller.step_update(y)
        shares.append(float((y == RARE).double().mean()))
    return np.array(shares)


def item_losses(labels: NDArray[Any], within: float, seed: int) -> NDArray[np.float64]:
    """Return a loss per item: class means from 0.2 to 2, and the deviation ``within`` a class."""
    means = np.linspace(0.2, 2.0, LOSS_CLASSES)
    return means[labels] + within * np.random.default_rng([seed, 2]).standard_normal(labels.size)


def count_deviation(system: System, seed: int, steps: int) -> float:
    """Return the root mean square of a class's count minus ``batch * q``, over batches and classes."""
    labels = long_tail_labels(LOSS_CLASSES)
    sampler = system.sampler(labels, LOSS_BATCH, steps, num_classes=LOSS_CLASSES, seed=seed)
    off = []
    for batch in sampler:
        off.append(np.bincount(labels[batch], minlength=LOSS_CLASSES) - LOSS_BATCH * sampler.controller.q)
        sampler.controller.step_update(labels[batch])
    return float(np.sqrt(np.mean(np.square(off))))


def loss_deviation(system: System, within: float, seed: int, steps: int) -> float:
    """Return the standard deviation over batches of the weighted batch loss, with the losses held fixed."""
    labels = long_tail_labels(LOSS_CLASSES)
    losses = item_losses(labels, within, seed)
    sampler = system.sampler(labels, LOSS_BATCH, steps, num_classes=LOSS_CLASSES, seed=seed)
    controller, means = sampler.controller, []
    for batch in sampler:
        weights = class_weights(controller.q, controller.get_probs())
        means.append(float((weights[labels[batch]] * losses[batch]).mean()))
        controller.step_update(labels[batch], losses[batch])
    return float(np.std(means))


@dataclass(frozen=True)
class MeanWeight:
    """Mean over batches of the mean importance weight, with its standard error, and how far ``p`` swung.

    Attributes:
        with_draw: Mean and standard error with the ``p`` of the batch's own draw.
        with_current: The same with the controller's ``p`` at the time of the step.
        swing: Least and largest ``p / q`` of the rare class.
    """

    with_draw: tuple[float, float]
    with_current: tuple[float, float]
    swing: tuple[float, float]


def mean_weight(seed: int, steps: int, num_prefetched: int = NUM_PREFETCHED) -> MeanWeight:
    """Return the mean importance weight with a loader that draws ahead and losses that keep ``p`` moving.

    The harder class changes every 30 batches, and half of the gain is on the losses.
    """
    labels = rare_labels()
    sampler = OURS.sampler(labels, BATCH, steps, seed=seed, lambda2=0.5)
    controller, ahead = sampler.controller, deque[Any]()
    rows: list[tuple[float, float, float]] = []
    batches = iter(sampler)
    for step in range(steps):
        while len(ahead) <= num_prefetched and (batch := next(batches, None)) is not None:
            ahead.append(batch)
        y = labels[ahead.popleft()]
        drawn = controller.get_probs()
        own, current = (class_weights(controller.q, p)[y].mean() for p in (drawn, controller.next_probs()))
        rows.append((own, current, drawn[RARE] / controller.q[RARE]))
        controller.step_update(y, np.where(y == step // 30 % 2, 2.0, 1.0))
    values = np.array(rows)
    means, errors = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(steps)
    return MeanWeight(
        (float(means[0]), float(errors[0])),
        (float(means[1]), float(errors[1])),
        (float(values[:, 2].min()), float(values[:, 2].max())),
    )


# -- costs ---------------------------------------------------------------------------------------------

Batches = Iterator[Any]  # of lists of indices, without end


def ours_draws(labels: NDArray[Any], num_classes: int) -> Batches:
    """Yield batches of the library's sampler; the class mix changes with every one."""
    sampler = OURS.sampler(labels, BATCH, 1, num_classes=num_classes)
    rng = np.random.default_rng(0)
    mixes = [rng.dirichlet(np.full(num_classes, 100.0)) for _ in range(8)]
    for draw_id in itertools.count():
        split, shuffle = sampler._draw_counts(draw_id, mixes[draw_id % 8])
        yield sampler._pools.draw(split).take(shuffle).tolist()


def ours_steps(labels: NDArray[Any], num_classes: int) -> Batches:
    """Yield batches of the library's sampler, each drawn, delivered and reported, with the controller."""
    sampler = OURS.sampler(labels, BATCH, -(-labels.size // BATCH), num_classes=num_classes)
    while True:
        for batch in sampler:
            sampler.report(sampler.deliver())
            yield batch


def weighted_random_sampler(labels: NDArray[Any], num_classes: int) -> Batches:  # noqa: ARG001
    """Yield batches of torch's weighted sampler, epoch by epoch."""
    weights = torch.from_numpy(1.0 / np.bincount(labels)[labels])
    sampler = BatchSampler(WeightedRandomSampler(weights, labels.size), BATCH, drop_last=False)
    while True:
        yield from sampler


def imbalanced_dataset_sampler(labels: NDArray[Any], num_classes: int) -> Batches:  # noqa: ARG001
    """Yield batches of torchsampler's sampler, epoch by epoch."""
    from torchsampler import ImbalancedDatasetSampler

    sampler = BatchSampler(ImbalancedDatasetSampler(range(labels.size), labels=labels), BATCH, drop_last=False)
    while True:
        yield from sampler


def m_per_class_sampler(labels: NDArray[Any], num_classes: int) -> Batches:
    """Yield batches of pytorch-metric-learning's sampler: as many items of each of its classes as fit."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    each = next(m for m in (2**e for e in range(9)) if m * num_classes >= BATCH)
    sampler = BatchSampler(MPerClassSampler(labels, each, BATCH, 8 * BATCH), BATCH, drop_last=False)
    while True:
        yield from sampler


def floor(at_once: int, gather: bool) -> Callable[[NDArray[Any], int], Batches]:
    """Return a generator function of uniform random integers, drawn ``at_once``, or of the items at these places."""

    def batches(labels: NDArray[Any], num_classes: int) -> Batches:  # noqa: ARG001
        rng = np.random.default_rng(0)
        index = np.arange(labels.size, dtype=np.int32) if gather else None
        while True:
            drawn = rng.integers(0, labels.size, at_once)
            drawn = drawn if index is None else index[drawn]
            yield from (drawn[start : start + BATCH] for start in range(0, at_once, BATCH))

    return batches


@dataclass(frozen=True)
class Drawer:
    """A way to draw batches whose cost is measured.

    Attributes:
        name: Name in table and picture.
        batches: Takes labels and the number of classes, and yields batches without end.
        module: Module that has to be installed.
        by_epoch: Whether the first batch draws the whole epoch, so that only whole epochs can be timed.
        least: Smallest number of draws of a turn, so that it includes work done in advance.
    """

    name: str
    batches: Callable[[NDArray[Any], int], Batches]
    module: str = "torch"
    by_epoch: bool = False
    least: int = 1


DRAWERS = (
    Drawer("lightning-fair, the draw", ours_draws, least=4096),
    Drawer("lightning-fair, draw and controller", ours_steps, least=4096),
    Drawer("WeightedRandomSampler", weighted_random_sampler, by_epoch=True),
    Drawer("ImbalancedDatasetSampler", imbalanced_dataset_sampler, "torchsampler", by_epoch=True),
    Drawer("MPerClassSampler", m_per_class_sampler, "pytorch_metric_learning"),
    Drawer("integers, 256 a call", floor(BATCH, gather=False)),
    Drawer("integers, 256 a call, gathered", floor(BATCH, gather=True)),
    Drawer("integers, 16,384 a call", floor(64 * BATCH, gather=False)),
    Drawer("integers, 16,384 a call, gathered", floor(64 * BATCH, gather=True)),
)


@dataclass
class Cost:
    """The measurements of a way to draw.

    Attributes:
        nanoseconds: Time per index in each turn.
        build: Time of construction and first batch, in seconds.
        memory: Largest memory beside the labels, in MiB; NaN if it is not known.
        longest: Longest time of a draw after the first, in seconds.
        draws: Draws timed.
        failed: Why there is no measurement; empty if there is one.
    """

    nanoseconds: list[float] = field(default_factory=list)
    build: float = np.nan
    memory: float = np.nan
    longest: float = 0.0
    draws: int = 0
    failed: str = ""


def long_tail(num_classes: int, size: int) -> NDArray[Any]:
    """Return long-tailed labels in random order, of the smallest integer type; every class has an item."""
    share = 100.0 ** -np.linspace(0.0, 1.0, num_classes)
    edges = num_classes + np.cumsum(share) / share.sum() * (size - num_classes)
    counts = np.diff(np.floor(edges - num_classes + np.arange(1, num_classes + 1)).astype(np.int64), prepend=0)
    counts[-1] += size - counts.sum()
    labels = np.repeat(np.arange(num_classes, dtype=np.min_scalar_type(-num_classes)), counts)
    np.random.default_rng(0).shuffle(labels)
    return labels


def memory_status(name: str) -> float:
    """Return a line of Linux's ``/proc/self/status`` in MiB; NaN on other systems."""
    status = Path("/proc/self/status")
    match = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match[1]) / 1024 if match else np.nan


def serve(pipe: Connection, drawer: Drawer, labels: NDArray[Any], num_classes: int, turn: int) -> None:
    """Send the time of the first batch, and then answer each message with the times of the draws of a turn."""
    torch.set_num_threads(1)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # do not count the parent's largest memory
    before = memory_status("VmRSS")
    per_turn = -(-labels.size // BATCH) if drawer.by_epoch else max(turn, drawer.least)
    try:
        start = time.perf_counter()
        batches = drawer.batches(labels, num_classes)
        first = len(next(batches))
        pipe.send((time.perf_counter() - start, first))
        if drawer.by_epoch:
            for _ in range(per_turn - 1):
                next(batches)
        while pipe.recv():
            times, drawn = np.empty(per_turn), 0
            for at in range(per_turn):
                begin = time.perf_counter_ns()
                batch = next(batches)
                times[at] = time.perf_counter_ns() - begin
                drawn += len(batch)
            pipe.send((times.sum() / drawn, times.max() / 1e9, per_turn, memory_status("VmHWM") - before))
    except Exception as error:  # a peer's limits are a result
        pipe.send(f"raises {type(error).__name__}")


def ask(process: Any, pipe: Connection, cost: Cost, limit: float) -> Any:
    """Return the next answer of the process. If it fails, end the process and return None."""
    try:
        answer: Any = pipe.recv() if pipe.poll(limit) else f"gave up after {limit:.0f} s"
    except EOFError:
        answer = "ran out of memory"
    if isinstance(answer, str):
        cost.failed = answer
        process.kill()
        return None
    return answer


def costs(size: int, num_classes: int, rounds: int, turn: int, limit: float) -> dict[str, Cost]:
    """Return the cost of each way to draw, measured in turns."""
    labels = long_tail(num_classes, size)
    context = multiprocessing.get_context("fork")  # the processes share the labels
    running: dict[str, tuple[Any, Connection]] = {}
    results: dict[str, Cost] = {}
    spent = dict.fromkeys((drawer.name for drawer in DRAWERS), 0.0)
    title = f"N = {size:,}, K = {num_classes:,}"
    for drawer in tqdm([d for d in DRAWERS if importlib.util.find_spec(d.module)], desc=f"{title}: first batch"):
        mine, its = context.Pipe()
        process = context.Process(target=serve, args=(its, drawer, labels, num_classes, turn), daemon=True)
        process.start()
        its.close()
        cost = results[drawer.name] = Cost()
        answer = ask(process, mine, cost, limit)
        if answer:
            cost.build = answer[0]
            running[drawer.name] = process, mine
    for round_ in tqdm(range(rounds), desc=f"{title}: turns"):
        for name in list(running)[:: 1 if round_ % 2 else -1]:
            if spent[name] > limit:
                continue  # the turns so far are enough
            process, pipe = running[name]
            begin = time.perf_counter()
            pipe.send(True)
            answer = ask(process, pipe, results[name], limit)
            spent[name] += time.perf_counter() - begin
            if not answer:
                del running[name]
                continue
            cost = results[name]
            cost.nanoseconds.append(answer[0])
            cost.longest = max(cost.longest, answer[1])
            cost.draws += answer[2]
            cost.memory = answer[3]
    for process, pipe in running.values():
        pipe.send(False)
        process.join()
    return results


def enough_memory(size: int) -> bool:
    """Return whether there is memory for the labels and indices of so many items, and for sorting them."""
    info = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return not match or int(match[1]) * 1024 > 60 * size


def cost_rows(results: dict[tuple[int, int], dict[str, Cost]]) -> list[list[str]]:
    """Return a row for each size, number of classes and way to draw."""
    rows = []
    for (size, num_classes), by_name in results.items():
        torchs = by_name["WeightedRandomSampler"].nanoseconds
        floors = by_name["integers, 256 a call"].nanoseconds
        for name, cost in by_name.items():
            head = [f"{size:,}", f"{num_classes:,}", name]
            if cost.failed or not cost.nanoseconds:
                rows.append([*head, cost.failed, "", "", "", "", "", ""])
                continue
            lowest = min(cost.nanoseconds)
            low, middle, high = np.percentile(cost.nanoseconds, (25, 50, 75))
            rows.append(
                [
                    *head,
                    f"{lowest:,.0f}",
                    f"{middle:,.0f} ({low:,.0f} to {high:,.0f})",
                    f"{lowest / min(torchs):.2f}" if torchs else "",
                    f"{lowest / min(floors):.1f}" if floors else "",
                    f"{cost.build:,.3f}",
                    f"{cost.memory:,.0f}",
                    f"{1e3 * cost.longest:,.2f} ({cost.draws:,})",
                ]
            )
    return rows


def plot_costs(results: dict[tuple[int, int], dict[str, Cost]], path: Path) -> None:
    """Save a picture: time an index over the number of items, a panel for each number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    classes = sorted({num_classes for _, num_classes in results})
    figure, axes = plt.subplots(1, len(classes), figsize=(4.2 * len(classes), 4.2), sharey=True, squeeze=False)
    for panel, num_classes in zip(axes[0], classes, strict=True):
        for color, drawer in enumerate(DRAWERS):
            points = [
                (size, min(by_name[drawer.name].nanoseconds))
                for (size, k), by_name in sorted(results.items())
                if k == num_classes and drawer.name in by_name and by_name[drawer.name].nanoseconds
            ]
            own = drawer.name.startswith("lightning-fair")
            style = ":" if "integers" in drawer.name else "-"
            panel.plot(
                *zip(*points, strict=True), f"o{style}", c=f"C{color}", lw=2.5 if own else 1.2, label=drawer.name
            ) if points else None
        panel.set(xscale="log", yscale="log", title=f"{num_classes:,} classes", xlabel="items")
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"nanoseconds an index, batches of {BATCH}")
    handles = {label: line for panel in axes[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.subplots_adjust(bottom=0.3)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def report_costs(args: argparse.Namespace) -> None:
    """Measure and print the costs, and save the picture."""
    results = {}
    left_out = [drawer.name for drawer in DRAWERS if not importlib.util.find_spec(drawer.module)]
    notes = [f"not installed: {', '.join(left_out)} (pip install lightning-fair[bench])"] if left_out else []
    for size in args.sizes:
        for num_classes in args.classes:
            if num_classes > size:
                notes.append(f"N = {size:,} has too few items for K = {num_classes:,}")
            elif not enough_memory(size):
                notes.append(f"N = {size:,} needs more memory than is free")
            else:
                results[size, num_classes] = costs(size, num_classes, args.rounds, args.draws, args.limit)
    print(f"\nBatches of {BATCH}, one draw at a time; {args.rounds} rounds in turns (fewer past {args.limit:.0f} s);")
    print(f"{machine()}")
    print("".join(f"\nLeft out: {note}" for note in dict.fromkeys(notes)))
    head = ("items", "classes", "sampler", "ns an index, lowest", "median (quartiles)", "of torch's", "of the floor")
    more = ("construction and first batch, s", "memory, MiB", "longest draw, ms (of draws)")
    print(markdown((*head, *more), cost_rows(results)))
    if results:
        plot_costs(results, args.picture)
        print(f"\nPicture: {args.picture}")


# -- worth ---------------------------------------------------------------------------------------------


def distance_rows(seeds: Sequence[int], workers: int, steps: int) -> list[list[str]]:
    """Return the rows on how far a batch is from the target."""

    def row(name: str, goal: str, values: Callable[[System], str]) -> list[str]:
        return [name, goal, *map(values, SYSTEMS)]

    runs = {system: [rebalance(system, seed, steps, history=0).share for seed in seeds] for system in SYSTEMS}
    by_workers = {
        system: shares_with_workers(system, seeds[0], workers, steps)
        for system in tqdm(SYSTEMS, desc=f"{workers} workers")
    }
    return [
        row(
            "distance of the first batch from 50:50, data at 99:1 (as it comes: 0.49)",
            "≤ 0.0039 (1/256)",
            lambda system: mean_std([first_batch(system, seed) for seed in seeds], 4),
        ),
        row(
            "the same after a history of 100 batches at 99:1",
            "",
            lambda system: mean_std([first_batch_after_history(system, seed) for seed in seeds], 4),
        ),
        row(
            f"worst of {steps} batches",
            "≤ 0.0039",
            lambda system: mean_std([float(batch_distances(run).max()) for run in runs[system]], 4),
        ),
        row(
            f"worst of {steps} batches, {workers} workers",
            "≤ 0.0039",
            lambda system: f"{batch_distances(by_workers[system]).max():.4f}",
        ),
        row(
            "batches of one class only",
            "0 %",
            lambda system: mean_std([100 * one_class_share(run) for run in runs[system]], 2) + " %",
        ),
    ]


def loss_rows(seeds: Sequence[int], steps: int) -> list[list[str]]:
    """Return the rows on the noise of a batch: of its class counts, and of its weighted loss."""
    counts = {system: [count_deviation(system, seed, steps) for seed in seeds] for system in SYSTEMS}
    rows = [
        [
            f"deviation of a class's samples in a batch from the target, K = {LOSS_CLASSES}, batch {LOSS_BATCH}",
            "",
            *(mean_std(counts[system], 3) for system in SYSTEMS),
        ]
    ]
    for within, goal in ((0.05, "ratio ≤ 0.3"), (0.3, ""), (0.6, "")):
        ours, iid = (
            np.array([loss_deviation(system, within, seed, steps) for seed in tqdm(seeds, desc="weighted loss")])
            for system in (OURS, IID)
        )
        rows.append(
            [
                f"deviation of the weighted batch loss, K = {LOSS_CLASSES}, batch {LOSS_BATCH}, class means 0.2 to 2, "
                f"deviation within a class {within}",
                goal,
                f"{mean_std(ours, 4)} (ratio {mean_std(ours / iid, 2)})",
                "",
                mean_std(iid, 4),
            ]
        )
    return rows


def weight_rows(seeds: Sequence[int], steps: int) -> list[list[str]]:
    """Return the rows on the mean importance weight."""
    runs = [mean_weight(seed, steps) for seed in tqdm(seeds, desc="mean weight")]

    def cell(values: Sequence[tuple[float, float]]) -> str:
        mean = np.mean([value for value, _ in values])
        error = np.sqrt(np.sum([e * e for _, e in values])) / len(values)
        return f"{mean:.6f} ± {error:.6f}"

    # The deviation of the seeds' means would be a second estimate of the same error; the sum of squares has more data.
    low, high = min(run.swing[0] for run in runs), max(run.swing[1] for run in runs)
    about = f"loader {NUM_PREFETCHED} batches ahead, p/q from {low:.2f} to {high:.2f}"
    return [
        [
            f"mean importance weight ± standard error, {about}",
            "1.000 within its error",
            cell([run.with_draw for run in runs]),
            "",
            "",
        ],
        [
            "the same, weights from the current p and not from the draw's",
            "",
            cell([run.with_current for run in runs]),
            "",
            "",
        ],
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    parser.add_argument("--steps", type=int, default=400, help="batches of a run (default: 400)")
    parser.add_argument("--workers", type=int, default=4, help="workers of the loader (default: 4)")
    parser.add_argument("--only", choices=["worth", "costs"], help="measure this half alone")
    sizes, classes = [60_000, 1_000_000, 10_000_000, 100_000_000], [10, 1000, 100_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="numbers of items")
    parser.add_argument("--classes", type=int, nargs="+", default=classes, help="numbers of classes")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each sampler (default: 15)")
    parser.add_argument("--draws", type=int, default=1000, help="draws of a turn, but for whole epochs (default: 1000)")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds after which a sampler gives up (default: 60)"
    )
    parser.add_argument("--picture", type=Path, default=Path("draws.png"), help="file of the picture (draws.png)")
    args = parser.parse_args(argv)
    if args.only != "costs":
        report_worth(args)
    if args.only != "worth":
        report_costs(args)


def report_worth(args: argparse.Namespace) -> None:
    """Measure and print how much draws scatter."""
    seeds = range(args.seed, args.seed + args.seeds)
    rows = [
        *distance_rows(seeds, args.workers, args.steps),
        *loss_rows(seeds, args.steps),
        *weight_rows(seeds, 5 * args.steps),
    ]
    print(f"\n{args.seeds} seeds, mean ± standard deviation over them\n")
    print(markdown(("measured", "to reach", *(system.name for system in SYSTEMS)), rows))


if __name__ == "__main__":
    main()
