"""Class mixes: vectors of one probability per class that sum to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats, to_numpy

SUM_TOLERANCE = 1e-3  # float32 vectors and hand-written decimals pass; a forgotten class does not


def check_mix(values: ArrayLike, num_classes: int, name: str = "target_probs") -> Floats:
    """Return ``values`` as a class mix: float64, shape ``(num_classes,)``, non-negative, summing to one.

    If the sum differs from one by at most 0.001, the values are divided by it. The ``name`` is for the messages.

    Raises:
        ValueError: If the shape is wrong, an entry is negative or not finite, or the sum is not one.
    """
    try:
        mix = np.array(to_numpy(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {values!r}.") from error
    if mix.shape != (num_classes,):
        raise ValueError(f"{name} must have one entry per class, shape ({num_classes},), got shape {mix.shape}.")
    for bad, rule in ((~np.isfinite(mix), "must be finite"), (mix < 0, "must not be negative")):
        if bad.any():
            label = int(bad.argmax())
            raise ValueError(f"{name} {rule}, got {mix[label]:g} for class {label}.")
    total = mix.sum()
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to one, got a sum of {total:g}. Divide it by its sum.")
    scaled: Floats = mix / total
    return scaled


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """Return the total variation distance of two class mixes, ``sum|a - b| / 2``, in [0, 1]."""
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).sum() / 2.0)
