"""The labels of samples that can have several of them, or none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints, array_checksum
from lightning_fair.common.checks import check_array

_MAX_CLASSES = 10_000
UNLABELED = "none"  # name of the class of the samples without a label


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The labels of each sample, stored one after the other; samples without any form the last class.

    Attributes:
        offsets: Place in ``classes`` at which the labels of each sample begin, and the end of the last one, int64,
            shape ``(N + 1,)``. Each sample has at least one class.
        classes: Class numbers of the samples' labels, ascending and distinct within a sample, shape ``(nnz,)``.
        num_classes: Number of classes ``K``, with that of samples without a label.
        has_unlabeled: Whether class ``K - 1`` is that of the samples without a label.

    Example:
        >>> labels = LabelSets.from_lists([[0, 2], [], [1]], num_labels=3)
        >>> labels.to_dense().astype(int)
        array([[1, 0, 1, 0],
               [0, 0, 0, 1],
               [0, 1, 0, 0]])
        >>> labels.counts, labels.take([2, 0]).classes.tolist()
        (array([1, 1, 1, 1]), [1, 0, 2])
    """

    offsets: Ints
    classes: NDArray[Any]
    num_classes: int
    has_unlabeled: bool = False

    @classmethod
    def from_pairs(
        cls, samples: NDArray[Any], classes: NDArray[Any], size: int, num_labels: int, *, with_unlabeled: bool = False
    ) -> LabelSets:
        """Return the sets of ``size`` samples, given the sample and the class of each label; repeats count once.

        The class of samples without a label is added if there are any, or ``with_unlabeled``.
        """
        keys = np.sort(samples.astype(np.int64) * num_labels + classes, kind="stable")  # fast if they are in order
        keys = keys[np.diff(keys, prepend=-1) > 0]
        owners, numbers = np.divmod(keys, max(num_labels, 1))
        (empty,) = (np.bincount(owners, minlength=size) == 0).nonzero()
        if empty.size:
            places = owners.searchsorted(empty)
            owners, numbers = np.insert(owners, places, empty), np.insert(numbers, places, num_labels)
        has_unlabeled = bool(empty.size) or with_unlabeled
        offsets = np.zeros(size + 1, np.int64)
        np.cumsum(np.bincount(owners, minlength=size), out=offsets[1:])
        K = num_labels + has_unlabeled
        return cls(offsets, numbers.astype(np.int32 if K < 2**31 else np.int64), K, has_unlabeled)

    @classmethod
    def from_lists(
        cls, lists: Sequence[Collection[int]], num_labels: int, *, with_unlabeled: bool = False
    ) -> LabelSets:
        """Return the sets of samples whose class numbers in ``[0, num_labels)`` are listed."""
        samples = np.arange(len(lists)).repeat(np.fromiter(map(len, lists), np.int64, len(lists)))
        classes = np.fromiter(chain.from_iterable(lists), np.int64, samples.size)
        return cls.from_pairs(samples, classes, len(lists), num_labels, with_unlabeled=with_unlabeled)

    @classmethod
    def from_matrix(cls, matrix: NDArray[Any], *, with_unlabeled: bool = False) -> LabelSets:
        """Return the sets of the rows of a matrix of zeros and ones, shape ``(N, num_labels)``."""
        samples, classes = matrix.nonzero()
        return cls.from_pairs(samples, classes, *matrix.shape, with_unlabeled=with_unlabeled)

    @classmethod
    def expected(cls, num_classes: int, names: Sequence[str] = ()) -> LabelSets:
        """Return the sets of no sample, as long as those of a stream are not known.

        The last class is that of samples without a label if it is called ``"none"`` or ``"(none)"``, or has no name.
        """
        is_named = len(names) == num_classes and names[-1] in (UNLABELED, f"({UNLABELED})")
        has_unlabeled = is_named or 0 < len(names) == num_classes - 1
        return cls(np.zeros(1, np.int64), np.zeros(0, np.int32), num_classes, has_unlabeled)

    @property
    def size(self) -> int:
        """Number of samples ``N``."""
        return self.offsets.size - 1

    def __len__(self) -> int:
        return self.size

    @property
    def lengths(self) -> Ints:
        """Number of classes of each sample, at least 1, int64, shape ``(N,)``."""
        return np.diff(self.offsets)

    @property
    def samples(self) -> Ints:
        """Sample of each of the ``classes``, int64, shape ``(nnz,)``."""
        return np.arange(self.size).repeat(self.lengths)

    @property
    def counts(self) -> Ints:
        """Samples of each class, int64, shape ``(K,)``. Their sum is at least the number of samples."""
        return np.bincount(self.classes, minlength=self.num_classes).astype(np.int64)

    def cooccurrence(self) -> Ints:
        """Return the number of samples that have both of two classes, int64, shape ``(K, K)``, symmetric.

        Raises:
            ValueError: If there are more than 10,000 classes, for which this takes 800 MB.
        """
        K = self.num_classes
        if K > _MAX_CLASSES:
            raise ValueError(
                f"Several labels a sample: at most {_MAX_CLASSES} classes, got {K}. Leave out labels that are rare, or "
                "that need not be balanced."
            )
        together: Ints = np.zeros(K * K, np.int64)
        for pairs in self.pairs():
            np.add.at(together, pairs, 1)
        return mirrored(together.reshape(K, K))

    def pairs(self) -> Iterator[Ints]:
        """Yield ``K * first + second`` of all classes ``first <= second`` that a sample has, in several parts."""
        first, ends = np.arange(self.classes.size), self.offsets[1:].repeat(self.lengths)
        step = 0
        while first.size:
            yield self.classes[first].astype(np.int64) * self.num_classes + self.classes[first + step]
            step += 1  # each label with that `step` places further on
            first = first[first + step < ends[first]]

    def take(self, indices: Any) -> LabelSets:
        """Return the sets of these samples, in their order; a sample can come several times."""
        indices = np.asarray(indices, dtype=np.int64)
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        offsets = np.zeros(indices.size + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.arange(offsets[-1]) + (self.offsets[indices] - offsets[:-1]).repeat(lengths)
        return LabelSets(offsets, self.classes[places], self.num_classes, self.has_unlabeled)

    def to_dense(self) -> NDArray[np.bool_]:
        """Return whether each sample has each class, shape ``(N, K)``."""
        dense = np.zeros((self.size, self.num_classes), np.bool_)
        dense[self.samples, self.classes] = True
        return dense

    def sums(self, values: Floats) -> Floats:
        """Return the sum of ``values``, shape ``(K,)``, over the classes of each sample, shape ``(N,)``."""
        sums: Floats = np.add.reduceat(values[self.classes], self.offsets[:-1]) if self.size else np.zeros(0)
        return sums

    def expected_coverage(self, drawn: Ints) -> float:
        """Return the fraction of the samples that was drawn, in expectation over the orders of the passes.

        ``drawn`` samples of each class were drawn in passes that have an order of their own, shape ``(K,)``.
        """
        left = np.clip(1.0 - drawn / np.maximum(self.counts, 1), 1e-300, 1.0)  # a sample is left if it is so in all
        return float(1.0 - np.exp(self.sums(np.log(left))).mean())

    def equals(self, other: Any) -> bool:
        """Return whether ``other`` are the same labels of the same samples."""
        return (
            isinstance(other, LabelSets)
            and self.num_classes == other.num_classes
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.classes, other.classes)
        )


