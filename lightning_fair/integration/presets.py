"""Presets: combinations of target, reference, correction and feedback that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lightning_fair.control.objective import FeedbackTo

PresetName: TypeAlias = Literal["balanced", "deferred", "long_tail", "worst_class", "calibrated"]
Correction: TypeAlias = Literal["weights", "logits", "none"]


@dataclass(frozen=True)
class Preset:
    """The arguments of :class:`~lightning_fair.FairSampling` that a preset sets unless they are given."""

    target_probs: str = "uniform"
    reference: str = "target"
    correction: Correction = "weights"
    feedback: str = "train"
    feedback_to: FeedbackTo = "draw"
    lambda2: float = 0.0


PRESETS: dict[PresetName, Preset] = {
    "balanced": Preset(),
    "deferred": Preset("deferred"),
    "long_tail": Preset("auto", "uniform", "logits"),
    "worst_class": Preset("auto", "uniform", "logits", "val/recall", "objective", 0.25),
    "calibrated": Preset("uniform", "prior", "logits"),
}
