"""The controller's state in shared memory: the main process publishes it for the processes that read a stream."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController
from lightning_fair.streaming.positions import Start

_STEP, _EPOCH, _PROGRESS, _HEADER = 0, 1, 2, 3  # places of the numbers; the vectors come after them
_NONE = -1  # an epoch or a step that has not been set
_NOW, _START = 0, 1  # the rows: the present state, and that from which the iteration began


class SharedState:
    """The state that the readers of a stream need, for ``num_classes`` classes: one process writes, many read."""

    def __init__(self, num_classes: int) -> None:
        self._values = torch.zeros(2, _HEADER + 3 * num_classes, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self._values[_NOW, _EPOCH] = self._values[_START, _STEP] = _NONE

    @property
    def epoch(self) -> int | None:
        """Number of the next iteration; None if it has not been set."""
        epoch = int(self._values[_NOW, _EPOCH])
        return None if epoch == _NONE else epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._values[_NOW, _EPOCH] = epoch

    def _vectors(self, row: int = _NOW) -> Floats:
        """Return the loss score, the tilt of the reference and the trained mix, shape ``(3, K)``."""
        return np.asarray(self._values.numpy()[row, _HEADER:].reshape(3, -1))

    def publish(self, controller: FeedbackController) -> None:
        """Write the controller's step, target progress, loss score, tilt and trained mix."""
        values = self._values.numpy()[_NOW]
        values[_STEP], values[_PROGRESS] = controller.draws, controller.progress
        self._vectors()[:] = controller.loss_score, controller.objective.tilt, controller.trained_mix

    def begin(self, start: Start | None) -> None:
        """Let all copies of the iteration that begins continue from one state, however late their process starts."""
        values = self._values.numpy()[_START]
        values[_STEP] = _NONE
        if start is not None:
            values[_STEP], values[_PROGRESS], self._vectors(_START)[2] = start

    def pass_feedback_to(self, controller: FeedbackController) -> None:
        """Give a copy of the controller the published loss score and tilt."""
        controller.loss_score, controller.objective.tilt = np.array(self._vectors()[:2])

    def copy_controller(self, controller: FeedbackController) -> FeedbackController:
        """Return a copy of the controller that continues from the published state, with no draw in flight.

        The state is that of ``begin``, or else the present one.
        """
        own = deepcopy(controller)
        own.forget_in_flight()
        has_begun = self._values.numpy()[_START, _STEP] != _NONE
        row = _START if has_begun else _NOW
        values = self._values.numpy()[row]
        # Smaller in a worker that starts later, if nobody reports in the main process.
        if has_begun or values[_STEP] >= own.draws:
            Start(int(values[_STEP]), float(values[_PROGRESS]), self._vectors(row)[2].copy()).apply_to(own)
        own.epoch = own.epoch if self.epoch is None else self.epoch
        return own
