"""The items of each class, drawn least used first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.simplex import Ints

_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]

# With so many rounds two places lie alike in every pair of positions, from two items on (test_pools.py).
_ROUNDS = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32, _63 = (np.uint64(bits) for bits in (27, 30, 31, 32, 63))
_ODD_1, _ODD_2 = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
_ONE, _TWO, _15, _16 = (np.uint32(number) for number in (1, 2, 15, 16))

# Items worked out in advance: about so many at a time, which takes half a millisecond, and about so many in all;
# of a class at least and at most so many, an even number.
_AT_A_TIME, _AHEAD, _FEWEST, _MOST = 2**15, 2**17, 16, 4096
_MOST_ROOM = 2**18  # the rows grow up to so many items where a batch takes more of a class than a row holds


@dataclass(frozen=True)
class PoolState:
    """Where the pools stand: items drawn per class, and items passed over that come first next time."""

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

    A call of NumPy costs as much as it does to work out hundreds of items, so the next items of each class are
    kept in a row, worked out for many classes at once when one runs out. What is drawn does not depend on that.

    Args:
        labels: Class of each item, integers in ``[0, K)``, shape ``(N,)``.
        num_classes: Number of classes ``K``.
        seed: Seed of the orders, at least 0.

    Attributes:
        sizes: Items of each class, at most ``2**32``, int64, shape ``(K,)``.

    Example:
        >>> pools = ClassPools(np.array([0, 0, 1, 0]), num_classes=2)
        >>> sorted(pools.draw(np.array([0, 0, 0, 1])).tolist())
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
        # In the rows an item stands as it is, or as ~item (below 0) where its pass ends with it. A row ends with
        # the least number there is, so that the least of a draw says whether there is anything to look after.
        self._none = np.iinfo(self._items.dtype).min
        self._heads: Ints = np.zeros(num_classes, dtype=np.int64)  # room for a draw to work in
        self._owed: dict[int, tuple[int, Ints]] = {}  # by class: items, and the number of the first; never changed
        self._window = 0
        self._taken: Ints
        width = min(max(_AHEAD // num_classes, _FEWEST), _MOST)
        self._make_rows(width // 2 * 2, np.zeros(num_classes, dtype=np.int64))

    @property
    def state(self) -> PoolState:
        """Where the pools stand. Setting it takes them back (or on) to exactly there."""
        left = {}
        for label, (first, items) in self._owed.items():
            past = int(self._taken[label]) - first
            if past < items.size:
                left[label] = items[max(past, 0) :]
        return PoolState(self._taken, left)

    @state.setter
    def state(self, state: PoolState) -> None:
        self._make_rows(self._width, state.taken)
        self._owed = {label: (int(state.taken[label]), items) for label, items in state.owed.items()}

    @property
    def drawn(self) -> Ints:
        """Items handed out of each class so far, shape ``(K,)``; not to be written to."""
        return self._taken

    def draw(self, labels: Ints, counts: Ints | None = None) -> NDArray[Any]:
        """Take the next items of some classes, least used first.

        Args:
            labels: Class of each item to take, those of a class side by side, shape ``(B,)``.
            counts: Items of each class among them, shape ``(K,)``, where they are known.

        Returns:
            Indices of the items, int32 or int64, shape ``(B,)``.
        """
        if not labels.size:
            return self._items[:0]
        places = np.arange(labels.size)
        # Written last to first, what stays is where the class begins among the labels.
        self._heads[labels[::-1]] = places[::-1]
        spots = self._next.take(labels)
        spots -= self._heads.take(labels)
        spots += places
        items = self._ring.take(spots, mode="clip")
        if np.minimum.reduce(items) < 0:
            spots = self._look_after(items, labels, spots)
        self._next[labels] = spots + 1  # the last of a class stays
        # A new array each time: states keep the old ones.
        self._taken = self._taken + (np.bincount(labels, minlength=self.sizes.size) if counts is None else counts)
        return items

    # What follows runs where a row or a pass ends.

    def _look_after(self, items: NDArray[Any], labels: Ints, spots: Ints) -> Ints:
        """See to the rows and passes that end in a draw: mend its ``items``, and return their spots."""
        numbers: Ints | None = None  # of the items, where the rows are too short for them
        if np.minimum.reduce(items) == self._none:
            ranks = spots - self._next[labels]
            most = int(ranks.max()) + 1
            if most > self._width // 2 and 4 * most * self.sizes.size <= _MOST_ROOM:
                self._make_rows(4 * most, self._taken)
            self._fill(labels)
            spots = self._next[labels] + ranks
            if (spots - self._rows[labels]).max() >= self._width:  # worked out for this draw, and the rows used up
                numbers = spots - self._rows[labels] + self._first[labels]
                items[:] = self._numbered(labels, numbers, 1)[:, 0]
                spots = self._rows[labels] + (self._width - 1)
            else:
                items[:] = self._ring.take(spots)
        np.invert(items, out=items, where=items < 0)
        ordered = np.sort(items)
        if (ordered[1:] == ordered[:-1]).any():
            here = spots - self._rows[labels] + self._first[labels] if numbers is None else numbers
            self._pass_over(items, labels, spots, here)
        if numbers is not None:
            self._first[labels] = numbers + (1 - self._width)
        return spots

    def _pass_over(self, items: NDArray[Any], labels: Ints, spots: Ints, numbers: Ints) -> None:
        """Replace the items that the draw already has, in the classes large enough to do without."""
        order = np.argsort(items, kind="stable")
        again = order[1:][items[order[1:]] == items[order[:-1]]]
        for label in np.unique(labels[again]).tolist():
            (mine,) = np.nonzero(labels == label)
            size, first, count = int(self.sizes[label]), int(numbers[mine[0]]), mine.size
            if count > size:
                continue
            # Each item left of this pass can be in the way once: by then there are enough others.
            left = size - first % size
            begin, end = int(spots[mine[0]]), int(self._rows[label]) + self._width
            if begin + count + left <= end:
                following = self._ring[begin : begin + count + left]
            else:
                following = self._numbered(np.array([label]), np.array([first]), count + left)[0]
            following = np.where(following < 0, ~following, following)
            kept = np.sort(np.unique(following, return_index=True)[1])[:count]
            items[mine] = following[kept]
            owed = np.delete(following[: kept[-1] + 1], kept)
            # They come next: numbered on from here, in place of those that were taken instead.
            after = first + count
            still = {c: o for c, o in self._owed.items() if c != label and o[0] + o[1].size > self._number(c)}
            self._owed = {**still, label: (after, owed.astype(np.int64))}
            spot = int(spots[mine[-1]]) + 1
            if spot + owed.size <= end:
                if (after + owed.size) % size == 0:
                    owed[-1] = ~owed[-1]
                self._ring[spot : spot + owed.size] = owed
            else:  # the row counts as used up: it is filled before the next draw from it
                spots[mine[-1]] = end - 1
                self._first[label] = after - self._width

    def _number(self, label: int) -> int:
        return int(self._first[label] + self._next[label] - self._rows[label])

    # -- rows of items worked out in advance -------------------------------------------------------------

    def _make_rows(self, width: int, taken: Ints) -> None:
        """Begin with rows that are all used up: a row is used from its class's spot on, and empty at its end."""
        self._width = width
        self._rows: Ints = np.arange(self.sizes.size) * (width + 1)
        self._ring: NDArray[Any] = np.full(self.sizes.size * (width + 1), self._none, dtype=self._items.dtype)
        self._next: Ints = self._rows + width  # spot of the next item of each class
        self._first: Ints = taken - width  # number of the item that each row begins with
        self._taken = taken

    def _fill(self, wanted: Ints) -> None:
        """Go on with the rows that are half used up: those of the classes ``wanted``, and a window of the others."""
        K, half = self.sizes.size, self._width // 2
        window = np.arange(self._window, self._window + min(max(_AT_A_TIME // half, 1), K)) % K
        self._window = int(window[-1] + 1)
        classes = np.unique(np.concatenate((wanted, window)))
        classes = classes[(self._next[classes] - self._rows[classes] >= half) & (self.sizes[classes] > 0)]
        rows = self._ring.reshape(K, self._width + 1)
        new = self._numbered(classes, self._first[classes] + self._width, half)
        rows[classes, :half] = rows[classes, half : 2 * half]
        rows[classes, half : 2 * half] = new
        self._first[classes] += half
        self._next[classes] -= half

    def _numbered(self, classes: Ints, numbers: Ints, width: int) -> NDArray[Any]:
        """Return ``width`` items of each class from a number on, ``~item`` where a pass ends, shape ``(C, width)``."""
        sizes = self.sizes[classes]
        passes = numbers // sizes
        places = (numbers - passes * sizes)[:, None] + np.arange(width)
        keys = (self._class_keys[classes] + passes.view(np.uint64))[:, None]
        turns = None
        if width > 1 and (places[:, -1] >= sizes).any():
            turns = ((places + 0.5) * (1.0 / sizes)[:, None]).astype(np.int64)
            places -= turns * sizes[:, None]
            keys = keys + np.arange(turns.max() + 1, dtype=np.uint64)
        items = self._items.take(permute(places, sizes, _hash(keys), turns) + self._starts[classes][:, None])
        ends = places == (sizes - 1)[:, None]
        np.copyto(items, ~items, where=ends)
        for label in self._owed.keys() & set(classes.tolist()) if self._owed else ():
            (mine,) = np.nonzero(classes == label)
            first, owed = self._owed[label]
            offsets = numbers[mine][:, None] + np.arange(width) - first
            row, column = np.nonzero((offsets >= 0) & (offsets < owed.size))
            new = owed[offsets[row, column]]
            row = mine[row]
            items[row, column] = np.where(ends[row, column], ~new, new)
        return items


def permute(places: Ints, sizes: Ints, keys: _U64, turns: Ints | None = None) -> _U32:
    """Return where each place lies in a pseudo-random permutation of ``range(size)`` chosen by its key.

    A Feistel network over a square of side ``ceil(sqrt(size))``, applied again to the few places that land
    outside the range: a bijection for every size and key, computed one place at a time.

    Args:
        places: Places in ``[0, size)``, int64, shape ``(rows, width)``.
        sizes: Size of each row's range, in ``[1, 2**32]``, shape ``(rows,)``.
        keys: Keys of each row's permutations, shape ``(rows, T)``.
        turns: Which of its row's keys each place has, in ``[0, T)``, shape ``(rows, width)``. None: the first.

    Reference:
        J. Black and P. Rogaway, "Ciphers with arbitrary finite domains" (2002).

    Example:
        >>> permute(np.arange(5)[None], np.array([5]), np.zeros((1, 1), np.uint64)).tolist()
        [[0, 2, 4, 1, 3]]
    """
    width = places.shape[1]
    begins = np.arange(0, keys.size, keys.shape[1])[:, None]
    which = (np.broadcast_to(begins, places.shape) if turns is None else turns + begins).ravel()
    keys = keys.ravel()
    # Of 64 bits of key one half begins the keys of the rounds, the other parts them.
    key, step = keys.astype(np.uint32).take(which), ((keys >> _32).astype(np.uint32) | _ONE).take(which)
    sides = np.ceil(np.sqrt(sizes))
    x = places.astype(np.uint32)
    # All rounds are even permutations: without this swap a handful of items would not have every order alike.
    (swapped,) = np.nonzero((x < (sizes > 1)[:, None] * _TWO).ravel())
    x.ravel()[swapped] ^= (keys.take(which[swapped]) >> _63).astype(np.uint32)
    # Divides by multiplying, in a tenth of the time: half a unit is far more than the rounding.
    left = ((x + 0.5) * (1.0 / sides)[:, None]).astype(np.uint32).ravel()
    side = np.repeat(sides.astype(np.uint32), width)
    right = x.ravel() - left * side
    left, right = _feistel(left, right, side, key, step)
    result: _U32 = left * side + right
    most = np.repeat((sizes - 1).astype(np.uint32), width)
    (outside,) = np.nonzero(result > most)
    at = outside
    while at.size:
        left, right, side, key, step = (column[outside] for column in (left, right, side, key, step))
        left, right = _feistel(left, right, side, key, step)
        again = left * side + right
        result[at] = again
        (outside,) = np.nonzero(again > most[at])
        at = at[outside]
    return result.reshape(places.shape)


def _feistel(left: _U32, right: _U32, side: _U32, key: _U32, step: _U32) -> tuple[_U32, _U32]:
    """Apply the network to ``left * side + right``. The arguments stay as they are."""
    left, right, key = left.copy(), right.copy(), key.copy()
    mixed, other = np.empty_like(left), np.empty_like(left)
    for _ in range(_ROUNDS):
        np.add(right, key, out=mixed)
        np.multiply(mixed, _ODD_1, out=mixed)
        np.right_shift(mixed, _15, out=other)
        np.bitwise_xor(mixed, other, out=mixed)
        np.multiply(mixed, _ODD_2, out=mixed)
        # The upper half of the bits makes a number below the side ...
        np.right_shift(mixed, _16, out=mixed)
        np.multiply(mixed, side, out=mixed)
        np.right_shift(mixed, _16, out=mixed)
        # ... added modulo the side: where the sum is below it, less the side is huge.
        np.add(mixed, left, out=mixed)
        np.subtract(mixed, side, out=left)
        np.minimum(mixed, left, out=left)
        left, right = right, left
        np.add(key, step, out=key)
    return left, right


def _hash(x: _U64) -> _U64:
    """SplitMix64's finaliser: every bit of the argument moves every bit of the result."""
    x = x + _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    mixed: _U64 = x ^ (x >> _31)
    return mixed
