"""The class counts of a batch, stored for the classes that it has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_fair.common.arrays import Ints


class ClassCounts(NamedTuple):
    """Number of samples of each class in a batch whose samples are ordered by class.

    Attributes:
        classes: Classes in the order in which the batch has them, each at most once, int64, shape ``(C,)``.
        counts: Number of samples of each of them, at least 0, int64, shape ``(C,)``.

    Example:
        >>> counts = ClassCounts(np.array([2, 0]), np.array([1, 2]))
        >>> counts.labels
        array([2, 0, 0])
        >>> counts.to_dense(3)
        array([2, 0, 1])
    """

    classes: Ints
    counts: Ints

    @property
    def labels(self) -> Ints:
        """Class of each sample, int64, shape ``(batch,)``."""
        return self.classes.repeat(self.counts)

    def to_dense(self, num_classes: int) -> Ints:
        """Return the number of samples of every class, int64, shape ``(num_classes,)``."""
        dense = np.zeros(num_classes, np.int64)
        dense[self.classes] = self.counts
        return dense
