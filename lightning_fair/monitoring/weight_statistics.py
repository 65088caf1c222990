"""Statistics of importance weights: of one batch, of the last horizon and of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats


@dataclass(frozen=True)
class BatchWeights:
    """Statistics of the importance weights of one batch, over all ranks; for a stream, of this rank's batch."""

    size: int  # samples of the batch
    mean: float = 1.0
    mean_square: float = 1.0
    largest: float = 1.0
    clipped_mass: float = 0.0  # part of the reference that the weights leave out, because they are bounded
    each: tuple[Floats, NDArray[np.int64]] | None = None  # weights, and how many samples have them; None: all are one

    @classmethod
    def summarize(
        cls, weights: Floats, counts: NDArray[np.int64], clipped_mass: float = 0.0, *, normalize: bool = False
    ) -> BatchWeights:
        """Summarize weights, given how many samples of the batch have each: those of classes, or of samples."""
        size = int(counts.sum())
        if normalize and (total := weights @ counts):
            weights = weights * (size / total)
        mean, mean_square = float(weights @ counts) / size, float(weights**2 @ counts) / size
        return cls(size, mean, mean_square, float(weights[counts > 0].max()), clipped_mass, (weights, counts))

    @property
    def effective_sample_size(self) -> float:
        """Effective sample size, as a fraction of the batch."""
        return self.mean**2 / self.mean_square if self.mean_square else 0.0

    def percentile(self, percent: float) -> float:
        """Return a percentile of the samples' weights."""
        if self.each is None:
            return self.mean
        weights, counts = self.each
        return float(np.percentile(weights.repeat(counts), percent))


@dataclass
class RunTotals:
    """Statistics over the batches so far; a checkpoint holds them under these names.

    The lists hold the number of samples, the sum of their weights, and that of the squares of their weights.
    """

    largest_weight: float = 0.0
    clipped_sum: float = 0.0  # clipped mass of each batch times its samples
    run_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    horizon_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # exponentially weighted

    def add(self, batch: BatchWeights, horizon: float) -> None:
        """Count a batch that was trained on; ``horizon`` is the memory of the trained mix, in batches."""
        self.largest_weight = max(self.largest_weight, batch.largest)
        self.clipped_sum += batch.size * batch.clipped_mass
        sums, decay = (batch.size, batch.size * batch.mean, batch.size * batch.mean_square), 1.0 - 1.0 / horizon
        self.run_sums = [old + new for old, new in zip(self.run_sums, sums, strict=True)]
        self.horizon_sums = [decay * old + new for old, new in zip(self.horizon_sums, sums, strict=True)]

    @property
    def clipped_mass(self) -> float:
        """Mean clipped mass of the run; NaN before the first batch."""
        return self.clipped_sum / self.run_sums[0] if self.run_sums[0] else float("nan")

    @property
    def effective_sample_size(self) -> float:
        """Effective sample size of the run, as a fraction of its samples; NaN before the first."""
        return _effective_fraction(self.run_sums)

    @property
    def effective_sample_size_horizon(self) -> float:
        """Effective sample size of the last horizon, as a fraction of its samples; NaN before the first."""
        return _effective_fraction(self.horizon_sums)


def _effective_fraction(sums: list[float]) -> float:
    number, total, squares = sums
    if not number:
        return float("nan")
    return total**2 / (number * squares) if squares else 0.0
