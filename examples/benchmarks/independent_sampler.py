"""A batch sampler with independent draws of the class counts, to compare systematic sampling with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_fair import FeedbackBatchSampler
from lightning_fair.common.class_counts import ClassCounts


class IndependentBatchSampler(FeedbackBatchSampler):
    """A batch sampler that draws the class of each sample independently of the others.

    The class counts are multinomial. They have the same expectation as those of :class:`FeedbackBatchSampler`, and
    much more noise.
    """

    def _draw_counts(self, draw_id: int, probs: NDArray[np.float64]) -> tuple[ClassCounts, NDArray[np.int64]]:
        _, shuffle = super()._draw_counts(draw_id, probs)
        counts = np.random.default_rng([self.seed, draw_id]).multinomial(self.global_batch_size, probs)
        (classes,) = counts.nonzero()
        return ClassCounts(classes, counts[classes]), shuffle
