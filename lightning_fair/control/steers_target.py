"""The part of a controller that has the target, and the draws that bring it if samples have several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.label_sets import LabelSets, numbers_as_names
from lightning_fair.control.controller_state import ControllerState


class SteersTarget(ControllerState):
    """Base class of :class:`~lightning_fair.FeedbackController`.

    Attributes:
        label_kind: Labels of no samples, with the classes of the data, if samples have several labels; else None.
    """

    label_kind: LabelSets | None

    @property
    def q(self) -> Floats:
        """Target class mix of the newest draw, read-only, float64, shape ``(K,)``."""
        return self._target.q

    @property
    def rest(self) -> Floats:
        """Class mix of the newest draw without a deficit: ``q``, unless samples have several labels; shape ``(K,)``."""
        return self._target.rest

    @property
    def resting(self) -> Floats | None:
        """Draws without a deficit, and the labels that they bring: what ``learn_draws`` was given."""
        return self._target.resting

    @property
    def progress(self) -> float:
        """How far the target has moved at the newest draw, in [0, 1]; 0 for a fixed target."""
        return self._target.progress

    @property
    def labels_per_draw(self) -> float:
        """Mean number of labels of a drawn sample, without a deficit; 1 unless samples have several labels."""
        return self._target.labels_per_draw

    def describe_unreachable(self, names: Sequence[str] | None) -> str:
        """Return a message if labels that come together cannot have the shares of the target; else an empty one."""
        if not names or len(names) != self.num_classes:
            names = numbers_as_names(self.num_classes, self.label_kind)
        shown = self._target.describe_unreachable(names)
        remedy = "" if self._target.learns else "A target such as 'sqrt' is nearer to what draws can bring. "
        return shown and (
            f"No draws bring the target, because labels come together; the nearest mix of labels has {shown}. The "
            f"draws steer to that one. {remedy}To ask for that one, set target_probs to the controller's q."
        )

    def expect_several_labels(self, kind: LabelSets) -> None:
        """Expect the samples of a stream with several labels, of this kind of classes unless it is known already.

        Raises:
            ValueError: If the reference is the prior.
        """
        if self.objective.is_prior:
            raise ValueError(
                "A stream has no prior, which reference='prior' stands for. Set reference='uniform' or 'target'."
            )
        self.label_kind = kind if self.label_kind is None else self.label_kind
        self._target.learns = True

    def solve_draws(self, cooccurrence: Ints, **options: Any) -> Floats:
        """Return draws that bring the target, for ``learn_draws``, given how often two labels come together.

        The ``options`` are those of :class:`~lightning_fair.control.label_draws.RestingDraw`.
        """
        return self._target.solve(cooccurrence, **options)

    def learn_draws(self, draws: Floats | None) -> None:
        """Follow draws that ``solve_draws`` returned; None: none are known. See ``resting``."""
        self._target.learn(draws)
        if not self.draws:
            self.trained_mix = self.q.copy()  # so the first batch is drawn from it
            self._moment = self.moment
