"""The columns of a batch that can hold its labels: one whole number or one string per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAX_DEPTH = 4
_MAX_PARTS = 64  # of a list or tuple; a longer one holds samples, not columns


def leaves(batch: Any, name: str = "batch", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the arrays and lists of a batch in any structure, each with its name, for example ``batch[1]``."""
    if isinstance(batch, (Tensor, np.ndarray)):
        yield name, batch
    elif depth == _MAX_DEPTH or isinstance(batch, (str, bytes, type(None))):
        return
    elif isinstance(batch, Mapping):
        for key, part in batch.items():
            yield from leaves(part, f"{name}[{key!r}]", depth + 1)
    elif isinstance(batch, Sequence):
        if batch and _is_scalar(batch[0]) and _is_scalar(batch[-1]):
            yield name, batch
        elif len(batch) <= _MAX_PARTS:
            fields = getattr(batch, "_fields", None)  # of a named tuple
            for i, part in enumerate(batch):
                yield from leaves(part, f"{name}.{fields[i]}" if fields else f"{name}[{i}]", depth + 1)
    else:
        to_dict = getattr(batch, "to_dict", None)  # graph batches keep their arrays out of `__dict__`
        attributes = to_dict() if callable(to_dict) else getattr(batch, "__dict__", {})
        for key, part in attributes.items():
            yield from leaves(part, f"{name}.{key}", depth + 1)


def _is_scalar(value: Any) -> bool:
    is_array = isinstance(value, (Tensor, np.ndarray))
    return value.ndim == 0 if is_array else isinstance(value, (str, int, float, np.generic))


def as_column(leaf: Any) -> NDArray[Any] | None:
    """Return the values of one column, shape ``(n,)``: int64, or strings; None if it cannot hold labels.

    Whole-number floats and rows that are one-hot count. A tensor on another device than the CPU does not, because
    reading it would make the device wait.
    """
    values: NDArray[Any]
    if isinstance(leaf, Tensor):
        if leaf.device.type != "cpu" or leaf.layout != torch.strided or not 1 <= leaf.ndim <= 2:
            return None
        leaf = leaf.detach()
        values = (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()
    else:
        try:
            values = np.asarray(leaf)
        except (TypeError, ValueError):  # of lists of different lengths, or tensors on a device
            return None
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


def read_columns(batch: Any, size: int, *, can_be_shorter: bool) -> dict[str, NDArray[Any]]:
    """Return the columns of ``size`` values by name; if there is none, the longest of the shorter columns."""
    columns = {name: column for name, leaf in leaves(batch) if (column := as_column(leaf)) is not None}
    lengths = {column.size for column in columns.values() if column.size == size or can_be_shorter}
    length = max((n for n in lengths if n <= size), default=0)
    return {name: column for name, column in columns.items() if column.size == length}


def _is_whole(values: NDArray[Any]) -> bool:
    return bool((np.abs(values) < 2**53).all() and (values == np.rint(values)).all())  # False for NaN


def _from_one_hot(rows: NDArray[Any]) -> NDArray[Any] | None:
    if rows.dtype.kind not in "iufb" or not len(rows) or np.count_nonzero(rows[0]) != 1:
        return None  # most arrays of features end here, after their first row
    is_one_hot = (np.count_nonzero(rows, axis=1) == 1).all() and (rows.max(axis=1) == 1).all()
    return rows.argmax(axis=1) if is_one_hot else None
