"""The label of a sample or batch: its second element, a usual key or attribute, or one that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_fair.common.arrays import to_numpy
from lightning_fair.common.label_columns import MASKS, has_repeats, label_column, list_column
from lightning_fair.common.label_set_values import Column, SetColumn, is_constant, same_columns

Key: TypeAlias = str | int | None  # key, attribute or position of the label in a sample; None: the usual place

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
_MAX_ROW = 100_000  # numbers in the label of one sample; a longer one is no one-hot row


def sample_place(key: str | int) -> str:
    """Return the words for the element or the value of a key or attribute of each sample."""
    return f"{f'element {key}' if isinstance(key, int) else repr(key)} of the samples"


def extract_labels(sample: Any) -> Any:
    """Return the second element, or the value of a usual key, of a sample or batch; None if it has neither."""
    if isinstance(sample, Mapping):
        return next((sample[key] for key in LABEL_KEYS if key in sample), None)
    return sample[1] if isinstance(sample, (tuple, list)) and len(sample) >= 2 else None


def label_row(sample: Any, key: Key = None) -> dict[str | int, Any]:
    """Return each element of a sample that may be its label, by key, attribute or position.

    Without a ``key`` this is the value of a usual key or attribute. If the sample has none, these are its second
    element and all elements that are whole numbers or one-hot rows, and other rows of zeros and ones but the first.

    Raises:
        TypeError: If the sample has no such element.
        ValueError: If the element cannot be a label.

    Example:
        >>> label_row(("image", 3)), label_row({"image": "...", "y": 3}), label_row(("image", "cat", 17))
        ({1: 3}, {'y': 3}, {1: 'cat', 2: 17})
    """
    if key is not None:
        return {key: _to_value(_get(sample, key))}
    for name in LABEL_KEYS:
        if _has(sample, name):
            return {name: _to_value(_get(sample, name))}
    if not isinstance(sample, (tuple, list)) or len(sample) < 2:
        places = " or ".join(map(repr, LABEL_KEYS))
        raise TypeError(
            f"is a {type(sample).__name__} without one, and without a key or attribute {places}{_contents(sample)}"
        )
    numbers: dict[str | int, Any] = {
        position: _to_value(value) for position, value in enumerate(sample) if _may_be_label(value, position)
    }
    if 1 in numbers:
        return numbers
    try:
        return {1: _to_value(sample[1]), **numbers}
    except ValueError:
        if numbers:
            return numbers
        raise


class LabelColumns:
    """The labels of all samples, in the columns that may hold them.

    Attributes:
        columns: Values of each column, one a sample.
    """

    def __init__(self) -> None:
        self.columns: dict[str | int, list[Any]] | None = None

    def extend(self, rows: Iterable[Mapping[str | int, Any]]) -> None:
        """Add what :func:`label_row` returned for some samples. A column that not all samples have is dropped."""
        for row in rows:
            if self.columns is None:
                self.columns = {name: [] for name in row}
            elif row.keys() != self.columns.keys():
                self.columns = {name: column for name, column in self.columns.items() if name in row}
            for name, column in self.columns.items():
                column.append(row[name])

    def agree(self, name: str | int, labels: Column) -> bool:
        """Return whether a column has these labels."""
        values = (self.columns or {}).get(name)
        is_list = isinstance(labels, SetColumn) and labels.num_columns is None  # a few lists can look like a matrix
        try:
            return values is not None and same_columns((list_column if is_list else label_column)(values), labels)
        except ValueError:
            return False

    def choose(self) -> tuple[str | int, Column]:
        """Return the name and the labels of the only column that can hold them.

        Raises:
            ValueError: If the labels are not one class per sample, or several columns can hold them.
        """
        arrays, errors = {}, []
        for name, values in (self.columns or {}).items():
            try:
                if _may_be_column(column := label_column(values), name) or len(self.columns or ()) == 1:
                    arrays[name] = column
            except ValueError as error:
                errors.append(error)
        if errors and not any(map(has_repeats, arrays.values())):
            raise errors[0]
        name = choose_column(arrays)
        return name, arrays[name]


def choose_tensor(tensors: Sequence[Tensor]) -> tuple[int, Any]:
    """Return the position and the labels of the only tensor that can hold them, or the second one if there is none.

    Raises:
        ValueError: If there are several.
    """
    columns: dict[int, Any] = {}
    for i, tensor in enumerate(tensors):
        with suppress(ValueError):
            # Most inputs are refused by their first sample, without a copy of all.
            first = tensor[:1] if tensor.layout is torch.strided else tensor
            if _may_be_column(label_column(first), i) and _may_be_column(column := label_column(tensor), i):
                columns[i] = column
    position = choose_column(columns) if columns else 1  # which is refused, with the reason
    return position, columns.get(position, tensors[position])


def choose_column(columns: Mapping[Any, Column]) -> Any:
    """Return the name of the only column that can hold labels.

    If there are several, columns whose values all differ, such as an index, or are all the same, such as a weight of
    1.0, do not count, and neither do rows of zeros and ones behind the first element and beside single labels: they can
    be a mask.

    Raises:
        ValueError: If several columns remain, or there are none.
    """
    names = [name for name, values in columns.items() if has_repeats(values)] or list(columns)
    if len(names) > 1:
        names = [name for name in names if not is_constant(columns[name])] or names
    single = [name for name in names if not isinstance(columns[name], SetColumn)]
    names = single if any(name != 0 for name in single) else names
    if len(names) == 1:
        return names[0]
    if not names:
        raise ValueError("The samples have no element in common that could be the label. Pass labels=<one per sample>.")
    raise ValueError(
        f"The label could be element {', '.join(map(str, names[:-1]))} or {names[-1]} of each sample (counted from 0). "
        f"State which one it is, for example labels={names[-1]}."
    )


def _may_be_column(column: Column, position: str | int) -> bool:
    """Return whether a column beside others may hold the labels of its samples.

    Several labels are rows of zeros and ones, but not in the first element, where such rows are features; or any lists,
    if they are the second element.
    """
    return not isinstance(column, SetColumn) or position == 1 or (position != 0 and column.num_columns is not None)


def _get(sample: Any, key: str | int) -> Any:
    if isinstance(key, str):
        if _has(sample, key):
            return sample[key] if isinstance(sample, Mapping) else getattr(sample, key)
    elif isinstance(sample, Sequence) and -len(sample) <= key < len(sample):
        return sample[key]
    raise TypeError(f"is a {type(sample).__name__} without {key!r}{_contents(sample)}")


def _contents(sample: Any) -> str:
    if isinstance(sample, (tuple, list)):
        return f" (length {len(sample)}{': labels=1 is its second element' * (len(sample) > 1)})"
    kind, names = ("keys", sample) if isinstance(sample, Mapping) else ("attributes", getattr(sample, "__dict__", ()))
    return f" ({kind} {', '.join(map(repr, names))})" if names else ""


def _has(sample: Any, name: str) -> bool:
    if isinstance(sample, Mapping):
        return name in sample
    return hasattr(sample, name) and not callable(getattr(sample, name))


def _may_be_label(value: Any, position: int) -> bool:
    """Return whether a value is a whole number, a missing one (NaN), or a row of zeros and ones; the first: one-hot."""
    if isinstance(value, int):
        return True
    shape = () if isinstance(value, float) else getattr(value, "shape", None)
    if not isinstance(shape, tuple) or len(shape) > 1:
        return False
    array = np.asarray(to_numpy(value))
    if array.dtype.kind not in "biuf" or not 0 < array.size <= _MAX_ROW:
        return False
    if array.size == 1:
        return not (np.floor(array) < array).any()
    if position == 0:
        return bool(np.count_nonzero(array) == 1 == array.max())
    return bool(((array == 0) | (array == 1)).all())


def _to_value(value: Any) -> Any:
    """Return a label as a number, a string, another hashable value, or a copy of the numbers in a row."""
    if not hasattr(value, "shape"):
        return value
    array = np.asarray(to_numpy(value))
    if array.size == 1:
        return array.item()
    if array.ndim != 1 or array.size > _MAX_ROW:
        raise ValueError(f"has a label of shape {tuple(array.shape)}. {MASKS}")
    is_zeros_and_ones = array.dtype.kind in "iuf" and ((array == 0) | (array == 1)).all()
    return np.array(array, dtype=np.uint8 if is_zeros_and_ones else None)  # less memory for all samples together
