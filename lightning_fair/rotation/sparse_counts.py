"""Containers over a huge range of integers that cost what is in them, and never make one draw wait."""

from __future__ import annotations

import random
from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping
from itertools import chain

# A single dict of a million numbers makes the one draw that has to enlarge it wait for 30 ms; of 256, none waits.
_SHARDS = 256


class SparseCounts(Mapping[int, int]):
    """Counts that are not zero, by number; any other number's count is 0.

    Args:
        counts: Count of each number, at least 1; None for none.

    Example:
        >>> counts = SparseCounts({7: 2})
        >>> counts.set([1, 2], 1)
        >>> counts, counts[7], counts[8]
        ({1: 1, 2: 1, 7: 2}, 2, 0)
    """

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._shards: list[dict[int, int]] = [{} for _ in range(_SHARDS)]
        for number, count in (counts or {}).items():
            self._shards[number % _SHARDS][number] = count

    def __getitem__(self, number: int) -> int:
        try:
            return self._shards[number % _SHARDS].get(number, 0)
        except TypeError:  # no integer
            raise KeyError(number) from None

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number in self._shards[number % _SHARDS]

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._shards)

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __repr__(self) -> str:
        return repr(dict(sorted(self.items())))

    def items(self) -> ItemsView[int, int]:
        """Return the numbers with their counts, in no order."""
        return _Items(self)

    def set(self, numbers: Iterable[int], count: int) -> None:
        """Set the count of each of the ``numbers``, at least 1."""
        for number in numbers:
            self._shards[number % _SHARDS][number] = count

    def discard(self, numbers: Iterable[int]) -> None:
        """Forget the counts of the ``numbers``."""
        for number in numbers:
            self._shards[number % _SHARDS].pop(number, None)


class _Items(ItemsView[int, int]):
    """The pairs straight from the shards: saving a million takes a third of the time."""

    _mapping: SparseCounts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return chain.from_iterable(shard.items() for shard in self._mapping._shards)


class LazyShuffle:
    """The numbers of a range without some, handed out at random: each costs ``O(1)``, the rest costs nothing.

    A Fisher-Yates shuffle that stores only what lies elsewhere than in ``range`` order. The numbers left over
    are those at the places ``0, ..., size - 1``.

    Args:
        numbers: The range, with step 1.
        without: Numbers of the range to leave out; membership must be quick.

    Attributes:
        size: Numbers left, at least 0.

    Example:
        >>> never = LazyShuffle(range(1, 7), without={2, 6})
        >>> sorted(never.take(3, random.Random(0)) + never.take(3, random.Random(0))), never.size
        ([1, 3, 4, 5], 0)
    """

    def __init__(self, numbers: range, without: Collection[int]) -> None:
        self._start = numbers.start
        self.size = len(numbers) - len(without)
        # What is left of the last places fills the holes among the others: as many as there are of either.
        holes = (number - self._start for number in without if number - self._start < self.size)
        fillers = (place for place in range(self.size, len(numbers)) if place + self._start not in without)
        self._moved: list[dict[int, int]] = [{} for _ in range(_SHARDS)]
        for hole, filler in zip(holes, fillers, strict=True):
            self._moved[hole % _SHARDS][hole] = filler

    def take(self, most: int, rng: random.Random) -> list[int]:
        """Take up to ``most`` numbers, in random order."""
        moved, start, taken = self._moved, self._start, []
        for last in range(self.size - 1, max(self.size - 1 - most, -1), -1):
            place = rng.randrange(last + 1)
            at_last = moved[last % _SHARDS].pop(last, last)
            if place == last:
                taken.append(start + at_last)
            else:
                shard = moved[place % _SHARDS]
                taken.append(start + shard.get(place, place))
                shard[place] = at_last
        self.size -= len(taken)
        return taken
