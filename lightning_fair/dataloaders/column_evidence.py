"""How well one column of the batches fits the labels that were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints, to_arrays, to_tensors
from lightning_fair.common.saved_states import array, integer, number, optional

_MIN_SEEN = 16  # values of a column that is called constant
_MAX_SEEN = 4096  # values of a column
CERTAIN_CHANCE = math.log(1e-6)  # a relation is certain if an unrelated column fits with a smaller chance


class ColumnEvidence:
    """The relations between the drawn labels and one column that no batch so far has contradicted.

    Each relation has the logarithm of the chance that a column which does not depend on the labels would have fitted
    in all batches, or None if a batch contradicts it. The chance follows from the shares of the values in the column.

    Args:
        num_classes: Number of classes ``K``.

    Attributes:
        equal: The column equals the drawn labels.
        function: The column is a function of the drawn labels.
        finer: The drawn labels are a function of the column.
        part: The column holds the drawn labels or a part of them, in any order.
    """

    def __init__(self, num_classes: int) -> None:
        self.equal: float | None = 0.0
        self.function: float | None = 0.0
        self.finer: float | None = 0.0
        self.part: float | None = 0.0
        self._values: NDArray[np.int64] = np.zeros(num_classes, dtype=np.int64)  # value of each class
        self._known: NDArray[np.bool_] = np.zeros(num_classes, dtype=np.bool_)
        self._classes: dict[int, int] = {}  # class of each value
        self._codes: dict[str, int] = {}  # number of each string
        self._seen: NDArray[Any] = np.zeros(0, dtype=np.int64)  # newest values
        self._first: NDArray[Any] | None = None  # values of the first batch, until a batch has others

    def spec(self) -> dict[str, Any]:
        """Return what a state has to be."""
        num_classes = self._known.size
        chances = dict.fromkeys(("equal", "function", "finer", "part"), optional(number(high=1e-6)))
        maps = {"_classes": {int: integer(0, num_classes - 1)}, "_codes": {str: integer()}}
        column = array(None, dtype=torch.int64)
        of_classes = {"_values": array(num_classes, dtype=torch.int64), "_known": array(num_classes, dtype=torch.bool)}
        return {**chances, **maps, **of_classes, "_seen": column, "_first": optional(column)}

    def state_dict(self) -> dict[str, Any]:
        """Return the evidence as tensors, plain numbers and strings."""
        return to_tensors(deepcopy(vars(self)))  # the evidence grows in place

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned."""
        vars(self).update(to_arrays(deepcopy(dict(state))))

    def update(self, values: NDArray[Any], drawn: NDArray[Any]) -> None:
        """Compare one batch: column of shape ``(n,)`` with labels of shape ``(batch,)``, ``n <= batch``."""
        if values.dtype.kind == "U":
            self.equal = self.part = None
            values = np.array([self._codes.setdefault(value, len(self._codes)) for value in values.tolist()])
        shares = self._see(values, drawn)
        if self.function is not None and values.size == drawn.size:
            self._update_function(values, drawn, shares)
        if self.finer is not None and values.size == drawn.size:
            self._update_finer(values, drawn)

    def _see(self, values: NDArray[Any], drawn: NDArray[Any]) -> NDArray[Any]:
        """Update ``equal`` and ``part``, and return the logarithm of the share of each value."""
        self._seen = np.concatenate([self._seen, values])[-_MAX_SEEN:]
        shares = _log_shares(self._seen, values)
        if self.equal is not None and values.size == drawn.size:
            self.equal = self.equal + float(shares.sum()) if np.array_equal(values, drawn) else None
        if self.part is not None:
            self.part = self.part + _chance_of_part(values, drawn) if is_part_of(values, drawn) else None
        is_repeated = self._first is not None and np.array_equal(values, self._first)
        self._first = values if self._seen.size == values.size or is_repeated else None
        return shares

    def _update_function(self, values: NDArray[Any], drawn: NDArray[Any], log_shares: NDArray[Any]) -> None:
        classes, first = np.unique(drawn, return_index=True)
        is_new = ~self._known[classes]
        self._values[classes[is_new]] = values[first[is_new]]
        self._known[classes] = True
        if not np.array_equal(self._values[drawn], values):
            self.function = None
            return
        assert self.function is not None
        # The first sample of a class shows its value, and only the later ones could contradict.
        self.function += float(log_shares.sum() - log_shares[first[is_new]].sum())

    def _update_finer(self, values: NDArray[Any], drawn: NDArray[Any]) -> None:
        assert self.finer is not None
        num_known = len(self._classes)
        for value, label in zip(values.tolist(), drawn.tolist(), strict=True):
            if self._classes.setdefault(value, label) != label:
                self.finer = None
                return
        num_repeated = values.size - (len(self._classes) - num_known)
        self.finer += num_repeated / values.size * float(_log_shares(drawn, drawn).sum())

    @property
    def _num_values(self) -> int:
        return len(np.unique(self._values[self._known]))

    @property
    def is_equal(self) -> bool:
        """Whether the column equals the drawn labels in all batches so far, and in at least one."""
        return self.equal is not None and bool(self._known.any())

    @property
    def is_one_to_one(self) -> bool:
        """Whether the column is a function of the labels with another value for each class so far."""
        return self.function is not None and bool(self._known.any()) and self._num_values == self._known.sum()

    @property
    def is_pending(self) -> bool:
        """Whether too few samples were seen to say that the column is constant."""
        return self.function is not None and self._seen.size < _MIN_SEEN

    @property
    def is_merging(self) -> bool:
        """Whether the column is a function of the labels that has several values, and fewer than classes so far."""
        return self.function is not None and 1 < self._num_values < self._known.sum()

    @property
    def chance_of_order(self) -> float:
        """The chance of ``part``; one if all batches have the same column, which tells nothing about their samples."""
        is_constant = self._first is not None and self._seen.size > self._first.size
        return 0.0 if self.part is None or is_constant else self.part

    def holds(self, class_names: Sequence[str]) -> bool:
        """Return whether the column has held the name of each class that was drawn."""
        known = np.flatnonzero(self._known).tolist()
        return bool(class_names) and all(self._codes.get(class_names[c]) == self._values[c] for c in known)

    def describe(self, max_values: int, class_names: Sequence[str] | None = None) -> str:
        """Return the classes of each value, for example ``0, 2 -> 1; 1 -> 0`` (class -> value)."""
        names = {code: name for name, code in self._codes.items()}
        parts = []
        for value in np.unique(self._values[self._known]).tolist()[:max_values]:
            classes = np.flatnonzero(self._known & (self._values == value)).tolist()
            if class_names:
                classes = [class_names[c] for c in classes]
            shown = ", ".join(map(str, classes[:max_values])) + (", ..." if len(classes) > max_values else "")
            parts.append(f"{shown} -> {names.get(value, value)}")
        return "; ".join(parts) + ("; ..." if self._num_values > max_values else "")


