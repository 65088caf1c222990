"""The items of each class, drawn least used first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.simplex import Ints, Split

_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]

# Classes of like sizes are permuted at a time. With so many rounds up to so many items, two places lie alike in every
# pair of positions (test_pools.py).
_ROUNDS = {8: 0, 16: 0, 32: 0, 64: 12, 128: 8, 256: 8, 1024: 8, 2**32: 6}
_KINDS = tuple(_ROUNDS)
_LEAST_SORTED, _MOST_SORTED = 32, 256
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _32 = (np.uint64(bits) for bits in (27, 30, 31, 32))
_GOLDEN_32, _ODD, _ODD_2 = (np.uint32(odd) for odd in (0x9E3779B9, 0x7FEB352D, 0x846CA68B))
_NEXT = np.array(1)  # NumPy's own numbers make for quicker calls
_ONE, _15, _16, _ALL = (np.uint32(number) for number in (1, 15, 16, 2**32 - 1))
_SIGN = np.int32(31)

# Items worked out in advance: about so many at a time, which takes half a millisecond, and about so many in all;
# of a class at least and at most so many, an even number.
_AT_A_TIME, _AHEAD, _FEWEST, _MOST = 2**15, 2**19, 64, 2**14
_MOST_ROOM = 2**20  # the rows grow up to so many items where a batch takes more of a class than a row holds


class PoolState:
    """Where the pools stand: items drawn per class, and items passed over that come first next time.

    One of pools at work copies nothing: draws that follow are linked to it, and taken off again when it is read. So
    whoever keeps one keeps the class counts of all draws after it.

    Args:
        taken: Items drawn of each class, shape ``(K,)``; or the pools, of what they have drawn.
        owed: By class, the number of the first item passed over, and the items; never changed.
    """

    __slots__ = ("__weakref__", "_later", "_owed", "_source", "_split")

    def __init__(self, taken: Ints | ClassPools, owed: Mapping[int, tuple[int, Ints]]) -> None:
        self._source, self._owed = taken, owed
        self._split: Split | None = None
        self._later: PoolState | None = None  # where the pools stood after a draw split so

    @classmethod
    def of(cls, taken: Ints, owed: Mapping[int, Ints]) -> PoolState:
        """Return the state whose properties these are."""
        return cls(taken, {label: (int(taken[label]), items) for label, items in owed.items()})

    @property
    def taken(self) -> Ints:
        """Items drawn of each class so far, shape ``(K,)``, a new array."""
        state, since = self, []
        while state._later is not None and state._split is not None:
            since.append(state._split)
            state = state._later
        taken = state._source.drawn if isinstance(state._source, ClassPools) else state._source.copy()
        for split in since:
            taken[split.classes] -= split.sizes
        return taken

    @property
    def owed(self) -> dict[int, Ints]:
        """By class, the items passed over that come first next time."""
        taken, left = self.taken if self._owed else None, {}
        for label, (first, items) in self._owed.items():
            past = int(taken[label]) - first if taken is not None else 0
            if past < items.size:
                left[label] = items[max(past, 0) :]
        return left

    def followed(self, split: Split, owed: Mapping[int, tuple[int, Ints]]) -> PoolState:
        """Return where the pools stand after a draw split so."""
        self._split, self._later = split, PoolState(self._source, owed)
        return self._later

    def settle(self) -> None:
        """Follow the pools no longer."""
        self._source = self.taken

    def __reduce__(self) -> tuple[Any, ...]:
        return PoolState.of, (self.taken, self.owed)


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
        sizes: Items of each class, at most ``2**32 - 2**16``, int64, shape ``(K,)``.

    Example:
        >>> pools = ClassPools(np.array([0, 0, 1, 0]), num_classes=2)
        >>> sorted(pools.draw(Split.of(np.array([0, 0, 0, 1]))).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, labels: NDArray[Any], num_classes: int, seed: int = 0) -> None:
        self.sizes: Ints = np.bincount(labels, minlength=num_classes).astype(np.int64)
        # One array of the items, class by class; half the memory where their numbers fit 32 bits.
        narrow = labels.astype(np.min_scalar_type(num_classes), copy=False)
        order = np.argsort(narrow, kind="stable")
        self._items = order.astype(np.int32 if labels.size <= np.iinfo(np.int32).max else np.int64, copy=False)
        self._starts: Ints = np.concatenate(([0], np.cumsum(self.sizes)[:-1]))
        self._class_keys = _hash(
            np.arange(num_classes, dtype=np.uint64) ^ _hash(np.array([seed % 2**64], dtype=np.uint64))
        )
        self._kinds = np.searchsorted(_KINDS, self.sizes).astype(np.uint8)
        self._in_turn = self._kinds.argsort(kind="stable")  # so few kinds at a time
        # In the rows an item stands as it is, or as ~item (below 0) where its pass ends with it. A row ends with
        # the least number there is, so that the least of a draw says whether there is anything to look after.
        self._none = np.iinfo(self._items.dtype).min
        self._places: Ints = np.arange(0)  # 1, 2, 3, ... up to the largest batch so far
        self._owed: dict[int, tuple[int, Ints]] = {}  # as in the state
        self._now = PoolState(self, self._owed)
        self._window = 0
        width = min(max(_AHEAD // num_classes, _FEWEST), _MOST) // 2 * 2
        self._sorted_upto = min(max(2 * width, _LEAST_SORTED), _MOST_SORTED)  # more would be sorted than used
        self._make_rows(width, np.zeros(num_classes, dtype=np.int64))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_ring", "_now")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ring = self._before[1:]  # one memory, in a copy too
        self._now = PoolState(self, self._owed)

    @property
    def state(self) -> PoolState:
        """Where the pools stand. Setting it takes them back (or on) to exactly there."""
        return self._now

    @state.setter
    def state(self, state: PoolState) -> None:
        taken, owed = state.taken, state.owed
        self._now.settle()
        self._make_rows(self._width, taken)
        self._owed = {label: (int(taken[label]), items) for label, items in owed.items()}
        self._now = PoolState(self, self._owed)

    @property
    def drawn(self) -> Ints:
        """Items handed out of each class so far, shape ``(K,)``, a new array."""
        drawn = self._next - self._rows
        drawn += self._first
        return drawn

    def draw(self, split: Split) -> NDArray[Any]:
        """Take the next items of some classes, least used first.

        Args:
            split: How many of which; not to be written to.

        Returns:
            Indices of the items, int32 or int64, shape ``(size,)``.
        """
        classes, counts, begins = split
        after = self._next[classes]
        if counts is None or begins is None:  # the rule where classes are many
            after += _NEXT
            spots = after
        else:
            spots = (after - begins).repeat(counts)
            if spots.size > self._places.size:
                self._places = np.arange(1, spots.size + 1)
            spots += self._places[: spots.size]
            after += counts
        items = self._before.take(spots, mode="clip")
        least = items.item(items.argmin()) if items.size else 0
        if least == self._none:
            self._go_on(items, split, spots - 1)
        else:
            self._next[classes] = after
            if least < 0:
                self._end_passes(items, split, spots - 1)
        self._now = self._now.followed(split, self._owed)
        return items

    # What follows runs where a row or a pass ends.

    def _go_on(self, items: NDArray[Any], split: Split, spots: Ints) -> None:
        """Put into ``items`` those of a draw for which some rows are too short."""
        labels, numbers = split.labels, None
        ranks = spots - self._next[labels]
        most = int(ranks.max()) + 1
        if most > self._width // 2 and 4 * most * self.sizes.size <= _MOST_ROOM:
            self._make_rows(4 * most, self.drawn)
        self._fill(np.unique(labels[spots - self._rows[labels] >= self._width]))
        spots = self._next[labels] + ranks
        if (spots - self._rows[labels]).max() >= self._width:  # worked out for this draw, and the rows used up
            numbers = spots - self._rows[labels] + self._first[labels]
            items[:] = self._numbered(labels, numbers, 1)[:, 0]
            spots = self._rows[labels] + (self._width - 1)
            self._first[labels] = numbers + (1 - self._width)  # that of the last of a class stays
        else:
            items[:] = self._ring.take(spots)
        self._next[labels] = spots + 1
        self._end_passes(items, split, spots, numbers)

    def _end_passes(self, items: NDArray[Any], split: Split, spots: Ints, numbers: Ints | None = None) -> None:
        """See to the passes that end in a draw: make ``items`` plain, and different where they can be."""
        np.maximum(items, ~items, out=items)
        classes, counts, begins = split
        if counts is None or begins is None:
            return
        ordered = items.copy()
        ordered.sort()
        if not np.count_nonzero(ordered[1:] == ordered[:-1]):
            return
        order = items.argsort()
        ordered = items[order]
        twice = order[1:][ordered[1:] == ordered[:-1]]
        self._owed = self._owed.copy()  # the one before belongs to the states before
        for number in set((begins.searchsorted(twice, side="right") - 1).tolist()):
            label, count, begin = classes.item(number), counts.item(number), begins.item(number)
            size, row, spot = self.sizes.item(label), self._rows.item(label), spots.item(begin)
            first = spot - row + self._first.item(label) if numbers is None else numbers.item(begin)
            if count > size:
                continue
            # Each item left of this pass can be in the way once: by then there are enough others.
            left, end = size - first % size, row + self._width
            if spot + count + left <= end:
                following = self._ring[spot : spot + count + left]
            else:
                following = self._numbered(np.array([label]), np.array([first]), count + left)[0]
            following = np.maximum(following, ~following)
            ending, coming = np.sort(following[:left]), following[left:]
            again = ending.take(ending.searchsorted(coming), mode="clip") == coming
            others = np.flatnonzero(~again)[: count - left]
            items[begin + left : begin + count] = coming[others]
            past = int(others[-1]) + 1
            owed = coming[:past][again[:past]]
            # They come next: numbered on from here, in place of those that were taken instead.
            after = first + count
            self._owed[label] = (after, owed.astype(np.int64))
            spot += count
            if spot + owed.size <= end:
                if (after + owed.size) % size == 0:
                    owed[-1] = ~owed[-1]
                self._ring[spot : spot + owed.size] = owed
            else:  # the row counts as used up: it is filled before the next draw from it
                self._next[label] = end
                self._first[label] = after - self._width

    def _still_owed(self) -> dict[int, tuple[int, Ints]]:
        """Return what is owed, without the classes whose items have been taken by now."""
        labels = np.fromiter(self._owed, np.int64, len(self._owed))
        ends = np.fromiter((first + items.size for first, items in self._owed.values()), np.int64, labels.size)
        open_ = ends > self._first[labels] + self._next[labels] - self._rows[labels]
        return {label: self._owed[label] for label in labels[open_].tolist()}

    # -- rows of items worked out in advance -------------------------------------------------------------

    def _make_rows(self, width: int, taken: Ints) -> None:
        """Begin with rows that are all used up: a row is used from its class's spot on, and empty at its end."""
        self._width = width
        self._rows: Ints = np.arange(self.sizes.size) * (width + 1)
        self._before: NDArray[Any] = np.full(self.sizes.size * (width + 1) + 1, self._none, dtype=self._items.dtype)
        self._ring = self._before[1:]  # so in the other an item lies where the class goes on after it
        self._next: Ints = self._rows + width  # spot of the next item of each class
        self._first: Ints = taken - width  # number of the item that each row begins with

    def _fill(self, wanted: Ints) -> None:
        """Go on with the rows that are half used up: those of the classes ``wanted``, and a window of the others."""
        K, half = self.sizes.size, self._width // 2
        self._owed = self._still_owed()
        begin = self._window % K
        self._window = end = min(begin + max(_AT_A_TIME // half - wanted.size, 1), K)
        window = self._in_turn[begin:end]
        classes = np.concatenate((window, np.setdiff1d(wanted, window, assume_unique=True)))
        classes = classes[(self._next[classes] - self._rows[classes] >= half) & (self.sizes[classes] > 0)]
        rows = self._ring.reshape(K, self._width + 1)
        new = self._numbered(classes, self._first[classes] + self._width, half)
        rows[classes, :half] = rows[classes, half : 2 * half]
        rows[classes, half : 2 * half] = new
        self._first[classes] += half
        self._next[classes] -= half

    def _numbered(self, classes: Ints, numbers: Ints, width: int) -> NDArray[Any]:
        """Return ``width`` items of each class from a number on, ``~item`` where a pass ends, shape ``(C, width)``."""
        by_kind = self._kinds[classes].argsort(kind="stable")
        classes, numbers = classes[by_kind], numbers[by_kind]
        sizes = self.sizes[classes]
        passes, begun = np.divmod(numbers, sizes)
        # A row is made of stretches, each of a pass of its own.
        many = (begun + (width - 1)) // sizes + 1
        rows, last = np.arange(classes.size).repeat(many), np.cumsum(many)
        nth = np.arange(rows.size) - (last - many).repeat(many)
        sizes = sizes[rows]
        begins = nth * sizes - begun[rows]
        ends = begins + sizes
        lengths = np.minimum(ends, width) - np.maximum(begins, 0)
        keys = _hash(self._class_keys[classes[rows]] + (passes[rows] + nth).view(np.uint64))
        places = np.arange(classes.size * width, dtype=np.uint32)
        places -= (rows * width + begins).astype(np.uint32).repeat(lengths)  # below 0 and back, modulo 2**32
        spots = permute(places, sizes, keys, lengths, self._sorted_upto).astype(np.int64).reshape(-1, width)
        spots += self._starts[classes][:, None]
        items = self._items.take(spots)
        over = np.cumsum(lengths)[ends <= width] - 1
        items.ravel()[over] ^= -1
        owing = np.fromiter(self._owed, np.int64, len(self._owed))
        for label in owing[np.isin(owing, classes)].tolist() if owing.size else ():
            (mine,) = np.nonzero(classes == label)
            first, owed = self._owed[label]
            offsets = numbers[mine][:, None] + np.arange(width) - first
            row, column = np.nonzero((offsets >= 0) & (offsets < owed.size))
            new = owed[offsets[row, column]]
            row = mine[row]
            items[row, column] = np.where(items[row, column] < 0, ~new, new)
        found = np.empty_like(items)
        found[by_kind] = items
        return found


def permute(places: _U32, sizes: Ints, keys: _U64, lengths: Ints, sorted_upto: int = _MOST_SORTED) -> _U32:
    """Return where each place lies in a pseudo-random permutation of ``range(size)`` chosen by its key.

    A Feistel network whose halves are the row and the column in a table about as wide as high, the last row of which
    ends with the range. In turns every column, and every row that is not cut off, is turned in itself by a number that
    depends on the column (the row): a bijection for every size and key, computed one place at a time. Up to
    ``sorted_upto`` items are put in the order of as many random numbers instead, which costs as much whether one place
    is wanted or all.

    Args:
        places: Places in ``[0, size)``, stretch after stretch of those with one key, shape ``(P,)``.
        sizes: Size of each stretch's range, in ``[1, 2**32 - 2**16]``, those of ``_KINDS`` in turn, shape ``(S,)``.
        keys: Key of each stretch's permutation, shape ``(S,)``.
        lengths: Places of each stretch, summing to ``P``, shape ``(S,)``.
        sorted_upto: From 32 to 256. Another one is another permutation.

    Reference:
        M. Luby and C. Rackoff (1988), "How to construct pseudorandom permutations from pseudorandom functions".

    Example:
        >>> permute(np.arange(5, dtype=np.uint32), np.array([5]), np.ones(1, np.uint64), np.array([5])).tolist()
        [2, 4, 0, 1, 3]
    """
    result = np.empty_like(places)
    begin = first = 0
    for most, rounds in _ROUNDS.items():
        end = int(np.count_nonzero(sizes <= most))
        last = first + int(np.add.reduce(lengths[begin:end]))
        if first < last:
            kind = places[first:last], sizes[begin:end], keys[begin:end], lengths[begin:end]
            result[first:last] = _shuffled(*kind, most) if most <= sorted_upto else _turned(*kind, rounds)
        begin, first = end, last
    return result


def _shuffled(places: _U32, sizes: Ints, keys: _U64, lengths: Ints, upto: int) -> _U32:
    """Permute up to so many items by sorting random numbers, whose last bits are the items."""
    most, bits = int(sizes.max()), np.uint32(upto - 1)
    spots = np.arange(most, dtype=np.uint32)
    low, high = keys.astype(np.uint32)[:, None], (keys >> _32).astype(np.uint32)[:, None]
    random = low + spots * _GOLDEN_32
    other = np.empty_like(random)
    for shift, odd in ((_16, _ODD), (_15, _ODD_2)):
        np.right_shift(random, shift, out=other)
        np.bitwise_xor(random, other, out=random)
        np.multiply(random, odd, out=random)
        np.bitwise_xor(random, high, out=random)
    np.bitwise_and(random, ~bits, out=random)
    np.bitwise_or(random, spots, out=random)
    np.copyto(random, _ALL, where=spots >= sizes.astype(np.uint32)[:, None])
    random.sort(axis=1)
    np.bitwise_and(random, bits, out=random)
    result: _U32 = random.take(places + np.arange(0, random.size, most).repeat(lengths))
    return result


def _turned(places: _U32, sizes: Ints, keys: _U64, lengths: Ints, rounds: int) -> _U32:
    """Permute by the network."""
    halves = np.frexp(sizes)[1].astype(np.uint32) >> _ONE
    whole = (sizes >> halves).astype(np.uint32)  # rows that go all the way
    # Of 64 bits of key one half begins the keys of the rounds, the other parts them.
    parts = keys.astype(np.uint32), (keys >> _32).astype(np.uint32) | _ONE
    half, whole, upto, key, step = (
        column.repeat(lengths) for column in (halves, whole, sizes.astype(np.uint32), *parts)
    )
    last = (_ONE << half) - _ONE
    upto += last
    row, column = places >> half, places & last
    mixed, other = np.empty_like(places), np.empty_like(places)
    signed = other.view(np.int32)
    for number in range(rounds):
        np.multiply(row if number % 2 else column, _ODD, out=mixed)
        np.bitwise_xor(mixed, key, out=mixed)
        np.add(key, step, out=key)
        np.multiply(mixed, mixed, out=mixed)
        np.right_shift(mixed, _16, out=mixed)
        if number % 2:
            # The columns of a row turn by that modulo a power of two; a last row that is cut off is left alone.
            np.subtract(row, whole, out=other)
            np.right_shift(signed, _SIGN, out=signed)
            np.bitwise_and(mixed, other, out=mixed)
            np.add(column, mixed, out=column)
            np.bitwise_and(column, last, out=column)
            continue
        # How long is the column? The upper bits make a number below that ...
        np.subtract(upto, column, out=other)
        np.right_shift(other, half, out=other)
        np.multiply(mixed, other, out=mixed)
        np.right_shift(mixed, _16, out=mixed)
        # ... added modulo it: where the sum is below it, less the length is huge.
        np.add(mixed, row, out=mixed)
        np.subtract(mixed, other, out=row)
        np.minimum(mixed, row, out=row)
    result: _U32 = np.left_shift(row, half, out=row)
    result += column
    return result


def _hash(x: _U64) -> _U64:
    """SplitMix64's finaliser: every bit of the argument moves every bit of the result."""
    x = x + _GOLDEN
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    mixed: _U64 = x ^ (x >> _31)
    return mixed
