"""Measure the time that FairSampling adds to a training step: `python examples/benchmarks/overhead.py`.

Both sides train with Lightning, in one process and in turns. The plain side draws its batches with torch's
WeightedRandomSampler. The time of a step is the time between the ends of two steps, so it includes the draw of the
batch. No logger runs on either side. The times depend on the machine; the ratio, which is computed in each round,
depends on it less. The table has the wall-clock time and the processor time of the process, which other programs
disturb far less.

Below the table stands the cost of TensorBoard, as a fraction of the steps of the same run: 100 classes, callback and
mixin, `log_every_n_steps=50`. It includes everything that the dashboard does in a step, and the flush of the file.

`--resnet32` measures a step of the network of the CIFAR-LT recipes, with `--accelerator gpu` on a GPU. The GPU is
synchronized before the clock starts and before it stops.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of `benchmarks` and `recipes`

import lightning.pytorch as L
import numpy as np
import torch
from benchmarks.systems import long_tail_labels, machine, markdown
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from recipes.resnet import resnet32
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from tqdm import tqdm

from lightning_fair import FairSampling, ImportanceWeightedMixin
from lightning_fair.monitoring.dashboard import Dashboard, LogContext

BATCH, WARM_UP = 128, 3
ITEMS = 20_000
Run = Callable[[], NDArray[np.float64]]  # wall-clock and processor time of a step


class Plain(L.LightningModule):
    """Any network for images. Default: for 28 by 28 pixels, two convolutions and two linear layers."""

    def __init__(self, num_classes: int = 10, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or nn.Sequential(
            nn.Conv2d(1, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 12 * 12, 128),
            nn.ReLU(),
            nn.Linear(128, num_classes),
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the plain loss."""
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Weighted(ImportanceWeightedMixin, Plain):
    """The same network with weighted losses."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the weighted loss."""
        x, y = batch
        return self.weighted_loss(F.cross_entropy(self.net(x), y, reduction="none"))


class Trivial(Plain):
    """The smallest module that Lightning trains: one parameter."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return a loss of one parameter."""
        return self.scale * batch[0].mean()


class TrivialWeighted(ImportanceWeightedMixin, Trivial):
    """The same with weighted losses."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return a weighted loss of one parameter."""
        return self.weighted_loss(self.scale * batch[0])


class Clock(L.Callback):
    """Records the end of each step."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Record the wall-clock time and the processor time."""
        if torch.cuda.is_available() and len(self.ends) in (WARM_UP, trainer.max_steps - 1):
            torch.cuda.synchronize()  # only at both ends, so that the steps between overlap as usual
        self.ends.append((time.perf_counter_ns(), time.process_time_ns()))

    def step_times(self) -> NDArray[np.float64]:
        """Return the mean times of a step in microseconds, shape ``(2,)``, the first steps left out.

        Not the median, because steps that end an epoch or write a log take longer.
        """
        steps = np.diff(self.ends, axis=0)[WARM_UP:]
        means: NDArray[np.float64] = steps.mean(axis=0) / 1e3
        return means


def run(
    model: Callable[[], L.LightningModule],
    dataset: TensorDataset,
    steps: int,
    seed: int,
    fair: FairSampling | None,
    accelerator: str = "cpu",
) -> NDArray[np.float64]:
    """Train for some steps and return the mean times of a step in microseconds: wall clock, processor."""
    torch.manual_seed(seed)
    labels = dataset.tensors[1]
    rarity = (1.0 / labels.bincount().double())[labels]
    sampler = WeightedRandomSampler(rarity, len(dataset), generator=torch.Generator().manual_seed(seed))
    clock = Clock()
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=WARM_UP + steps + 1,
        callbacks=[*([fair] if fair else []), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, pin_memory=accelerator != "cpu")
    trainer.fit(model(), loader)
    return clock.step_times()


