"""What a stream's samples wait in: a bounded buffer per class, handed out least used first."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.labels import LABEL_KEYS, extract_labels

_FEW = 128  # samples that take no longer one by one than NumPy takes for its calls
_HOLDERS = (torch.Tensor, np.ndarray, tuple, list, dict)


class ClassBuffers:
    """Samples by class, a bounded number of each, and each handed out a bounded number of times.

    Samples that were handed out less come first, and of these the oldest. Where a buffer is full, a new sample
    takes the place of the one that was handed out most, and of these the oldest.

    Args:
        num_classes: Number of classes ``K``.
        limit: Most samples held of a class, at least 1.
        reuse: Most times that a sample is handed out, at least 1.

    Attributes:
        available: How often samples of each class can still be handed out, int64, shape ``(K,)``.

    Example:
        >>> buffers = ClassBuffers(num_classes=2, limit=2, reuse=2)
        >>> buffers.add({1: ["a", "b", "c"]})
        >>> buffers.take(np.array([0, 3])), buffers.available.tolist()
        (['b', 'c', 'b'], [0, 1])
    """

    def __init__(self, num_classes: int, limit: int, reuse: int) -> None:
        self._limit, self._reuse = limit, reuse
        # For each class, by how often they were handed out, the oldest first; only those levels that have samples.
        self._levels: list[dict[int, list[Any]]] = [{} for _ in range(num_classes)]
        self._held = [0] * num_classes
        self.available: Ints = np.zeros(num_classes, dtype=np.int64)

    @property
    def held(self) -> Ints:
        """Samples held of each class, int64, shape ``(K,)``."""
        return np.array(self._held, dtype=np.int64)

    def samples(self, label: int) -> list[Any]:
        """Return the samples held of a class."""
        return [sample for level in self._levels[label].values() for sample in level]

    def add(self, by_class: Mapping[int, list[Any]]) -> None:
        """Hold these samples of each class, the oldest first; of more than the limit, the newest.

        The lists become its own.
        """
        for label, samples in by_class.items():
            new = samples if len(samples) <= self._limit else samples[-self._limit :]
            levels = self._levels[label]
            excess = self._held[label] + len(new) - self._limit
            gain = len(new) * self._reuse
            if excess > 0:
                self._held[label] -= excess
                gain -= self._let_go(levels, excess)
            self._held[label] += len(new)
            self.available[label] += gain
            if 0 in levels:
                levels[0] += new
            else:
                levels[0] = new

    def _let_go(self, levels: dict[int, list[Any]], excess: int) -> int:
        """Drop so many samples; return how often they could still have been handed out."""
        lost = 0
        while excess > 0:
            uses = max(levels)
            level = levels[uses]
            leaving = min(excess, len(level))
            if leaving == len(level):
                del levels[uses]
            else:
                del level[:leaving]
            lost += leaving * (self._reuse - uses)
            excess -= leaving
        return lost

    def take(self, counts: Ints) -> list[Any]:
        """Hand out so many samples of each class, at most as many as are available; class by class."""
        self.available -= counts
        taken: list[Any] = []
        drawn = np.flatnonzero(counts)
        for label, count in zip(drawn.tolist(), counts[drawn].tolist(), strict=True):
            levels = self._levels[label]
            while count > 0:
                uses = min(levels)
                level = levels[uses]
                if count < len(level):
                    out = level[:count]
                    del level[:count]
                else:
                    out = levels.pop(uses)
                taken += out
                count -= len(out)
                uses += 1
                if uses == self._reuse:
                    self._held[label] -= len(out)
                elif uses in levels:
                    levels[uses] += out
                else:
                    levels[uses] = out
        return taken


def sorted_by_class(samples: Sequence[Any], labels: Ints, counts: Ints) -> dict[int, list[Any]]:
    """Return the samples of each class that has some, in their order.

    Args:
        samples: Samples of any kind.
        labels: Class of each, shape ``(n,)``.
        counts: Samples of each class, shape ``(K,)``.

    Example:
        >>> sorted_by_class(["a", "b", "c"], np.array([2, 0, 2]), np.array([1, 0, 2]))
        {2: ['a', 'c'], 0: ['b']}
    """
    if len(samples) < _FEW:
        found: dict[int, list[Any]] = {}
        for sample, y in zip(samples, labels.tolist(), strict=True):
            found.setdefault(y, []).append(sample)
        return found
    in_turn = _objects(samples).take(by_class(labels, counts.size)).tolist()
    classes = np.flatnonzero(counts)
    ends = np.cumsum(counts[classes]).tolist()
    return {y: in_turn[start:end] for y, start, end in zip(classes.tolist(), [0, *ends], ends, strict=False)}


def placed(in_turn: Sequence[Any], labels: Ints, num_classes: int) -> list[Any]:
    """Return samples that come class by class in the order of ``labels``.

    Example:
        >>> placed(["b", "a", "c"], np.array([2, 0, 2]), num_classes=3)
        ['a', 'b', 'c']
    """
    samples = np.empty(labels.size, dtype=object)
    samples[by_class(labels, num_classes)] = _objects(in_turn)
    found: list[Any] = samples.tolist()
    return found


def by_class(labels: Ints, num_classes: int) -> Ints:
    """Return the order in which the classes come one after the other, each in its order, shape ``(n,)``."""
    return labels.astype(np.min_scalar_type(num_classes - 1)).argsort(kind="stable")  # short numbers: a radix sort


def _objects(samples: Sequence[Any]) -> NDArray[Any]:
    return np.fromiter(samples, dtype=object, count=len(samples))  # np.array would look into them


def share_out(probs: Floats, most: Floats) -> Floats:
    """Cap a class mix, and share what is cut off over the other classes in proportion.

    ``min(level * p, most)``, with the ``level`` at which it sums to one.

    Args:
        probs: Class mix, shape ``(K,)``, summing to one.
        most: Largest share of each class, shape ``(K,)``, summing to at least one. Where all classes with a
            probability together stay below one, the rest goes to the others by their caps.

    Example:
        >>> share_out(np.array([0.5, 0.3, 0.2]), np.array([0.1, 1.0, 1.0])).round(2)
        array([0.1 , 0.54, 0.36])
    """
    if (probs <= most).all():
        return probs
    rising = np.flatnonzero(probs)
    free, caps = probs[rising], most[rising]
    if caps.sum() <= 1.0:
        filled = np.where(probs > 0, most, 0.0)
        others = np.where(probs > 0, 0.0, most)
        if others.any():
            filled += others * ((1.0 - filled.sum()) / others.sum())
        full: Floats = filled / filled.sum()
        return full
    # Classes meet their caps in this order as the level rises; for each, the level if those before it are capped.
    order = (caps / free).argsort(kind="stable")
    free, caps = free[order], caps[order]
    left = 1.0 - np.concatenate(([0.0], np.cumsum(caps)[:-1]))
    levels = left / np.cumsum(free[::-1])[::-1]
    level = levels[np.argmax(levels * free <= caps)]
    shared: Floats = np.minimum(level * probs, most)
    return shared


def stream_labels(samples: Sequence[Any], num_classes: int, label: Callable[[Any], Any] | None = None) -> Ints:
    """Return the class of each sample of a stream, int64, shape ``(n,)``.

    Args:
        samples: Samples, at least one, all of one kind.
        num_classes: Number of classes ``K``.
        label: Takes a sample and returns its class. None: what stands where labels usually stand.

    Raises:
        TypeError: If that is not one integer.
        ValueError: If it is not in ``[0, K)``.

    Example:
        >>> stream_labels([("a cat", 1), ("a dog", torch.tensor(0))], num_classes=2)
        array([1, 0])
    """
    first = samples[0]
    if label:
        found = [label(sample) for sample in samples]
    elif isinstance(first, (tuple, list)) and len(first) >= 2:
        found = [sample[1] for sample in samples]
    else:
        found = [extract_labels(sample) for sample in samples]
    try:
        labels = np.fromiter(map(operator.index, found), dtype=np.int64, count=len(found))
        inside = bool(labels.min() >= 0 and labels.max() < num_classes)
    except OverflowError:
        inside = False
    except TypeError as error:
        odd = next(y for y in found if not _is_integer(y))
        raise TypeError(
            "The class of a stream's sample is its second element, or stands under a key "
            f"{' or '.join(map(repr, LABEL_KEYS))}, and is one integer; got {odd!r} in a {type(first).__name__}. "
            "Pass FairStream(label_fn=<function from a sample to its class>)."
        ) from error
    if not inside:
        seen = list(map(operator.index, found))
        odd = next(y for y in seen if not 0 <= y < num_classes)
        remedy = (
            "A negative number often marks a sample without a class: leave such samples out of the source"
            if odd < 0
            else f"State num_classes={max(seen) + 1} or more"
        )
        raise ValueError(
            f"labels must lie in [0, {num_classes}), got {odd} in the stream. {remedy}, or number the classes with "
            "FairStream(label_fn=<function from a sample to its class>)."
        )
    return labels


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def own_memory(sample: Any) -> bool:
    """Return whether nothing in a sample keeps memory alive that is larger than itself.

    A slice of a block of images, for example, keeps the whole block.
    """
    if isinstance(sample, torch.Tensor):
        return sample.untyped_storage().nbytes() <= sample.numel() * sample.element_size()
    if isinstance(sample, np.ndarray):
        return sample.base is None
    if isinstance(sample, dict):
        return all(map(own_memory, sample.values()))
    return all(map(own_memory, sample)) if isinstance(sample, (tuple, list)) else True


def detached(sample: Any) -> Any:
    """Return a sample with copies of its tensors and arrays, which keep alive no memory but their own."""
    if isinstance(sample, torch.Tensor):
        return sample.clone()
    if isinstance(sample, np.ndarray):
        return sample.copy()
    if type(sample) is tuple:
        return tuple([detached(part) if isinstance(part, _HOLDERS) else part for part in sample])
    if type(sample) is list:
        return list(map(detached, sample))
    if type(sample) is dict:
        return {key: detached(part) for key, part in sample.items()}
    if isinstance(sample, tuple) and hasattr(sample, "_fields"):
        return type(sample)(*map(detached, sample))
    return sample
