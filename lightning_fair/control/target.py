"""Target class mixes: the values that ``target_probs`` may have, and the target as it moves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_numpy, to_tensors
from lightning_fair.common.checks import check, check_number, show
from lightning_fair.common.class_mix import SUM_TOLERANCE, check_kind, check_mix, check_shares
from lightning_fair.common.saved_states import array, mix, number, optional
from lightning_fair.control.label_draws import RestingDraw
from lightning_fair.control.law import mixture_floor, reciprocal
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

_REACHED = 0.1  # a share is that of the target up to this fraction
_MAX_SHOWN = 5  # classes in a message
_PATH = np.linspace(0.0, 1.0, 101)  # places on the way of a moving target at which it is checked


class MovingTarget:
    """The target of a controller, whose arguments it has. A fixed target is one whose start and end are equal.

    If samples have several labels, ``q`` is the label mix nearest to the target that draws can bring, and ``rest`` the
    class mix of these draws (see :class:`~lightning_fair.control.label_draws.RestingDraw`); else both are the target.
    As long as a stream has not shown which labels come together, they are the target, too.

    Attributes:
        learns: Whether a stream shows which labels come together.
        start, end: Target at progress 0 and at progress 1, as asked for, shape ``(K,)``.
        progress: How far the target has moved, in [0, 1]; 0 for a fixed one.
        exponent: That of an :class:`AutoTarget`; None for every other target.
        q: Current target, read-only, shape ``(K,)``; ``inverse_q`` is its reciprocal.
        rest: Class mix of draws that bring ``q``, read-only, shape ``(K,)``; ``log_rest`` is its logarithm.
        smallest: Smallest target of a class that is drawn, at present.
        floor: Smallest probability of each class, shape ``(K,)``.
    """

    def __init__(
        self,
        target: Target | Shift,
        num_classes: int,
        class_counts: ArrayLike | None,
        max_weight: float,
        min_prob: float,
        cooccurrence: Ints | None = None,
    ) -> None:
        self.max_weight: float = check("max_weight", max_weight)
        self.min_prob = check_min_prob(min_prob, num_classes)
        self._schedule = target.progress if isinstance(target, Shift) else None
        self.exponent = target.exponent if isinstance(target, AutoTarget) else None
        self._cooccurrence = cooccurrence  # of the labels; None if each sample has one, or a stream has to show it
        self.learns = False
        self.start, self.end = (resolve_target(end, num_classes, class_counts) for end in target_endpoints(target))
        self._find_draws()
        self._check_floor()
        self.reset()

    def _find_draws(self) -> None:
        self.resting: Floats | None = None  # what `solve` returned
        if self._cooccurrence is not None:
            self.resting = self.solve(self._cooccurrence)

    def solve(self, cooccurrence: Ints, **options: Any) -> Floats:
        """Return draws that bring the start and the end, one row if they are equal, shape ``(1 or 2, 2, K)``.

        A row has their class mix, divided by the labels of a draw, and the label mix that they bring. The ``options``
        are those of :class:`~lightning_fair.control.label_draws.RestingDraw`, whose steps begin at the present draws.
        """
        ends = [self.start] if np.array_equal(self.start, self.end) else [self.start, self.end]
        begin = [None] * len(ends) if self.resting is None else self.resting[:, 0]
        draws = [RestingDraw(end, cooccurrence, start=x, **options) for end, x in zip(ends, begin, strict=True)]
        return np.array([[draw.mix / draw.labels_per_draw, draw.labels] for draw in draws])

    def learn(self, resting: Floats | None) -> None:
        """Follow draws that ``solve`` returned; None: what comes together is not known any more."""
        self.resting = resting
        self.move_to(self.progress)

    def _check_floor(self) -> None:
        ends = np.stack([self.rest_at(0.0), self.rest_at(1.0)])[:, self.wanted]
        fixed = np.maximum(ends / self.max_weight, self.min_prob).sum(axis=1).max()  # convex on the way between
        if fixed > 1.0 + 1e-9:
            raise ValueError(
                f"min_prob={self.min_prob:g} and max_weight={self.max_weight:g} give the classes more than all "
                f"samples: max(min_prob, target / max_weight) sums to {fixed:.4g}. Lower min_prob or raise max_weight."
            )
        if fixed > 1.0 - 1e-9:
            warnings.warn(
                f"The feedback is off: with max_weight={self.max_weight:g} and min_prob={self.min_prob:g} every draw "
                "is made with the target itself. A larger max_weight, for example 10, lets the feedback act.",
                stacklevel=4,
            )
        elif 0.0 < self.min_prob <= (ends / self.max_weight).min():
            warnings.warn(
                f"min_prob={self.min_prob:g} has no effect: max_weight={self.max_weight:g} keeps every class at "
                f"{(ends / self.max_weight).min():.3g} or more. Leave min_prob out, or lower max_weight, which raises "
                "that floor.",
                stacklevel=4,
            )

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Whether each class has a target, at the start or at the end, shape ``(K,)``."""
        return (self.start > 0) | (self.end > 0)

    @property
    def smallest_range(self) -> tuple[float, float]:
        """Least and largest value of ``smallest`` on the way from the start to the end."""
        values = [_smallest(self.mix_at(progress)[self.rest_at(progress) > 0]) for progress in _PATH]
        return min(values), max(values)

    def mix_at(self, progress: float) -> Floats:
        """Return ``q`` at this progress: ``(1 - progress) * start + progress * end``, shape ``(K,)``."""
        start, end = (self.start, self.end) if self.resting is None else self.resting[[0, -1], 1]
        return (1.0 - progress) * start + progress * end

    def rest_at(self, progress: float) -> Floats:
        """Return the class mix of draws that bring ``mix_at(progress)``, shape ``(K,)``."""
        if self.resting is None:
            return self.mix_at(progress)
        start, end = self.resting[[0, -1], 0]
        rest = (1.0 - progress) * start + progress * end
        return np.asarray(rest / rest.sum())

    @property
    def labels_per_draw(self) -> float:
        """Mean number of labels of a drawn sample at present, without a deficit; 1 unless samples have several."""
        if self.resting is None:
            return 1.0
        start, end = self.resting[[0, -1], 0].sum(axis=1)  # draws for one label
        return float(1.0 / ((1.0 - self.progress) * start + self.progress * end))

    def describe_unreachable(self, names: Sequence[str]) -> str:
        """Return which classes have another share than asked for, because labels come together; empty if none has."""
        brings = () if self.resting is None else self.resting[:, 1]
        for asked, labels in zip((self.start, self.end), brings, strict=False):
            excess = np.divide(labels, asked, out=np.ones_like(asked), where=asked > 0) - 1.0
            furthest = np.argsort(-np.abs(excess))[:_MAX_SHOWN].tolist()
            shown = [
                f"{names[c]} {labels[c]:.3g} in place of {asked[c]:.3g}" for c in furthest if abs(excess[c]) > _REACHED
            ]
            if shown:
                return ", ".join(shown)
        return ""

    def progress_at(self, step: int, epoch: int) -> float:
        """Return the progress of a draw, in [0, 1]."""
        return self._schedule.value_at(step, epoch, "progress") if self._schedule else 0.0

    def move_to(self, progress: float) -> None:
        """Move the target to ``progress``."""
        self.progress, self.q, self.rest = progress, self.mix_at(progress), self.rest_at(progress)
        self.q.setflags(write=False)
        self.rest.setflags(write=False)
        # A label with target 0 can come along with others.
        self.inverse_q = reciprocal(self.q) * (self.rest > 0)
        self.smallest = _smallest(self.q[self.rest > 0])
        with np.errstate(divide="ignore"):
            self.log_rest: Floats = np.log(self.rest)
        self.floor: Floats = mixture_floor(self.rest, self.max_weight, self.min_prob)

    def reset(self) -> None:
        """Move the target to its progress at the first draw, and forget what a stream has shown."""
        if self.learns:
            self.resting = None
        self.move_to(self.progress_at(0, 0))

    def skip_classes(self, skipped: NDArray[np.bool_]) -> None:
        """See :meth:`~lightning_fair.FeedbackController.skip_classes`."""
        kept = [np.where(skipped, 0.0, mix) for mix in (self.start, self.end)]
        if not all(mix.any() for mix in kept):
            raise ValueError("Every class with a target lacks samples: there is nothing to draw.")
        self.start, self.end = (mix / mix.sum() for mix in kept)
        self._find_draws()
        self.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain numbers."""
        mixes: dict[str, Any] = {"start": self.start, "end": self.end}
        if self.learns:
            mixes["resting"] = None if self.resting is None else self.resting.reshape(-1)
        return to_tensors({**mixes, "progress": self.progress, "exponent": self.exponent})

    def state_spec(self) -> dict[str, Any]:
        """Return what a state has to be."""
        K = self.end.size
        mixes = dict.fromkeys(("start", "end"), mix(K))
        if self.learns:
            mixes["resting"] = optional(array(2 * K, 4 * K, low=0.0, high=1.0))
        return {**mixes, "progress": number(0.0, 1.0), "exponent": optional(number(0.0, 1.0))}

    def check_kind_of(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a controller whose stream has another kind of labels."""
        target = state.get("target")
        if isinstance(target, Mapping) and ("resting" in target) != self.learns:
            theirs, ours = ("one label", "several") if self.learns else ("several labels", "one")
            raise ValueError(
                f"The state is that of a stream with {theirs} a sample, and this one has {ours}. Set "
                f"FairStream(several_labels={not self.learns}), or start without the state."
            )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Move the target to its progress in a state that ``state_dict`` returned.

        An :class:`AutoTarget` becomes that of the state.

        Raises:
            ValueError: If it is another target, or does not fit ``max_weight`` and ``min_prob``.
        """
        arrays = to_arrays(state)
        start, end = arrays["start"], arrays["end"]
        is_auto = self.exponent is not None and state["exponent"] is not None
        if is_auto and np.array_equal([start > 0, end > 0], [self.start > 0, self.end > 0]):
            self.start, self.end, self.exponent = start, end, state["exponent"]
            self._find_draws()
            self._check_floor()
        elif not np.allclose([start, end], [self.start, self.end], rtol=0.0, atol=1e-9):
            theirs, ours = describe_mixes(start, end), describe_mixes(self.start, self.end)
            raise ValueError(
                f"The state steers to {theirs}, this controller to {ours}. "
                "Resume with the target_probs the checkpoint was made with, or start without the checkpoint."
            )
        if self.learns:
            self.resting = None if arrays["resting"] is None else arrays["resting"].reshape(-1, 2, self.end.size)
        self.move_to(state["progress"])


def check_min_prob(min_prob: float, num_classes: int) -> float:
    """Return a floor of the probabilities as a ``float``; refuse one that is not in ``[0, 1/K)``."""
    return check_number("min_prob", min_prob, f"[0, {1.0 / num_classes})", f" (1/K for {num_classes} classes)")


def _smallest(mix: Floats) -> float:
    return float(mix[mix > 0].min())


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
