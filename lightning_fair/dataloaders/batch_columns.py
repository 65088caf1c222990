"""The columns of a batch that can hold its labels: one whole number, one string or one set of labels per sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_fair.common.arrays import to_numpy

_MAX_DEPTH = 4
_MAX_NUMBER = 4096  # of a class in a list of them; larger ones are read if FairSampling has so many classes
_MAX_PARTS = 64  # of a list or tuple; a longer one holds samples, not columns


def leaves(batch: Any, size: int) -> list[tuple[str, Any]]:
    """Return the arrays and lists of a batch of ``size`` samples, each with its name, for example ``batch[1]``."""
    result: list[tuple[str, Any]] = []
    with suppress(Exception):  # a batch may be an object of any kind
        result.extend(_walk(batch, size, "batch", 0))
    return result


def _walk(batch: Any, size: int, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(batch, (Tensor, np.ndarray)):
        yield name, batch
    elif depth == _MAX_DEPTH or isinstance(batch, (str, bytes, type, ModuleType, type(None))):
        return
    elif isinstance(batch, Mapping):
        for key, part in batch.items():
            yield from _walk(part, size, f"{name}[{key!r}]", depth + 1)
    elif isinstance(batch, Sequence):
        fields = getattr(batch, "_fields", None)  # of a named tuple
        if batch and _is_scalar(batch[0]) and _is_scalar(batch[-1]):
            yield name, batch
        elif len(batch) <= _MAX_PARTS and (depth == 0 or fields or len(batch) != size):  # else one part per sample
            for i, part in enumerate(batch):
                yield from _walk(part, size, f"{name}.{fields[i]}" if fields else f"{name}[{i}]", depth + 1)
        elif batch and all(map(_is_row, batch)):
            yield name, batch
    else:
        attributes = dict(getattr(batch, "__dict__", {}))
        if is_dataclass(batch):
            attributes |= {field.name: getattr(batch, field.name) for field in dataclass_fields(batch)}
        with suppress(Exception):  # graph batches keep their arrays out of `__dict__`
            attributes = dict(batch.to_dict())
        for key, part in attributes.items():
            yield from _walk(part, size, f"{name}.{key}", depth + 1)


def _is_scalar(value: Any) -> bool:
    is_array = isinstance(value, (Tensor, np.ndarray))
    return value.ndim == 0 if is_array else isinstance(value, (str, int, float, np.generic))


def _is_row(value: Any) -> bool:
    return value.ndim == 1 if isinstance(value, (Tensor, np.ndarray)) else isinstance(value, (list, tuple, Set))


def as_column(leaf: Any) -> NDArray[Any] | None:
    """Return the values of one column, shape ``(n,)``: int64, or strings; None if it cannot hold labels.

    Whole-number floats and rows that are one-hot count. A tensor on another device than the CPU does not, because
    reading it would make the device wait.
    """
    with suppress(Exception):  # lists of different lengths, and tensors that NumPy cannot read
        return _to_column(leaf)
    return None


def _to_column(leaf: Any) -> NDArray[Any] | None:
    values: NDArray[Any]
    if isinstance(leaf, Tensor):
        if leaf.device.type != "cpu" or leaf.layout != torch.strided or not 1 <= leaf.ndim <= 2:
            return None
        leaf = leaf.detach()
        values = (leaf.double() if leaf.is_floating_point() else leaf).numpy()
    elif isinstance(leaf, Sequence) and _is_row(leaf[0]):
        return None
    else:
        values = np.asarray(leaf)
    if values.ndim == 2 and values.shape[1] > 1:
        return _from_one_hot(values)
    if values.ndim > 2 or not values.size:
        return None
    values = values.reshape(-1)
    if values.dtype.kind == "f":
        return values.astype(np.int64) if _is_whole(values) else None
    if values.dtype.kind in "iub":
        return values.astype(np.int64, copy=False)
    return values if values.dtype.kind == "U" else None


def as_label_rows(leaf: Any, num_classes: int, *, has_unlabeled: bool) -> NDArray[np.bool_] | None:
    """Return whether each sample has each class, shape ``(n, C)``; None if this cannot be read from the part.

    A matrix of zeros and ones has a column for each class, perhaps except the last one, of samples without labels. A
    list has such a row, or the class numbers, of each sample. Numbers beyond those of labels have columns from
    ``num_classes`` on.
    """
    with suppress(Exception):  # lists of other things, and tensors that NumPy cannot read
        matrix = _to_matrix(leaf, num_classes, num_classes - has_unlabeled)
        if matrix is not None and len(matrix):
            rows = np.zeros((len(matrix), max(num_classes, matrix.shape[1])), np.bool_)
            rows[:, : matrix.shape[1]] = matrix
            if has_unlabeled:
                rows[:, num_classes - 1] |= ~rows.any(axis=1)
            return rows
    return None


def _to_matrix(leaf: Any, num_classes: int, num_labels: int) -> NDArray[Any] | None:
    if isinstance(leaf, Sequence):
        rows = [np.asarray(row if isinstance(row, Tensor) else list(row)) for row in leaf]
        if len(rows[0]) > 1 and {len(row) for row in rows} <= {num_classes, num_labels}:
            values = np.stack(rows)
            if ((values == 0) | (values == 1)).all():
                return values
        return _from_numbers(rows, num_classes, num_labels)
    is_array = isinstance(leaf, np.ndarray) or (isinstance(leaf, Tensor) and leaf.device.type == "cpu")
    if not is_array or leaf.ndim != 2 or leaf.shape[1] not in (num_classes, num_labels):
        return None
    values = to_numpy(leaf.to_dense() if isinstance(leaf, Tensor) else leaf)
    return values if ((values == 0) | (values == 1)).all() else None


def _from_numbers(rows: Sequence[NDArray[Any]], num_classes: int, num_labels: int) -> NDArray[Any] | None:
    if any(row.ndim != 1 or (row.size and row.dtype.kind not in "iu") for row in rows):
        return None
    numbers = np.concatenate([row.astype(np.int64) for row in rows])
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < max(num_classes, _MAX_NUMBER):
        return None
    numbers[numbers >= num_labels] += num_classes - num_labels
    matrix = np.zeros((len(rows), numbers.max(initial=0) + 1), np.bool_)
    matrix[np.arange(len(rows)).repeat([row.size for row in rows]), numbers] = True
    return matrix


def read_columns(
    batch: Any, size: int, convert: Callable[[Any], NDArray[Any] | None], *, can_be_shorter: bool
) -> dict[str, NDArray[Any]]:
    """Return the columns of ``size`` samples by name; if samples were left out, those of the samples that are left."""
    parts = leaves(batch, size)
    columns = {name: column for name, leaf in parts if (column := convert(leaf)) is not None}
    length = size
    if can_be_shorter and all(len(column) != size for column in columns.values()):
        # If samples were left out, most parts of the batch have the number of those that are left.
        lengths = Counter(len(leaf) for _, leaf in parts if getattr(leaf, "ndim", 1) > 0)
        length = max((n for n, count in lengths.items() if n < size and 2 * count > len(parts)), default=size)
    return {name: column for name, column in columns.items() if len(column) == length}


def _is_whole(values: NDArray[Any]) -> bool:
    return bool((np.abs(values) < 2**53).all() and (values == np.rint(values)).all())  # False for NaN


def _from_one_hot(rows: NDArray[Any]) -> NDArray[Any] | None:
    if rows.dtype.kind not in "iufb" or not len(rows) or np.count_nonzero(rows[0]) != 1:
        return None  # most arrays of features end here, after their first row
    is_one_hot = (np.count_nonzero(rows, axis=1) == 1).all() and (rows.max(axis=1) == 1).all()
    return rows.argmax(axis=1) if is_one_hot else None
