"""A bounded record of a vector over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST, _FEWEST, _CELLS = 256, 16, 4_000_000


class History:
    """Keeps evenly spaced rows: when it is full, every second one goes, and from then on half as many are kept.

    So it always covers the whole time, and never takes more than about 16 MB.

    Args:
        size: Numbers in a row, at least 1.
        most: Most rows that are kept, an even number. None: 256, or fewer of more than 15,000 numbers.

    Attributes:
        size: The same.

    Example:
        >>> history = History(size=1, most=4)
        >>> for step in range(9):
        ...     history.add(step, lambda: [step / 8])
        >>> history.steps.tolist(), history.rows.ravel().tolist()
        ([0, 4, 8], [0.0, 0.5, 1.0])
    """

    def __init__(self, size: int, most: int | None = None) -> None:
        self.size = size
        self._most = most or 2 * (min(max(_CELLS // size, _FEWEST), _MOST) // 2)
        self._rows = np.empty((self._most, size), dtype=np.float32)
        self._steps = np.empty(self._most, dtype=np.int64)
        self._kept = self._seen = 0
        self._stride = 1

    def add(self, step: int, row: Callable[[], ArrayLike]) -> None:
        """Take the row of the next step; it is worked out only if it is kept."""
        if self._seen % self._stride == 0:
            self._steps[self._kept], self._rows[self._kept] = step, row()
            self._kept += 1
            if self._kept == self._most:
                self._kept //= 2
                self._steps[: self._kept], self._rows[: self._kept] = self._steps[::2], self._rows[::2].copy()
                self._stride *= 2
        self._seen += 1

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of the rows, int64, shape ``(T,)``."""
        return self._steps[: self._kept]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows, float32, shape ``(T, size)``."""
        return self._rows[: self._kept]
