"""The settings of a controller that have to be the same on every rank."""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_fair.control.controller import FeedbackController

_LAW = ("lambda1", "lambda2", "max_weight", "min_prob", "loss_ema_decay", "feedback_delay")


def controller_facts(controller: FeedbackController) -> dict[str, Any]:
    """Return the settings, by their names: all that its draws depend on, apart from the draws and reports so far."""
    target, objective = controller._target, controller.objective
    law = {name: getattr(controller, name) for name in _LAW}
    return {
        "num_classes": controller.num_classes,
        "target_probs": describe(target.start if target._schedule is None else [target.start, target.end]),
        "target_probs' schedule": _text(target._schedule),
        "alpha": _text(controller.alpha),
        "horizon": controller._horizon,
        "reference": "target" if objective.base is None else describe(objective.base),
        "feedback": objective.feedback,
        "feedback_to": objective.feedback_to,
        "feedback_gain": objective.gain,
        **law,
    }


def describe(values: ArrayLike) -> str:
    """Return numbers or names as text: the first and the last ones, and a checksum of all.

    Example:
        >>> describe([0.5, 0.5])
        '[0.5 0.5] (checksum c2c997f6)'
    """
    array = np.asarray(values)
    if array.dtype.kind == "f":  # another kind of processor may have another last bit
        array = np.round(array, 9)
    text = " ".join(np.array2string(array, precision=4, threshold=10).split())
    return f"{text} (checksum {zlib.crc32(np.ascontiguousarray(array).tobytes()):08x})"


def _text(schedule: object) -> str:
    """Return a schedule as text, without the addresses of a user's own, which differ between processes."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(schedule))
