"""Bounded buffers, one for each class, that hold the samples of a stream until they are handed out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_fair.common.arrays import Floats, Ints


class ClassBuffers:
    """Holds a bounded number of samples of each class, and hands each sample out a bounded number of times.

    The least used samples are handed out first, and among these the oldest. If a buffer is full, a new sample replaces
    the most used one, and among these the oldest.

    Args:
        num_classes: Number of classes ``K``.
        limit: Largest number of samples held of a class, at least 1.
        max_reuse: Largest number of times that a sample is handed out, at least 1.

    Attributes:
        available: Number of samples of each class that can be handed out, repeats included, int64, shape ``(K,)``.
        num_held: Number of samples held.
        num_unused: Number of those that have never been handed out.

    Example:
        >>> buffers = ClassBuffers(num_classes=2, limit=2, max_reuse=2)
        >>> buffers.add({1: ["a", "b", "c"]})
        >>> buffers.take(np.array([0, 3])), buffers.available.tolist()
        (['b', 'c', 'b'], [0, 1])
    """

    def __init__(self, num_classes: int, limit: int, max_reuse: int) -> None:
        self._limit, self._max_reuse = limit, max_reuse
        # For each class, the samples by number of uses, the oldest first; a level without samples has no entry.
        self._levels: list[dict[int, list[Any]]] = [{} for _ in range(num_classes)]
        self.available: Ints = np.zeros(num_classes, dtype=np.int64)
        self.num_held = self.num_unused = 0

    def add(self, by_class: Mapping[int, list[Any]]) -> None:
        """Hold these samples of each class, given from oldest to newest; of more than the limit, the newest."""
        for label, samples in by_class.items():
            levels, new = self._levels[label], samples[-self._limit :]
            excess = sum(map(len, levels.values())) + len(new) - self._limit
            while excess > 0:
                uses = max(levels)
                dropped = _pop_oldest(levels, uses, excess)
                self.available[label] -= len(dropped) * (self._max_reuse - uses)
                excess -= len(dropped)
                self._count(-len(dropped), uses)
            levels.setdefault(0, []).extend(new)
            self._count(len(new), 0)
            self.available[label] += len(new) * self._max_reuse

    def take(self, counts: Ints) -> list[Any]:
        """Hand out ``counts`` samples of each class, at most ``available``, ordered by class; shape ``(K,)``."""
        self.available -= counts
        taken: list[Any] = []
        classes = np.flatnonzero(counts)
        for label, count in zip(classes.tolist(), counts[classes].tolist(), strict=True):
            levels = self._levels[label]
            while count > 0:
                uses = min(levels)
                samples = _pop_oldest(levels, uses, count)
                taken += samples
                count -= len(samples)
                self._count(-len(samples), uses)
                if uses + 1 < self._max_reuse:
                    levels.setdefault(uses + 1, []).extend(samples)
                    self._count(len(samples), uses + 1)
        return taken

    def _count(self, number: int, uses: int) -> None:
        """Count samples that come, or go if the number is negative, and have been used ``uses`` times."""
        self.num_held += number
        self.num_unused += number * (uses == 0)

    def capture(self) -> list[list[list[Any]]]:
        """Return the samples held, of each class and number of uses, the oldest first, in lists that are not copied."""
        return [[levels.get(uses, []) for uses in range(max(levels, default=-1) + 1)] for levels in self._levels]

    def restore(self, captured: list[list[list[Any]]]) -> None:
        """Hold the samples that ``capture`` returned in place of all others."""
        self._levels = [{uses: part for uses, part in enumerate(levels) if part} for levels in captured]
        self.available[:] = 0
        self.num_held = self.num_unused = 0
        for label, levels in enumerate(self._levels):
            for uses, samples in levels.items():
                self.available[label] += len(samples) * (self._max_reuse - uses)
                self._count(len(samples), uses)


def _pop_oldest(levels: dict[int, list[Any]], uses: int, count: int) -> list[Any]:
    """Remove and return up to ``count`` samples, the oldest of those used ``uses`` times."""
    level = levels[uses]
    if count >= len(level):
        return levels.pop(uses)
    oldest = level[:count]
    del level[:count]
    return oldest


def cap_mix(probs: Floats, caps: Floats) -> Floats:
    """Cap a class mix, and distribute the excess over the other classes in proportion.

    Returns ``min(level * p, caps)``, with the ``level`` at which it sums to one, shape ``(K,)``.

    Args:
        probs: Class mix ``p``, shape ``(K,)``, summing to one.
        caps: Largest share of each class, shape ``(K,)``, summing to at least one. If the caps of all classes with a
            positive probability sum to less than one, the other classes get the rest in proportion to their caps.

    Example:
        >>> cap_mix(np.array([0.5, 0.3, 0.2]), np.array([0.1, 1.0, 1.0])).round(2)
        array([0.1 , 0.54, 0.36])
    """
    if (probs <= caps).all():
        return probs
    wanted = np.flatnonzero(probs)
    shares, limits = probs[wanted], caps[wanted]
    if limits.sum() <= 1.0:
        mix, others = np.where(probs > 0, caps, 0.0), np.where(probs > 0, 0.0, caps)
        if others.any():
            mix += others * ((1.0 - mix.sum()) / others.sum())
        return np.asarray(mix / mix.sum())
    # The order in which classes reach their caps as the level rises; levels[i] assumes that those before i are capped.
    order = (limits / shares).argsort(kind="stable")
    shares, limits = shares[order], limits[order]
    remaining = 1.0 - np.concatenate(([0.0], np.cumsum(limits)[:-1]))
    levels = remaining / np.cumsum(shares[::-1])[::-1]
    level = levels[np.argmax(levels * shares <= limits)]
    return np.asarray(np.minimum(level * probs, caps))


def limit_counts(counts: Ints, stock: Ints) -> Ints:
    """Replace samples beyond the stock, which rounding can add, by samples of the classes with the most left."""
    limited = np.minimum(counts, stock)
    for _ in range(int(counts.sum() - limited.sum())):
        limited[np.argmax(stock - limited)] += 1
    return limited
