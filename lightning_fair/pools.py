"""The items of each class, drawn least used first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.simplex import Ints

_U64: TypeAlias = NDArray[np.uint64]

_ROUNDS, _SMALL_SIDE, _SMALL_ROUNDS = 4, 16, 10
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = (np.uint64(bits) for bits in (27, 30, 31, 32))


@dataclass(frozen=True)
class PoolState:
    """Where the pools stand: items taken per class, and items passed over that come first next time."""

    taken: Ints
    owed: dict[int, Ints]


class ClassPools:
    """Hands out the items of each class so that their use never differs by more than one.

    Within a class no item comes a second time before every other one has come once, in a random order that
    is new for every pass. The order is computed, not stored: item number ``t`` of a class is
    ``permute(t % n, n)`` under a key made of the seed, the class and the pass ``t // n``. So there is
    nothing to shuffle, and the state is one counter per class.

    Where a pass ends inside a batch, an item of the next pass that the batch already has is passed over and
    comes first next time. So no item is twice in a batch, unless the class has fewer items than its share.

    Args:
        labels: Class of each item, integers in ``[0, K)``, shape ``(N,)``.
        num_classes: Number of classes ``K``.
        seed: Seed of the orders, at least 0.

    Attributes:
        sizes: Items of each class, int64, shape ``(K,)``.

    Example:
        >>> pools = ClassPools(np.array([0, 0, 1, 0]), num_classes=2)
        >>> sorted(pools.draw(np.array([3, 1])).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, labels: NDArray[Any], num_classes: int, seed: int = 0) -> None:
        self.sizes: Ints = np.bincount(labels, minlength=num_classes).astype(np.int64)
        # One array of the items, class by class; half the memory where their numbers fit 32 bits.
        narrow = labels.astype(np.min_scalar_type(num_classes), copy=False)
        order = np.argsort(narrow, kind="stable")
        self._items = order.astype(np.int32 if labels.size <= np.iinfo(np.int32).max else np.int64, copy=False)
        self._starts: Ints = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        self._class_keys = _hash(np.arange(num_classes, dtype=np.uint64) ^ _hash(np.array([seed], dtype=np.uint64)))
        self._taken: Ints = np.zeros(num_classes, dtype=np.int64)
        self._owed: dict[int, Ints] = {}

    @property
    def state(self) -> PoolState:
        """Where the pools stand. Setting it takes them back (or on) to exactly there."""
        return PoolState(self._taken.copy(), dict(self._owed))

    @state.setter
    def state(self, state: PoolState) -> None:
        self._taken, self._owed = state.taken.copy(), dict(state.owed)

    @property
    def drawn(self) -> Ints:
        """Items handed out of each class so far, shape ``(K,)``."""
        drawn: Ints = self._taken.copy()
        for label, items in self._owed.items():
            drawn[label] -= items.size
        return drawn

    def draw(self, counts: Ints) -> Ints:
        """Take ``counts[c]`` items of each class ``c``, least used first.

        Args:
            counts: Items to take of each class, int64, shape ``(K,)``; 0 for a class without items.

        Returns:
            Indices of the items, int64, shape ``(sum(counts),)``, class by class.
        """
        (classes,) = np.nonzero(counts)
        if not classes.size:
            return np.zeros(0, dtype=np.int64)
        if self._owed:
            return self._draw_with_owed(counts)
        items, wraps = self._take(classes, counts[classes])
        if wraps:
            items = self._without_repeats(items, classes, counts[classes])
        return items

    # An item is owed only after a pass ended inside a batch: the common path above never comes here.

    def _draw_with_owed(self, counts: Ints) -> Ints:
        fresh = counts.copy()
        first: dict[int, Ints] = {}
        for label in [label for label in self._owed if counts[label]]:
            owed = self._owed.pop(label)
            first[label], rest = owed[: counts[label]], owed[counts[label] :]
            if rest.size:
                self._owed[label] = rest
            fresh[label] -= first[label].size
        (classes,) = np.nonzero(counts)
        (taking,) = np.nonzero(fresh)
        taken, _ = self._take(taking, fresh[taking])
        starts = np.cumsum(fresh[classes]) - fresh[classes]
        parts = [
            np.concatenate((first.get(int(label), taken[:0]), taken[start : start + fresh[label]]))
            for label, start in zip(classes, starts, strict=True)
        ]
        return self._without_repeats(np.concatenate(parts), classes, counts[classes])

    def _without_repeats(self, items: Ints, classes: Ints, counts: Ints) -> Ints:
        """Pass over the items that the batch already has, in the classes large enough to do without."""
        ordered = np.sort(items)
        if not (ordered[1:] == ordered[:-1]).any():
            return items
        starts = np.cumsum(counts) - counts
        for label, count, start in zip(classes, counts, starts, strict=True):
            if count < 2 or count > self.sizes[label]:
                continue
            mine = items[start : start + count]
            _, kept = np.unique(mine, return_index=True)
            passed_over = np.delete(mine, kept)
            if not passed_over.size:
                continue
            chosen = mine[np.sort(kept)]
            while chosen.size < count:
                more, _ = self._take(np.array([label]), np.array([count - chosen.size]))
                new = ~np.isin(more, chosen)
                chosen, passed_over = np.append(chosen, more[new]), np.append(passed_over, more[~new])
            items[start : start + count] = chosen
            self._owed[int(label)] = np.append(self._owed.get(int(label), passed_over[:0]), passed_over)
        return items

    def _take(self, classes: Ints, counts: Ints) -> tuple[Ints, bool]:
        """Return the next items of the ``classes``, and whether a pass ended among those of some class."""
        sizes, taken = self.sizes[classes], self._taken[classes]
        ends = np.cumsum(counts)
        # Everything that belongs to the class of an item, spread over the items in one go.
        n, first, start, key = (
            np.repeat(column, counts)
            for column in (sizes, taken - ends + counts, self._starts[classes], self._class_keys[classes])
        )
        turn, place = np.divmod(first + np.arange(n.size), n)
        position = permute(place, n, _hash(key + turn.view(np.uint64)))
        self._taken[classes] += counts
        wraps = bool((taken % sizes + counts > sizes).any())
        return self._items[start + position].astype(np.int64), wraps


