"""Trainings of which it is known which sample stands in which row of a batch, whatever the batch shows."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning_helpers import fit
from lightning_utilities.core import rank_zero
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_fair import FairSampling, FeedbackBatchSampler, ImportanceWeightedMixin

COUNTS = (96, 32, 20, 12)
CLASSES = np.repeat(np.arange(4), COUNTS)  # class of each sample; the data set's order shows nothing
CLASSES = np.random.default_rng(0).permutation(CLASSES)
N = len(CLASSES)
X = torch.stack([torch.arange(N, dtype=torch.float32), torch.zeros(N)], dim=1)
EVEN = np.full(4, 0.25)
BATCH = 16
# With the prior as the reference, a weight shows its class. With a target that a batch cannot have, p keeps moving.
SETTINGS: dict[str, dict[str, Any]] = {
    "prior": {"reference": "prior"},
    "feedback": {"target_probs": (0.4, 0.3, 0.2, 0.1), "lambda2": 0.3, "loss_ema_decay": 0.0, "horizon": 10},
}
# Of Lightning itself, or of torch.
_NOT_OURS = ("does not have many workers", "GPU available", "litlogger", "pin_memory", "`isinstance(treespec")


def loader(dataset: Any, **settings: Any) -> DataLoader:
    return DataLoader(dataset, **{"batch_size": BATCH, "shuffle": True, **settings})


def prior(**settings: Any) -> FairSampling:
    return FairSampling(reference="prior", **settings)


@dataclass
class Step:
    """One training step: which samples it had, which labels they were trained with, their weights and losses."""

    indices: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    losses: np.ndarray


class Classifier(ImportanceWeightedMixin, L.LightningModule):
    """A linear classifier that records its steps. The first feature of a sample is its index."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Linear(2, num_classes)
        self.steps: list[Step] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch[0], batch[1]
        return self.loss(x, y)

    def loss(self, x: torch.Tensor, y: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        losses = F.cross_entropy(self.net(x / 1000), y, reduction="none")
        loss = self.weighted_loss(losses, labels)
        self.record(x[:, 0], y, losses, loss)
        return loss

    def record(self, index: torch.Tensor, y: torch.Tensor, losses: torch.Tensor, loss: torch.Tensor) -> None:
        # The weights as they act: the gradient of the step's loss by each sample's loss.
        (share,) = torch.autograd.grad(loss, losses, retain_graph=True)
        weights = share.double().numpy() * len(losses)
        step = Step(index.round().long().numpy(), y.numpy(), weights, losses.detach().double().numpy())
        self.steps.append(step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass
class Outcome:
    """A finished training: its steps, the draw and the report of each, and all that the plugin said."""

    fair: FairSampling
    steps: list[Step]
    probs: list[np.ndarray] = field(default_factory=list)  # p of the draw that each report is on
    loss_sums: list[np.ndarray | None] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)

    def wrong(self, classes: np.ndarray | None = None) -> list[int]:
        """Return the steps whose weights, or reported losses, are not those of their samples' own classes.

        These are ``classes``, one for each sample of the data set; None: the labels that were trained with.
        """
        assert len(self.steps) == len(self.probs) > 0
        return [n for n in range(len(self.steps)) if not self._is_right(n, classes)]

    def _is_right(self, n: int, classes: np.ndarray | None) -> bool:
        step, p = self.steps[n], self.probs[n]
        y = step.labels if classes is None else classes[step.indices]
        mix = self.fair.controller.q
        if self.fair.settings.reference == "prior":
            mix = self.fair.sampler.prior if classes is None else np.bincount(classes) / len(classes)
        sums = np.bincount(y, step.losses, minlength=p.size)
        return np.allclose(step.weights, mix[y] / p[y], rtol=1e-4) and np.allclose(self.loss_sums[n], sums, rtol=1e-4)

    def trained_mix(self, epoch: int | None = None) -> np.ndarray:
        """Return the class mix of the labels that were trained with, in one epoch or in all."""
        size = self.fair.sampler.steps_per_epoch
        steps = self.steps if epoch is None else self.steps[epoch * size : (epoch + 1) * size]
        counts = np.bincount(np.concatenate([step.labels for step in steps]).astype(int))
        return counts / counts.sum()


def complaint(*arguments: Any, **settings: Any) -> str:
    """Train, and return the error that this raises, or else the only warning of the plugin."""
    try:
        outcome = train(*arguments, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    (message,) = outcome.warned
    return message


def train(module: Any, data: Any, fair: FairSampling, *callbacks: L.Callback, **settings: Any) -> Outcome:
    """Train, and return what happened. The number of epochs is 3 unless ``max_epochs`` says otherwise."""
    outcome = Outcome(fair, getattr(module, "steps", []))
    report = FeedbackBatchSampler.report

    def recording(self: Any, draw: Any, *sums: Any) -> None:
        outcome.probs.append(draw.probs.copy())
        outcome.loss_sums.append(np.asarray(sums[1]).copy() if len(sums) > 1 else None)
        report(self, draw, *sums)

    lines = _Lines(outcome.printed)
    logger = rank_zero.log  # of the Lightning package that was imported last
    logger.addHandler(lines)
    try:
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            patch.setattr(FeedbackBatchSampler, "report", recording)
            fit(module, data, fair, *callbacks, **{"max_epochs": 3, **settings})
    finally:
        logger.removeHandler(lines)
        outcome.warned += [str(w.message) for w in caught if not any(part in str(w.message) for part in _NOT_OURS)]
    return outcome


class _Lines(logging.Handler):
    """Collects what is logged for people to read."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
