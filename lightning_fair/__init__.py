"""Feedback-controlled class sampling for PyTorch Lightning.

The algorithm knows no Lightning and is imported at once; the Lightning side is imported when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_fair import schedules
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.weights import effective_sample_size, importance_weights
from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler
from lightning_fair.streaming.stream import FairStream

if TYPE_CHECKING:
    from lightning_fair.integration.callback import FairSampling
    from lightning_fair.integration.datamodule import FairDataModule
    from lightning_fair.integration.mixin import ImportanceWeightedMixin

__version__ = "0.1.0"

__all__ = [
    "FairDataModule",  # a LightningDataModule with a fair training loader, around yours or a data set
    "FairRotation",  # batches of integers from a range, least used first
    "FairSampling",  # the callback: alone in Trainer(callbacks=[...]) it is enough
    "FairStream",  # a stream of samples whose batches have a steered class mix
    "FeedbackBatchSampler",  # batches of indices whose class mix is steered
    "FeedbackController",  # what was seen goes in, the next class mix comes out
    "ImportanceWeightedMixin",  # self.weighted_loss(losses) for a LightningModule
    "effective_sample_size",  # how many plain samples weighted ones are worth
    "importance_weights",  # q[y] / p[y], clipped
    "schedules",  # gains that warm up and cool down
]

_LIGHTNING = {
    "FairDataModule": "integration.datamodule",
    "FairSampling": "integration.callback",
    "ImportanceWeightedMixin": "integration.mixin",
}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        from importlib import import_module

        return getattr(import_module(f"lightning_fair.{_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
