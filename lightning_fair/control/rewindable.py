"""The part of a controller that takes draws back: the state before a draw, and the return to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_fair.common.arrays import Floats
from lightning_fair.control.draw import Draw, DrawsInFlight, Moment

if TYPE_CHECKING:
    from lightning_fair.control.objective import Objective
    from lightning_fair.control.reports import ReportQueue
    from lightning_fair.control.target import MovingTarget


class Rewindable(DrawsInFlight):
    """Base class of the controller, which has the attributes."""

    draws: int
    trained_mix: Floats
    ema_loss: Floats
    loss_score: Floats
    objective: Objective
    _target: MovingTarget
    _reports: ReportQueue
    _moment: Moment  # the state before the next draw, as it was when the newest one had been made

    def _apply_reports(self) -> None:
        raise NotImplementedError

    @property
    def moment(self) -> Moment:
        """The present state."""
        mixes, objective = (self.trained_mix, self.ema_loss, self.loss_score), self.objective
        return Moment(self.draws, self._target.progress, *mixes, objective.tilt, objective.scores)

    @property
    def oldest_ahead(self) -> Draw | None:
        """The oldest draw in flight that no reported one follows, or None. Withdrawn, it is planned anew."""
        return next((draw for draw in self._in_flight if draw.draw_id > self._reports.newest), None)

    @property
    def _base(self) -> Moment:
        """The state before the draws that a withdrawal undoes."""
        first = self.oldest_ahead
        return self._moment if first is None or first.before is None else first.before

    def withdraw(self) -> list[Draw]:
        """Take the draws out of flight, return to the state before ``oldest_ahead``, and return them, oldest first.

        Draws that are made in the same epoch again are the same. Those before the newest reported one stay in the
        trained mix, to be redrawn unchanged.
        """
        self.rewind(self._base)
        return self._empty()

    def forget_in_flight(self) -> None:
        """Count the draws in flight as trained on."""
        self._empty()
        self._moment = self.moment
        self._reports.forget(self.draws + 1)

    def rewind(self, moment: Moment) -> None:
        """Return to an earlier state. Reports that have come since take effect again in their time."""
        self._target.move_to(moment.progress)
        self.draws, _, self.trained_mix, self.ema_loss, self.loss_score, *of_objective = self._moment = moment
        self.objective.tilt, self.objective.scores = of_objective
        self._reports.rewind(self.draws)
        self._apply_reports()
