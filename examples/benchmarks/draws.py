"""Measure what the draws are worth, beside the count deficit and i.i.d. draws: `python examples/benchmarks/draws.py`.

Everything runs on the library's own controller and sampler; the loader with workers is torch's. All but the times
is a function of the seeds.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from systems import (
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
    one_class_share,
    rare_labels,
    rebalance,
    spread,
)
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler
from tqdm import tqdm

from lightning_fair.weights import class_weights

LOSS_CLASSES, LOSS_BATCH = 10, 128
LEAD = 8


def first_batch(system: System, seed: int) -> float:
    """Return the distance of the very first batch of a run on 99:1 data from 50:50."""
    return float(batch_distances(rebalance(system, seed, 1, history=0).share)[0])


def first_batch_after_history(system: System, seed: int) -> float:
    """Return the same where 100 batches at 99:1 were trained on before."""
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
    """Return a loss per item: class means from 0.2 to 2, and a deviation ``within`` each class."""
    means = np.linspace(0.2, 2.0, LOSS_CLASSES)
    return means[labels] + within * np.random.default_rng([seed, 2]).standard_normal(labels.size)


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
        with_current: The same with the ``p`` that the controller would draw from at the step.
        swing: Least and largest ``p / q`` of the rare class.
    """

    with_draw: tuple[float, float]
    with_current: tuple[float, float]
    swing: tuple[float, float]


def mean_weight(seed: int, steps: int, lead: int = LEAD) -> MeanWeight:
    """Return the mean importance weight in a loop whose loader runs ahead and whose losses keep ``p`` moving.

    The two classes take turns at being the harder one, every 30 batches, and half of the gain is on the losses.
    """
    labels = rare_labels()
    sampler = OURS.sampler(labels, BATCH, steps, seed=seed, lambda2=0.5)
    controller, ahead = sampler.controller, deque[Any]()
    rows: list[tuple[float, float, float]] = []
    batches = iter(sampler)
    for step in range(steps):
        while len(ahead) <= lead and (batch := next(batches, None)) is not None:
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


def torch_epoch(labels: NDArray[Any]) -> Callable[[], int]:
    """Return a function that draws an epoch with torch's own weighted sampler, and counts its indices."""
    weights = torch.from_numpy(1.0 / np.bincount(labels)[labels])
    generator = torch.Generator().manual_seed(0)
    sampler = BatchSampler(WeightedRandomSampler(weights, labels.size, generator=generator), BATCH, drop_last=False)
    return lambda: sum(len(batch) for batch in sampler)


def fair_epoch(labels: NDArray[Any], num_classes: int) -> Callable[[], int]:
    """Return a function that draws an epoch with feedback: each batch is drawn, taken and reported."""
    sampler = OURS.sampler(labels, BATCH, -(-labels.size // BATCH), num_classes=num_classes)

    def epoch() -> int:
        drawn = 0
        for batch in sampler:
            sampler.retire(sampler.take_record())
            drawn += len(batch)
        return drawn

    return epoch


def nanoseconds_per_index(num_classes: int, rounds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the time of each round for the feedback sampler and for torch's, in turns and in changing order."""
    labels = long_tail_labels(num_classes)
    epochs = (fair_epoch(labels, num_classes), torch_epoch(labels))
    times = np.zeros((rounds + 1, 2))
    for turn in range(rounds + 1):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter_ns()
            drawn = epochs[which]()
            times[turn, which] = (time.perf_counter_ns() - start) / drawn
    return times[1:, 0], times[1:, 1]  # the first round warms up


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
            lambda system: spread([first_batch(system, seed) for seed in seeds], 4),
        ),
        row(
            "the same after a history of 100 batches at 99:1",
            "",
            lambda system: spread([first_batch_after_history(system, seed) for seed in seeds], 4),
        ),
        row(
            f"worst of {steps} batches",
            "≤ 0.0039",
            lambda system: spread([float(batch_distances(run).max()) for run in runs[system]], 4),
        ),
        row(
            f"worst of {steps} batches, {workers} workers",
            "≤ 0.0039",
            lambda system: f"{batch_distances(by_workers[system]).max():.4f}",
        ),
        row(
            "batches of one class only",
            "0 %",
            lambda system: spread([100 * one_class_share(run) for run in runs[system]], 2) + " %",
        ),
    ]


def loss_rows(seeds: Sequence[int], steps: int) -> list[list[str]]:
    """Return the rows on the noise of the weighted loss."""
    rows = []
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
                f"{spread(ours, 4)} (ratio {spread(ours / iid, 2)})",
                "",
                spread(iid, 4),
            ]
        )
    return rows


def time_rows(rounds: int) -> list[list[str]]:
    """Return the rows on the time of a draw."""
    rows = []
    for num_classes in (10, 1000):
        ours, theirs = nanoseconds_per_index(num_classes, rounds)
        low, middle, high = np.percentile(ours / theirs, (25, 50, 75))
        rows.append(
            [
                f"nanoseconds an index, K = {num_classes}, N = 60,000, batch {BATCH}",
                "",
                f"{np.median(ours):,.0f} (ratio {middle:.1f}, quartiles {low:.1f} to {high:.1f})",
                "",
                f"{np.median(theirs):.0f} (torch `WeightedRandomSampler`)",
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

    # The spread of the seeds' means would be a second estimate of the same error; the sum of squares has more data.
    low, high = min(run.swing[0] for run in runs), max(run.swing[1] for run in runs)
    about = f"loader {LEAD} batches ahead, p/q from {low:.2f} to {high:.2f}"
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
    parser.add_argument("--rounds", type=int, default=15, help="epochs timed of each sampler (default: 15)")
    args = parser.parse_args(argv)
    seeds = range(args.seed, args.seed + args.seeds)
    rows = [
        *distance_rows(seeds, args.workers, args.steps),
        *loss_rows(seeds, args.steps),
        *weight_rows(seeds, 5 * args.steps),
        *time_rows(args.rounds),
    ]
    print(
        f"\n{args.seeds} seeds, mean ± standard deviation over them; times: median of {args.rounds} epochs, in turns,"
    )
    print(f"{machine()}\n")
    print(markdown(("measured", "to reach", *(system.name for system in SYSTEMS)), rows))


if __name__ == "__main__":
    main()
