"""The systems that benchmarks compare, and a training loop without a model to run them in."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.comparison import CountDeficitController
from benchmarks.independent_sampler import IndependentBatchSampler
from numpy.typing import NDArray

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.control.weights import class_weights

BATCH = 256
RARE = 1  # the rare class of the two
RARE_SHARE = 0.01  # 99:1
HISTORY = 100  # batches trained on before the sampler came
ALPHA = 8.0
WITHIN = 0.01  # the trained mix has arrived when it is this close to the target
WINDOW = 16  # ... on average over as many batches, so that passing through on the way does not count


@dataclass(frozen=True)
class System:
    """A way to draw batches: the library's own classes, set up differently.

    Attributes:
        name: Name in the tables.
        alpha: Gain of the feedback; 0 draws from the target.
        controller: The class of the controller, and so the law.
        batch_sampler: The class of the sampler, and so how the class counts of a batch are drawn.
    """

    name: str
    alpha: float
    controller: type[FeedbackController]
    batch_sampler: type[FeedbackBatchSampler]

    def sampler(
        self, labels: NDArray[Any], batch_size: int, steps: int, *, num_classes: int = 2, seed: int = 0, **law: Any
    ) -> FeedbackBatchSampler:
        """Return a sampler of this system that draws ``steps`` batches towards a uniform target."""
        controller = self.controller(num_classes, alpha=self.alpha, **law)
        return self.batch_sampler(labels, batch_size, steps, controller, seed=seed)


OURS = System("relative deficit (ours)", ALPHA, FeedbackController, FeedbackBatchSampler)
COUNT = System("count deficit", ALPHA, CountDeficitController, IndependentBatchSampler)
IID = System("i.i.d. draws from the target", 0.0, FeedbackController, IndependentBatchSampler)
SYSTEMS = (OURS, COUNT, IID)


def rare_labels(size: int = 60_000) -> NDArray[np.int64]:
    """Return labels of a data set at 99:1."""
    return (np.arange(size) < RARE_SHARE * size).astype(np.int64) * RARE


def long_tail_labels(num_classes: int, size: int = 60_000, imbalance_ratio: float = 100.0) -> NDArray[np.int64]:
    """Return labels whose class sizes fall geometrically, the first ``imbalance_ratio`` times the last."""
    share = imbalance_ratio ** -np.linspace(0.0, 1.0, num_classes)
    edges = np.cumsum(share) / share.sum() * size
    return np.searchsorted(edges, np.arange(size), side="right").clip(max=num_classes - 1).astype(np.int64)


@dataclass
class Trace:
    """Statistics of each batch of a run.

    Attributes:
        share: Share of the rare class in the batch, in [0, 1].
        trained: Share of the rare class in the trained mix after the batch, in [0, 1].
        weight: Largest importance weight that a class has in the batch; NaN if the sampler did not choose.
    """

    share: list[float] = field(default_factory=list)
    trained: list[float] = field(default_factory=list)
    weight: list[float] = field(default_factory=list)


class ModelFreeLoop:
    """The plain training loop, of a rare and a common class, without a model: it only follows the class mix.

    Args:
        system: The system that draws.
        steps: Batches that will be drawn, at most.
        seed: Seed of the draws and of the batches that come from elsewhere.
    """

    def __init__(self, system: System, steps: int, seed: int) -> None:
        self.sampler = system.sampler(rare_labels(), BATCH, steps, seed=seed)
        self.trace = Trace()
        self._controller = self.sampler.controller
        self._batches: Iterator[list[int]] = iter(self.sampler)
        self._elsewhere = np.random.default_rng([seed, 1])

    def train_on_others(self, batches: int, rare_share: float) -> None:
        """Train on batches that the sampler did not choose."""
        for _ in range(batches):
            labels = (self._elsewhere.random(BATCH) < rare_share).astype(np.int64) * RARE
            self._controller.step_update(labels)
            self._record(labels, np.nan)

    def train_on_own(self, batches: int) -> None:
        """Train on batches that the sampler draws."""
        for _ in range(batches):
            labels = self.sampler.labels[next(self._batches)]
            weights = class_weights(self._controller.q, self._controller.get_probs())
            self._controller.step_update(labels)
            self._record(labels, float(weights.max()))

    def _record(self, labels: NDArray[np.int64], weight: float) -> None:
        trace = self.trace
        trace.share.append(float(np.mean(labels == RARE)))
        trace.trained.append(float(self._controller.trained_mix[RARE]))
        trace.weight.append(weight)


def rebalance(system: System, seed: int, steps: int = 200, history: int = HISTORY) -> Trace:
    """Return the batches of a run that was trained at 99:1 for a while before the sampler came."""
    loop = ModelFreeLoop(system, steps, seed)
    loop.train_on_others(history, RARE_SHARE)
    loop.train_on_own(steps)
    return loop.trace


def batch_distances(share: Sequence[float]) -> NDArray[np.float64]:
    """Return the total variation distance of each batch from 50:50."""
    return np.abs(np.asarray(share) - 0.5)


def one_class_share(share: Sequence[float]) -> float:
    """Return the fraction of the batches that are of one class only."""
    return float(np.isin(share, (0.0, 1.0)).mean())


def batches_to_arrive(trained: Sequence[float]) -> int | None:
    """Return after how many batches the trained mix is at the target, and stays for a window; None if never."""
    off = np.abs(np.asarray(trained) - 0.5)
    if off.size < WINDOW:
        return None
    average = np.convolve(off, np.full(WINDOW, 1.0 / WINDOW), mode="valid")
    (arrived,) = np.nonzero((off[: average.size] <= WITHIN) & (average <= WITHIN))
    return int(arrived[0]) + 1 if arrived.size else None


def mean_std(values: Sequence[float], digits: int = 3) -> str:
    """Return ``mean ± sample standard deviation``, or the mean alone if the deviation rounds to 0."""
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    text = f"{mean:,.{digits}f}"
    return f"{text} ± {deviation:,.{digits}f}" if deviation >= 0.5 * 10.0**-digits else text


def machine() -> str:
    """Return the machine in words: processor, cores, versions."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    name = models[0] if models else platform.processor() or platform.machine()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, lightning {version('lightning')}"
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
