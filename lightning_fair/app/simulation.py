"""The feedback loop without a model: the real sampler, and a stream that loses samples on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.weights import class_weights
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

CLASSES = 4
BATCH_SIZE = 256
SPAN = 60  # batches between two turns of the stream
_SHOWN_SPANS, _WARM_UP_SPANS = 3, 1
_ITEMS = 8_000
_LOSS_NOISE = 0.05


@dataclass(frozen=True)
class Settings:
    """What the simulation can be run with.

    Attributes:
        imbalance: Samples of the commonest class for one of the rarest, at least 1.
        alpha: Gain of the feedback, no unit, at least 0; 0 switches it off.
        floor: Least probability of a class, in ``[0, 1/4)``.
        horizon: Memory of the trained mix, in batches, at least 1.
        loss_emphasis: Weight ``lambda2`` of the standardised loss, at least 0.
    """

    imbalance: float = 8.0
    alpha: float = 8.0
    floor: float = 0.01
    horizon: float = 16.0
    loss_emphasis: float = 0.0


@dataclass(frozen=True)
class Trace:
    """What happened, batch by batch.

    Attributes:
        first: Number of the first batch, from 0.
        turns: Numbers of the batches before which the stream turned over.
        arrived: Class mix of what came through, shape ``(batches, 4)``; NaN for a batch that came to nothing.
        trained: Trained mix ``r`` that the controller holds, shape ``(batches, 4)``.
        weights: Importance weight ``q / p`` of each class, shape ``(batches, 4)``.
        target: Class mix ``q`` that is steered to, shape ``(4,)``.
        unsteered: Class mix that would come through without feedback, shape ``(batches, 4)``.
    """

    first: int
    turns: list[int]
    arrived: Floats
    trained: Floats
    weights: Floats
    target: Floats
    unsteered: Floats


def shares(imbalance: float, turned: bool = False) -> Floats:
    """Return how much of each class there is, the commonest being 1: ``imbalance ** (-i / (K - 1))``.

    Example:
        >>> shares(8.0)
        array([1.   , 0.5  , 0.25 , 0.125])
        >>> shares(8.0, turned=True)
        array([0.125, 0.25 , 0.5  , 1.   ])
    """
    falling: Floats = float(imbalance) ** (-np.arange(CLASSES) / (CLASSES - 1))
    return falling[::-1] if turned else falling


def simulate(settings: Settings, turns: int = 0, seed: int = 0) -> Trace:
    """Run the loop: draw a batch, lose some of it, report what came through.

    A :class:`~lightning_fair.sampling.batch_sampler.FeedbackBatchSampler` draws batches of 256 from four classes towards a
    uniform target. A sample of class ``i`` comes through with probability ``shares(imbalance)[i]``, as where a
    filter rejects, a sensor fails or a worker drops samples; nobody tells the sampler, it only learns what was
    trained on. A class's loss is the higher the less of it comes through. After every 60 batches the
    stream turns over: the commonest class becomes the rarest.

    Args:
        settings: Settings of the stream and the controller.
        turns: How often the stream has turned over, at least 0. The last 180 batches are returned.
        seed: Seed of the draws and the losses.

    Raises:
        ValueError: If a setting is out of range, or alpha is too high to be stable.

    Example:
        >>> trace = simulate(Settings(imbalance=4.0, alpha=8.0))
        >>> trace.unsteered[0].round(2), trace.trained[-1].round(2)
        (array([0.44, 0.28, 0.17, 0.11]), array([0.27, 0.25, 0.24, 0.23]))
    """
    if not settings.imbalance >= 1:
        raise ValueError(f"imbalance must be at least 1, got {settings.imbalance}.")
    try:
        controller = FeedbackController(
            CLASSES,
            alpha=settings.alpha,
            lambda2=settings.loss_emphasis,
            min_prob=settings.floor,
            horizon=settings.horizon,
        )
    except ValueError as error:
        if "oscillates" not in str(error):
            raise
        raise ValueError(  # the controller's sentence names what is no setting here
            f"Alpha {settings.alpha:g} is too high for horizon {settings.horizon:g} and loss emphasis "
            f"{settings.loss_emphasis:g}, the class mix oscillates: lower alpha or the emphasis, or raise the horizon."
        ) from error
    # What lies further back than the spans shown and one more has been forgotten: the cost does not grow.
    begin = max(0, turns + 1 - _SHOWN_SPANS - _WARM_UP_SPANS)
    spans = range(begin, turns + 1)
    sampler = FeedbackBatchSampler(
        np.arange(_ITEMS) % CLASSES, BATCH_SIZE, steps_per_epoch=SPAN * len(spans), controller=controller, seed=seed
    )
    arrived, trained, weights, unsteered = (np.empty((len(sampler), CLASSES)) for _ in range(4))
    rng = np.random.default_rng(seed)
    for step, _ in enumerate(sampler):
        share = shares(settings.imbalance, turned=spans[step // SPAN] % 2 == 1)
        draw = sampler.deliver()
        counts = rng.binomial(draw.counts, share)
        losses = 1.0 + (1.0 - share) + _LOSS_NOISE * rng.standard_normal(CLASSES)
        sampler.report(draw, counts, losses * counts, counts)
        arrived[step] = counts / counts.sum() if counts.any() else np.nan
        trained[step] = controller.trained_mix
        weights[step] = class_weights(controller.q, draw.probs)
        unsteered[step] = controller.q * share / (controller.q * share).sum()
    shown = slice(-_SHOWN_SPANS * SPAN, None)
    first = begin * SPAN + max(0, len(sampler) - _SHOWN_SPANS * SPAN)
    return Trace(
        first=first,
        turns=[span * SPAN for span in spans[1:] if span * SPAN > first],
        arrived=arrived[shown],
        trained=trained[shown],
        weights=weights[shown],
        target=controller.q,
        unsteered=unsteered[shown],
    )
