"""Array types, and tensors as arrays."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


Ints: TypeAlias = NDArray[np.int64]


def to_numpy(values: Any) -> Any:
    """Return a tensor, on any device and of any dtype, as a NumPy array; anything else as it is."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return values.float().numpy() if values.dtype is torch.bfloat16 else values.numpy()  # NumPy has no bfloat16
