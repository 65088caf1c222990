"""What the log says of classes that a stream stops sending."""

from __future__ import annotations

import logging
import math

import numpy as np

from lightning_fair.controller import FeedbackController
from lightning_fair.simplex import Floats, Ints

_log = logging.getLogger("lightning_fair")


class Absences:
    """Says once in the log that a class has gone from the batches, and once that it is back.

    A class has gone when none of it was to be had for as many batches as the controller's horizon.
    """

    def __init__(self, controller: FeedbackController) -> None:
        self._patience = math.ceil(controller.horizon)
        self._number = 0
        self._absent_for: Ints = np.zeros(controller.num_classes, dtype=np.int64)  # batches
        self._come = np.zeros(controller.num_classes, dtype=bool)
        self._all_there = False

    def follow(self, probs: Floats, target: Floats) -> None:
        """Take the class mix of the next batch and the target it was drawn for, each of shape ``(K,)``."""
        self._number += 1
        there = probs > 0
        if self._all_there and there.all():
            return
        absent, missed = self._absent_for, (target > 0) & ~there
        for y in np.flatnonzero(there & (absent >= self._patience)).tolist():
            _log.warning(
                "Class %d %s: in batch %d, after %d without it.",
                y,
                "is back in the stream" if self._come[y] else "has come",
                self._number,
                absent[y],
            )
        absent[missed] += 1
        absent[~missed] = 0  # also where a target that moves has nothing of it for now
        for y in np.flatnonzero(absent == self._patience).tolist():
            _log.warning(
                "Class %d %s: none to be had for %d batches, the last being batch %d. Its share goes to the other "
                "classes in proportion.",
                y,
                "has gone from the stream" if self._come[y] else "has not come yet",
                absent[y],
                self._number,
            )
        self._come |= there
        self._all_there = not missed.any()
