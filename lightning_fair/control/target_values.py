"""The values that ``target_probs`` and ``reference`` may have, and the class mixes that they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from lightning_fair.common.arrays import Floats, to_numpy
from lightning_fair.common.checks import check_number, show
from lightning_fair.common.class_mix import SUM_TOLERANCE, check_kind, check_mix, check_shares
from lightning_fair.schedules import Shift

_Key: TypeAlias = int | float | str


@dataclass(frozen=True)
class AutoTarget:
    """The target ``prior ** exponent``, divided by its sum, that ``target_probs="auto"`` is for one training.

    A longer training would have another exponent. A controller with this target therefore takes over that of a state.

    Attributes:
        exponent: In [0, 1]: 0 draws each class that has samples equally often, 1 as often as the data.
    """

    exponent: float


Target: TypeAlias = (
    Literal["uniform", "prior", "sqrt"] | AutoTarget | Mapping[_Key, float] | Sequence[float] | ArrayLike | None
)


def describe_mixes(start: Floats, end: Floats) -> str:
    """Return the endpoints of a target in words, or the only mix of a fixed one."""
    first, last = (np.array2string(mix, precision=4, threshold=10) for mix in (start, end))
    return last if first == last else f"{last} from {first}"


def target_endpoints(target: Target | Shift) -> tuple[Target, Target]:
    """Return the target at the start and at the end; the same one twice, if it is fixed."""
    return (target.start, target.end) if isinstance(target, Shift) else (target, target)


def resolve_target(
    target: Target, num_classes: int, class_counts: ArrayLike | None = None, name: str = "target_probs"
) -> Floats:
    """Return the class mix that ``target`` describes, float64, shape ``(K,)``, summing to one.

    With the class counts ``n``, ``"prior"`` is ``n / sum(n)`` and ``"sqrt"`` is ``sqrt(n) / sum(sqrt(n))``.
    :class:`~lightning_fair.FeedbackController` describes the other values.

    Raises:
        TypeError: If it is no name, vector or mapping, or has values that are no numbers.
        ValueError: If the name is unknown, the counts are missing, or the numbers are not a class mix.

    Example:
        >>> resolve_target("sqrt", 2, class_counts=[9, 1])
        array([0.75, 0.25])
        >>> resolve_target({0: 0.5}, 3)
        array([0.5 , 0.25, 0.25])
    """
    if target is None or (isinstance(target, str) and target == "uniform"):
        return np.full(num_classes, 1.0 / num_classes)
    if not isinstance(target, AutoTarget):
        check_kind(name, target)
    if isinstance(target, (str, AutoTarget)):
        return _from_counts(target, num_classes, class_counts, name)
    if isinstance(target, Mapping):
        return _from_mapping(target, num_classes, name)
    return check_mix(target, num_classes, name)


def _from_counts(target: str | AutoTarget, num_classes: int, class_counts: ArrayLike | None, name: str) -> Floats:
    word = "auto" if isinstance(target, AutoTarget) else target
    exponent = target.exponent if isinstance(target, AutoTarget) else {"prior": 1.0, "sqrt": 0.5}[target]
    if class_counts is None:
        raise ValueError(
            f"{name}={word!r} is computed from the data: pass class_counts=np.bincount(labels, minlength=num_classes)."
        )
    counts = check_shares(class_counts, num_classes, "class_counts")
    share = np.where(counts == 0, 0.0, counts**exponent)
    return check_mix(share / max(share.sum(), 1.0), num_classes, f"the {word} of class_counts")


def auto_exponent(class_counts: ArrayLike, num_samples: float, max_repeats: float) -> float:
    """Return the exponent of ``target_probs="auto"``: how far the draw goes from the prior, for one training.

    It is the smallest ``t`` in [0, 1] such that an item of the rarest class is expected at most ``max_repeats`` times
    if ``q ~ prior ** t``; 1 if even the prior repeats it more often. With the count ``m`` of the rarest class that has
    samples, it solves ``sum((n / m) ** t) = num_samples / (m * max_repeats)``.

    Args:
        class_counts: Samples ``n`` of each class, at least one of them positive, shape ``(K,)``.
        num_samples: Samples drawn over the whole training: batches times the batch size of all ranks.
        max_repeats: At least 1.

    Example:
        >>> auto_exponent([900, 100], num_samples=64_000, max_repeats=160)  # "sqrt", because q = [0.75, 0.25]
        0.5
        >>> auto_exponent([900, 100], 64_000, max_repeats=320), auto_exponent([900, 100], 64_000, max_repeats=64)
        (0.0, 1.0)
    """
    counts = np.asarray(to_numpy(class_counts), dtype=np.float64)
    rarest = counts[counts > 0].min()
    ratios, least = counts[counts > 0] / rarest, num_samples / (rarest * max_repeats)
    if ratios.size >= least:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):  # until the bounds are neighbors, because the sum grows with the exponent
        middle = (low + high) / 2
        low, high = (low, middle) if np.sum(ratios**middle) >= least else (middle, high)
    return high


def expected_repeats(mix: Floats, class_counts: ArrayLike, num_samples: float) -> Floats:
    """Return how often an item of each class is expected in ``num_samples`` draws, shape ``(K,)``; 0 without items.

    Example:
        >>> expected_repeats(np.array([0.75, 0.25]), [900, 100], num_samples=64_000).round(1)
        array([ 53.3, 160. ])
    """
    counts = np.asarray(to_numpy(class_counts), dtype=np.float64)
    repeats: Floats = np.divide(num_samples * mix, counts, out=np.zeros(counts.size), where=counts > 0)
    return repeats


def number_target(target: Target | Shift, numbers: Mapping[Any, int], argument: str = "target_probs") -> Target | Shift:
    """Return a target whose mappings have class numbers as keys, given the ``numbers`` of names and label values.

    If no label value is an integer, integers are class numbers already.

    Raises:
        ValueError: If a name is unknown, or two keys are the same class.

    Example:
        >>> number_target({"dog": 0.8}, {"cat": 0, "dog": 1})
        {1: 0.8}
    """
    if isinstance(target, Shift):
        start, end = (number_target(end, numbers, argument) for end in target_endpoints(target))
        return replace(target, start=start, end=end)
    if not isinstance(target, Mapping):
        return target
    numbered: dict[_Key, float] = {}
    has_integers = any(type(value) is int for value in numbers)
    for key, prob in target.items():
        if key not in numbers and (has_integers or isinstance(key, str)):
            names = ", ".join(repr(name) for name in numbers if isinstance(name, str))
            names = names or "numbers without names; to name them, pass class_names=[...]"
            raise ValueError(f"{argument} names class {key!r}; the classes are {names}.")
        number = numbers.get(key, key)
        if number in numbered:
            raise ValueError(f"{argument} names class {number} twice, the second time as {key!r}. Name it once.")
        numbered[number] = prob
    return numbered


def _from_mapping(target: Mapping[_Key, float], num_classes: int, name: str) -> Floats:
    mix, unnamed = np.zeros(num_classes), np.ones(num_classes, dtype=bool)
    for label, prob in target.items():
        if label not in range(num_classes):
            raise ValueError(f"{name} names class {show(label)}; classes are the integers 0 to {num_classes - 1}.")
        mix[int(label)], unnamed[int(label)] = check_number(f"{name}[{label}]", prob, "[0, inf)"), False
    if unnamed.any():
        rest = 1.0 - mix[np.isfinite(mix)].sum()
        if rest < -SUM_TOLERANCE:
            raise ValueError(f"{name} must sum to one, but the named classes already sum to {1.0 - rest:g}.")
        mix[unnamed] = max(rest, 0.0) / unnamed.sum()
    return check_mix(mix, num_classes, name)
