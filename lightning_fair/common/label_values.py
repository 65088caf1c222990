"""Labels in any accepted form, as class numbers and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_fair.common.arrays import Ints, to_numpy
from lightning_fair.common.checks import LARGEST_NUM_CLASSES, check, check_array, check_integer, show
from lightning_fair.common.label_sets import LabelSets

MASKS = "Of masks, pass one class per image, such as labels=[int(mask.max()) for mask in masks]"
_TAGS = "Several labels per sample are not supported: pass one of them, for example the rarest of its tags"


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """The class of each sample of a data set.

    Attributes:
        numbers: Class number of each sample, integers of at least 0, shape ``(N,)``; or the
            :class:`~lightning_fair.common.label_sets.LabelSets` of samples with several labels.
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

    Args:
        values: A list, array, tensor, or column of pandas or Arrow, shape ``(N,)`` or ``(N, 1)``, or one-hot rows of
            shape ``(N, K)``. An integer array is not copied, so a ``numpy.memmap`` stays one.
        num_classes: Number of classes, if it is stated.
        num_named: Number of classes that the data set names.

    Raises:
        ValueError: If the labels are not one class per sample.

    Example:
        >>> number_labels(["dog", "cat", "dog"])
        ClassLabels(numbers=array([1, 0, 1]), names=('cat', 'dog'), values=('cat', 'dog'), place=None)
        >>> number_labels([7, 2**40, 7]).numbers
        array([0, 1, 0])
    """
    num_classes = check("num_classes", num_classes, optional=True)
    num_named = check_integer("num_named", num_named, 0)
    if isinstance(values, ClassLabels):
        return values
    if isinstance(values, LabelSets):
        return ClassLabels(values)
    y = label_array(values)
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
        raise ValueError(f"labels must have shape (N,), one class per sample, got {_shape(y, labels)}.")
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


def label_array(values: Any) -> NDArray[Any]:
    """Return labels of any accepted form as an array of shape ``(N,)``: whole numbers, NaN, bool or objects.

    Raises:
        ValueError: If they are not one value per sample, or cannot be classes.
    """
    y = _one_column(_to_array(values))
    if y.dtype.kind in "USMm":
        return y.astype(object)
    if y.dtype.kind == "c":
        raise ValueError("labels must be classes, got complex numbers.")
    if y.dtype.kind == "f":
        wrong = ~((y == np.floor(y)) & (np.abs(y, dtype=np.float64) < 2**63) | np.isnan(y))
        if wrong.any():
            raise ValueError(
                f"labels must be whole numbers or names, got {y[wrong.argmax()]} for sample {wrong.argmax()}. To "
                "balance intervals of a number, pass labels=np.digitize(numbers, edges)."
            )
    return y


def has_repeats(y: NDArray[Any]) -> bool:
    """Return whether two samples share a label. In an index, or a list of file names, none do.

    Raises:
        ValueError: If the labels are not hashable.
    """
    if y.dtype.kind in "bO":
        return len(_distinct(y.tolist())) < y.size
    # Whole numbers that span less than their count must repeat, which saves sorting them.
    return bool(y.size and y.max() - y.min() < y.size - 1) or np.unique(y).size < y.size


def _to_array(values: Any) -> NDArray[Any]:
    if isinstance(values, Mapping):
        raise ValueError(
            f"labels must be one class per sample, in the order of the data set, got a {type(values).__name__} with "
            f"{len(values)} keys. If it maps ids to labels, pass labels=[mapping[id] for id in ids], with the id of "
            "each sample."
        )
    has_items_only = hasattr(values, "__getitem__") and not hasattr(values, "__iter__")  # NumPy would never end
    if isinstance(values, (set, frozenset, Dataset)) or has_items_only:
        raise ValueError(f"labels must be one class per sample, in order, got a {type(values).__name__}. Pass a list.")
    if isinstance(values, (list, tuple)):
        return _list_to_array(values)
    if isinstance(values, Tensor):
        # A tensor's memory moves when torch shares it with a spawned worker: a view of it would dangle.
        return np.array(check_array("labels", values, "one class per sample"))
    column = getattr(values, "array", values)
    if hasattr(column, "codes") and hasattr(column, "categories"):  # of pandas
        categories = np.array([*column.categories, None], dtype=object)
        return np.asarray(categories[np.asarray(column.codes)])  # the code -1 is a missing label
    if type(values).__module__.partition(".")[0] == "pyarrow":
        return np.asarray(values.to_numpy(zero_copy_only=False))
    if hasattr(values, "__array__") or not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        return np.asanyarray(values)
    is_hugging_face = hasattr(values, "column_name")  # reads its rows one by one if it is iterated over
    return _list_to_array(values[:] if is_hugging_face else list(values))  # type: ignore[index]


def _list_to_array(values: Sequence[Any]) -> NDArray[Any]:
    first = values[0] if len(values) else None
    if isinstance(first, tuple):
        values = [_plain(value) for value in values]
    if not isinstance(first, (str, bytes)):
        try:
            array: NDArray[Any] = to_numpy(
                torch.stack(list(values)) if isinstance(first, Tensor) else np.asarray(values)
            )
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"labels must be one class per sample, got lists of different lengths. {_TAGS}."
            ) from error
        # NumPy makes strings of numbers beside a string, a row of a tuple, and inexact numbers of large ones.
        is_value = array.dtype.kind in "US" and (array.ndim == 1 or isinstance(first, tuple))
        if isinstance(first, tuple) and array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
            is_value = not _is_one_hot(array) and bool((array == np.floor(array)).all())
        is_inexact = array.dtype.kind == "f" and array.ndim == 1 and 2.0**53 <= np.abs(array).max(initial=0) < np.inf
        if not (is_value or is_inexact):
            return array
    return np.fromiter(values, dtype=object, count=len(values))


def _one_column(y: NDArray[Any]) -> NDArray[Any]:
    if y.ndim == 1:
        return y
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    rule = f"labels must have shape (N,), one class per sample, got {_shape(y, y.tolist())}."
    if y.ndim != 2:
        raise ValueError(f"{rule} {MASKS if y.ndim > 2 else 'Pass a list or an array'}.")
    if y.dtype.kind in "biuf":
        if _is_one_hot(y):
            return np.asarray(y.argmax(1))
        if y.dtype.kind == "f" and (y >= 0).all() and np.allclose(y.sum(1), 1.0, atol=1e-3):
            raise ValueError(f"{rule} Of class probabilities, pass the most probable class: labels=rows.argmax(1).")
    raise ValueError(
        f"{rule} It is not one-hot. {_TAGS}, or a class for each combination, as tuples: "
        "labels=[tuple(values) for values in labels]."
    )


def _is_one_hot(y: NDArray[Any]) -> bool:
    is_one, is_zero = y == 1, y == 0
    return bool((is_one | is_zero).all() and (is_one.sum(1) == 1).all())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value  # two tensors are never equal


def _number_values(y: NDArray[Any]) -> tuple[Ints, list[Any] | None]:
    """Return the number of each value in sorted order, and these values; None if they are whole numbers themselves."""
    items = y.tolist()
    values = _distinct(items)
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


def _distinct(items: list[Any]) -> list[Any]:
    try:
        return list(dict.fromkeys(items))
    except TypeError as error:
        raise ValueError(f"labels must be hashable values such as numbers or strings: {error}. {_TAGS}.") from error


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or a missing value of pandas."""
    # The missing values of pandas have no truth value.
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _refuse_missing(missing: NDArray[np.bool_]) -> None:
    if missing.any():
        raise ValueError(
            f"labels must be one class per sample, but {missing.sum()} samples have none (None or NaN), the first is "
            f"sample {missing.argmax()}. Leave them out with torch.utils.data.Subset(dataset, indices)."
        )


def _shape(y: NDArray[Any], labels: Any) -> str:
    return f"shape {y.shape}" if y.ndim else show(labels)


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
