"""The items of each class, drawn least used first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.class_counts import ClassCounts

_U32: TypeAlias = NDArray[np.uint32]
_U64: TypeAlias = NDArray[np.uint64]

# Classes of like sizes are permuted at a time: up to so many items in so many rounds of a network, or sorted where
# it says 0. With fewer rounds, pairs of places are not all alike (test_pools.py: as far as a million keys can tell).
_ROUNDS = {8: 0, 16: 0, 32: 0, 64: 0, 128: 0, 256: 0, 1024: 8, 2**32: 6}
_KINDS = tuple(_ROUNDS)
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


class Owed(NamedTuple):
    """Items passed over, which come first next time.

    Attributes:
        classes: The class of each, int64, shape ``(M,)``.
        numbers: Its number among the items drawn of the class, int64, shape ``(M,)``; those of a class in turn.
        items: The items, shape ``(M,)``.
    """

    classes: Ints
    numbers: Ints
    items: NDArray[Any]

    @classmethod
    def of(cls, taken: Ints, items: Mapping[int, NDArray[Any]]) -> Owed:
        """Return the items that come next of some classes, of which so many have been taken."""
        labels = [label for label, mine in items.items() for _ in mine]
        numbers = [int(taken[label]) + place for label, mine in items.items() for place in range(len(mine))]
        found = np.concatenate([np.zeros(0, np.int64), *items.values()])
        return cls(np.array(labels, np.int64), np.array(numbers, np.int64), found)

    def left(self, taken: Ints) -> Owed:
        """Return what is still owed where so many items of each one's class have been taken, shape ``(M,)``."""
        left = self.numbers >= taken
        return Owed(self.classes[left], self.numbers[left], self.items[left])


