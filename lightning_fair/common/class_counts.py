"""How a batch is split over the classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_fair.common.arrays import Ints


class ClassCounts(NamedTuple):
    """A batch split over the classes, its samples class by class.

    Attributes:
        classes: Classes, each at most once, int64, shape ``(C,)``.
        counts: Samples of each, int64, shape ``(C,)``. None: one of each.
        begins: Place of the first sample of each, int64, shape ``(C,)``. None likewise.
    """

    classes: Ints
    counts: Ints | None
    offsets: Ints | None

    @classmethod
    def of(cls, labels: Ints) -> ClassCounts:
        """Return the split whose samples have these labels, those of a class side by side.

        Example:
            >>> ClassCounts.of(np.array([2, 0, 0])).counts
            array([1, 2])
        """
        (ends,) = (labels[1:] != labels[:-1]).nonzero()
        if ends.size >= labels.size - 1:
            return cls(labels, None, None)
        offsets = np.concatenate(([0], ends + 1))
        return cls(labels.take(offsets), np.diff(offsets, append=labels.size), offsets)

    @property
    def sizes(self) -> Ints:
        """Samples of each of the classes, int64, shape ``(C,)``."""
        return np.ones_like(self.classes) if self.counts is None else self.counts

    @property
    def labels(self) -> Ints:
        """Class of each sample, int64, shape ``(size,)``; not to be written to."""
        return self.classes if self.counts is None else self.classes.repeat(self.counts)

    def to_dense(self, num_classes: int) -> Ints:
        """Return the samples of every class, int64, shape ``(num_classes,)``."""
        to_dense = np.zeros(num_classes, np.int64)
        to_dense[self.classes] = self.sizes
        return to_dense
