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
        max_rows: Largest number of rows. None: 256, or fewer if a row has more than 15,000 numbers.

    Example:
        >>> history = DownsampledHistory(width=1, max_rows=4)
        >>> for step in range(9):
        ...     history.add(step, lambda: [step / 8])
        >>> history.steps, [row.tolist() for row in history.rows]
        ([0, 4, 8], [[0.0], [0.5], [1.0]])
    """

    def __init__(self, width: int, max_rows: int | None = None) -> None:
        self.width = width
        self.steps: list[int] = []  # step of each row
        self.rows: list[NDArray[np.float32]] = []  # each of shape (width,)
        self._max_rows = max_rows or min(max(_MAX_NUMBERS // width, _MIN_ROWS), _MAX_ROWS)
        self._num_added, self._stride = 0, 1

    def add(self, step: int, make_row: Callable[[], ArrayLike]) -> None:
        """Add the row of the next step; ``make_row`` is called only if the row is kept."""
        if self._num_added % self._stride == 0:
            self.steps.append(step)
            self.rows.append(np.array(make_row(), dtype=np.float32))
            if len(self.rows) == self._max_rows:
                del self.steps[1::2], self.rows[1::2]
                self._stride *= 2
        self._num_added += 1
