"""The target class mix of a controller, as it moves, and the draws that bring it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_tensors
from lightning_fair.common.checks import check, check_number
from lightning_fair.common.saved_states import array, mix, number, optional
from lightning_fair.control.label_draws import RestingDraw
from lightning_fair.control.law import mixture_floor, reciprocal
from lightning_fair.control.target_values import AutoTarget, Target, describe_mixes, resolve_target, target_endpoints
from lightning_fair.schedules import Shift

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
            # Of a label that is not asked for, all of its share.
            excess = np.divide(labels, asked, out=1.0 + labels, where=asked > 0) - 1.0
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
