"""Class mixes: vectors of one probability per class that sum to one."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check_numbers, show

TRAINING_TARGETS = ("auto", "deferred")  # names that `FairSampling` alone takes: they depend on the training's length
SUM_TOLERANCE = 1e-3  # float32 vectors and hand-written decimals pass; a forgotten class does not


def check_kind(name: str, mix: Any, *words: str) -> None:
    """Refuse a mix that is no vector, mapping, or one of the usual names and ``words``; None is uniform."""
    is_many = isinstance(mix, Sized) and not isinstance(mix, (str, bytes)) and getattr(mix, "ndim", 1) > 0
    allowed = ("uniform", "prior", "sqrt", *(["target"] if name == "reference" else []), *words)
    if mix is None or (is_many and len(mix)) or (isinstance(mix, str) and mix in allowed):
        return
    kinds = f"{', '.join(map(repr, allowed))}, a vector or a mapping"
    is_of_training = isinstance(mix, str) and mix in TRAINING_TARGETS
    hint = f" FairSampling(target_probs={mix!r}) knows the length of the training." * is_of_training
    raise (ValueError if is_many or isinstance(mix, str) else TypeError)(
        f"{name} must be {kinds}, got {show(mix)}.{hint}"
    )


def check_mix(values: ArrayLike, num_classes: int, name: str = "target_probs") -> Floats:
    """Return ``values`` as a class mix: float64, shape ``(num_classes,)``, non-negative, summing to one.

    If the sum differs from one by at most 0.001, the values are divided by it. The ``name`` is for the messages.

    Raises:
        TypeError: If the values are no list or array of numbers.
        ValueError: If the shape is wrong, an entry is negative or not finite, or the sum is not one.
    """
    mix = check_shares(values, num_classes, name)
    total = mix.sum()
    if abs(total - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"{name} must sum to one, got a sum of {total:g}. Divide it by its sum.")
    scaled: Floats = mix / total
    return scaled


def check_shares(values: ArrayLike, num_classes: int, name: str) -> Floats:
    """Return a number of at least 0 for each class: float64, shape ``(num_classes,)``.

    Raises:
        TypeError: If the values are no list or array of numbers.
        ValueError: If the shape is wrong, or an entry is negative or not finite.
    """
    shares = check_numbers(name, values)
    if shares.shape != (num_classes,):
        got = f"shape {shares.shape}" if shares.ndim else show(values)
        raise ValueError(f"{name} must have one entry per class, shape ({num_classes},), got {got}.")
    for bad, rule in ((~np.isfinite(shares), "must be finite"), (shares < 0, "must not be negative")):
        if bad.any():
            label = int(bad.argmax())
            raise ValueError(f"{name} {rule}, got {shares[label]:g} for class {label}.")
    return shares


def total_variation(a: ArrayLike, b: ArrayLike) -> float:
    """Return the total variation distance of two class mixes, ``sum|a - b| / 2``, in [0, 1]."""
    return float(np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).sum() / 2.0)
