"""The record of the draw of a batch of indices."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.control.draw import Draw


@dataclass(eq=False)
class BatchDraw(Draw):
    """The draw of a batch of indices.

    Attributes:
        split: Class counts of the batch of all ranks, in the order of its classes.
        indices: Indices of this rank's samples.
        rank_slice: This rank's samples of that batch.
        shuffle: Order of this rank's samples, int64, shape ``(batch,)``.
        is_delivered: Whether the loader has delivered the batch.
    """

    split: ClassCounts = field(kw_only=True)
    indices: list[int]
    rank_slice: slice
    shuffle: Ints
    is_delivered: bool = False

    @property
    def local_size(self) -> int:
        """Number of labels of the batch on this rank: of samples, unless they have several."""
        return len(self.indices) if self.label_sets is None else int(self.labels.sum())

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Class of each of this rank's samples, in the order of its indices, int64, shape ``(batch,)``.

        If samples have several labels: whether each sample has each class, shape ``(batch, K)``.
        """
        if self.label_sets is None:
            return self.split.labels[self.rank_slice].take(self.shuffle)
        places = np.arange(self.label_sets.size)[self.rank_slice].take(self.shuffle)
        return self.label_sets.take(places).to_dense()