def in_turns(fair: Run, plain: Run, rounds: int, name: str) -> NDArray[np.float64]:
    """Return times, shape ``(2, 2, rounds)``: (clock, processor), (fair, plain), rounds.

    The order alternates, so that a slow drift cancels.
    """
    times = np.zeros((2, 2, rounds))
    for turn in tqdm(range(rounds), desc=name):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[:, which, turn] = (fair, plain)[which]()
    return times


def images(num_classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> TensorDataset:
    """Return noise in the shape of MNIST, or another shape, with a long tail of classes."""
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(ITEMS, *shape, generator=generator), torch.from_numpy(long_tail_labels(num_classes, ITEMS))
    )


def numbers(num_classes: int) -> TensorDataset:
    """Return a number and a label per item."""
    return TensorDataset(torch.zeros(ITEMS), torch.from_numpy(long_tail_labels(num_classes, ITEMS, 10.0)))


def with_mixin(rounds: int, steps: int, seed: int) -> NDArray[np.float64]:
    """Return the times of the network's step with callback and mixin, and without."""
    dataset = images()
    return in_turns(
        lambda: run(Weighted, dataset, steps, seed, FairSampling(seed=seed)),
        lambda: run(Plain, dataset, steps, seed, None),
        rounds,
        "network",
    )


def with_resnet(rounds: int, steps: int, seed: int, accelerator: str) -> NDArray[np.float64]:
    """Return the times of a step of a ResNet-32 with callback and mixin, and without."""
    dataset = images(shape=(3, 32, 32))
    return in_turns(
        lambda: run(lambda: Weighted(net=resnet32()), dataset, steps, seed, FairSampling(seed=seed), accelerator),
        lambda: run(lambda: Plain(net=resnet32()), dataset, steps, seed, None, accelerator),
        rounds,
        "ResNet-32",
    )


def next_to_nothing(
    fair: type[L.LightningModule], num_classes: int, rounds: int, steps: int, seed: int
) -> NDArray[np.float64]:
    """Return the times of a step of one parameter, of the module ``fair`` with the callback and of a plain one."""
    dataset = numbers(num_classes)
    return in_turns(
        lambda: run(fair, dataset, steps, seed, FairSampling(seed=seed)),
        lambda: run(Trivial, dataset, steps, seed, None),
        rounds,
        f"one parameter, K = {num_classes}",
    )


