"""Classification with importance weights: what the example trains."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from lightning_fair.mixin import ImportanceWeightedMixin


class ClassificationTask(ImportanceWeightedMixin, L.LightningModule):
    """Trains a network on images and labels with weighted cross entropy and AdamW.

    Without a ``FairSampling`` callback the weights are one, and it is an ordinary classifier: the mixin
    installs none here, so that a comparison without the plugin really is without it.

    Args:
        net: Network from a batch of inputs to logits, shape ``(batch, K)``.
        num_classes: Number of classes ``K``.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        augment: Called on the inputs of each training batch, or None.

    Attributes:
        drawn: Training samples of each class that this process has seen, int64, shape ``(K,)``.
        steps: Training batches that this process has seen.
        test_recall: Recall of each class at the last test, shape ``(K,)``; None before.
        test_accuracy: Share of all samples of the last test that were recognised, in [0, 1]; None before.
    """

    fair_sampling = False

    drawn: torch.Tensor
    steps: torch.Tensor

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net", "augment"])
        self.net = net
        self.augment = nn.Identity() if augment is None else augment
        self.num_classes = num_classes
        self.lr = lr
        self.weight_decay = weight_decay
        self.test_recall: torch.Tensor | None = None
        self.test_accuracy: float | None = None
        metrics = MetricCollection(
            {
                "balanced_accuracy": MulticlassAccuracy(num_classes, average="macro"),
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.recall = MulticlassRecall(num_classes, average="none")
        # Buffers: they are counted on the device, so training never waits for the numbers.
        self.register_buffer("drawn", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape ``(batch, K)``."""
        logits: torch.Tensor = self.net(x)
        return logits

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the weighted loss of a batch."""
        x, y = batch
        self.drawn.scatter_add_(0, y, torch.ones_like(y))
        self.steps += 1
        loss = self.weighted_loss(F.cross_entropy(self(self.augment(x)), y, reduction="none"))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log the unweighted loss, balanced and plain accuracy."""
        x, y = batch
        logits = self(x)
        self.val_metrics(logits, y)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log_dict(self.val_metrics, prog_bar=True)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log balanced and plain accuracy, and collect the recall of each class."""
        x, y = batch
        logits = self(x)
        self.test_metrics(logits, y)
        self.recall.update(logits, y)
        self.log_dict(self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Keep the recall of each class and the accuracy: without logging (``barebones``) nothing else does."""
        self.test_accuracy = float(self.test_metrics.compute()["test/accuracy"])
        self.test_recall = self.recall.compute().cpu()
        self.recall.reset()

    def configure_optimizers(self) -> Any:
        """Return AdamW over the network."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
