"""Measure the label check by itself: `python examples/benchmarks/label_check.py`.

FairSampling compares the labels of the first batches of each epoch, and of a few later ones, with the labels that were
drawn. The network for MNIST is trained for one epoch a round, and the check is timed inside of that training: over all
batches, and over the batches that are compared. Both are also given in percent of the median training step of the
same round. The check is timed by itself, because the ratio of two whole steps scatters by more than its time.

`sorted` sorts each batch in `collate_fn`, so the labels of every batch are read from the batch itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import lightning.pytorch as L
import numpy as np
import torch
from benchmarks.overhead import BATCH, Clock, Weighted, images, quartiles, quiet
from benchmarks.systems import machine, markdown
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from lightning_fair import FairSampling
from lightning_fair.dataloaders.label_check import LabelCheck


class TimedCheck(LabelCheck):
    """Records the time of each call in microseconds, and whether it compared the batch."""

    times: list[tuple[float, bool]]
    compares = False

    def __call__(self, batch: Any, draw: Any) -> tuple[Tensor, bool]:
        """Check a batch, and record how long it took."""
        self.compares = self.relation == "labels" and self.can_reorder
        start = time.perf_counter_ns()
        result = super().__call__(batch, draw)
        self.times.append(((time.perf_counter_ns() - start) / 1e3, self.compares))
        return result

    def _compare(self, *arguments: Any, **keywords: Any) -> Any:
        self.compares = True
        return super()._compare(*arguments, **keywords)

    def _compare_again(self, *arguments: Any) -> Any:
        self.compares = True
        return super()._compare_again(*arguments)


class TimesCheck(L.Callback):
    """Times the check of the training loader."""

    def __init__(self) -> None:
        self.times: list[tuple[float, bool]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        """Replace the class of the check, before the first batch is drawn."""
        check: Any = trainer.train_dataloader.label_check
        check.__class__, check.times = TimedCheck, self.times


def sort_by_brightness(samples: list[tuple[Tensor, Tensor]]) -> Any:
    """Collate a batch, brightest images first."""
    return default_collate(sorted(samples, key=lambda sample: -float(sample[0].sum())))


def measure(collate: Any, batches: int, seed: int) -> NDArray[np.float64]:
    """Return microseconds of a step, of the check of a batch on average, and of that of a compared batch.

    The array has shape ``(5,)``: these, and the numbers of compared batches and of all batches.
    """
    torch.manual_seed(seed)
    clock, check = Clock(), TimesCheck()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=batches,
        callbacks=[FairSampling(seed=seed), check, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Weighted(), DataLoader(images(), batch_size=BATCH, shuffle=True, collate_fn=collate))
    every, compared = np.array([t for t, _ in check.times]), np.array([t for t, compares in check.times if compares])
    step = float(np.median(np.diff(clock.ends, axis=0)[:, 0])) / 1e3
    return np.array([step, every.mean(), np.median(compared), len(compared), len(every)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind (default: 5)")
    parser.add_argument("--batches", type=int, default=156, help="batches of an epoch (default: 156)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and draws")
    args = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(1)
    kinds = {"as drawn": None, "sorted": sort_by_brightness}
    results: dict[str, list[NDArray[np.float64]]] = {name: [] for name in kinds}
    for turn in tqdm(range(args.rounds), desc="rounds"):
        for name, collate in kinds.items():
            results[name].append(measure(collate, args.batches, args.seed + turn))
    rows = []
    for name, rounds in results.items():
        step, mean, compared, num_compared, num = np.array(rounds).T
        rows.append(
            [
                f"{name}, {int(np.median(num_compared))} of {int(num[0])} batches compared",
                quartiles(step / 1e3, ".1f"),
                quartiles(mean, ",.0f"),
                quartiles(100 * mean / step, ".3f"),
                quartiles(compared, ",.0f"),
                quartiles(100 * compared / step, ".3f"),
            ]
        )
    print(f"\n{machine()}; batch {BATCH}; {args.rounds} epochs of each kind in turns; median (quartiles)\n")
    head = ("batches", "a step, ms", "check, mean over all batches, µs", "% of a step", "check of a compared batch, µs")
    print(markdown((*head, "% of a step"), rows))


if __name__ == "__main__":
    main()