class TimedDashboard(Dashboard):
    """Records the time that it takes in each step, with the flush of the file, and of the slowest figure."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self.figure = 0.0

    def record(self, context: LogContext) -> None:
        """Record the trained mix of a step."""
        self.times.append(_microseconds(super().record, context))

    def write_scalars(self, context: LogContext, *values: Any) -> None:
        """Write the scalars of a step."""
        self.times[-1] += _microseconds(super().write_scalars, context, *values)
        self.times[-1] += sum(_microseconds(logger.experiment.flush) for logger in context.loggers)

    def _add_figure(self, *arguments: Any) -> None:
        self.figure = max(self.figure, _microseconds(super()._add_figure, *arguments))


def _microseconds(function: Callable[..., None], *arguments: Any) -> float:
    start = time.perf_counter_ns()
    function(*arguments)
    return (time.perf_counter_ns() - start) / 1e3


class Timed(FairSampling):
    """Has a dashboard that is timed."""

    def on_train_start(self, *arguments: Any) -> None:
        """Replace the dashboard before it is used."""
        super().on_train_start(*arguments)
        self.dashboard = self._run.dashboard = TimedDashboard()


def writing(steps: int, seed: int, num_classes: int = 100) -> tuple[float, float, float]:
    """Train the network with TensorBoard; return mean microseconds: a step, the dashboard in a step, a figure."""
    clock, fair = Clock(), Timed(seed=seed)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=[fair, clock],
            logger=TensorBoardLogger(folder),
            log_every_n_steps=50,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Weighted(num_classes), DataLoader(images(num_classes), batch_size=BATCH, shuffle=True))
    return float(clock.step_times()[0]), float(np.mean(fair.dashboard.times)), fair.dashboard.figure


def rows(name: str, goal: str, times: NDArray[np.float64]) -> list[list[str]]:
    """Return a row for each clock: the medians of both sides, and quartiles of the differences and ratios."""
    return [
        [
            f"{name}, {clock}",
            goal,
            f"{np.median(fair):,.0f}",
            f"{np.median(plain):,.0f}",
            quartiles(fair - plain, ",.0f"),
            quartiles(fair / plain, ".3f"),
        ]
        for clock, (fair, plain) in zip(("clock", "processor"), times, strict=True)
    ]


def quartiles(values: NDArray[np.float64], form: str) -> str:
    """Return median and quartiles."""
    low, middle, high = (format(value, form) for value in np.percentile(values, (25, 50, 75)))
    return f"{middle} ({low} to {high})"


def quiet() -> None:
    """Silence Lightning's warnings about loaders without workers, modules without weights and machines without GPU."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="turns of each side (default: 20)")
    parser.add_argument("--steps", type=int, default=20, help="steps timed in a turn with the network (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and draws")
    # With more threads a step waits for the slowest thread, so other programs disturb the times.
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    parser.add_argument("--without-network", action="store_true", help="leave out the network, which takes longest")
    parser.add_argument("--resnet32", action="store_true", help="measure a step of a ResNet-32, and nothing else")
    parser.add_argument("--accelerator", default="cpu", help="device of the ResNet-32: cpu (default) or gpu")
    args = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(args.threads)
    head = ("step", "to reach", "fair, µs", "plain, µs", "added, µs", "ratio")
    if args.resnet32:
        times = with_resnet(args.rounds, args.steps, args.seed, args.accelerator)
        where = torch.cuda.get_device_name() if args.accelerator == "gpu" else "CPU"
        name = f"ResNet-32 on {where}, callback and mixin, K = 10"
        print(f"\n{machine()}; batch {BATCH}; {args.rounds} rounds in turns, mean over a round's steps;")
        print(markdown(head, rows(name, "ratio ≤ 1.02", times)))
        return
    table, added = [], {}
    if not args.without_network:
        network = with_mixin(args.rounds, args.steps, args.seed)
        table += rows("network, callback and mixin, K = 10", "ratio ≤ 1.05", network)
    for name, goal, fair, num_classes in (
        ("callback and mixin, K = 10", "", TrivialWeighted, 10),
        ("callback alone, K = 10", "added ≤ 150", Trivial, 10),
        ("callback alone, K = 1000", "added ≤ 500", Trivial, 1000),
    ):
        # These steps are short, so a turn has more of them.
        times = next_to_nothing(fair, num_classes, args.rounds, 5 * args.steps, args.seed)
        table += rows(f"one parameter, {name}", goal, times)
        added[name] = float(np.median(times[1, 0] - times[1, 1]))
    print(f"\n{machine()}; batch {BATCH}; {args.rounds} rounds in turns, mean over a round's steps;")
    print("microseconds a step: median of the rounds; added and ratio: median (quartiles) of the rounds\n")
    print(markdown(head, table))
    if not args.without_network:
        # The added time is a hundredth of the noise of a step of the network, so it is measured with one parameter.
        share = added["callback and mixin, K = 10"] / float(np.median(network[1, 1]))
        step, shown, figure = writing(max(10 * args.steps, 100), args.seed)
        print(
            f"\nTensorBoard, K = 100: {shown:,.0f} µs a step on average, {100 * shown / step:.2f} % of one of "
            f"{step:,.0f} µs (to reach: 2 %); a figure, of which a run has a few, takes {figure / 1e3:,.0f} ms"
        )
        print(
            f"\nTime added to a step of one parameter, as a share of the plain step of the network: {100 * share:.2f} %"
        )


if __name__ == "__main__":
    main()
