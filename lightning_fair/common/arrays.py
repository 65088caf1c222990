"""Array types, and conversions between arrays and tensors."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def to_numpy(values: Any) -> Any:
    """Return a tensor, on any device and of any dtype, as a NumPy array. Return any other value unchanged."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return values.float().numpy() if values.dtype is torch.bfloat16 else values.numpy()  # NumPy has no bfloat16


def array_checksum(numbers: NDArray[Any], start: int = 0) -> int:
    """Return a checksum of integers, in parts: they can be a large memory map. A ``start`` continues another one."""
    result = start
    for first in range(0, numbers.size, 2**20):
        result = zlib.crc32(np.ascontiguousarray(numbers[first : first + 2**20], np.int64).data, result)
    return result


def to_plain(value: Any) -> Any:
    """Return ``value`` with every array, tensor and NumPy number in it as plain Python values."""
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return to_numpy(value).tolist()
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(inner) for key, inner in value.items()}
    return [to_plain(inner) for inner in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


def to_tensors(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with every array copied to a tensor, so that a checkpoint loads with ``weights_only=True``."""
    return {
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def to_arrays(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with every tensor copied to an array: the inverse of :func:`to_tensors`."""
    return {
        name: np.array(to_numpy(value)) if isinstance(value, torch.Tensor) else value for name, value in values.items()
    }
