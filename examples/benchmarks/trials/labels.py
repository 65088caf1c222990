"""Several labels a picture: digits on canvases (`canvas.py`), one logit for each label.

All methods make the same number of steps with the same batch size, optimizer and initial weights, on the same pictures.
The test is read once, after the training.
"""

from __future__ import annotations

import logging
import warnings
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
from lightning_fair.common.arrays import Floats

BATCH, LR = 64, 5e-3
THIRD = 3  # labels
WITHIN = 0.1  # a share is that of the target up to this part of it
MEAN, RAREST = "average precision", "of the three rarest"
PLAIN, RAREST_LABEL = "plain", "rarest_label"
METHODS: dict[str, dict[str, Any] | None] = {  # arguments of `FairSampling`; None: without it
    PLAIN: None,
    RAREST_LABEL: None,  # a `WeightedRandomSampler` with 1 / the count of each picture's rarest label
    "balanced": {},
    "sqrt": {"target_probs": "sqrt"},
    "auto": {"target_probs": "auto"},
    "unweighted": {"correction": "none"},
    "prior_weights": {"reference": "prior", "max_weight": 200.0},  # with 10 some weights are clipped
    "sqrt_prior_weights": {"target_probs": "sqrt", "reference": "prior"},
}


class Labeler(ImportanceWeightedMixin, L.LightningModule):
    """A small network with a logit for each label, which follows what it is trained on.

    Attributes:
        counts: Pictures of each label, and of none, in all training batches.
        means: Mean of weight times fixed value in each training batch.
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
        self.means: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss, weighted by the plugin, if there is one."""
        x, y, values = batch
        losses = F.binary_cross_entropy_with_logits(self.net(x), y, reduction="none")
        loss = self.weighted_loss(losses.mean(dim=1))
        self.counts += torch.cat([y, 1 - y.amax(dim=1, keepdim=True)], dim=1).sum(dim=0)
        (slopes,) = torch.autograd.grad(loss, losses, retain_graph=True)
        self.means.append(float((slopes.sum(dim=1) * values).sum()))  # the slopes are weights / number of losses
        return loss

    def configure_optimizers(self) -> Any:
        """Return Adam, with a learning rate that falls to 0."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def run(method: str, seed: int, root: Path, *, epochs: int) -> dict[str, Any]:  # noqa: ARG001
    """Train and test once; nothing is read from ``root``.

    Returns:
        ``precision``, the average precision of each label in the test; ``trained``, the labels' shares of the training
        batches, ``reachable``, shares that draws can bring, and with the plugin ``nearest``, the shares that it steers
        to, all three relative to the target; ``value``, the mean of weight times fixed value, and ``value_error``, its
        standard error from the means of the batches.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    train, test = make_data(seed)
    L.seed_everything(seed, verbose=False)
    loader = train_loader(method, train)
    model = Labeler(epochs * len(loader))
    settings = METHODS[method]
    fair = None if settings is None else FairSampling(labels=1, **settings)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[fair] if fair else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Lightning's advice; and the plugin's, that labels come together and that rare pictures are repeated.
        warnings.simplefilter("ignore")
        trainer.fit(model, loader)
    target = np.full(LABELS + 1, 1 / (LABELS + 1))
    numbers: dict[str, Any] = {}
    if fair is not None and fair.controller is not None:
        target = fair.controller.state_dict()["target"]["start"].numpy()
        numbers["nearest"] = (fair.controller.q / target).tolist()
    labels = with_none(train.tensors[1].numpy() > 0)
    return numbers | {
        "precision": precision(model.net.eval(), test).tolist(),
        "trained": (model.counts.numpy() / model.counts.sum().item() / target).tolist(),
        "reachable": reachable_shares(labels, target, WITHIN).tolist(),
        "value": float(np.mean(model.means)),
        "value_error": float(np.std(model.means, ddof=1) / np.sqrt(len(model.means))),
    }


def rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Return the metrics of a run for the table."""
    scores, trained = np.array(numbers["precision"]), np.array(numbers["trained"])
    can_be, are = (np.abs(np.array(shares) - 1) <= WITHIN + 1e-4 for shares in (numbers["reachable"], trained))
    nearest = np.array(numbers.get("nearest", np.full(LABELS + 1, np.nan)))
    metrics = {
        MEAN: scores.mean(),
        RAREST: scores[-THIRD:].mean(),
        "of the three most frequent": scores[:THIRD].mean(),
        "labels that can be within 10 %": can_be.sum(),
        "labels that are": are.sum(),
        "farthest from what it steers to": np.abs(trained / nearest - 1).max(),
        "mean of the values": numbers["value"],
    }
    return {"": {name: float(value) for name, value in metrics.items()}}


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
def precision(net: nn.Module, test: TensorDataset) -> Floats:
    """Return the average precision of each label, shape ``(10,)``."""
    x, y, _ = test.tensors
    logits = torch.cat([net(part) for part in x.split(500)])
    scores: Floats = average_precision_score(y.numpy(), logits.numpy(), average=None)
    return scores
