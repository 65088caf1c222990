"""Target class mixes: what ``target_probs`` may say, and the mix it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats, to_numpy
from lightning_fair.common.class_mix import SUM_TOLERANCE, check_mix

TargetName: TypeAlias = Literal["uniform", "prior", "sqrt"]


Target: TypeAlias = TargetName | Mapping[int, float] | Sequence[float] | ArrayLike | None


def resolve_target(target: Target, num_classes: int, class_counts: ArrayLike | None = None) -> Floats:
    """Return the class mix that ``target`` describes.

    Args:
        target: One of

            - ``None`` or ``"uniform"``: every class alike, ``1 / K``;
            - ``"prior"``: the data set's own mix, ``n / sum(n)``;
            - ``"sqrt"``: between the two, ``sqrt(n) / sum(sqrt(n))``;
            - a vector of ``K`` probabilities;
            - a mapping from class to probability. What the named classes leave over is shared by the
              others alike.
        num_classes: Number of classes ``K``.
        class_counts: Samples of each class in the data set, shape ``(K,)``. Needed by the names
            ``"prior"`` and ``"sqrt"``.

    Returns:
        Float64 array of shape ``(K,)``, summing to one.

    Raises:
        ValueError: If the name is unknown, the counts are missing, or the numbers are not a class mix.

    Example:
        >>> resolve_target("sqrt", 2, class_counts=[9, 1])
        array([0.75, 0.25])
        >>> resolve_target({0: 0.5}, 3)
        array([0.5 , 0.25, 0.25])
    """
    if target is None or (isinstance(target, str) and target == "uniform"):
        return np.full(num_classes, 1.0 / num_classes)
    if isinstance(target, str):
        if target not in ("prior", "sqrt"):
            raise ValueError(f"target_probs must be 'uniform', 'prior', 'sqrt', a vector or a mapping, got {target!r}.")
        if class_counts is None:
            raise ValueError(
                f"target_probs={target!r} is computed from the data: "
                "pass class_counts=np.bincount(labels, minlength=num_classes)."
            )
        counts = np.asarray(to_numpy(class_counts), dtype=np.float64)
        share = counts if target == "prior" else np.sqrt(counts)
        return check_mix(share / max(share.sum(), 1.0), num_classes, f"the {target} of class_counts")
    if isinstance(target, Mapping):
        return _from_mapping(target, num_classes)
    return check_mix(target, num_classes)


def _from_mapping(target: Mapping[int, float], num_classes: int) -> Floats:
    unknown = [key for key in target if not (isinstance(key, (int, np.integer)) and 0 <= key < num_classes)]
    if unknown:
        raise ValueError(f"target_probs names class {unknown[0]!r}; classes are the integers 0 to {num_classes - 1}.")
    mix = np.full(num_classes, np.nan)
    for label, prob in target.items():
        mix[label] = prob
    others = np.isnan(mix) & ~np.isin(np.arange(num_classes), list(target))
    if others.any():
        rest = 1.0 - np.nansum(mix)
        if rest < -SUM_TOLERANCE:
            raise ValueError(f"target_probs must sum to one, but the named classes already sum to {1.0 - rest:g}.")
        mix[others] = max(rest, 0.0) / others.sum()
    return check_mix(mix, num_classes)
