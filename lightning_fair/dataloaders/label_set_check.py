"""Compares the label sets that a batch shows with those that were drawn for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.saved_states import array, of_type
from lightning_fair.dataloaders.batch_columns import as_label_rows
from lightning_fair.dataloaders.column_evidence import ColumnEvidence, row_hashes
from lightning_fair.dataloaders.label_check import LabelCheck

_FACTOR = np.int64(6364136223846793005)  # an odd one, so that no bit of a hash is lost


class SetEvidence(ColumnEvidence):
    """The relations between the drawn label sets and one matrix that no batch so far has contradicted.

    Each row has a hash, and so has all that was seen of each column. The matrix is a function of the drawn sets if it
    has their columns in another order, whatever the order of the classes that were always drawn together.
    """

    def __init__(self, num_classes: int, has_unlabeled: bool) -> None:
        super().__init__(num_classes)
        self.finer, self._has_unlabeled = None, has_unlabeled
        self._drawn: Ints = np.zeros(num_classes, np.int64)  # hash of each class; `_values`: of each column

    def spec(self) -> dict[str, Any]:
        """Return what a state has to be."""
        hashes = {"_values": array(None, dtype=torch.int64), "_drawn": array(self._drawn.size, dtype=torch.int64)}
        return {**super().spec(), **hashes, "_has_unlabeled": of_type(bool)}

    def update(self, values: NDArray[Any], drawn: NDArray[Any]) -> None:
        """Compare one batch: rows of shape ``(n, C)`` with drawn ones of shape ``(batch, K)``, ``n <= batch``."""
        shares = self._see(row_hashes(values), row_hashes(drawn))
        if self.function is None or len(values) != len(drawn):
            return
        known, K = self._known, len(self._known)
        self._known = known | drawn.any(axis=0)
        self._values = np.pad(self._values, (0, max(values.shape[1] - self._values.size, 0)))
        seen = np.pad(values, ((0, 0), (0, self._values.size - values.shape[1])))
        self._values = self._values * _FACTOR + row_hashes(seen.T)
        self._drawn = self._drawn * _FACTOR + row_hashes(drawn.T)
        # A class that is drawn for the first time can have any column.
        num_new = np.count_nonzero(self._known & ~known)
        chance = min(self.function + float(shares.sum() + num_new * np.log(K)), 0.0)
        self.function = chance if _are_same(self._drawn, self._values) else None

    @property
    def is_one_to_one(self) -> bool:
        """Whether the matrix has the columns of the drawn sets, in any order."""
        return self.function is not None and bool(self._known.any())

    @property
    def is_merging(self) -> bool:
        """Whether columns are merged, which is not looked for."""
        return False

    def describe(self, max_values: int, class_names: Sequence[str] | None = None) -> str:
        """Return the column of each class, for example ``0 -> 1; 1 -> 0``."""
        parts, K = [], self._drawn.size
        for key in dict.fromkeys(self._drawn[self._known].tolist()):
            classes, columns = (np.flatnonzero(hashes == key).tolist() for hashes in (self._drawn, self._values))
            if self._has_unlabeled and classes[-1] == columns[-1] == K - 1:
                continue  # the batch may have no column for samples without a label
            names = [class_names[c] for c in classes] if class_names else classes
            columns = [c - (self._has_unlabeled and c >= K) for c in columns]
            parts.append(f"{', '.join(map(str, names))} -> {', '.join(map(str, columns))}")
        return "; ".join(parts[:max_values]) + ("; ..." if len(parts) > max_values else "")


class LabelSetCheck(LabelCheck):
    """Verifies that the batches of a loader hold the label sets that were drawn, and finds their labels.

    The counterpart of ``LabelCheck`` for samples with several labels, or none. A column is here a matrix of zeros and
    ones, or a list with such a row or the class numbers of each sample. Samples without a label have the last class,
    whose column may be missing, or no class.

    Args:
        num_classes: Number of classes ``K``, with that of samples without a label.
        has_unlabeled: Whether class ``K - 1`` is that of samples without a label.
        can_reorder: Whether the loader can deliver other samples, or another order, than drawn.
        names: Names of the classes, for messages. None: their numbers.
        were_numbered: Whether the class numbers are lightning-fair's own, for example those of strings.
        warn: Takes a warning.

    Attributes:
        column: Name of the column that was verified, for example ``"batch[1]"``; None before.
        relation: ``"labels"`` if that column holds the drawn sets, ``"renumbered"`` if it has the classes in another
            order.

    Example:
        >>> from types import SimpleNamespace
        >>> check, rng = LabelSetCheck(3, has_unlabeled=False, can_reorder=True), np.random.default_rng(0)
        >>> for draw_id in range(4):
        ...     rows = rng.random((60, 3)) < 0.5
        ...     rows[:, 0] |= ~rows.any(axis=1)
        ...     y = torch.from_numpy(rows).flip(0)
        ...     labels, as_drawn = check((torch.zeros(60, 8), y), SimpleNamespace(draw_id=draw_id, labels=rows))
        >>> check.column, torch.equal(labels, y), as_drawn
        ('batch[1]', True, False)
    """

    _absent: ClassVar[str] = (
        "matrix of zeros and ones on the CPU with one row per sample and one column per class, and no list of classes "
        "of each sample"
    )

    def __init__(
        self,
        num_classes: int,
        *,
        has_unlabeled: bool,
        can_reorder: bool = False,
        names: Sequence[str] | None = None,
        were_numbered: bool = False,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        super().__init__(num_classes, can_reorder=can_reorder, names=names, were_numbered=were_numbered, warn=warn)
        self.has_unlabeled = has_unlabeled

    @property
    def has_own_columns(self) -> bool:
        """Whether the batches have our classes in the order of their numbers, as far as that is known."""
        if self.relation is None and self._columns:
            return any(each.is_equal for each in self._columns.values())
        return self.relation == "labels" or not (self.relation or self.were_numbered)

    def _new_evidence(self) -> ColumnEvidence:
        return SetEvidence(self.num_classes, self.has_unlabeled)

    def _to_column(self, leaf: Any) -> NDArray[Any] | None:
        return as_label_rows(leaf, self.num_classes, has_unlabeled=self.has_unlabeled)


def _are_same(one: Ints, other: Ints) -> bool:
    """Return whether the hashes are the same in some order, without those of columns of zeros."""
    return np.array_equal(np.sort(one[one != 0]), np.sort(other[other != 0]))
