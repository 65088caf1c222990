"""What the log says of classes that a stream stops sending."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController

_log = logging.getLogger("lightning_fair")


class MissingClassLogger:
    """Says once in the log that a class has gone from the batches, and once that it is back.

    A class has gone when none of it was to be had for as many batches as the controller's horizon.
    """

    def __init__(self, controller: FeedbackController) -> None:
        self._patience = math.ceil(controller.horizon)
        self._missed_for = np.zeros(controller.num_classes, dtype=np.int64)  # batches
        self._since = np.zeros(controller.num_classes, dtype=np.int64)  # number of the first of them
        self._told = np.zeros(controller.num_classes, dtype=bool)
        self._come = np.zeros(controller.num_classes, dtype=bool)
        self._all_there = False

    def follow(self, draw_id: int, there: NDArray[np.bool_], target: Floats, *, aloud: bool = True) -> None:
        """Take what there was for a batch.

        Args:
            draw_id: Number of the draw.
            there: Whether any process that reads had something of each class, shape ``(K,)``.
            target: The target it was drawn for, shape ``(K,)``.
            aloud: Whether to say it: of several processes that follow, one does.
        """
        if self._all_there and there.all():
            return
        told, missed = self._told, (target > 0) & ~there
        for y in np.flatnonzero(there & told).tolist() if aloud else ():
            _log.warning(
                "Class %d %s: in batch %d, after %d without it.",
                y,
                "is back in the stream" if self._come[y] else "has come",
                draw_id,
                draw_id - self._since[y],
            )
        told &= missed  # also where a target that moves has nothing of it for now
        self._since[missed & (self._missed_for == 0)] = draw_id
        self._missed_for = np.where(missed, np.maximum(draw_id + 1 - self._since, 1), 0)
        gone = missed & ~told & (self._missed_for >= self._patience)
        for y in np.flatnonzero(gone).tolist() if aloud else ():
            _log.warning(
                "Class %d %s: none to be had for %d batches, the last being batch %d. Its share goes to the other "
                "classes in proportion.",
                y,
                "has gone from the stream" if self._come[y] else "has not come yet",
                self._missed_for[y],
                draw_id,
            )
        told |= gone
        self._come |= there
        self._all_there = not missed.any()
