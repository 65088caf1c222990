"""The controller's state in shared memory: the main process publishes it for the processes that read a stream."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController

_STEP, _EPOCH, _PROGRESS, _HEADER = 0, 1, 2, 3  # places of the numbers; the vectors come after them
_NO_EPOCH = -1


class SharedState:
    """The state that the readers of a stream need, for ``num_classes`` classes: one process writes, many read."""

    def __init__(self, num_classes: int) -> None:
        self._values = torch.zeros(_HEADER + 3 * num_classes, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self._values[_EPOCH] = _NO_EPOCH

    @property
    def epoch(self) -> int | None:
        """Number of the next iteration; None if it has not been set."""
        epoch = int(self._values[_EPOCH])
        return None if epoch == _NO_EPOCH else epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._values[_EPOCH] = epoch

    @property
    def _vectors(self) -> Floats:
        """The loss score, the tilt of the reference and the trained mix, shape ``(3, K)``."""
        return np.asarray(self._values.numpy()[_HEADER:].reshape(3, -1))

    def publish(self, controller: FeedbackController) -> None:
        """Write the controller's step, target progress, loss score, tilt and trained mix."""
        values = self._values.numpy()
        values[_STEP], values[_PROGRESS] = controller.draws, controller.progress
        self._vectors[:] = controller.loss_score, controller.objective.tilt, controller.trained_mix

    def pass_feedback_to(self, controller: FeedbackController) -> None:
        """Give a copy of the controller the published loss score and tilt."""
        controller.loss_score, controller.objective.tilt = np.array(self._vectors[:2])

    def copy_controller(self, controller: FeedbackController) -> FeedbackController:
        """Return a copy of the controller that continues from the published state, with no draw in flight."""
        values, own = self._values.numpy(), deepcopy(controller)
        own.forget_in_flight()
        if values[_STEP] >= own.draws:  # smaller in a worker that starts later, if nobody reports in the main process
            step, progress, trained_mix = int(values[_STEP]), float(values[_PROGRESS]), self._vectors[2].copy()
            own.rewind(own.moment._replace(draws=step, progress=progress, trained_mix=trained_mix))
        own.epoch = own.epoch if self.epoch is None else self.epoch
        return own
