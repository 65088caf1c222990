"""Log messages about classes that a stream stops sending."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController

_log = logging.getLogger("lightning_fair")


class MissingClassLogger:
    """Logs once that a class is missing from the batches, and once that it is back.

    A class is missing if it has a target and no sample of it was available for one horizon of consecutive batches.

    Args:
        controller: The controller; its horizon is the patience, in batches.
    """

    def __init__(self, controller: FeedbackController) -> None:
        K = controller.num_classes
        self._patience = math.ceil(controller.horizon)
        self._absent_since = np.full(K, -1)  # number of the first batch without the class; -1: it is not absent
        self._reported = np.zeros(K, dtype=bool)
        self._seen = np.zeros(K, dtype=bool)
        self._all_available = False

    def update(self, draw_id: int, available: NDArray[np.bool_], target: Floats, *, log: bool = True) -> None:
        """Update with the number and the target of one draw.

        ``available`` says whether any process that reads had a sample of each class, shape ``(K,)``. If several
        processes track the same draws, only one should ``log``.
        """
        if self._all_available and available.all():
            return
        absent = (target > 0) & ~available
        back = available & self._reported
        self._reported &= absent  # a moving target may also stop asking for a class
        self._absent_since[absent & (self._absent_since < 0)] = draw_id
        missing = absent & ~self._reported & (draw_id + 1 - self._absent_since >= self._patience)
        if log:
            self._log(back, missing, draw_id)
        self._absent_since[~absent] = -1
        self._reported |= missing
        self._seen |= available
        self._all_available = not absent.any()

    def _log(self, back: NDArray[np.bool_], missing: NDArray[np.bool_], draw_id: int) -> None:
        for y in np.flatnonzero(back).tolist():
            event = "is back in the stream" if self._seen[y] else "has arrived"
            num_absent = draw_id - self._absent_since[y]
            _log.warning("Class %d %s: in batch %d, after %d without it.", y, event, draw_id, num_absent)
        for y in np.flatnonzero(missing).tolist():
            event = "is missing from the stream" if self._seen[y] else "has not arrived yet"
            message = "Class %d %s: not available for %d batches, the last being batch %d. %s"
            remark = "Its share goes to the other classes in proportion."
            _log.warning(message, y, event, draw_id + 1 - self._absent_since[y], draw_id, remark)
