"""The items of each class, drawn in passes of random order."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Ints
from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.common.label_sets import LabelSets

_U64: TypeAlias = NDArray[np.uint64]

_BLOCK = 1024  # a block has several passes of a small class, up to about this number of items
_LARGE = 2 * _BLOCK  # a class with more items is shuffled alone, by a generator of its own
_CHUNK = 2**18  # number of items of small classes shuffled at once, which takes about 60 bytes an item
# The constants of SplitMix64.
_GOLDEN, _MIX_1, _MIX_2 = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_27, _30, _31 = np.array([27, 30, 31], np.uint64)


class ClassPools:
    """Draws items of given classes so that the numbers of uses of any two items of a class differ by at most one.

    The items of a class are drawn in passes. A pass contains every item once, in a random order that is a function of
    the seed, the class and the number of the pass. The state is therefore the number of items drawn of each class. If
    a pass ends within a batch, the batch continues with the next pass and can contain an item twice.

    The items of a class are stored in two blocks, in the order in which they are drawn. A block is one pass of a large
    class, or several passes of a small one. When a class has used up both blocks, a new one is shuffled for each small
    class that has used up its first. Shuffling many classes at once costs little more than shuffling one, because a
    call of NumPy takes as long as its work on a thousand items. The blocks take at most 16 bytes an item.

    An item can have several classes. It has a place of its own in the passes of each.

    Args:
        labels: Class of each item, integers in ``[0, K)``, shape ``(N,)``; or the classes of each item.
        num_classes: Number of classes ``K``.
        seed: Seed of the orders, at least 0.

    Attributes:
        sizes: Number of items of each class, int64, shape ``(K,)``.

    Example:
        >>> pools = ClassPools(np.array([0, 0, 1, 0]), num_classes=2)
        >>> sorted(pools.draw(ClassCounts(np.array([0, 1]), np.array([3, 1]))).tolist())
        [0, 1, 2, 3]
    """

    def __init__(self, labels: NDArray[Any] | LabelSets, num_classes: int, seed: int = 0) -> None:
        owners = labels.samples if isinstance(labels, LabelSets) else None  # of the classes of all items
        labels = labels.classes if isinstance(labels, LabelSets) else labels
        self.sizes: Ints = np.bincount(labels, minlength=num_classes).astype(np.int64)
        self._seed = seed
        self._class_keys: _U64 = np.random.default_rng(seed).integers(0, 2**64, num_classes, dtype=np.uint64)
        is_narrow = labels.size <= 2**31
        # No block is shorter than the average class, so the first blocks of all classes have at most 2 * N items.
        shortest = min(labels.size // num_classes, _BLOCK) if is_narrow else 0
        self._passes: Ints = np.maximum(-(-shortest // np.maximum(self.sizes, 1)), 1)  # of a block
        self._lengths: Ints = self.sizes * self._passes
        self._ends: Ints = 2 * self._lengths.cumsum()
        self._items = np.empty(2 * int(self._lengths.sum()), np.int32 if is_narrow else np.int64)
        order = labels.astype(np.min_scalar_type(num_classes), copy=False).argsort(kind="stable")
        order = order if owners is None else owners[order]
        first = 0
        for size, passes, end in zip(self.sizes.tolist(), self._passes.tolist(), self._ends.tolist(), strict=True):
            self._items[end - passes * size : end] = np.tile(order[first : first + size], passes)
            first += size
        self._blocks: Ints = np.full(num_classes, -1)  # number of the second block of each class
        self._next: Ints = self._ends.copy()  # place of the next item of each class

    @property
    def drawn(self) -> Ints:
        """Number of items drawn of each class so far, int64, shape ``(K,)``. Set it to restore a position."""
        return np.asarray((self._blocks + 1) * self._lengths - (self._ends - self._next))

    @drawn.setter
    def drawn(self, drawn: Ints) -> None:
        blocks = (drawn - 1) // np.maximum(self._lengths, 1)
        (moved,) = (blocks != self._blocks).nonzero()
        self._blocks = blocks
        self._next = drawn - (blocks + 1) * self._lengths + self._ends
        self._shuffle(moved[blocks[moved] >= 0])

    def draw(self, split: ClassCounts) -> NDArray[Any]:
        """Return the next items in the order of ``split.labels``, shape ``(batch,)``; an empty class has count 0."""
        classes, counts = split
        after, last = self._next[classes], counts.cumsum()
        after += counts
        self._next[classes] = after
        places = (after - last).repeat(counts)
        places += np.arange(places.size)
        items: NDArray[Any] = self._items.take(places, mode="clip")
        self._draw_missing(items, classes, after - self._ends[classes], last)
        return items

    def _draw_missing(self, items: NDArray[Any], classes: Ints, missing: Ints, last: Ints) -> None:
        """Write the last items of classes that have used up both blocks into the batch ``items``.

        The items of each class end at ``last`` in the batch. If ``missing`` is positive, that many of them are missing.
        """
        while (missing > 0).any():
            is_short = missing > 0
            classes, missing, last = classes[is_short], missing[is_short], last[is_short]
            self._next[classes] = self._ends[classes]
            self._begin_blocks()
            begins = self._next[classes]
            self._next[classes] += missing
            items[_ranges(last - missing, missing)] = self._items.take(_ranges(begins, missing), mode="clip")
            missing = missing - self._lengths[classes]

    def _begin_blocks(self) -> None:
        """Add a block to each class that has used up both, and to each small class that has used up its first."""
        unused = np.where(self._lengths > _LARGE, 0, self._lengths)
        (used,) = ((self._next >= self._ends - unused) & (self.sizes > 0)).nonzero()
        self._blocks[used] += 1
        self._next[used] -= self._lengths[used]
        self._shuffle(used)

    def _shuffle(self, classes: Ints) -> None:
        """Replace the first block of each class by the second, and shuffle the second for its new number."""
        lengths = self._lengths[classes]
        for label in classes[lengths > _LARGE].tolist():
            first, second = self._items[self._ends[label] - 2 * self._lengths[label] : self._ends[label]].reshape(2, -1)
            first[:] = second
            second.sort()
            np.random.default_rng([self._seed, label, self._blocks[label]]).shuffle(second)
        small = classes[lengths <= _LARGE]
        for part in np.split(small, np.diff(self._lengths[small].cumsum() // _CHUNK).nonzero()[0] + 1):
            if part.size:
                self._sort_by_hash(part)

    def _sort_by_hash(self, classes: Ints) -> None:
        """Do the same by sorting the items of each pass by a hash of the seed, the class, the pass and the item."""
        lengths, passes = self._lengths[classes], self._passes[classes]
        numbers = _ranges(self._blocks[classes] * passes, passes)
        keys = _hash(self._class_keys[classes].repeat(passes) + numbers.view(np.uint64))
        sizes = self.sizes[classes].repeat(passes)
        places = _ranges(self._ends[classes] - lengths, lengths)
        items = self._items[places]
        hashes = items.astype(np.uint64)
        hashes *= _GOLDEN
        hashes += keys.repeat(sizes)
        hashes = _hash(hashes)
        # The first bits separate the passes. The others, at least 45, order up to 2,048 items of a pass. Two of them
        # agree in less than one of ten million passes, and only then can the order depend on the former one.
        bits = keys.size.bit_length()
        hashes >>= np.uint64(bits)
        hashes |= (np.arange(keys.size, dtype=np.uint64) << np.uint64(64 - bits)).repeat(sizes)
        self._items[places - lengths.repeat(lengths)] = items
        self._items[places] = items[hashes.argsort()]


def _ranges(begins: Ints, lengths: Ints) -> Ints:
    """Return ``range(begin, begin + length)`` of each, one after the other."""
    ends = lengths.cumsum()
    ranges: Ints = np.arange(ends.item(-1))
    ranges += (begins - ends + lengths).repeat(lengths)
    return ranges


def _hash(numbers: _U64) -> _U64:
    """Return the finalizer of SplitMix64: each bit of the argument affects all bits of the result."""
    mixed: _U64 = numbers ^ (numbers >> _30)
    mixed *= _MIX_1
    mixed ^= mixed >> _27
    mixed *= _MIX_2
    mixed ^= mixed >> _31
    return mixed
