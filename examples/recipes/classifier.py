"""The LightningModule that the examples train: classification with importance weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy, MulticlassRecall

from lightning_fair import ImportanceWeightedMixin
from lightning_fair.common.labels import class_names
from recipes.augment import Standardize
from recipes.baselines import CrossEntropy

Batch = tuple[torch.Tensor, torch.Tensor]


class ClassRecall(MulticlassRecall):
    """Recall of each class, shape ``(K,)``; NaN for a class without samples, for which torchmetrics returns 0.

    Args:
        num_classes: Number of classes ``K``.

    Attributes:
        counts: Samples of each class in the last ``compute``, shape ``(K,)``.
        right: Those of them that were right.

    Example:
        >>> ClassRecall(3)(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]))
        tensor([0.5000,    nan, 1.0000])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> torch.Tensor:
        """Return the recalls over all updates."""
        true_positives, _, _, false_negatives = self._final_state()
        self.counts = true_positives + false_negatives
        self.right = true_positives
        return true_positives / self.counts

    def standard_error(self) -> torch.Tensor:
        """Return the binomial errors of the last ``compute``, shape ``(K,)``; a recall of 0 or 1 is not free of error.

        Example:
            >>> metric = ClassRecall(2)
            >>> recall = metric(torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 1, 1]))
            >>> recall, metric.standard_error()
            (tensor([1., 0.]), tensor([0.3062, 0.3062]))
        """
        expected = (self.right + 1) / (self.counts + 2)
        return torch.sqrt(expected * (1.0 - expected) / self.counts).where(self.counts > 0, torch.nan)


class Classifier(ImportanceWeightedMixin, L.LightningModule):
    """Trains a network on images and labels with cross entropy, corrected by weights or in the logits.

    Without a ``FairSampling`` callback all weights are one and the logits stay as they are: the mixin does not install
    the callback here, so that a comparison without the plugin is really without it.

    Args:
        net: Network from a batch of images to logits, shape ``(batch, K)``.
        num_classes: Number of classes ``K``.
        lr: Learning rate.
        weight_decay: Weight decay.
        optimizer: Builds the optimizer from parameters, ``lr`` and ``weight_decay``, for example
            ``functools.partial(torch.optim.SGD, momentum=0.9)``. None: AdamW.
        scheduler: Builds the learning rate scheduler, stepped every epoch, from the optimizer. None: a constant rate.
        augment: Applied to the images of each training batch, or None.
        standardize: Applied to the images of every batch, or None. When training starts it gets its statistics from
            the data module's ``channel_mean_std()``.

    Attributes:
        loss: Module from logits, labels and epoch (from 0) to the loss of each training sample.
        adjust: Module that adjusts the logits in validation and test.
        best_accuracy: Largest balanced accuracy (mean recall) of a validation so far, in [0, 1]; NaN before the first.
        best_epoch: Epoch of that validation, from 1; 0 before the first.
        drawn: Training samples of each class that this process has seen, int64, shape ``(K,)``.
        steps: Training batches that this process has seen.
        errors: Standard error of each recall in the last validation (``"val"``) and test (``"test"``), shape ``(K,)``.
        test_recall: Recall of each class in the last test, shape ``(K,)``, NaN for a class without samples.
        test_accuracy: Accuracy in the last test, in [0, 1].
    """

    fair_sampling = False

    drawn: torch.Tensor
    steps: torch.Tensor
    best_accuracy: torch.Tensor
    best_epoch: torch.Tensor
    test_recall: torch.Tensor
    test_accuracy: float

    def __init__(
        self,
        net: nn.Module,
        num_classes: int = 10,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        augment: nn.Module | None = None,
        standardize: Standardize | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters("num_classes", "lr", "weight_decay")
        self.net = net
        self.augment, self.standardize = augment or nn.Identity(), standardize or nn.Identity()
        self.loss: nn.Module = CrossEntropy()
        self.adjust: nn.Module = nn.Identity()
        self.optimizer, self.scheduler = optimizer or AdamW, scheduler
        self.num_classes, self.lr, self.weight_decay = num_classes, lr, weight_decay
        self.errors: dict[str, torch.Tensor] = {}
        self.recall = ClassRecall(num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        # Buffers on the device, so that training never waits for these numbers.
        self.register_buffer("drawn", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("best_accuracy", torch.tensor(float("nan")))
        self.register_buffer("best_epoch", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Pass the statistics of the training data to ``standardize``."""
        if stage == "fit" and isinstance(self.standardize, Standardize):
            self.standardize.set_statistics(*self.trainer.datamodule.channel_mean_std())  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape ``(batch, K)``."""
        logits: torch.Tensor = self.net(self.standardize(x))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the loss of a batch. The same lines serve every setting of FairSampling, and a training without it."""
        x, y = batch
        self.drawn.scatter_add_(0, y, torch.ones_like(y))
        self.steps += 1
        logits = self.adjusted_logits(self(self.augment(x)))
        loss = self.weighted_loss(self.loss(logits, y, self.current_epoch))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Log the unweighted loss and update the metrics."""
        self.log("val/loss", F.cross_entropy(self._update_metrics(*batch), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and remember the best epoch. Its weights are not restored."""
        recall, _ = self._log_metrics("val", prog_bar=True)
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        accuracy = recall.nanmean()
        if not accuracy <= self.best_accuracy:  # also if the best accuracy is NaN
            self.best_accuracy.copy_(accuracy)
            self.best_epoch.fill_(self.current_epoch + 1)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Update the metrics, and return the logits, for callbacks."""
        return {"logits": self._update_metrics(*batch)}

    def on_test_epoch_end(self) -> None:
        """Log the metrics, and keep them as attributes, because ``barebones`` logs nothing."""
        recall, accuracy = self._log_metrics("test")
        self.test_recall, self.test_accuracy = recall.cpu(), float(accuracy)

    def _update_metrics(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.adjust(self(x))
        self.recall.update(logits, y)
        self.accuracy.update(logits, y)
        return logits

    def _log_metrics(self, stage: str, prog_bar: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log and return the recall of each class and the accuracy of the epoch."""
        recall, accuracy = self.recall.compute(), self.accuracy.compute()
        self.errors[stage] = self.recall.standard_error().cpu()
        self.recall.reset()
        self.accuracy.reset()
        self.log_dict(
            {f"{stage}/balanced_accuracy": recall.nanmean(), f"{stage}/accuracy": accuracy}, prog_bar=prog_bar
        )
        train_set = getattr(getattr(self.trainer, "datamodule", None), "train_set", None)
        names = class_names(train_set) or map(str, range(self.num_classes))
        self.log_dict({f"{stage}/recall/{name}": value for name, value in zip(names, recall, strict=True)})
        return recall, accuracy

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the scheduler if there is one."""
        optimizer = self.optimizer(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])
