"""Labels of samples that can have several, in the forms in which data sets store them, before they are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_fair.common.arrays import Ints, to_numpy

SETS = "Of several labels a sample, pass the set of each sample, such as labels=[{0, 2}, set(), {1}]"


@dataclass(frozen=True, eq=False)
class SetColumn:
    """The labels of each sample, stored one after the other; a sample can have none.

    Attributes:
        lengths: Number of labels of each sample, int64, shape ``(N,)``.
        values: The labels, whole numbers, bools or objects, shape ``(nnz,)``.
        num_columns: Columns of the matrix whose column numbers are the ``values``; None for lists of labels.
        names: Name of each column, if they have names.
    """

    lengths: Ints
    values: NDArray[Any]
    num_columns: int | None = None
    names: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return self.lengths.size

    @property
    def samples(self) -> Ints:
        """Sample of each of the ``values``, int64, shape ``(nnz,)``."""
        return np.arange(len(self)).repeat(self.lengths)


Column: TypeAlias = NDArray[Any] | SetColumn  # the label of each sample, shape (N,), or several of them


def is_frame(values: Any) -> bool:
    """Return whether ``values`` is a ``DataFrame``."""
    return hasattr(values, "columns") and hasattr(values, "iloc")


def take_samples(column: Column, indices: Any) -> Column:
    """Return the labels of these samples, in their order."""
    indices = np.asarray(indices, dtype=np.int64)
    if not isinstance(column, SetColumn):
        part: NDArray[Any] = column[indices]
        return part
    lengths, ends = column.lengths[indices], np.cumsum(column.lengths)
    shift = (ends - column.lengths)[indices] - (np.cumsum(lengths) - lengths)
    values = column.values[np.arange(lengths.sum()) + shift.repeat(lengths)]
    return SetColumn(lengths, values, column.num_columns, column.names)


def join_columns(parts: Sequence[Column]) -> Column:
    """Return the labels of the samples of all parts. Numbers and strings of different parts are different labels.

    Raises:
        ValueError: If the parts are matrices with different numbers of columns.
    """
    arrays = [part.values if isinstance(part, SetColumn) else part for part in parts]
    is_numeric = all(array.dtype.kind in "biuf" for array in arrays)
    values = np.concatenate([array if is_numeric else array.astype(object) for array in arrays])
    sets = [part for part in parts if isinstance(part, SetColumn)]
    if not sets:
        return values
    widths = {part.num_columns for part in sets}
    if len(widths - {None}) > 1:
        raise ValueError(
            f"labels of the data sets in a ConcatDataset have {' and '.join(map(str, widths))} columns. Pass labels="
            "<a matrix with a column for each label>."
        )
    lengths = [part.lengths if isinstance(part, SetColumn) else np.ones(len(part), np.int64) for part in parts]
    names = {part.names for part in sets}
    return SetColumn(
        np.concatenate(lengths),
        values,
        widths.pop() if len(widths) == 1 else None,
        names.pop() if len(names) == 1 else None,
    )


def same_columns(first: Column, second: Column) -> bool:
    """Return whether samples have the same labels, in the same order."""
    columns = [(c.lengths, c.values) if isinstance(c, SetColumn) else (np.ones(len(c)), c) for c in (first, second)]
    return all(np.array_equal(*pair) for pair in zip(*columns, strict=True))


def is_constant(column: Column) -> bool:
    """Return whether all samples have the same labels."""
    if isinstance(column, SetColumn):
        length = int(column.lengths.max(initial=0))
        if (column.lengths != length).any():
            return False
        column = column.values.reshape(-1, length) if length else np.zeros(0)
    return not (column != column[:1]).any()


def matrix_column(y: NDArray[Any], rule: str, names: tuple[Any, ...] | None = None) -> Column:
    """Return the labels of the rows of a matrix with several columns: numbers of columns.

    Raises:
        ValueError: If it has other values than zeros and ones; the ``rule`` is the beginning of the message.
    """
    y = np.asarray(y.tolist() if y.dtype.kind == "O" else y)  # such as bools beside integers in a DataFrame
    rows = "labels" if names is None else "labels.to_numpy()"
    if y.dtype.kind not in "biuf":
        raise ValueError(f"{rule} It is not one-hot, and could be two kinds of labels. {_as_sets(rows)}.")
    is_one = y if y.dtype.kind == "b" else y == 1
    if y.dtype.kind != "b" and not (is_one | (y == 0)).all():
        raise _no_labels(y, rule, rows)
    lengths = is_one.sum(1)
    if (lengths == 1).all():
        return np.asarray(is_one.argmax(1))
    classes = np.flatnonzero(is_one) % max(y.shape[1], 1)
    return SetColumn(lengths, classes.astype(np.int32), y.shape[1], names)


def sparse_column(values: Any) -> Column | None:
    """Return the labels of a sparse matrix of SciPy or torch, with zeros and ones; None if ``values`` is none.

    Raises:
        ValueError: If it has other values or another shape.
    """
    if isinstance(values, Tensor):
        if values.layout is torch.strided:
            return None
        coordinates = values.detach().cpu().to_sparse(layout=torch.sparse_coo).coalesce()
        data, places = np.asarray(to_numpy(coordinates.values())), coordinates.indices().numpy()
    elif hasattr(values, "nnz") and hasattr(values, "tocsr") and len(values.shape) == 2:
        by_row = values.tocsr(copy=True)
        by_row.sum_duplicates()
        data = by_row.data
        places = np.stack([np.arange(values.shape[0]).repeat(np.diff(by_row.indptr)), by_row.indices])
    else:
        return None
    if len(values.shape) != 2 or data.ndim != 1:
        raise ValueError(f"labels must have shape (N,) or (N, K), got a sparse tensor of shape {tuple(values.shape)}.")
    size, num_columns = map(int, values.shape)
    rows, columns = places[:, data != 0].astype(np.int64)
    wrong = (data != 0) & (data != 1)
    if wrong.any():
        labels = "labels.to_dense()" if isinstance(values, Tensor) else "labels"
        raise _wrong_value("labels must be zeros and ones", data[wrong][0], places[:, wrong][:, 0].tolist(), labels)
    lengths = np.bincount(rows, minlength=size)
    if num_columns == 1:
        return lengths
    return columns if (lengths == 1).all() else SetColumn(lengths, columns, num_columns)


def flat_labels(rows: Sequence[Any]) -> tuple[Ints, list[Any]]:
    """Return the number of labels of each sample, and all labels, given lists, sets or arrays of them.

    Raises:
        ValueError: If a sample has None, or is no such list.
    """
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        raise ValueError(
            f"labels must be the labels of each sample, but {len(missing)} samples have None, the first is sample "
            f"{missing[0]}. Pass an empty list for a sample without a label: labels=[row or [] for row in labels]."
        )
    if any(isinstance(row, tuple) for row in rows):
        raise ValueError(f"labels must be one class per sample, got tuples of different lengths. {_as_sets()}.")
    if not any(map(is_row, rows)):
        raise ValueError(f"labels must be classes or lists of them, got one of type {type(rows[0]).__name__}. {SETS}.")
    lists = [_to_list(row) for row in rows]
    flat = [label for row in lists for label in row]
    if any(map(is_row, flat)):
        raise ValueError(f"labels must be hashable values such as numbers or strings, got lists in lists. {SETS}.")
    return np.fromiter(map(len, lists), np.int64, len(lists)), flat


def is_row(value: Any) -> bool:
    """Return whether a value is a list, a set or an array of labels."""
    return isinstance(value, (list, set, frozenset)) or (hasattr(value, "shape") and len(value.shape) == 1)


def _to_list(row: Any) -> Sequence[Any]:
    if hasattr(row, "shape"):
        values = np.asarray(to_numpy(row)).tolist()
        return values if isinstance(values, list) else [values]
    if not isinstance(row, (list, set, frozenset)):
        return [row]
    return [value.item() if isinstance(value, Tensor) and value.numel() == 1 else value for value in row]


def _as_sets(rows: str = "labels") -> str:
    return (
        f"Of rows of classes, pass labels=[set(row) for row in {rows}]; for a class for each combination, tuples: "
        f"labels=[tuple(row) for row in {rows}]"
    )


def _no_labels(y: NDArray[Any], rule: str, rows: str) -> ValueError:
    """Return the error for a matrix that has other values than zeros and ones."""
    if y.dtype.kind == "f" and (y >= 0).all() and np.allclose(y.sum(1), 1.0, atol=1e-3):
        return ValueError(f"{rule} Of class probabilities, pass the most probable class: labels=rows.argmax(1).")
    finite = y[np.isfinite(y)]
    if (finite == np.floor(finite)).all() and (np.abs(finite) > 1).any():
        return ValueError(f"{rule} It is not one-hot, and has other numbers than 0 and 1. {_as_sets(rows)}.")
    wrong = (y != 0) & (y != 1)
    first, rule = np.argwhere(wrong)[0].tolist(), f"{rule} It is not one-hot, and not of zeros and ones"
    is_score = bool(((y >= 0) & (y <= 1)).all())
    return _wrong_value(rule, y[wrong][0], first, "np.asarray(labels)", is_score=is_score)


def _wrong_value(rule: str, value: Any, place: Sequence[int], labels: str, *, is_score: bool = False) -> ValueError:
    remedy = SETS
    if is_score:
        remedy = f"Of scores, choose a threshold: labels=({labels} > 0.5)"
    elif value == -1 or value != value:
        remedy = f"If that means unknown, pass labels=({labels} == 1), which takes it for 0"
    return ValueError(f"{rule}: got {value} for sample {place[0]}, column {place[1]}. {remedy}.")
