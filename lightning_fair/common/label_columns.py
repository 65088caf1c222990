"""Labels in any form, as an array with one of each sample, or with all of those that can have several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_fair.common.arrays import to_numpy
from lightning_fair.common.checks import check_array, show
from lightning_fair.common.label_set_values import (
    SETS,
    Column,
    SetColumn,
    flat_labels,
    is_frame,
    is_row,
    matrix_column,
    sparse_column,
)

MASKS = "Of masks, pass one class per image, such as labels=[int(mask.max()) for mask in masks]"


def label_column(values: Any) -> Column:
    """Return labels of any accepted form as an array of shape ``(N,)``: whole numbers, NaN, bool or objects.

    If samples have several labels or none, the result is a
    :class:`~lightning_fair.common.label_set_values.SetColumn`.

    Raises:
        ValueError: If they are not the labels of each sample, or cannot be classes.
    """
    y = _to_array(values)
    y = y if isinstance(y, SetColumn) else _one_column(y, tuple(values.columns) if is_frame(values) else None)
    if isinstance(y, SetColumn):
        return y
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


def list_column(rows: Sequence[Any]) -> Column:
    """Return the labels of samples that have a list, a set or an array of classes each.

    Raises:
        ValueError: If they have not, or a label cannot be a class.
    """
    lengths, flat = flat_labels(rows)
    values = label_column(flat) if flat else np.zeros(0, np.int64)
    assert isinstance(values, np.ndarray)
    if values.dtype.kind in "fO" and (missing := [is_missing(value) for value in values.tolist()]) and any(missing):
        raise ValueError(
            f"labels must be classes, but {sum(missing)} labels are None or NaN. Leave them out: "
            "labels=[{label for label in row if label == label and label is not None} for row in labels]."
        )
    return values if (lengths == 1).all() else SetColumn(lengths, values)


def has_repeats(y: Column) -> bool:
    """Return whether two samples share a label. In an index, or a list of file names, none do.

    Raises:
        ValueError: If the labels are not hashable.
    """
    y = y.values if isinstance(y, SetColumn) else y
    if y.dtype.kind in "bO":
        return len(distinct_values(y.tolist())) < y.size
    # Whole numbers that span less than their count must repeat, which saves sorting them.
    return bool(y.size and y.max() - y.min() < y.size - 1) or np.unique(y).size < y.size


def _to_array(values: Any) -> Column:
    if isinstance(values, SetColumn):
        return values
    if (sparse := sparse_column(values)) is not None:
        return sparse
    if isinstance(values, Mapping):
        raise ValueError(
            f"labels must be one class per sample, in the order of the data set, got a {type(values).__name__} with "
            f"{len(values)} keys. If it maps ids to labels, pass labels=[mapping[id] for id in ids], with the id of "
            "each sample."
        )
    if is_frame(values) and len(values.columns) > 1 and values.isna().to_numpy().any():
        raise ValueError(
            "labels must be zeros and ones, but a column of the DataFrame has missing values. If they mean unknown, "
            "pass labels=labels.fillna(0), which takes them for 0."
        )
    has_items_only = hasattr(values, "__getitem__") and not hasattr(values, "__iter__")  # NumPy would never end
    if isinstance(values, (set, frozenset, Dataset)) or has_items_only:
        raise ValueError(f"labels must be one class per sample, in order, got a {type(values).__name__}. Pass a list.")
    if isinstance(values, (list, tuple)):
        return _list_to_array(values)
    if isinstance(values, Tensor):
        array = check_array("labels", values, "one class per sample")
        # A tensor's memory moves when torch shares it with a spawned worker: a view of it would dangle.
        return array if array.ndim == 2 and array.shape[1] > 1 else np.array(array)
    column = getattr(values, "array", values)
    if hasattr(column, "codes") and hasattr(column, "categories"):  # of pandas
        categories = np.array([*column.categories, None], dtype=object)
        return np.asarray(categories[np.asarray(column.codes)])  # the code -1 is a missing label
    if type(values).__module__.partition(".")[0] == "pyarrow":
        return _rows_of(np.asarray(values.to_numpy(zero_copy_only=False)))
    if hasattr(values, "__array__") or not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        return _rows_of(np.asanyarray(values))
    is_hugging_face = hasattr(values, "column_name")  # reads its rows one by one if it is iterated over
    return _list_to_array(values[:] if is_hugging_face else list(values))  # type: ignore[index]


def _rows_of(array: NDArray[Any]) -> Column:
    """Return an array; if it holds lists, sets or arrays, as a column of pandas or Arrow does, their labels."""
    is_list = array.dtype.kind == "O" and array.ndim == 1 and any(map(is_row, array))
    return _list_to_array(array.tolist()) if is_list else array


def _list_to_array(values: Sequence[Any]) -> Column:
    first = values[0] if len(values) else None
    if not isinstance(first, (str, bytes, int, float)) and any(isinstance(row, (set, frozenset)) for row in values):
        return list_column(values)
    if isinstance(first, tuple):
        values = [_plain(value) for value in values]
    if not isinstance(first, (str, bytes)):
        try:
            array: NDArray[Any] = to_numpy(
                torch.stack(list(values)) if isinstance(first, Tensor) else np.asarray(values)
            )
        except (ValueError, RuntimeError, TypeError):
            return list_column(values)
        # NumPy makes strings of numbers beside a string, a row of a tuple, and inexact numbers of large ones.
        is_value = array.dtype.kind in "US" and (array.ndim == 1 or isinstance(first, tuple))
        if isinstance(first, tuple) and array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
            is_value = not _is_one_hot(array) and bool((array == np.floor(array)).all())
        is_inexact = array.dtype.kind == "f" and array.ndim == 1 and 2.0**53 <= np.abs(array).max(initial=0) < np.inf
        if not (is_value or is_inexact):
            return array
    return np.fromiter(values, dtype=object, count=len(values))


def _one_column(y: NDArray[Any], names: tuple[Any, ...] | None) -> Column:
    if y.ndim == 1:
        return y
    if y.ndim == 2 and y.shape[1] == 1:
        return y[:, 0]
    shape = words_for_shape(y, y.tolist() if y.ndim == 0 else y)
    rule = f"labels must have shape (N,), one class per sample, got {shape}."
    if y.ndim != 2:
        raise ValueError(f"{rule} {MASKS if y.ndim > 2 else 'Pass a list or an array'}.")
    return matrix_column(y, rule, names)


def _is_one_hot(y: NDArray[Any]) -> bool:
    is_one, is_zero = y == 1, y == 0
    return bool((is_one | is_zero).all() and (is_one.sum(1) == 1).all())


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value  # two tensors are never equal


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or a missing value of pandas."""
    # The missing values of pandas have no truth value.
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def distinct_values(items: list[Any]) -> list[Any]:
    """Return each value once; a ``ValueError`` is raised if one is not hashable."""
    try:
        return list(dict.fromkeys(items))
    except TypeError as error:
        raise ValueError(f"labels must be hashable values such as numbers or strings: {error}. {SETS}.") from error


def words_for_shape(y: NDArray[Any], labels: Any) -> str:
    """Return the shape of labels in words, or the labels if they are a single value."""
    return f"shape {y.shape}" if y.ndim else show(labels)
