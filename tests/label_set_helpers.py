"""Samples with several labels: a long tail of labels that come together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair import FeedbackBatchSampler, FeedbackController
from lightning_fair.common.label_sets import LabelSets


def tags(size: int = 400, seed: int = 0) -> NDArray[np.bool_]:
    """Return five labels of each sample, from frequent to rare; about a fifth of the samples have none.

    Label 3 comes along with most of label 4, and label 4 never comes without 0.
    """
    rng = np.random.default_rng(seed)
    rows = rng.random((size, 5)) < [0.6, 0.3, 0.15, 0.06, 0.05]
    rows[:, 3] |= rows[:, 4] & (rng.random(size) < 0.7)
    rows[:, 0] |= rows[:, 4]
    return rows


SETS = LabelSets.from_matrix(tags())
ROWS = SETS.to_dense()
K = SETS.num_classes


def make_sampler(
    sets: LabelSets = SETS,
    batch_size: int = 12,
    steps: int = 10,
    target: Any = "sqrt",
    *,
    sampler: dict[str, Any] | None = None,
    **law: Any,
) -> FeedbackBatchSampler:
    """Return a batch sampler with a controller of its own."""
    controller = FeedbackController(sets.num_classes, target, label_sets=sets, **law)
    return FeedbackBatchSampler(sets, batch_size, steps, controller, **(sampler or {}))


def some_losses(batch: list[int], draw_id: int = 0) -> NDArray[np.float64]:
    """Return a loss of each sample and label, which differ between labels, samples and draws."""
    index = np.asarray(batch)[:, None]
    return (1.0 + np.arange(K)) * (1.0 + np.sin(index + draw_id))
