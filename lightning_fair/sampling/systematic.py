"""Systematic sampling: the class counts of a batch, each the floor or the ceiling of its expectation."""

from __future__ import annotations

import numpy as np

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_counts import ClassCounts

_BLOCK = 64  # draws whose random numbers are generated at once
_LARGE = 2**12  # the shuffle of a larger batch is generated alone, to save memory


def systematic_counts(probs: Floats, size: int, order: Ints, start: float) -> ClassCounts:
    """Draw the class counts of a batch by systematic sampling.

    Intervals of length ``size * p`` are laid end to end in a random order of the classes. The count of a class is the
    number of the points ``u, u + 1, ..., u + size - 1`` in its interval, with a single ``u`` uniform in (0, 1). The
    count is the floor or the ceiling of ``size * p``, its expectation is exactly ``size * p``, and the counts sum to
    ``size``. The order is random because a fixed one would keep some pairs of classes from ever being drawn together.

    Args:
        probs: Class mix, float64, shape ``(K,)``, summing to one.
        size: Number of samples in the batch.
        order: A random permutation of ``range(K)``.
        start: The ``u``, in (0, 1), farther from 0 and 1 than rounding errors of ``size``.

    Returns:
        The counts, each at least 1. A class of probability zero is never drawn.

    Reference:
        W. G. Madow (1949), "On the theory of systematic sampling, II".

    Example:
        >>> systematic_counts(np.array([0.5, 0.5]), 4, np.array([1, 0]), 0.5).labels
        array([1, 1, 0, 0])
    """
    edges = probs.take(order).cumsum()
    edges *= size
    edges += 1.0 - start
    below = np.zeros(probs.size + 1, np.int64)  # number of points below each edge
    below[1:] = edges
    if below.item(-1) != size:  # by rounding
        np.minimum(below, size, out=below)
        below[below == below[-1]] = size
    counts = below[1:] - below[:-1]
    (drawn,) = counts.nonzero()
    return ClassCounts(order.take(drawn), counts.take(drawn))


class DrawRandomness:
    """The random numbers of each draw, a function of the seed and the number of the draw alone.

    They are generated for a block of 64 draws at once, because for a single draw a new generator and an order of 1,000
    classes would each take a fifth of its time. The draws of a block share the order of the classes: it only decides
    which classes tend to be rounded up together. Each draw has its own start and its own shuffle, so the distribution
    of a single draw is the same as with an order of its own. Order and start do not depend on the length of the
    shuffle, which is a rank's batch: with any number of ranks, the batch of all has the same class counts.

    Args:
        seed: Seed, at least 0.
        num_classes: Number of classes ``K``.
        size: Length of the shuffle.

    Example:
        >>> order, start, shuffle = DrawRandomness(seed=0, num_classes=3, size=4)(7)
        >>> sorted(order.tolist()), 0.0 < start < 1.0, sorted(shuffle.tolist())
        ([0, 1, 2], True, [0, 1, 2, 3])
    """

    def __init__(self, seed: int, num_classes: int, size: int) -> None:
        self._seed, self._num_classes, self._size = seed, num_classes, size
        self._block = -1

    def __call__(self, draw_id: int) -> tuple[Ints, float, Ints]:
        """Return the order of the classes and the start for :func:`systematic_counts`, and a shuffle of the batch."""
        block, place = divmod(draw_id, _BLOCK)
        is_large = self._size > _LARGE
        if block != self._block:
            rng = np.random.default_rng([self._seed, block])
            self._order: Ints = rng.permutation(self._num_classes)
            self._starts: list[float] = ((rng.integers(0, 2**32, _BLOCK) + 0.5) / 2**32).tolist()
            self._shuffles: Ints = rng.random((_BLOCK, 0 if is_large else self._size)).argsort(axis=1)
            self._block = block
        if is_large:
            shuffle = np.random.default_rng([self._seed, draw_id, 0, 1]).permutation(self._size)
        else:
            shuffle = self._shuffles[place]
        return self._order, self._starts[place], shuffle
