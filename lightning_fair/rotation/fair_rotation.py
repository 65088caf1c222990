"""The fair batch generator: batches of integers from a range, least used first."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.checks import check
from lightning_fair.rotation.serialization import LARGEST_COUNT, check_inputs, dump, parse, read_counts


class FairRotation:
    """Draws batches of ``k`` integers from a range so that all integers are used equally often over time.

    A batch takes the numbers with the lowest counts, in random order among equal counts. No number occurs twice in a
    batch. Starting from zero, no two counts ever differ by more than one; uneven counts that were loaded become even.

    The counts are an array over the range, and a draw reads all of it: for a million numbers a draw takes some
    milliseconds, and the array takes 4 MB. Counts of numbers outside the range (after :meth:`resize`, or loaded) are
    kept until :meth:`clean` drops them, and the draw ignores them.

    Use :class:`~lightning_fair.sampling.batch_sampler.FeedbackBatchSampler` for shares that are not equal.

    Args:
        n: Size of the range, in ``[1, 10**7]``.
        k: Numbers in a batch, in ``[1, n]``.
        start: First number of the range ``start, ..., start + n - 1``, which must lie within ``±(2**53 - 1)``,
            the integers that every JSON reader holds exactly.
        seed: Seed of the random order, at least 0; None for a new one each time.

    Raises:
        ValueError: If an argument is out of its range.
        TypeError: If ``n``, ``k`` or ``start`` is not an integer.

    Example:
        >>> rotation = FairRotation(n=5, k=2, start=1, seed=0)
        >>> batches = [rotation.next_batch() for _ in range(5)]
        >>> sorted(number for batch in batches for number in batch)
        [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """

    def __init__(self, n: int, k: int, start: int = 1, seed: int | None = None) -> None:
        self._n, self._k, self._start = check_inputs(n, k, start)
        self._rng = np.random.default_rng(check("seed", seed, optional=True))
        self.reset()

    def __repr__(self) -> str:
        used = np.count_nonzero(self._counts) + len(self._outside_numbers)
        return f"<FairRotation n={self.n}, k={self.k}, start={self.start}: {used:,} with a count>"

    @property
    def n(self) -> int:
        """Size of the range; :meth:`resize` changes it, as it does ``k`` and ``start``."""
        return self._n

    @property
    def k(self) -> int:
        """Numbers in a batch."""
        return self._k

    @property
    def start(self) -> int:
        """First number of the range."""
        return self._start

    @property
    def counts(self) -> Counter[int]:
        """Copy of the nonzero counts by number, in ascending order; ``counts[number]`` is 0 for any other number."""
        numbers, counts = self.to_arrays()
        used = counts > 0
        return Counter(dict(zip(numbers[used].tolist(), counts[used].tolist(), strict=True)))

    @property
    def out_of_range(self) -> list[int]:
        """The numbers outside the range that have a count, in ascending order."""
        numbers: list[int] = self._outside_numbers.tolist()
        return numbers

    @property
    def mismatch(self) -> str | None:
        """A sentence about the counts out of range, or None if there are none."""
        outside = self._outside_numbers
        if not len(outside):
            return None
        listed = ", ".join(map(str, outside[:5])) + (f" and {len(outside) - 5:,} more" if len(outside) > 5 else "")
        return f"Counts of numbers outside {self.start} to {self.start + self.n - 1} are ignored: {listed}."

    def to_arrays(self) -> tuple[Ints, NDArray[np.int32]]:
        """Return the numbers of the range and the counted numbers outside it, ascending, and the count of each.

        Example:
            >>> rotation = FairRotation(n=3, k=1)
            >>> rotation.load_counts({2: 1, 7: 4})
            >>> rotation.to_arrays()
            (array([1, 2, 3, 7]), array([0, 1, 0, 4], dtype=int32))
        """
        place = np.searchsorted(self._outside_numbers, self.start)
        numbers = np.insert(self._outside_numbers, place, np.arange(self.start, self.start + self.n))
        return numbers, np.insert(self._outside_counts, place, self._counts)

    def next_batch(self, *, warn: bool = True) -> list[int]:
        """Draw a batch and count its numbers.

        Args:
            warn: Issue a ``UserWarning`` if there are counts out of range.

        Returns:
            ``k`` different numbers of the range, the lowest counts first.
        """
        if check("warn", warn) and self.mismatch:
            warnings.warn(f"{self.mismatch} clean() drops them.", stacklevel=2)
        highest = np.partition(self._counts, self.k - 1)[self.k - 1]  # the highest count that the batch reaches
        below = self._rng.permutation(np.flatnonzero(self._counts < highest))
        below = below[np.argsort(self._counts[below], kind="stable")]  # stable: equal counts stay in random order
        ties = np.flatnonzero(self._counts == highest)
        places = np.concatenate([below, self._rng.choice(ties, self.k - len(below), replace=False)])
        # A count at the limit stays there, so that the saved text can be loaded.
        self._counts[places] = np.minimum(self._counts[places] + 1, LARGEST_COUNT)
        batch: list[int] = (places + self.start).tolist()
        return batch

    def resize(self, n: int | None = None, k: int | None = None, start: int | None = None) -> None:
        """Change the range or the batch size; None leaves a value as it is. Every count is kept.

        Raises:
            ValueError: If a value is out of its range. Nothing is changed then.
            TypeError: If a value is not an integer. Nothing is changed then.
        """
        current = (self.n, self.k, self.start)
        inputs = (old if new is None else new for new, old in zip((n, k, start), current, strict=True))
        counts = self.to_arrays()
        self._n, self._k, self._start = check_inputs(*inputs)
        self._set_counts(*counts)

    def load_counts(self, counts: Mapping[int, int] | str) -> None:
        """Replace all counts.

        Args:
            counts: Count of each number, in ``[0, 10**9]``; any other number has 0. The text of :meth:`to_json` is
                accepted, too; its ``N``, ``k`` and ``start`` are ignored.

        Raises:
            ValueError: If a number or a count is not an integer or out of its range, or the text is not JSON of
                :meth:`to_json`. Nothing is changed then.
            TypeError: If ``counts`` is neither a mapping nor text. Nothing is changed then.

        Example:
            >>> rotation = FairRotation(n=3, k=2)
            >>> rotation.load_counts({1: 5, 2: 7})
            >>> rotation.next_batch()
            [3, 1]
        """
        checked = read_counts(counts)
        self._set_counts(np.array([*checked], np.int64), np.array([*checked.values()], np.int32))

    def clean(self) -> None:
        """Drop the counts of the numbers out of range."""
        self._outside_numbers, self._outside_counts = np.empty(0, np.int64), np.empty(0, np.int32)

    def reset(self) -> None:
        """Set every count to 0, in the range and outside it; the range, ``k`` and the random state stay."""
        self._counts = np.zeros(self.n, np.int32)
        self.clean()

    def _set_counts(self, numbers: Ints, counts: NDArray[np.int32]) -> None:
        """Replace all counts; ``numbers`` are distinct, in any order."""
        self.reset()
        inside = (numbers >= self.start) & (numbers < self.start + self.n)
        self._counts[numbers[inside] - self.start] = counts[inside]
        outside = np.flatnonzero(~inside & (counts > 0))
        outside = outside[np.argsort(numbers[outside])]
        self._outside_numbers, self._outside_counts = numbers[outside], counts[outside]

    def to_json(self, *, counts_only: bool = False) -> str:
        """Return the nonzero counts, ``N``, ``k`` and ``start`` as JSON, or the counts alone; not the random state.

        Example:
            >>> rotation = FairRotation(n=3, k=2)
            >>> rotation.load_counts({3: 4})
            >>> rotation.to_json(), rotation.to_json(counts_only=True)
            ('{"appearance_counts": {"3": 4}, "N": 3, "k": 2, "start": 1}', '{"3": 4}')
        """
        return dump(self.counts, None if check("counts_only", counts_only) else (self.n, self.k, self.start))

    @classmethod
    def from_json(cls, text: str, seed: int | None = None) -> FairRotation:
        """Return the rotation that ``to_json`` or the published fair batch app saved with ``N``, ``k`` and ``start``.

        Raises:
            ValueError: If the text is not such JSON. For counts alone, make a ``FairRotation(n, k, start)`` and pass
                the text to its ``load_counts``.
        """
        saved = parse(text)
        if saved.inputs is None:
            raise ValueError(
                'The JSON must have "N", "k" and "start", got counts alone: make a FairRotation(n, k, start) and pass '
                "the text to its load_counts."
            )
        try:
            rotation = cls(*saved.inputs, seed=seed)
        except TypeError as error:  # a wrong type in a file is a wrong value of the text
            raise ValueError(str(error)) from error
        rotation.load_counts(saved.counts)
        return rotation
