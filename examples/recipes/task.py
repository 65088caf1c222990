"""Classification with importance weights: what the example trains."""

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

from lightning_fair.common.labels import class_names
from lightning_fair.integration.mixin import ImportanceWeightedMixin
from recipes.augment import Standardize
from recipes.baselines import CrossEntropy


class ClassRecall(MulticlassRecall):
    """Recall of each class, shape ``(K,)``; NaN for one without a sample, where torchmetrics says 0.

    Args:
        num_classes: Number of classes ``K``.

    Example:
        >>> ClassRecall(3)(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2]))
        tensor([0.5000,    nan, 1.0000])
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> torch.Tensor:
        """Return the recalls of all that was seen."""
        hits, _, _, misses = self._final_state()
        return hits / (hits + misses)


class ClassificationTask(ImportanceWeightedMixin, L.LightningModule):
    """Trains a network on images and labels with weighted cross entropy; by AdamW, unless told otherwise.

    Without a ``FairSampling`` callback the weights are one, and it is an ordinary classifier: the mixin
    installs none here, so that a comparison without the plugin really is without it.

    Args:
        net: Network from a batch of inputs to logits, shape ``(batch, K)``.
        num_classes: Number of classes ``K``.
        lr: Learning rate of the optimiser.
        weight_decay: Weight decay of the optimiser.
        optimizer: From parameters, ``lr`` and ``weight_decay`` to the optimiser, such as
            ``functools.partial(torch.optim.SGD, momentum=0.9)``. None: AdamW.
        scheduler: From the optimiser to its learning rates over the epochs, or None: always the same.
        augment: Called on the inputs of each training batch, or None.
        standardize: Called on the inputs of every batch, after ``augment``, or None. It takes its mean and
            deviation from the data module's ``moments()`` where training starts.

    Attributes:
        loss: From logits, labels and epoch (from 0) to the loss of each sample, in training.
        adjust: Called on the logits in validation and test.
        best_accuracy: Largest balanced accuracy of a validation so far (mean recall of the classes in it), in [0, 1];
            NaN before the first.
        best_epoch: Epoch of that validation, from 1; 0 before the first.
        drawn: Training samples of each class that this process has seen, int64, shape ``(K,)``.
        steps: Training batches that this process has seen.
        test_recall: Recall of each class at the last test, shape ``(K,)``, NaN for one without a sample; None before.
        test_accuracy: Share of all samples of the last test that were recognised, in [0, 1]; None before.
    """

    fair_sampling = False

    drawn: torch.Tensor
    steps: torch.Tensor
    best_accuracy: torch.Tensor
    best_epoch: torch.Tensor

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
        self.augment = nn.Identity() if augment is None else augment
        self.standardize = nn.Identity() if standardize is None else standardize
        self.loss: nn.Module = CrossEntropy()
        self.adjust: nn.Module = nn.Identity()
        self.optimizer, self.scheduler = optimizer or AdamW, scheduler
        self.num_classes = num_classes
        self.lr = lr
        self.weight_decay = weight_decay
        self.test_recall: torch.Tensor | None = None
        self.test_accuracy: float | None = None
        self.recall = ClassRecall(num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        # Buffers: they are counted on the device, so training never waits for the numbers.
        self.register_buffer("drawn", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("best_accuracy", torch.tensor(float("nan")))
        self.register_buffer("best_epoch", torch.zeros((), dtype=torch.int64))

    def setup(self, stage: str) -> None:
        """Measure the training data, where the inputs are to be standardised."""
        if stage == "fit" and isinstance(self.standardize, Standardize):
            self.standardize.measure(*self.trainer.datamodule.moments())  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, shape ``(batch, K)``."""
        logits: torch.Tensor = self.net(self.standardize(x))
        return logits

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return the weighted loss of a batch."""
        x, y = batch
        self.drawn.scatter_add_(0, y, torch.ones_like(y))
        self.steps += 1
        loss = self.weighted_loss(self.loss(self(self.augment(x)), y, self.current_epoch))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Log the unweighted loss, and collect what the epoch's end logs."""
        self.log("val/loss", F.cross_entropy(self._evaluate(*batch), batch[1]))

    def on_validation_epoch_end(self) -> None:
        """Log balanced and plain accuracy and the recalls, and note the best epoch, which is never gone back to."""
        recall, _ = self._log_evaluation("val", prog_bar=True)
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        accuracy = recall.nanmean()
        if not accuracy <= self.best_accuracy:  # also where that is NaN
            self.best_accuracy.copy_(accuracy)
            self.best_epoch.fill_(self.current_epoch + 1)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Collect what the epoch's end logs."""
        self._evaluate(*batch)

    def on_test_epoch_end(self) -> None:
        """Log as validation does, and keep the numbers: without logging (``barebones``) nothing else does."""
        recall, accuracy = self._log_evaluation("test")
        self.test_recall, self.test_accuracy = recall.cpu(), float(accuracy)

    def _evaluate(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.adjust(self(x))
        self.recall.update(logits, y)
        self.accuracy.update(logits, y)
        return logits

    def _log_evaluation(self, stage: str, prog_bar: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Log and return the recall of each class and the plain accuracy of the epoch."""
        recall, accuracy = self.recall.compute(), self.accuracy.compute()
        self.recall.reset()
        self.accuracy.reset()
        overall = {f"{stage}/balanced_accuracy": recall.nanmean(), f"{stage}/accuracy": accuracy}
        self.log_dict(overall, prog_bar=prog_bar)
        data = getattr(self.trainer, "datamodule", None)
        names = class_names(getattr(data, "train_set", None)) or [str(label) for label in range(self.num_classes)]
        self.log_dict({f"{stage}/recall/{name}": share for name, share in zip(names, recall, strict=True)})
        return recall, accuracy

    def configure_optimizers(self) -> Any:
        """Return the optimiser over the network, and the scheduler where there is one."""
        optimizer = self.optimizer(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])