class PoolState:
    """Where the pools stand: items drawn per class, and items passed over that come first next time.

    One of pools at work copies nothing: draws that follow are linked to it, and taken off again when it is read. So
    whoever keeps one keeps the class counts of all draws after it.

    Args:
        taken: Items drawn of each class, shape ``(K,)``; or the pools, of what they have drawn.
        owed: Items passed over, some of which may have come by now; never changed.
    """

    __slots__ = ("__weakref__", "_later", "_owed", "_source", "_split")

    def __init__(self, taken: Ints | ClassPools, owed: Owed) -> None:
        self._source, self._owed = taken, owed
        self._split: ClassCounts | None = None
        self._later: PoolState | None = None  # where the pools stood after a draw split so

    @classmethod
    def of(cls, taken: Ints, owed: Mapping[int, NDArray[Any]]) -> PoolState:
        """Return the state whose properties these are."""
        return cls(taken, Owed.of(taken, owed))

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
    def owed(self) -> dict[int, NDArray[Any]]:
        """By class, the items passed over that come first next time."""
        if not self._owed.items.size:
            return {}
        left = self._owed.left(self.taken[self._owed.classes])
        return {label: left.items[left.classes == label] for label in dict.fromkeys(left.classes.tolist())}

    def followed(self, split: ClassCounts, owed: Owed) -> PoolState:
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
        >>> sorted(pools.draw(ClassCounts.of(np.array([0, 0, 0, 1]))).tolist())
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
        self._owed = Owed.of(self.sizes, {})  # as in the state
        self._now = PoolState(self, self._owed)
        self._window = 0
        width = min(max(_AHEAD // num_classes, _FEWEST), _MOST) // 2 * 2
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
        self._owed = Owed.of(taken, owed)
        self._now = PoolState(self, self._owed)

    @property
    def drawn(self) -> Ints:
        """Items handed out of each class so far, shape ``(K,)``, a new array."""
        drawn = self._next - self._rows
        drawn += self._first
        return drawn

    def draw(self, split: ClassCounts) -> NDArray[Any]:
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
                self._end_passes(items, split)
        self._now = self._now.followed(split, self._owed)
        return items

    # What follows runs where a row or a pass ends.

    def _go_on(self, items: NDArray[Any], split: ClassCounts, spots: Ints) -> None:
        """Put into ``items`` those of a draw for which some rows are too short."""
        labels = split.labels
        ranks = spots - self._next[labels]
        most = int(ranks.max()) + 1
        if most > self._width // 2 and 4 * most * self.sizes.size <= _MOST_ROOM:
            self._make_rows(4 * most, self.drawn)
            spots = self._next[labels] + ranks
        self._fill(np.unique(labels[spots - self._rows[labels] >= self._width]), most)
        spots = self._next[labels] + ranks
        self._next[labels] = spots + 1  # that of the last of a class stays
        items[:] = self._ring.take(spots, mode="clip")
        (beyond,) = (spots - self._rows[labels] >= self._width).nonzero()
        if beyond.size:  # worked out for this draw, and the rows used up
            short, begins, counts = np.unique(labels[beyond], return_index=True, return_counts=True)
            by_kind = self._kinds[short].argsort(kind="stable")
            short, begins, counts = short[by_kind], begins[by_kind], counts[by_kind]
            numbers = self._first[short] + self._width
            items[beyond[_ramps(begins, counts)]] = self._numbered(short, numbers, counts)
            self._next[short] = self._rows[short] + self._width
            self._first[short] += counts
        self._end_passes(items, split)

    def _end_passes(self, items: NDArray[Any], split: ClassCounts) -> None:
        """See to the passes that end in a draw: make ``items`` plain, and different where they can be."""
        np.maximum(items, ~items, out=items)
        if split.counts is None or split.offsets is None:
            return
        ordered = items.copy()
        ordered.sort()
        twice = ordered[1:] == ordered[:-1]
        if not np.count_nonzero(twice):
            return
        order = items.argsort()
        again = np.maximum(order[1:][twice], order[:-1][twice])  # places of items that are there before
        again.sort()
        of = split.offsets.searchsorted(again, side="right") - 1
        enough = (split.counts <= self.sizes[split.classes])[of]
        if enough.any():
            many = np.bincount(of[enough])
            (of,) = many.nonzero()
            self._pass_over(items, ordered, again[enough], split.classes[of], split.counts[of], many[of])

    def _pass_over(
        self, items: NDArray[Any], ordered: NDArray[Any], again: Ints, labels: Ints, counts: Ints, many: Ints
    ) -> None:
        """Replace what is there before in ``items`` by what comes next of its class, and owe it.

        Args:
            items: Items of the draw, shape ``(size,)``.
            ordered: The same in order.
            again: Places of the items to replace, class by class.
            labels: Their classes, shape ``(C,)``.
            counts: Items of each class in the draw.
            many: Items of each class to replace.
        """
        sizes, spots, ends = self.sizes[labels], self._next[labels], self._rows[labels] + self._width
        after = spots - self._rows[labels] + self._first[labels]  # number of the first item after the draw
        # Each item of the draw that the pass ends with can be in the way once: with so many more there are enough.
        left = sizes - (after - counts) % sizes
        more = self._ring.take(_ramps(spots, left), mode="clip")
        (short,) = (spots + left > ends).nonzero()
        if short.size:
            short = short[self._kinds[labels[short]].argsort(kind="stable")]
            places = _ramps((left.cumsum() - left)[short], left[short])
            more[places] = self._numbered(labels[short], after[short], left[short])
        np.maximum(more, ~more, out=more)
        new = ordered.take(ordered.searchsorted(more), mode="clip") != more
        found = new.cumsum()  # up to each, of its class
        if labels.size > 1:
            found -= np.concatenate(([0], found[left.cumsum()[:-1] - 1])).repeat(left)
        wanted, nth = many.repeat(left), np.arange(labels.size)
        passed = (~new & (found < wanted)).nonzero()[0]
        owed = np.concatenate((items[again], more[passed]))
        nth = np.concatenate((nth.repeat(many), nth.repeat(left)[passed]))
        items[again] = more[new & (found <= wanted)]
        if passed.size:
            in_turn = nth.argsort(kind="stable")
            owed, nth = owed[in_turn], nth[in_turn]
            many = np.bincount(nth)
        # They come next: numbered on from here, in place of those that were taken instead.
        numbers = _ramps(after, many)
        self._owed = Owed(*map(np.concatenate, zip(self._owed, (labels[nth], numbers, owed), strict=True)))
        owed[(numbers + 1) % sizes[nth] == 0] ^= -1
        fits = spots + many <= ends
        mine = fits[nth]
        self._ring[(numbers + (spots - after)[nth])[mine]] = owed[mine]
        if not fits.all():  # the other rows count as used up: they are filled before the next draw from them
            self._next[labels[~fits]] = ends[~fits]
            self._first[labels[~fits]] = after[~fits] - self._width

    # -- rows of items worked out in advance -------------------------------------------------------------

    def _make_rows(self, width: int, taken: Ints) -> None:
        """Begin with rows that are all used up: a row is used from its class's spot on, and empty at its end."""
        self._width = width
        self._rows: Ints = np.arange(self.sizes.size) * (width + 1)
        self._before: NDArray[Any] = np.full(self.sizes.size * (width + 1) + 1, self._none, dtype=self._items.dtype)
        self._ring = self._before[1:]  # so in the other an item lies where the class goes on after it
        self._next: Ints = self._rows + width  # spot of the next item of each class
        self._first: Ints = taken - width  # number of the item that each row begins with

    def _fill(self, wanted: Ints, most: int) -> None:
        """Go on with the rows of the classes ``wanted`` by at least ``most`` items, and with some of the others'."""
        K, width = self.sizes.size, self._width
        classes = self._owed.classes
        self._owed = self._owed.left(self._first[classes] + self._next[classes] - self._rows[classes])
        step = min(max(_AT_A_TIME // max(wanted.size, 1), most), width // 2)
        begin = self._window % K
        self._window = end = min(begin + max(_AT_A_TIME // step - wanted.size, 1), K)
        window = self._in_turn[begin:end]
        classes = np.concatenate((window, np.setdiff1d(wanted, window, assume_unique=True)))
        used = self._next[classes] - self._rows[classes]
        ready = (used >= step) & (self.sizes[classes] > 0)
        if not ready.any():
            return
        classes, rest = classes[ready], width - int(used[ready].min())
        classes = classes[self._kinds[classes].argsort(kind="stable")]
        rows = self._ring.reshape(K, width + 1)
        new = self._numbered(classes, self._first[classes] + width, np.full(classes.size, step))
        rows[classes, width - rest - step : width - step] = rows[classes, width - rest : width]
        rows[classes, width - step : width] = new.reshape(-1, step)
        self._first[classes] += step
        self._next[classes] -= step

    def _numbered(self, classes: Ints, numbers: Ints, widths: Ints) -> NDArray[Any]:
        """Return so many items of each class from a number on, class by class, ``~item`` where a pass ends.

        The classes are those of each kind in turn, each once.
        """
        sizes, offsets = self.sizes[classes], np.cumsum(widths) - widths
        passes, begun = np.divmod(numbers, sizes)
        # What is wanted of a class is made of stretches, each of a pass of its own.
        many = (begun + (widths - 1)) // sizes + 1
        nth, last = np.arange(classes.size).repeat(many), np.cumsum(many)
        later = np.arange(nth.size) - (last - many).repeat(many)
        sizes = sizes[nth]
        begins = later * sizes - begun[nth]
        ends = begins + sizes
        lengths = np.minimum(ends, widths[nth]) - np.maximum(begins, 0)
        keys = _hash(self._class_keys[classes[nth]] + (passes[nth] + later).view(np.uint64))
        upto = np.cumsum(lengths)
        places = np.arange(upto[-1], dtype=np.uint32)
        places -= (offsets[nth] + begins).astype(np.uint32).repeat(lengths)  # below 0 and back, modulo 2**32
        spots = permute(places, sizes, keys, lengths).astype(np.int64)
        spots += self._starts[classes].repeat(widths)
        items = self._items.take(spots)
        items[upto[ends <= widths[nth]] - 1] ^= -1
        owed = self._owed
        if owed.items.size:
            in_order = classes.argsort()
            nth = in_order.take(classes[in_order].searchsorted(owed.classes), mode="clip")
            column = owed.numbers - numbers[nth]
            mine = (classes[nth] == owed.classes) & (column >= 0) & (column < widths[nth])
            places, new = (offsets[nth] + column)[mine], owed.items[mine]
            items[places] = np.where(items[places] < 0, ~new, new)
        return items


def _ramps(begins: Ints, counts: Ints) -> Ints:
    """Return the numbers from each of ``begins`` on, so many of each, side by side."""
    ends: Ints = counts.cumsum()
    ramps: Ints = np.arange(ends.item(-1))
    ramps += (begins - (ends - counts)).repeat(counts)
    return ramps


def permute(places: _U32, sizes: Ints, keys: _U64, lengths: Ints) -> _U32:
    """Return where each place lies in a pseudo-random permutation of ``range(size)`` chosen by its key.

    A Feistel network whose halves are the row and the column in a table about as wide as high, the last row of which
    ends with the range. In turns every column, and every row that is not cut off, is turned in itself by a number that
    depends on the column (the row): a bijection for every size and key, computed one place at a time. Up to 256 items
    are put in the order of as many random numbers instead, which costs as much whether one place is wanted or all.

    Args:
        places: Places in ``[0, size)``, stretch after stretch of those with one key, shape ``(P,)``.
        sizes: Size of each stretch's range, in ``[1, 2**32 - 2**16]``, those of ``_KINDS`` in turn, shape ``(S,)``.
        keys: Key of each stretch's permutation, shape ``(S,)``.
        lengths: Places of each stretch, summing to ``P``, shape ``(S,)``.

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
            result[first:last] = _turned(*kind, rounds) if rounds else _shuffled(*kind, most)
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
