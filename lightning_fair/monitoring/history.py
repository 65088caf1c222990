"""A bounded record of a vector over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MAX_ROWS, _MIN_ROWS, _MAX_NUMBERS = 256, 16, 4_000_000


class DownsampledHistory:
    """Keeps evenly spaced rows of a long series in bounded memory, at most about 16 MB.

    When the history is full, every second row is dropped, and from then on half as many rows are kept.

    Args:
        width: Numbers in a row, at least 1.
        max_rows: Largest number of rows, even. None: 256, or fewer if a row has more than 15,000 numbers.

    Example:
        >>> history = DownsampledHistory(width=1, max_rows=4)
        >>> for step in range(9):
        ...     history.add(step, lambda: [step / 8])
        >>> history.steps.tolist(), history.rows.ravel().tolist()
        ([0, 4, 8], [0.0, 0.5, 1.0])
    """

    def __init__(self, width: int, max_rows: int | None = None) -> None:
        self.width = width
        self._max_rows = max_rows or 2 * (min(max(_MAX_NUMBERS // width, _MIN_ROWS), _MAX_ROWS) // 2)
        self._rows = np.empty((self._max_rows, width), dtype=np.float32)
        self._steps = np.empty(self._max_rows, dtype=np.int64)
        self._num_kept = self._num_added = 0
        self._stride = 1

    def add(self, step: int, make_row: Callable[[], ArrayLike]) -> None:
        """Add the row of the next step; ``make_row`` is called only if the row is kept."""
        if self._num_added % self._stride == 0:
            self._steps[self._num_kept], self._rows[self._num_kept] = step, make_row()
            self._num_kept += 1
            if self._num_kept == self._max_rows:
                self._num_kept = half = self._num_kept // 2
                self._steps[:half], self._rows[:half] = self._steps[::2], self._rows[::2].copy()
                self._stride *= 2
        self._num_added += 1

    @property
    def steps(self) -> NDArray[np.int64]:
        """Steps of the rows, int64, shape ``(T,)``."""
        return self._steps[: self._num_kept]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows, float32, shape ``(T, width)``."""
        return self._rows[: self._num_kept]