def describe_counts(values: NDArray[Any], max_shown: int, names: Sequence[str] | None = None) -> str:
    """Return the samples of each value, or of each column of label sets, for example ``{cat: 3, dog: 5, ...}``."""
    values = values.nonzero()[1] if values.ndim == 2 else values
    kinds, counts = (x.tolist() for x in np.unique(values, return_counts=True))
    pairs = list(zip([names[kind] for kind in kinds] if names else kinds, counts, strict=True))
    shown = ", ".join(f"{name}: {count}" for name, count in pairs[:max_shown])
    return f"{{{shown}{', ...' if len(pairs) > max_shown else ''}}}"


def is_index(column: NDArray[Any], drawn: NDArray[Any], num_classes: int) -> bool:
    """Return whether all values differ, although some classes were drawn twice, and are no class numbers."""
    if column.size < drawn.size or len(np.unique(drawn)) == drawn.size or len(np.unique(column)) < column.size:
        return False
    return column.dtype.kind == "U" or bool(column.max() >= num_classes)


def is_part_of(values: NDArray[Any], drawn: NDArray[Any]) -> bool:
    """Return whether ``values`` holds at most as many of each class or row as were drawn, and nothing else."""
    if values.dtype.kind == "U":
        return False
    values, drawn = (row_hashes(each) if each.ndim == 2 else each for each in (values, drawn))
    ordered = np.sort(drawn)
    kinds, counts = np.unique(values, return_counts=True)
    return bool((counts <= ordered.searchsorted(kinds, "right") - ordered.searchsorted(kinds, "left")).all())


def row_hashes(rows: NDArray[np.bool_]) -> Ints:
    """Return a number of each row, shape ``(n,)``; columns of zeros at the end do not change it."""
    limits = np.iinfo(np.int64)
    factors = np.random.default_rng(0).integers(limits.min, limits.max, rows.shape[1])
    hashes: Ints = rows.astype(np.int64) @ factors
    return hashes


def _log_shares(seen: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return the logarithm of the share that each value has among those seen, which include it."""
    kinds, counts = np.unique(seen, return_counts=True)
    return np.asarray(np.log(counts / seen.size)[kinds.searchsorted(values)])


def _chance_of_part(values: NDArray[Any], drawn: NDArray[Any]) -> float:
    """Return a bound on the log chance that independent values with these counts are a part of the drawn labels."""
    counts = np.unique(values, return_counts=True)[1]
    n, num_left_out, num_drawn = values.size, drawn.size - values.size, len(np.unique(drawn))
    # Multinomial probability of exactly these counts, times the number of ways to leave this many samples out.
    chance = math.lgamma(n + 1) - sum(math.lgamma(count + 1) for count in counts.tolist())
    chance += float(_log_shares(values, values).sum())
    chance += math.lgamma(num_left_out + num_drawn) - math.lgamma(num_drawn) - math.lgamma(num_left_out + 1)
    return min(chance, 0.0)
