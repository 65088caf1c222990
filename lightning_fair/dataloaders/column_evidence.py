"""How well one column of the batches fits the labels that were drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_EVIDENCE = math.log(1e-6)  # a relation is certain if an unrelated column fits with a smaller chance


class ColumnEvidence:
    """The relations between the drawn labels and one column that no batch so far has contradicted.

    Each relation has the logarithm of the chance that a column which does not depend on the labels would have fitted
    in all batches, or None if a batch contradicts it. The chance follows from the shares of the values in the column.

    Args:
        num_classes: Number of classes ``K``.
        equal: The column equals the drawn labels.
        function: The column is a function of the drawn labels.
        part: The column holds the drawn labels or a part of them, in any order.
    """

    def __init__(
        self, num_classes: int, equal: float | None = 0.0, function: float | None = 0.0, part: float | None = 0.0
    ) -> None:
        self.equal, self.function, self.part = equal, function, part
        self._values: NDArray[np.int64] = np.zeros(num_classes, dtype=np.int64)  # value of each class
        self._known: NDArray[np.bool_] = np.zeros(num_classes, dtype=np.bool_)
        self._codes: dict[str, int] = {}  # number of each string

    def state_dict(self) -> dict[str, float | None]:
        """Return the chances; the values of the classes are learned anew."""
        return {"equal": self.equal, "function": self.function, "part": self.part}

    @property
    def is_equal(self) -> bool:
        """Whether the column equals the drawn labels in all batches so far, and in at least one."""
        return self.equal is not None and self.equal < 0.0

    def update(self, values: NDArray[Any], drawn: NDArray[Any]) -> None:
        """Compare one batch: column of shape ``(n,)`` with labels of shape ``(batch,)``, ``n <= batch``."""
        if values.dtype.kind == "U":
            self.equal = self.part = None
            values = np.array([self._codes.setdefault(value, len(self._codes)) for value in values.tolist()])
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        log_shares = np.log(counts / values.size)
        if values.size == drawn.size:
            in_order = log_shares[inverse]
            if self.equal is not None:
                self.equal = self.equal + float(in_order.sum()) if np.array_equal(values, drawn) else None
            if self.function is not None:
                self._update_function(values, drawn, in_order)
        if self.part is not None:
            self.part = self.part + _chance_of_part(counts, log_shares, drawn) if is_part_of(values, drawn) else None

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

    @property
    def _num_values(self) -> int:
        return len(np.unique(self._values[self._known]))

    @property
    def is_one_to_one(self) -> bool:
        """Whether the column is a function of the labels with another value for each class so far."""
        return self.function is not None and self._num_values == self._known.sum() > 1

    @property
    def is_merging(self) -> bool:
        """Whether the column is a function of the labels that has several values, and fewer than classes so far."""
        return self.function is not None and 1 < self._num_values < self._known.sum()

    def describe(self, max_values: int) -> str:
        """Return the classes of each value, for example ``0, 2 -> 1; 1 -> 0`` (class -> value)."""
        names = {code: name for name, code in self._codes.items()}
        parts = []
        for value in np.unique(self._values[self._known]).tolist()[:max_values]:
            classes = np.flatnonzero(self._known & (self._values == value)).tolist()
            shown = ", ".join(map(str, classes[:max_values])) + (", ..." if len(classes) > max_values else "")
            parts.append(f"{shown} -> {names.get(value, value)}")
        return "; ".join(parts) + ("; ..." if self._num_values > max_values else "")


def is_part_of(values: NDArray[Any], drawn: NDArray[Any]) -> bool:
    """Return whether ``values`` holds at most as many of each class as were drawn, and nothing else."""
    ordered = np.sort(drawn)
    kinds, counts = np.unique(values, return_counts=True)
    return bool((counts <= ordered.searchsorted(kinds, "right") - ordered.searchsorted(kinds, "left")).all())


def _chance_of_part(counts: NDArray[Any], log_shares: NDArray[Any], drawn: NDArray[Any]) -> float:
    """Return a bound on the log chance that independent values with these counts are a part of the drawn labels."""
    n, num_left_out, num_drawn = int(counts.sum()), drawn.size - int(counts.sum()), len(np.unique(drawn))
    chance = math.lgamma(n + 1) - sum(math.lgamma(count + 1) for count in counts.tolist())
    chance += float(counts @ log_shares)  # multinomial probability of exactly these counts
    # Times the number of ways to leave this many samples out.
    chance += math.lgamma(num_left_out + num_drawn) - math.lgamma(num_drawn) - math.lgamma(num_left_out + 1)
    return min(chance, 0.0)