def permute(places: Ints, sizes: Ints, keys: _U64) -> Ints:
    """Return where each place lies in a pseudo-random permutation of ``range(size)`` chosen by its key.

    A Feistel network over a square of side ``ceil(sqrt(size))``, applied again to the few places that land
    outside the range: a bijection for every size and key, computed one place at a time.

    Args:
        places: Places in ``[0, size)``, int64, shape ``(batch,)``.
        sizes: Size of each place's range, at least 1, shape ``(batch,)``.
        keys: Key of each place's permutation, shape ``(batch,)``.

    Reference:
        J. Black and P. Rogaway, "Ciphers with arbitrary finite domains" (2002).

    Example:
        >>> sorted(permute(np.arange(5), np.full(5, 5), np.zeros(5, np.uint64)).tolist())
        [0, 1, 2, 3, 4]
    """
    limits = sizes.view(np.uint64)
    sides = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    result = places.view(np.uint64)
    # A round on a small square has few outcomes: it takes more of them to reach every permutation alike.
    small = sides <= _SMALL_SIDE
    for group, rounds in ((~small, _ROUNDS), (small, _SMALL_ROUNDS)):
        (inside,) = np.nonzero(group)
        if inside.size == result.size:  # the common case needs no copies
            result = _walk(result, limits, sides, keys, rounds)
        elif inside.size:
            result = result.copy()
            result[inside] = _walk(result[inside], limits[inside], sides[inside], keys[inside], rounds)
    return result.view(np.int64)


def _walk(x: _U64, limits: _U64, sides: _U64, keys: _U64, rounds: int) -> _U64:
    """Apply the network until every value is back in its range."""
    x = _feistel(x, sides, keys, rounds)
    (outside,) = np.nonzero(x >= limits)
    while outside.size:
        again = _feistel(x[outside], sides[outside], keys[outside], rounds)
        x[outside] = again
        outside = outside[again >= limits[outside]]
    return x


def _feistel(x: _U64, side: _U64, keys: _U64, rounds: int) -> _U64:
    left = x // side
    right = x - left * side
    for _ in range(rounds):
        keys = keys + _GOLDEN
        mixed = (right ^ keys) * _MIX_1
        mixed ^= mixed >> _32
        mixed *= _MIX_2
        mixed >>= _32
        mixed += left
        left, right = right, mixed % side
    return left * side + right


def _hash(x: _U64) -> _U64:
    """SplitMix64's finaliser: every bit of the argument moves every bit of the result."""
    x = x + _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    mixed: _U64 = x ^ (x >> _31)
    return mixed
