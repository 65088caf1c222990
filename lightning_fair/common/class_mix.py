"""Class mixes: points of the probability simplex."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats, to_numpy

SUM_TOLERANCE = 1e-3  # float32 vectors and hand-written decimals pass; a forgotten class does not


def check_mix(values: ArrayLike, num_classes: int, name: str = "target_probs") -> Floats:
    """Return ``values`` as a class mix: float64, shape ``(num_classes,)``, non-negative, summing to one.

    A sum that is off by rounding (up to 0.001) is scaled to one.

    Raises:
        ValueError: If the shape is wrong, or an entry is negative or not finite, or the sum is not one.

    Example:
        >>> check_mix([0.5, 0.25, 0.25], 3)
        array([0.5 , 0.25, 0.25])
    """
    try:
        mix = np.array(to_numpy(values), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, got {values!r}.") from error
    if mix.shape != (num_classes,):
        raise ValueError(f"{name} must have one entry per class, shape ({num_classes},), got shape {mix.shape}.")
    if not np.isfinite(mix).all():
        raise ValueError(
            f"{name} must be finite, got {mix[~np.isfinite(mix)][0]} for class {_first(~np.isfinite(mix))}."
        )
    if (mix < 0).any():
        raise ValueError(f"{name} must not be negative, got {mix[mix < 0][0]:g} for class {_first(mix < 0)}.")
    total = mix.sum()
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to one, got a sum of {total:g}. Divide it by its sum.")
    scaled: Floats = mix / total
    return scaled


def apply_floor(shares: Floats, floor: Floats, room: float | None = None) -> Floats:
    """Make a class mix of ``shares``, mixed with a floor so that no class falls below its ``floor``.

    ``p = (1 - sum(floor)) * shares / sum(shares) + floor``. Unlike clipping and dividing by the new sum, this keeps
    the floor exactly and the order of the classes.

    Args:
        shares: Not negative, with a positive sum, shape ``(K,)``. Worked on in place.
        floor: Least probability of each class, summing to less than one, shape ``(K,)``.
        room: ``1 - sum(floor)``, where it is known.

    Example:
        >>> apply_floor(np.array([5.0, 0.0, 0.0]), np.array([0.1, 0.1, 0.0]))
        array([0.9, 0.1, 0. ])
    """
    if room is None:
        room = 1.0 - np.add.reduce(floor)
    shares *= room / np.add.reduce(shares)
    shares += floor
    return shares


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """Total variation distance of two class mixes, ``max_S |a(S) - b(S)| = sum|a - b| / 2``, in [0, 1].

    Example:
        >>> total_variation([0.99, 0.01], [0.5, 0.5])
        0.49
    """
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).sum() / 2.0)


def _first(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[0])
