"""The numbers that go to the logger, by tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.controller import Draw
from lightning_fair.sampler import FeedbackBatchSampler
from lightning_fair.simplex import Floats, distance
from lightning_fair.stream_loader import StreamControl

_MOST_BY_NAME = 20
_QUANTILES = {"min": 0.0, "median": 0.5, "max": 1.0}


@dataclass(frozen=True)
class BatchWeights:
    """What the importance weights of one batch come to, over all ranks."""

    mean: float
    largest: float
    effective_sample_size: float

    @classmethod
    def of(cls, weights: Floats, counts: NDArray[Any], *, normalize: bool) -> BatchWeights:
        """Sum up the class weights, shape ``(K,)``, of a batch with the given class counts, shape ``(K,)``."""
        total, squares = float(weights @ counts), float(weights**2 @ counts)
        mean, largest = total / float(counts.sum()), float(weights[counts > 0].max())
        scale = mean if normalize and mean else 1.0
        return cls(mean / scale, largest / scale, total**2 / squares if squares else 0.0)


def scalars(
    sampler: FeedbackBatchSampler | StreamControl,
    draw: Draw,
    weights: BatchWeights,
    names: Sequence[str],
    separator: str = "/",
) -> dict[str, float]:
    """Return what is logged of a batch that was just trained on, by tag.

    Up to 20 classes are logged each by name; of more, the least, the median and the largest.

    Args:
        sampler: The sampler, which holds the controller; or what stands in its place for a stream.
        draw: The record of the batch.
        weights: Its importance weights.
        names: Name of each class.
        separator: What joins the parts of a tag (a logger's ``group_separator``).
    """
    controller = sampler.controller
    rarest = int(np.argmin(np.where(controller.q > 0, sampler.class_counts, np.inf)))
    per_class = {
        "ratio": controller.ratio,
        "target": controller.q,
        "prob": draw.probs,
        "loss": controller.ewma_loss,
    }
    if isinstance(sampler, StreamControl):
        per_class["arriving"] = sampler.arriving
    values = {
        "alpha": draw.alpha,
        "distance": distance(controller.ratio, controller.q),
        "deficit_max": float(controller.deficits.max()),
        "weight_mean": weights.mean,
        "weight_max": weights.largest,
        "effective_sample_size": weights.effective_sample_size,
        "coverage": sampler.coverage,
        "repeats_rarest": float(sampler.repeats[rarest]),
    }
    for group, array in per_class.items():
        if array.size <= _MOST_BY_NAME:
            values |= {f"{group}/{name}": float(value) for name, value in zip(names, array, strict=True)}
        elif not np.isnan(array).all():
            values |= {f"{group}/{name}": float(np.nanquantile(array, at)) for name, at in _QUANTILES.items()}
    return {f"fair/{tag}".replace("/", separator): value for tag, value in values.items() if not np.isnan(value)}
