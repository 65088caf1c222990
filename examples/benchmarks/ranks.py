"""Measure what a draw costs on one of many ranks: `python examples/benchmarks/ranks.py`.

The ranks are simulated in one process: each has a sampler of its own, with its number and the number of ranks, and no
process group. The table has the processor time of a draw on the last rank, from the request of the batch to its
report, over two passes of the data; the bytes of the sum over the ranks in each step; the bytes that a rank sends when
the ranks compare themselves, as an epoch begins; and the memory of the rank's sampler with the labels.

Below the table stands a check: the shares of all ranks together are the batches of one process with the batch size of
all ranks. It makes one sampler after the other, with `--checked` samples.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import numpy as np
import torch
from benchmarks.draws import long_tail
from benchmarks.overhead import quartiles
from benchmarks.systems import machine, markdown
from numpy.typing import NDArray
from tqdm import tqdm

from lightning_fair import FairSampling, FeedbackBatchSampler, FeedbackController
from lightning_fair.integration.step_correction import StepCorrection

BATCH = 64  # of a rank


def make_sampler(
    labels: NDArray[Any], num_classes: int, rank: int, ranks: int, batch: int = BATCH
) -> FeedbackBatchSampler:
    """Return the sampler of one rank, with a target that the batch cannot have, so that the class mix moves."""
    target = np.linspace(1.0, 2.0, num_classes)
    controller = FeedbackController(num_classes, target / target.sum())
    return FeedbackBatchSampler(labels, batch, controller=controller, rank=rank, world_size=ranks)


def draws(sampler: FeedbackBatchSampler, number: int) -> Iterator[list[int]]:
    """Yield batches of one rank, each drawn, delivered and reported."""
    while True:
        for batch in sampler:
            sampler.report(sampler.deliver())
            yield batch
            number -= 1
            if not number:
                return


@dataclass(frozen=True)
class Cost:
    """Costs of a rank.

    Attributes:
        times: Processor time of each draw, in microseconds.
        sum_bytes: Bytes of the sum over the ranks in each step.
        facts_bytes: Bytes that a rank sends to be compared with the others.
        memory: Memory of the sampler after its first draws, in MiB.
    """

    times: NDArray[np.float64]
    sum_bytes: int
    facts_bytes: int
    memory: float


def measure(labels: NDArray[Any], num_classes: int, ranks: int) -> Cost:
    """Return the costs of the last rank."""
    tracemalloc.start()
    sampler = make_sampler(labels, num_classes, ranks - 1, ranks)
    for _ in draws(sampler, 10):
        pass
    memory = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    times = np.empty(max(2 * labels.size // sampler.global_batch_size, 200))
    batches = draws(sampler, times.size + 1)
    next(batches)
    for at in range(times.size):
        begin = time.process_time_ns()
        next(batches)
        times[at] = (time.process_time_ns() - begin) / 1e3
    sums = StepCorrection(sampler.controller, torch.device("cpu"), FairSampling().settings).finish()
    facts = {name: str(value) for name, value in sampler.rank_facts().items()}
    return Cost(times, sums.nbytes, len(pickle.dumps(facts)), memory)


def count_differences(labels: NDArray[Any], num_classes: int, ranks: int, number: int) -> int:
    """Return in how many of the first draws the shares of all ranks are not the batch of one process."""
    of_all: list[list[int]] = [[] for _ in range(number)]
    for rank in tqdm(range(ranks), desc=f"{ranks:,} ranks"):
        for share, batch in zip(of_all, draws(make_sampler(labels, num_classes, rank, ranks), number), strict=True):
            share += batch
    alone = draws(make_sampler(labels, num_classes, 0, 1, ranks * BATCH), number)
    return sum(sorted(shares) != sorted(batch) for shares, batch in zip(of_all, alone, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the data (default: 1,000,000)")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000], help="numbers of classes")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 1024], help="numbers of ranks")
    parser.add_argument("--checked", type=int, default=100_000, help="samples of the check (default: 100,000)")
    parser.add_argument("--draws", type=int, default=5, help="draws that are checked (default: 5)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = []
    for num_classes in args.classes:
        labels = long_tail(num_classes, args.samples)
        for ranks in tqdm(args.ranks, desc=f"K = {num_classes:,}"):
            cost = measure(labels, num_classes, ranks)
            rows.append(
                [
                    f"{num_classes:,}",
                    f"{ranks:,}",
                    f"{ranks * BATCH:,}",
                    quartiles(cost.times, ",.0f"),
                    f"{cost.times.mean():,.0f}",
                    f"{cost.times.max():,.0f}",
                    f"{cost.sum_bytes:,}",
                    f"{cost.facts_bytes:,}",
                    f"{cost.memory:.1f}",
                ]
            )
    print(f"\n{machine()}; {args.samples:,} samples, batch {BATCH} on each rank; processor time, median (quartiles)\n")
    head = ("K", "ranks", "batch of all", "draw, µs", "mean", "longest")
    print(markdown((*head, "bytes of the sum", "bytes compared", "memory, MiB"), rows))
    print()
    labels = long_tail(args.classes[0], args.checked)
    for ranks in args.ranks:
        wrong = count_differences(labels, args.classes[0], ranks, args.draws)
        print(f"{ranks:,} ranks: {wrong} of {args.draws} draws differ from the batch of one process.")


if __name__ == "__main__":
    main()
