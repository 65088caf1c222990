"""The fair batch generator: batches of integers from a range, least used first."""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from heapq import heappop, heappush
from types import MappingProxyType
from typing import Any

from lightning_fair.rotation.serialization import (
    LARGEST_COUNT,
    LARGEST_NUMBER,
    check_counts,
    dump,
    parse,
    show,
    whole_number,
)
from lightning_fair.rotation.sparse_counts import LazyShuffle, SparseCounts

_NAMED = 5  # numbers that a warning names before it only says how many there are


class FairRotation:
    """Hands out batches of ``k`` integers from a range such that all are used equally often over time.

    A batch takes the numbers with the fewest appearances first, ties broken at random, never a number twice;
    where those are fewer than ``k``, the rest comes from the next fewest. So from a fresh start no two counts
    ever differ by more than one, and counts that are loaded uneven are evened out.

    The numbers lie in buckets by their count, and the bucket of those that never came is a range shuffled only
    as far as it has been drawn from. So a batch costs ``O(k log d)`` where there are ``d`` distinct counts,
    whatever the range, and memory goes with the numbers that have come, not with ``n``.

    Counts of numbers outside the range (after :meth:`resize`, or loaded) are kept, and ignored by the draw,
    until :meth:`clean` drops them. Not for shares other than equal ones: those are what
    :class:`~lightning_fair.sampling.batch_sampler.FeedbackBatchSampler` steers.

    Args:
        n: Size of the range, in numbers, at least 1.
        k: Numbers of a batch, in ``[1, n]``.
        start: First number of the range, which is ``start, ..., start + n - 1`` and lies within ``±(2**53 - 1)``,
            where JSON readers are exact.
        seed: Seed of the ties; None for a new one each time.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If ``n``, ``k`` or ``start`` is not an integer.

    Example:
        >>> rotation = FairRotation(n=5, k=2, start=1, seed=0)
        >>> batches = [rotation.next_batch() for _ in range(5)]
        >>> sorted(number for batch in batches for number in batch)
        [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """

    def __init__(self, n: int, k: int, start: int = 1, seed: int | None = None) -> None:
        self._n, self._k, self._start = check_inputs(n, k, start)
        self._rng = random.Random(seed)
        self._counts = SparseCounts()
        self._arrange()

    def __repr__(self) -> str:
        return f"<FairRotation n={self._n}, k={self._k}, start={self._start}: {len(self._counts):,} with a count>"

    @property
    def n(self) -> int:
        """Size of the range, in numbers."""
        return self._n

    @property
    def k(self) -> int:
        """Numbers of a batch."""
        return self._k

    @property
    def start(self) -> int:
        """First number of the range."""
        return self._start

    @property
    def numbers(self) -> range:
        """The range that batches are drawn from."""
        return range(self._start, self._start + self._n)

    @property
    def counts(self) -> Mapping[int, int]:
        """How often each number came, out of range or not: a read-only view, live until a load or a reset.

        ``counts[number]`` is 0 for a number that never came; only those that did are iterated over.
        """
        return MappingProxyType(self._counts)

    @property
    def out_of_range(self) -> list[int]:
        """The numbers outside the range that have a count, in ascending order."""
        return list(self._outside)

    @property
    def mismatch(self) -> str | None:
        """One sentence that names the numbers out of range (the first few, and how many), or None without any.

        Example:
            >>> rotation = FairRotation(n=3, k=1)
            >>> rotation.load_counts({2: 1, 7: 4})
            >>> rotation.mismatch
            'The count of 1 number outside 1 to 3 is ignored: 7.'
        """
        if not self._outside:
            return None
        many = len(self._outside)
        named = ", ".join(map(str, self._outside[:_NAMED])) + (f" and {many - _NAMED:,} more" if many > _NAMED else "")
        what = "The count of 1 number" if many == 1 else f"The counts of {many:,} numbers"
        last = self._start + self._n - 1
        return f"{what} outside {self._start} to {last} {'is' if many == 1 else 'are'} ignored: {named}."

    @property
    def tallies(self) -> dict[int, int]:
        """How many numbers of the range have each count, by ascending count; costs ``O(distinct counts)``.

        Example:
            >>> rotation = FairRotation(n=1_000_000, k=3)
            >>> batch = rotation.next_batch()
            >>> rotation.tallies
            {0: 999997, 1: 3}
        """
        never = {0: self._never.size} if self._never.size else {}
        return never | {count: len(self._buckets[count]) for count in sorted(self._buckets)}

    # -- the draw ----------------------------------------------------------------------------------------

    def next_batch(self, *, warn: bool = True) -> list[int]:
        """Draw a batch, and count it.

        Args:
            warn: Say with a ``UserWarning`` that counts out of range are being ignored, where they are.

        Returns:
            ``k`` different numbers of the range: fewest appearances first, those of equal count in random order.
        """
        if warn and self._outside:
            warnings.warn(f"{self.mismatch} clean() drops them.", stacklevel=2)
        drawn: dict[int, list[int]] = {}
        missing = self._k
        if self._never.size:
            drawn[0] = self._never.take(missing, self._rng)
            missing -= len(drawn[0])
        while missing:
            count = self._levels[0]
            drawn[count] = self._take(count, missing)
            missing -= len(drawn[count])
        # Put back only now: a number that went to the next bucket at once could come a second time.
        for count, numbers in drawn.items():
            raised = min(count + 1, LARGEST_COUNT)  # stays loadable; only a count loaded at the limit gets there
            self._counts.set(numbers, raised)
            self._put(raised, numbers)
        return [number for numbers in drawn.values() for number in numbers]

    def _take(self, count: int, most: int) -> list[int]:
        """Take up to ``most`` numbers, at random, out of the bucket of the lowest count above zero."""
        bucket, rng = self._buckets[count], self._rng
        if len(bucket) <= most:
            heappop(self._levels)
            del self._buckets[count]
            rng.shuffle(bucket)
            return bucket
        taken = []
        for _ in range(most):
            place = rng.randrange(len(bucket))
            bucket[place], bucket[-1] = bucket[-1], bucket[place]
            taken.append(bucket.pop())
        return taken

    def _put(self, count: int, numbers: list[int]) -> None:
        bucket = self._buckets.get(count)
        if bucket is None:
            self._buckets[count] = list(numbers)
            heappush(self._levels, count)
        else:
            bucket.extend(numbers)

    # -- the range and the counts ------------------------------------------------------------------------

    def resize(self, n: int | None = None, k: int | None = None, start: int | None = None) -> None:
        """Change the range or the batch size; None leaves a number as it is. Every count is kept.

        Numbers that are new in the range have the count they ever had, 0 for most.

        Raises:
            ValueError: If a number is out of its range. Nothing is changed then.
            TypeError: If a number is not an integer. Nothing is changed then.

        Example:
            >>> rotation = FairRotation(n=3, k=3)
            >>> batch = rotation.next_batch()
            >>> rotation.resize(n=4, k=1)
            >>> rotation.next_batch()
            [4]
        """
        before = self._n, self._k, self._start
        n, k, start = (old if new is None else new for new, old in zip((n, k, start), before, strict=True))
        self._n, self._k, self._start = check_inputs(n, k, start)
        if (self._n, self._start) != (before[0], before[2]):
            self._arrange()

    def load_counts(self, counts: Mapping[int, int] | str) -> None:
        """Take over counts, balanced or not, in place of those so far.

        Args:
            counts: Appearances of each number, in ``[0, 10**9]``; a number that is not named has 0. Numbers
                outside the range are kept, and ignored by the draw. Or the text of ``to_json``, with or without
                ``counts_only``; its inputs are not taken over.

        Raises:
            ValueError: If a number or a count is not an integer or out of its range, or the text is not such
                JSON. Nothing is changed then.
            TypeError: If it is neither a mapping nor text. Nothing is changed then.

        Example:
            >>> rotation = FairRotation(n=3, k=2)
            >>> rotation.load_counts({1: 5, 2: 7})
            >>> rotation.next_batch()
            [3, 1]
            >>> rotation.load_counts('{"2": 4}')
            >>> rotation.counts[2]
            4
        """
        if isinstance(counts, str):
            checked = parse(counts).counts
        elif hasattr(counts, "items"):
            checked = check_counts(counts.items())
        else:
            raise TypeError(f"The counts must be a mapping such as {{1: 3, 2: 2}} or its JSON, got {show(counts)}.")
        self._counts = SparseCounts(checked)
        self._arrange()

    def clean(self) -> None:
        """Drop the counts of the numbers that are out of range."""
        self._counts.discard(self._outside)
        self._outside.clear()

    def reset(self) -> None:
        """Forget every count, in range or not; the range, the batch size and the random state stay."""
        self._counts = SparseCounts()
        self._arrange()

    def _arrange(self) -> None:
        """Sort the numbers that came into buckets, in time that goes with their number and not with ``n``."""
        numbers = self.numbers
        inside: set[int] = set()
        self._outside: list[int] = []
        self._buckets: dict[int, list[int]] = {}
        for number, count in self._counts.items():
            if number in numbers:
                inside.add(number)
                self._buckets.setdefault(count, []).append(number)
            else:
                self._outside.append(number)
        self._outside.sort()
        self._levels = sorted(self._buckets)  # a sorted list is a heap
        self._never = LazyShuffle(numbers, inside)

    # -- saving --------------------------------------------------------------------------------------------

    def to_json(self, *, counts_only: bool = False) -> str:
        """Return the counts and the inputs as JSON, or the counts alone: a flat object.

        The random state is not part of it. Numbers that never came are left out.

        Example:
            >>> rotation = FairRotation(n=3, k=2)
            >>> rotation.load_counts({3: 4})
            >>> rotation.to_json()
            '{"appearance_counts": {"3": 4}, "N": 3, "k": 2, "start": 1}'
            >>> rotation.to_json(counts_only=True)
            '{"3": 4}'
        """
        return dump(self._counts, None if counts_only else (self._n, self._k, self._start))

    @classmethod
    def from_json(cls, text: str, seed: int | None = None) -> FairRotation:
        """Return the rotation that ``to_json`` (or the published fair batch app) saved in full.

        Args:
            text: JSON object with ``appearance_counts``, ``N``, ``k`` and ``start``.
            seed: Seed of the ties; None for a new one.

        Raises:
            ValueError: If the text is not that; the message says what is wrong. For counts alone, make a
                ``FairRotation(n, k, start)`` and pass the text to its ``load_counts``.

        Example:
            >>> FairRotation.from_json('{"appearance_counts": {"3": 4}, "N": 3, "k": 2, "start": 1}').n
            3
        """
        if not isinstance(text, str):
            raise ValueError(f"The saved rotation must be a str of JSON, got {show(text)}: decode or read it first.")
        saved = parse(text)
        if saved.inputs is None:
            raise ValueError(
                'The JSON holds counts alone and no "N", "k" and "start": make a FairRotation(n, k, start) and '
                "pass the text to its load_counts."
            )
        try:
            rotation = cls(*saved.inputs, seed=seed)
        except TypeError as error:  # of a file, a wrong type is a wrong value
            raise ValueError(str(error)) from error
        rotation._counts = SparseCounts(saved.counts)
        rotation._arrange()
        return rotation


def check_inputs(n: Any, k: Any, start: Any) -> tuple[int, int, int]:
    """Return ``n``, ``k`` and ``start`` as plain integers, if a rotation can have them.

    Raises:
        ValueError: If ``n`` or ``k`` is less than 1, ``k`` more than ``n``, or the range leaves ``±(2**53 - 1)``.
        TypeError: If one is not an integer.
    """
    n, k, start = whole_number("N", n), whole_number("k", k), whole_number("start", start)
    if n < 1:
        raise ValueError(f"N must be at least 1, got {show(n)}.")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {show(k)}.")
    if k > n:
        raise ValueError(
            f"k must be at most N, got k = {show(k)} for N = {show(n)}: a batch never holds a number twice."
        )
    if max(abs(start), abs(start + n - 1)) > LARGEST_NUMBER:
        raise ValueError(
            f"start to start + N - 1 must lie within ±{LARGEST_NUMBER}, got {show(start)} to {show(start + n - 1)}: "
            "beyond that, browsers round integers."
        )
    return n, k, start
