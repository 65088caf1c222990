"""Labels in any form, as class numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_fair.common.arrays import Ints
from lightning_fair.common.checks import LARGEST_NUM_CLASSES, check, check_array, check_integer, check_type
from lightning_fair.common.label_columns import distinct_values, is_missing, label_column, words_for_shape
from lightning_fair.common.label_set_values import SetColumn
from lightning_fair.common.label_sets import LabelSets, name_unlabeled


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """The class of each sample of a data set, or its classes.

    Attributes:
        numbers: Class number of each sample, integers of at least 0, shape ``(N,)``; of samples that can have several
            labels, their :class:`~lightning_fair.common.label_sets.LabelSets`.
        names: Name of each class; None if nothing names the classes.
        values: Label of each class in the data; None if the data has the class numbers themselves.
        place: Where the labels are, such as ``"attribute 'targets'"`` or ``"labels="``; None for bare labels.
    """

    numbers: Any  # an integer array or LabelSets
    names: tuple[str, ...] | None = None
    values: tuple[Any, ...] | None = None
    place: str | None = None


def number_labels(values: Any, num_classes: int | None = None, num_named: int = 0) -> ClassLabels:
    """Return labels of any accepted form as class numbers.

    Whole numbers of at least 0 are class numbers already, of any numeric type. If ``num_classes`` is None and the
    largest is at least the number of samples and of named classes, they are identifiers. Identifiers, strings and other
    hashable values are numbered in sorted order, and name their classes; so are the tuples of a list, such as
    ``list(zip(y, domain))``. The class of a row, or of a tuple, with a single 1 and else 0 is its column.

    Samples can have several labels: rows of zeros and ones, whose labels are the columns with a 1, or a list with a
    list, a set or an array of classes for each sample. Samples without a label form one more class, the last one, which
    is called ``"none"``. If every sample has exactly one label, they are single labels.

    Args:
        values: A list, array, tensor, or column of pandas or Arrow, shape ``(N,)`` or ``(N, 1)``, or one-hot rows of
            shape ``(N, K)``. An integer array is not copied, so a ``numpy.memmap`` stays one. For several labels a
            sample, a list as above, or zeros and ones of shape ``(N, K)``, of any numeric type or bool: an array,
            tensor, list of rows, ``DataFrame``, or sparse matrix of SciPy or torch.
        num_classes: Number of classes, if it is stated. For a matrix, its number of columns, or one more, if samples
            without a label are a class in any case.
        num_named: Number of classes that the data set names.

    Raises:
        ValueError: If the labels are neither one class nor several of each sample.

    Example:
        >>> number_labels(["dog", "cat", "dog"])
        ClassLabels(numbers=array([1, 0, 1]), names=('cat', 'dog'), values=('cat', 'dog'), place=None)
        >>> number_labels([7, 2**40, 7]).numbers
        array([0, 1, 0])
        >>> labels = number_labels([{"car", "tree"}, set(), {"tree"}])
        >>> labels.names, labels.numbers.counts
        (('car', 'tree', 'none'), array([1, 2, 1]))
    """
    num_classes = check("num_classes", num_classes, optional=True)
    num_named = check_integer("num_named", num_named, 0)
    if isinstance(values, ClassLabels):
        return values
    if isinstance(values, LabelSets):
        return ClassLabels(values)
    y = label_column(values)
    if isinstance(y, SetColumn):
        return _number_sets(y, num_classes, num_named)
    if y.dtype.kind == "b":
        return ClassLabels(y.astype(np.int64), ("False", "True"), (False, True))
    classes: Sequence[Any] | None = None
    if y.dtype.kind not in "iuf":
        y, classes = _number_values(y)
    elif y.dtype.kind == "f":
        _refuse_missing(np.isnan(y))
        y = y.astype(np.int64)
    if y.size and classes is None:
        low, high = int(y.min()), int(y.max())
        if low < 0:
            raise _negative(low)
        if num_classes is not None and high >= LARGEST_NUM_CLASSES:
            raise _beyond(high, num_classes)  # before they are counted, which takes memory
        if num_classes is None and high >= max(y.size, num_named):
            unique, y = np.unique(y, return_inverse=True)
            classes = unique.tolist()
    if classes is not None:
        return ClassLabels(y, _names(classes), tuple(classes))
    return ClassLabels(y.view(np.int64) if y.dtype == np.uint64 else y)  # NumPy 1 does not count uint64


def _number_sets(column: SetColumn, num_classes: int | None, num_named: int) -> ClassLabels:
    if not column.values.size:
        raise ValueError("labels must have at least one label, but no sample has one. Pass the labels of the samples.")
    size, with_unlabeled, K = len(column), False, column.num_columns
    if K is None:
        if column.values.dtype.kind in "iuf" and column.values.min() < 0:
            raise ValueError(
                f"labels must be at least 0, got {int(column.values.min())}. If it stands for no label, leave it out: "
                "labels=[{label for label in row if label >= 0} for row in labels]."
            )
        labels = number_labels(column.values, num_classes, max(num_named, size))
        numbers = labels.numbers
        high = int(numbers.max())
        K = num_classes or max(high + 1, num_named if labels.names is None else 0)
        if high >= K:
            raise _beyond(high, K)
        is_unclear = bool(num_classes) and high < K - 1 and not column.lengths.all()
        if is_unclear and labels.names is not None:
            K -= 1  # the labels that have names are all there are
        elif is_unclear:
            raise ValueError(
                f"num_classes, or the number of names or of targets, is {K}: no sample has label {K - 1}, and "
                f"{np.count_nonzero(column.lengths == 0)} samples have no label, so it is not known whether the last "
                "class is theirs. Pass rows of zeros and ones, with a column for each label."
            )
    else:
        labels, numbers = ClassLabels(column.values, column.names and _names(column.names), column.names), column.values
        if num_classes not in (None, K, K + 1):
            raise ValueError(
                f"num_classes must be {K}, as the labels have {K} columns, or {K + 1} with a class for samples without "
                f"a label, got {num_classes}."
            )
        if numbers.max() >= K:  # of a part of a ConcatDataset that has single labels
            raise _beyond(int(numbers.max()), K)
        with_unlabeled = num_classes == K + 1
    sets = LabelSets.from_pairs(column.samples, numbers, size, K, with_unlabeled=with_unlabeled)
    names, known = labels.names, labels.values
    if names and known and sets.has_unlabeled and len(names) == K:
        names = name_unlabeled(names)
        known = (*known, names[-1])
    return ClassLabels(sets, names, known)


def check_label_sets(values: Any, num_classes: int) -> LabelSets:
    """Return labels of any accepted form, several a sample, of this number of classes.

    Raises:
        TypeError, ValueError: If they are not.
    """
    try:
        labels = number_labels(values, num_classes).numbers
    except (TypeError, ValueError) as error:
        raise type(error)(f"label_sets: {error}") from error
    check_type("label_sets", labels, LabelSets, "several labels for each sample")
    if labels.num_classes != num_classes:
        raise ValueError(
            f"label_sets has {labels.num_classes} classes"
            f"{', with that of samples without a label' if labels.has_unlabeled else ''}, but num_classes is "
            f"{num_classes}. Set num_classes={labels.num_classes}."
        )
    return labels  # type: ignore[no-any-return]


def check_labels(labels: Any, num_classes: int) -> NDArray[Any]:
    """Return a list, array or tensor of class numbers as an integer array of shape ``(N,)``, not copied if it is one.

    Raises:
        ValueError: If the labels are not integers in ``[0, num_classes)``, or not one-dimensional.

    Example:
        >>> check_labels([0, 2, 1], num_classes=3)
        array([0, 2, 1])
    """
    y = check_array("labels", labels, "one class per sample")
    if y.ndim != 1:
        raise ValueError(f"labels must have shape (N,), one class per sample, got {words_for_shape(y, labels)}.")
    if y.size == 0:
        return y.astype(np.int64)
    if y.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers, got {y.dtype}. They are class numbers in [0, {num_classes}).")
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise _negative(low)
    if high >= num_classes:
        raise _beyond(high, num_classes)
    return y.view(np.int64) if y.dtype == np.uint64 else y


def _number_values(y: NDArray[Any]) -> tuple[Ints, list[Any] | None]:
    """Return the number of each value in sorted order, and these values; None if they are whole numbers themselves."""
    items = y.tolist()
    values = distinct_values(items)
    missing = [value for value in values if is_missing(value)]
    if missing:
        _refuse_missing(np.fromiter(map(is_missing, items), bool, len(items)))
    for value in values:
        # Each object would be a class of its own.
        if isinstance(value, Tensor) or getattr(type(value), "__hash__", None) is object.__hash__:
            raise ValueError(
                f"labels must be values such as numbers or strings, got one of type {type(value).__name__}."
            )
    if all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values):
        if not all(value == int(value) for value in values):
            raise ValueError("labels must be whole numbers or names, got numbers with fractions.")
        if all(abs(value) < 2**63 for value in values):
            return np.fromiter(map(int, items), np.int64, len(items)), None
    try:
        values.sort()
    except TypeError:
        values.sort(key=lambda value: (type(value).__name__, str(value)))
    number = {value: index for index, value in enumerate(values)}
    return np.fromiter(map(number.__getitem__, items), np.int64, len(items)), values


def _refuse_missing(missing: NDArray[np.bool_]) -> None:
    if missing.any():
        raise ValueError(
            f"labels must be one class per sample, but {missing.sum()} samples have none (None or NaN), the first is "
            f"sample {missing.argmax()}. Leave them out with torch.utils.data.Subset(dataset, indices)."
        )


def _beyond(high: int, num_classes: int) -> ValueError:
    remedy = f"State num_classes={high + 1} or more" if high < LARGEST_NUM_CLASSES else "Leave num_classes out"
    return ValueError(
        f"labels must lie in [0, {num_classes}), got {high}. {remedy}, or number the labels with "
        "np.unique(labels, return_inverse=True)[1]."
    )


def _negative(low: int) -> ValueError:
    return ValueError(
        f"labels must be at least 0, got {low}. Remove such samples with torch.utils.data.Subset, "
        "or number the labels with np.unique(labels, return_inverse=True)[1]."
    )


def _names(values: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(map(_name, values))
    return names if len(set(names)) == len(names) else tuple(map(repr, values))


def _name(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return ", ".join(map(_name, value)) if isinstance(value, tuple) else str(value)