def mirrored(upper: Ints) -> Ints:
    """Return the symmetric matrix whose upper triangle is given; the lower one is zero."""
    both: Ints = upper + np.triu(upper, 1).T
    return both


def name_unlabeled(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the labels, and behind them one for the class of samples without a label."""
    return (*names, f"({UNLABELED})" if UNLABELED in names else UNLABELED)


def numbers_as_names(num_classes: int, labels: LabelSets | None) -> Sequence[str]:
    """Return the class numbers as names, of which that of samples without a label has its own."""
    numbers = list(map(str, range(num_classes)))
    return numbers if labels is None or not labels.has_unlabeled else name_unlabeled(numbers[:-1])


def complete_names(names: Sequence[str], labels: LabelSets | None) -> Sequence[str]:
    """Return names that may lack that of samples without a label, with that name."""
    lacks_last = labels is not None and labels.has_unlabeled and len(names) == labels.num_classes - 1
    return name_unlabeled(names) if lacks_last else names


def labels_checksum(labels: NDArray[Any] | LabelSets) -> int:
    """Return a checksum of class numbers, one or several a sample."""
    if isinstance(labels, LabelSets):
        return array_checksum(labels.offsets, array_checksum(labels.classes))
    return array_checksum(labels)


def same_labels(labels: Any, others: Any) -> bool:
    """Return whether the samples have the same class numbers."""
    if isinstance(labels, LabelSets) or isinstance(others, LabelSets):
        return isinstance(labels, LabelSets) and labels.equals(others)
    return np.array_equal(labels, others)


def label_rows(values: Any, kind: LabelSets) -> NDArray[np.bool_]:
    """Return whether each sample of a batch has each class, shape ``(n, K)``, for labels of this kind of classes.

    Args:
        values: Zeros and ones, shape ``(n, K)``, or ``(n, K - 1)`` without the class of samples without a label.
        kind: Labels with the same classes.

    Raises:
        TypeError: If they are no rows.
        ValueError: If the shape or a value is wrong, or a sample has no label and no class stands for that.
    """
    K = kind.num_classes
    rows = check_array("labels", values, "rows of zeros and ones")
    if rows.size == 0:
        return np.zeros((0, K), np.bool_)
    widths = (K, K - 1) if kind.has_unlabeled else (K,)
    if rows.ndim != 2 or rows.shape[1] not in widths or not ((rows == 0) | (rows == 1)).all():
        raise ValueError(
            f"labels must be zeros and ones, shape (batch, {' or '.join(map(str, widths))}): whether each sample has "
            f"each label. Got shape {rows.shape}."
        )
    has_label = rows.astype(np.bool_)
    if rows.shape[1] < K:
        has_label = np.column_stack([has_label, ~has_label.any(axis=1)])
    if kind.has_unlabeled and (has_label[:, -1] & has_label[:, :-1].any(axis=1)).any():
        raise ValueError(
            "labels: a sample of the batch has labels, and the class of samples without a label too. Leave the last "
            "column out."
        )
    if not has_label.any(axis=1).all():
        raise ValueError(
            f"labels: sample {int(has_label.any(axis=1).argmin())} of the batch has no label, and no class stands for "
            "that. Count samples without a label as a class of their own, or leave them out."
        )
    return has_label
