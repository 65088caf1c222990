"""The feedback loop without a model: the library's sampler, and a stream that loses samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from lightning_fair.common.arrays import Floats
from lightning_fair.control import law
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.weights import class_weights
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler
from lightning_fair.schedules import as_schedule

CLASSES = 4
BATCH_SIZE = 256
SPAN = 60  # batches between two reversals of the stream
_SHOWN_SPANS = 3
_ITEMS = 8_000
_LOSS_NOISE = 0.05


@dataclass(frozen=True)
class Trace:
    """Course of the simulation, batch by batch.

    Attributes:
        first_batch: Index of the first batch, from 0.
        arrived: Class mix of the samples that were trained on, shape ``(batches, 4)``; NaN for an empty batch.
        trained: Trained mix ``r`` of the controller, shape ``(batches, 4)``.
        weights: Importance weight ``q / p`` of each class, shape ``(batches, 4)``.
        unsteered: Expected class mix without feedback, shape ``(batches, 4)``.
        alpha_limit: Gain from which on training refuses the settings, because the class mix oscillates.
    """

    first_batch: int
    arrived: Floats
    trained: Floats
    weights: Floats
    unsteered: Floats
    alpha_limit: float


def survival(imbalance: float, is_reversed: bool = False) -> Floats:
    """Return the share of each class's samples that is not lost: ``imbalance ** (-i / (K - 1))``.

    Example:
        >>> survival(8.0)
        array([1.   , 0.5  , 0.25 , 0.125])
        >>> survival(8.0, is_reversed=True)
        array([0.125, 0.25 , 0.5  , 1.   ])
    """
    falling: Floats = float(imbalance) ** (-np.arange(CLASSES) / (CLASSES - 1))
    return falling[::-1] if is_reversed else falling


def simulate(
    imbalance: float = 8.0,
    alpha: float = 8.0,
    max_weight: float = 10.0,
    horizon: float = 16.0,
    lambda2: float = 0.0,
    *,
    reversals: int = 0,
) -> Trace:
    """Run the loop: draw a batch, lose a part of it, report the rest.

    A :class:`~lightning_fair.sampling.batch_sampler.FeedbackBatchSampler` draws batches of 256 samples from four
    classes, with a uniform target. A sample of class ``i`` is lost with probability ``1 - survival(imbalance)[i]``, as
    in a pipeline with a filter or a failing sensor. The sampler learns only which samples were trained on. Rarer
    classes have higher losses. Every 60 batches the stream is reversed: the most frequent class becomes the rarest.
    Unlike in training, alpha may be too high to be stable.

    Args:
        imbalance: Samples of the most frequent class for each sample of the rarest, at least 1.
        alpha: Gain of the feedback, no unit, at least 0; 0 switches the feedback off.
        max_weight: Largest importance weight, at least 1: each draw is mixed with the target, so that none exceeds it.
        horizon: Memory of the trained mix, in batches, at least 1.
        lambda2: Weight ``lambda2`` of the standardized loss, at least 0.
        reversals: Number of reversals so far, at least 0. The last 180 batches are returned.

    Raises:
        ValueError: If a setting is out of range.

    Example:
        >>> trace = simulate(imbalance=4.0)
        >>> trace.unsteered[0].round(2), trace.trained[-1].round(2)
        (array([0.44, 0.28, 0.17, 0.11]), array([0.27, 0.26, 0.24, 0.23]))
    """
    if not imbalance >= 1:
        raise ValueError(f"imbalance must be at least 1, got {imbalance}.")
    # The gain is set below, behind the check that it is stable.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the feedback is off at a largest weight of 1, as the page says
        controller = FeedbackController(CLASSES, alpha=0.0, lambda2=lambda2, max_weight=max_weight, horizon=horizon)
    first_shown = max(0, reversals + 1 - _SHOWN_SPANS)
    # The simulation begins one span before, with a new controller, so the cost does not grow with the reversals.
    spans = range(max(0, first_shown - 1), reversals + 1)
    sampler = FeedbackBatchSampler(
        np.arange(_ITEMS) % CLASSES, BATCH_SIZE, steps_per_epoch=SPAN * len(spans), controller=controller, seed=0
    )
    controller.alpha = as_schedule(alpha)
    arrived, trained, weights, unsteered = (np.empty((len(sampler), CLASSES)) for _ in range(4))
    rng = np.random.default_rng(0)
    for step, _ in enumerate(sampler):
        kept = survival(imbalance, is_reversed=spans[step // SPAN] % 2 == 1)
        draw = sampler.deliver()
        counts = rng.binomial(draw.counts, kept)
        losses = 2.0 - kept + _LOSS_NOISE * rng.standard_normal(CLASSES)
        sampler.report(draw, counts, losses * counts, counts)
        arrived[step] = counts / counts.sum() if counts.any() else np.nan
        trained[step] = controller.trained_mix
        weights[step] = class_weights(controller.q, draw.probs)
        unsteered[step] = controller.q * kept / (controller.q * kept).sum()
    shown = slice((first_shown - spans[0]) * SPAN, None)
    alpha_limit = law.largest_gain(controller.lambda1, lambda2, horizon, 1 / CLASSES)
    return Trace(first_shown * SPAN, arrived[shown], trained[shown], weights[shown], unsteered[shown], alpha_limit)
