"""Several labels a picture: digits on canvases (`canvas.py`), one logit for each label.

All methods make the same number of steps with the same batch size, optimizer and initial weights, on the same pictures.
The test is read once, after the training.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from benchmarks.trials.canvas import LABELS, make_data, reachable_shares, with_none
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lightning_fair import FairSampling, ImportanceWeightedMixin

BATCH, EPOCHS, LR = 64, 10, 5e-3
RARE = 3  # labels: a third
MEAN, RAREST = "average precision", "the three rarest"
RAREST_LABEL = "rarest_label"  # a `WeightedRandomSampler` with 1 / the count of each picture's rarest label
METHODS: dict[str, Mapping[str, Any]] = {  # arguments of `FairSampling`
    "balanced": {},
    "sqrt": {"target_probs": "sqrt"},
    "auto": {"target_probs": "auto"},
    "unweighted": {"correction": "none"},
    "max_weight_1": {"max_weight": 1.0},
    "prior_weights": {"reference": "prior"},
}


class Labeler(ImportanceWeightedMixin, L.LightningModule):
    """A small network with a logit for each label, which follows what it is trained on.

    Attributes:
        counts: Pictures of each label, and of none, in all training batches.
        means: Mean of weight times fixed value, and of the value, in each training batch.
    """

    fair_sampling = False  # no plugin unless the Trainer has it

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, padding=1),
            nn.GroupNorm(4, 64),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),  # a digit may be anywhere
            nn.Flatten(),
            nn.Linear(64, LABELS),
        )
        self.steps = steps
        self.counts = torch.zeros(LABELS + 1)
        self.means: list[tuple[float, float]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss, weighted by the plugin, if there is one."""
        x, y, values = batch
        losses = F.binary_cross_entropy_with_logits(self.net(x), y, reduction="none")
        loss = self.weighted_loss(losses.mean(dim=1))
        self.counts += torch.cat([y, 1 - y.amax(dim=1, keepdim=True)], dim=1).sum(dim=0)
        (slopes,) = torch.autograd.grad(loss, losses, retain_graph=True)
        weights = slopes.sum(dim=1) * len(x)
        self.means.append((float((weights * values).mean()), float(values.mean())))
        return loss

    def configure_optimizers(self) -> Any:
        """Return Adam, with a learning rate that falls to 0."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def run(method: str, seed: int, root: Path) -> dict[str, Any]:  # noqa: ARG001
    """Train and test once; nothing is read from ``root``.

    Returns:
        ``"precision"``, the average precision of each label in the test; ``"shares"``, the labels' shares of the
        training batches; ``"value"``, the mean of weight times fixed value, and ``"value_error"``, its standard error.
        With the plugin also ``"target"``, and ``"reachable"``, the shares nearest to it relative to it.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers|.*treespec.*deprecated")
    train, test = make_data(seed)
    L.seed_everything(seed, verbose=False)
    loader = train_loader(method, train)
    model = Labeler(EPOCHS * len(loader))
    fair = FairSampling(labels=1, **METHODS[method]) if method in METHODS else None
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[fair] if fair else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader)
    means = np.array(model.means)[:, 0]
    return {
        "precision": precision(model.net.eval(), test).tolist(),
        "shares": (model.counts / model.counts.sum()).tolist(),
        "value": float(means.mean()),
        "value_error": float(means.std(ddof=1) / np.sqrt(len(means))),
    }


def train_loader(method: str, train: TensorDataset) -> DataLoader[Any]:
    """Return the training loader, whose batches the plugin replaces, if there is one."""
    if method != RAREST_LABEL:
        return DataLoader(train, batch_size=BATCH, shuffle=True)
    labels = with_none(train.tensors[1].numpy() > 0)
    counts = labels.sum(axis=0)
    rarest = np.where(labels, counts, len(labels)).min(axis=1)
    sampler = WeightedRandomSampler((1 / rarest).tolist(), num_samples=len(train))
    return DataLoader(train, batch_size=BATCH, sampler=sampler)


@torch.no_grad()
def precision(net: nn.Module, test: TensorDataset) -> np.ndarray:
    """Return the average precision of each label, shape ``(10,)``."""
    x, y, _ = test.tensors
    logits = torch.cat([net(part) for part in x.split(500)])
    scores: np.ndarray = average_precision_score(y.numpy(), logits.numpy(), average=None)
    return scores
