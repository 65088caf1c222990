"""The mix that the loss stands for, and how feedback moves it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats, to_arrays, to_tensors
from lightning_fair.common.checks import check, check_choice, check_numbers
from lightning_fair.common.class_mix import check_shares
from lightning_fair.common.saved_states import Rule, array, mix, one_of, optional
from lightning_fair.control import law
from lightning_fair.control.target_values import Target, describe_mixes, resolve_target

Feedback: TypeAlias = Literal["train", "validation"]
FeedbackTo: TypeAlias = Literal["draw", "objective"]

_ROUNDING = 1e-5  # of a rate, as a mean in single precision


class Objective:
    """The reference of a controller, whose arguments it has, and the state of its feedback.

    With ``feedback_to="objective"`` feedback moves the reference, ``reference_i ~ base_i * exp(t_i)``, and the draw
    follows the deficits alone. Training losses give ``t = lambda2 * z``, with their standardized means ``z``. A
    validation with the score ``s`` of each class gives ``t <- 0.7 * t + 0.3 * gain * (mean(s) - s)``, so
    ``|t| <= gain``. With ``feedback_to="draw"`` classes that do badly are drawn more often, and the reference stays.

    Training losses help if hard classes are hard for lack of examples. They harm if labels are noisy, and the losses of
    rare classes go to zero when their few samples are learned by heart. Try ``lambda2`` from 0.1 to 0.5, and compare
    with 0.

    References:
        Group DRO, with losses in the place of validation: S. Sagawa et al., "Distributionally robust neural networks"
        (2020).

    Attributes:
        base: The reference without feedback, read-only, shape ``(K,)``; None: the target of the draw.
        is_prior: Whether the reference is the class mix of the data.
        tilt: Logarithm ``t`` of the factor by which feedback moves the reference, shape ``(K,)``.
        scores: Newest validation score of each class, larger is better, shape ``(K,)``; NaN for a class without one.
    """

    def __init__(
        self,
        reference: Target,
        num_classes: int,
        class_counts: ArrayLike | None,
        *,
        feedback: Feedback,
        feedback_to: FeedbackTo,
        gain: float,
        lambda2: float,
    ) -> None:
        follows = isinstance(reference, str) and reference == "target"
        self.base = None if follows else _fixed(resolve_target(reference, num_classes, class_counts, "reference"))
        self.feedback: Feedback = check_choice("feedback", feedback, ("train", "validation"))
        self.feedback_to: FeedbackTo = check("feedback_to", feedback_to)
        self.gain: float = check("feedback_gain", gain)
        self.lambda2 = lambda2
        self.is_prior = isinstance(reference, str) and reference == "prior"
        self._num_classes = num_classes
        self.reset()

    def reset(self) -> None:
        """Forget all feedback."""
        self.tilt: Floats = np.zeros(self._num_classes)
        self.scores: Floats = np.full(self._num_classes, np.nan)

    @property
    def is_moved_by_losses(self) -> bool:
        """Whether training losses move the reference."""
        return self.feedback_to == "objective" and self.feedback == "train" and self.lambda2 > 0

    @property
    def is_moved_by_scores(self) -> bool:
        """Whether validation scores move the reference."""
        return self.feedback_to == "objective" and self.feedback == "validation"

    def mix(self, q: Floats) -> Floats:
        """Return the mix that the loss stands for, given the target of the draw, read-only, shape ``(K,)``."""
        base = q if self.base is None else self.base
        return _fixed(law.tilt_mix(base, self.tilt)) if self.tilt.any() else base

    def check(self, are_drawn: NDArray[np.bool_], *, of_sets: bool) -> None:
        """Refuse a reference with classes not all of whose samples are drawn; ``of_sets``: they have several labels."""
        missing = np.zeros(0, np.bool_) if self.base is None else (self.base > 0) & ~are_drawn
        if self.base is not None and missing.any():
            c = int(missing.argmax())
            lacking = "samples of it that have no label with a target are" if of_sets else "it is"
            raise ValueError(
                f"The reference gives class {c} a share of {self.base[c]:.3g}, but its target is 0, so {lacking} never "
                "drawn. Give it a target, or a reference of 0, for example reference='target'."
            )

    def skip_classes(self, skipped: NDArray[np.bool_]) -> None:
        """Share out the mass of the ``skipped`` classes over the others in proportion."""
        if self.base is not None:
            kept = np.where(skipped, 0.0, self.base)
            if not kept.any():
                raise ValueError("Every class of the reference lacks samples: no loss can stand for it.")
            self.base = _fixed(kept / kept.sum())

    def follow_losses(self, z: Floats) -> None:
        """Move the reference by standardized training losses: ``t = lambda2 * z``."""
        self.tilt = self.lambda2 * z

    def follow_scores(self, scores: Floats) -> None:
        """Take over the scores of a validation, and move the reference by them if they are fed back to it."""
        self.scores = np.where(np.isnan(scores), self.scores, scores)
        if self.is_moved_by_scores:
            self.tilt = law.follow_scores(self.tilt, scores, self.gain)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values; ``base`` can be None."""
        return to_tensors({"base": self.base, "feedback": self.feedback, "tilt": self.tilt, "scores": self.scores})

    def state_spec(self) -> dict[str, Any]:
        """Return what a state has to be."""
        K = self._num_classes
        tilt = array(K)
        words = one_of("train", "validation")
        return {"base": optional(mix(K)), "feedback": words, "tilt": tilt, "scores": scores_rule(K)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned; what feedback of another kind has moved is left out.

        Raises:
            ValueError: If it has another reference.
        """
        state = to_arrays(state)
        theirs, ours = state["base"], self.base
        is_same = theirs is ours if theirs is None or ours is None else np.allclose(theirs, ours, rtol=0.0, atol=1e-9)
        if not is_same:
            raise ValueError(
                f"The loss of the checkpoint stands for {describe_reference(theirs)}, that of this run for "
                f"{describe_reference(ours)}. Resume with the reference the checkpoint was made with, or start without "
                "the checkpoint."
            )

        self.reset()
        self.scores = state["scores"]
        if (self.is_moved_by_losses or self.is_moved_by_scores) and state["feedback"] == self.feedback:
            self.tilt = state["tilt"]


def scores_rule(num_classes: int) -> Rule:
    """Return the rule of the scores of :func:`validation_scores` in a state."""
    return array(num_classes, low=-num_classes, high=1.0, nan=True)


def describe_reference(base: ArrayLike | None) -> str:
    """Return the reference without feedback in words; None is the target."""
    return "the target" if base is None else describe_mixes(np.asarray(base), np.asarray(base))


def _fixed(mix: Floats) -> Floats:
    mix.setflags(write=False)
    return mix


def validation_scores(
    values: Any, counts: Any, takes_part: NDArray[np.bool_], *, higher_is_better: bool, name: str = "values"
) -> Floats:
    """Return the score of each class, larger is better; NaN for a class without a value or without a sample.

    Args:
        values: Recall or another rate in [0, 1], or a loss of at least 0, of each class, shape ``(K,)``.
        counts: Validation samples of each class, shape ``(K,)``, or None.
        takes_part: Whether each class may have a score, shape ``(K,)``.
        higher_is_better: Whether the values are rates. Losses are divided by their mean, and change their sign.
        name: Name of the values for the messages.

    Raises:
        TypeError: If the values or the counts are no numbers.
        ValueError: If a shape is wrong, a rate is not in [0, 1] (rounding aside), a loss is negative or infinite, or a
            count is negative or NaN.

    Example:
        >>> validation_scores([1.0, 3.0, 0.0], [5, 5, 0], np.ones(3, bool), higher_is_better=False)
        array([-0.5, -1.5,  nan])
    """
    scores, num_classes = check_numbers(name, values), takes_part.size
    if scores.shape != (num_classes,):
        raise ValueError(f"{name} must have one value per class, shape ({num_classes},), got shape {scores.shape}.")
    if counts is not None:
        scores[check_shares(counts, num_classes, "counts") == 0] = np.nan
    scores[~takes_part] = np.nan
    known = scores[~np.isnan(scores)]
    if higher_is_better:
        if ((known < -_ROUNDING) | (known > 1.0 + _ROUNDING)).any():
            raise ValueError(
                f"{name} must lie in [0, 1], got {known.min():g} to {known.max():g}. Divide percentages by 100."
            )
        scores = scores.clip(0.0, 1.0)
    else:
        if (known < 0).any() or np.isinf(known).any():
            raise ValueError(f"{name} must be finite and at least 0, got {known.min():g} to {known.max():g}.")
        scores = -scores / (known.mean() if known.any() else 1.0)
    return scores
