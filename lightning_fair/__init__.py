"""Feedback-controlled class sampling for PyTorch Lightning.

The algorithm does not depend on Lightning. The names that do are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_fair import schedules
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.weights import effective_sample_size, importance_weights, logit_adjustment
from lightning_fair.rotation.fair_rotation import FairRotation
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler
from lightning_fair.streaming.stream import FairStream

if TYPE_CHECKING:
    from lightning_fair.integration.callback import FairSampling
    from lightning_fair.integration.datamodule import FairDataModule
    from lightning_fair.integration.mixin import ImportanceWeightedMixin
    from lightning_fair.integration.random_states import RandomStates

__version__ = "0.1.0"

__all__ = [
    "FairDataModule",  # a LightningDataModule with a fair training loader, for a data set or another data module
    "FairRotation",  # batches of integers from a range, least used first
    "FairSampling",  # the callback: Trainer(callbacks=[FairSampling()])
    "FairStream",  # batches with a steered class mix from a stream of samples
    "FeedbackBatchSampler",  # batches of indices with a steered class mix
    "FeedbackController",  # the control law: from the class mix trained on to that of the next batch
    "ImportanceWeightedMixin",  # self.weighted_loss(losses) for a LightningModule
    "RandomStates",  # a callback: dropout and augmentation go on when a run is resumed
    "effective_sample_size",  # number of unweighted samples that weighted ones are worth
    "importance_weights",  # ref[y] / p[y], clipped
    "logit_adjustment",  # log(p / ref), for the logits
    "schedules",  # gains that warm up and cool down, targets that move
]

_LIGHTNING = {
    "FairDataModule": "integration.datamodule",
    "FairSampling": "integration.callback",
    "ImportanceWeightedMixin": "integration.mixin",
    "RandomStates": "integration.random_states",
}


def __getattr__(name: str) -> Any:
    if name in _LIGHTNING:
        return getattr(import_module(f"lightning_fair.{_LIGHTNING[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
