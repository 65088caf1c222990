"""Colored MNIST: digits of two classes, in two colors that give the class away in 99 of 100 training images.

Class 0 is the digits 0 to 4, class 1 the digits 5 to 9. Every second pixel is kept, 14x14, in the red or in the green
channel of two (as in M. Arjovsky et al., "Invariant risk minimization", 2019, but without label noise). Each class has
5000 training images, 50 of them in the other class's color: four groups of 4950, 50, 50 and 4950. Another 200 images,
50 a group, are held out first. They are the validation data of every method; the methods named ``+val`` train on them
as well. In the test each of MNIST's test digits appears in both colors.

All methods make the same number of steps with the same batch size, optimizer and initial weights.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from recipes.data import MNISTDataModule
from recipes.models import small_cnn
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_fair import FairSampling, ImportanceWeightedMixin

GROUPS = ("0-4 red", "0-4 green", "5-9 red", "5-9 green")  # number: 2 * class + color
TRAINING = (4950, 50, 50, 4950)  # images of each group
VALIDATION = (50, 50, 50, 50)
BATCH, BATCHES, EPOCHS, LR = 128, 78, 4, 1e-3  # at equal groups each of the 50 images is drawn 200 times
VALIDATE_EVERY = 26  # batches
ADDED = "+val"  # ends the name of a method that trains on the validation images too
WORST, MEAN, AVERAGE = "worst group", "mean of the groups", "at the training mix"


@dataclass(frozen=True)
class Method:
    """How a network is trained.

    Args:
        draw: ``"shuffle"``; ``"weighted"``, a `WeightedRandomSampler` of equal groups; or ``"subsample"``, a fixed part
            of the data in which each group is as large as the smallest (SUBG of B. Idrissi et al., "Simple data
            balancing achieves competitive worst-group-accuracy", 2022).
        dro_step: Step size of the group weights of group DRO (S. Sagawa et al., "Distributionally robust neural
            networks", 2020); None: the plain loss.
        fair: Arguments of `FairSampling`; None: without it.
        adds_validation: Whether the validation images are training images as well.
    """

    draw: Literal["shuffle", "weighted", "subsample"] = "shuffle"
    dro_step: float | None = None
    fair: Mapping[str, Any] | None = None
    adds_validation: bool = False


_WEIGHTS = {"correction": "weights"}  # the logits are of two classes, not of the four groups
_NEED_NO_VALIDATION = {
    "plain": Method(),
    "weighted_sampler": Method("weighted"),
    "subsample": Method("subsample"),
    # On balanced batches, as in its authors' code, whose default is 0.01.
    "group_dro_0.01": Method("weighted", 0.01),
    "group_dro_0.1": Method("weighted", 0.1),
    "group_dro_1": Method("weighted", 1.0),
    "balanced": Method(fair={}),
    "long_tail": Method(fair={"preset": "long_tail", **_WEIGHTS}),
    "worst_class_train": Method(fair={"preset": "worst_class", "feedback": "train", **_WEIGHTS}),
}
METHODS = {
    **_NEED_NO_VALIDATION,
    "worst_class": Method(fair={"preset": "worst_class", **_WEIGHTS}),
    "worst_class_gain_10": Method(fair={"preset": "worst_class", "feedback_gain": 10.0, **_WEIGHTS}),
    **{
        f"{name}{ADDED}": replace(_NEED_NO_VALIDATION[name], adds_validation=True)
        for name in ("subsample", "group_dro_0.01", "long_tail", "worst_class_train")
    },
}


class Classifier(ImportanceWeightedMixin, L.LightningModule):
    """A small network for two classes."""

    fair_sampling = False  # no plugin unless the Trainer has it

    def __init__(self, dro_step: float | None = None) -> None:
        super().__init__()
        self.net = small_cnn(image_size=14, in_channels=2, channels=(16, 32), hidden=64, num_classes=2)
        self.dro_step = dro_step
        self.dro_weights = torch.full((len(GROUPS),), 1 / len(GROUPS))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss: weighted by the plugin, if there is one, or that of group DRO."""
        x, y, group = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        return self.weighted_loss(losses) if self.dro_step is None else self.dro_loss(losses, group, self.dro_step)

    def dro_loss(self, losses: Tensor, group: Tensor, step: float) -> Tensor:
        """Return the weighted sum of the groups' mean losses, after a step of the weights towards the largest."""
        members = F.one_hot(group, len(GROUPS)).float()
        means = losses @ members / members.sum(0).clamp(min=1)
        self.dro_weights = F.normalize(self.dro_weights * torch.exp(step * means.detach()), p=1, dim=0)
        return means @ self.dro_weights

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Give the accuracy of each group to the plugin, if there is one. The validation data are one batch."""
        self.fair_feedback(group_accuracy(self.net, batch), VALIDATION)

    def configure_optimizers(self) -> Any:
        """Return Adam, with a learning rate that falls to 0, without which the last network is a matter of luck."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=LR)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=EPOCHS * BATCHES)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def run(method: str, seed: int, root: Path) -> dict[str, Any]:
    """Train a network, and test it once.

    Args:
        method: Name in `METHODS`.
        seed: Seed of the choice of images, of the initial weights and of the draws.
        root: Folder with ``MNIST/raw/``.

    Returns:
        ``"accuracy"``, the test accuracy of each of `GROUPS`; ``"mean"`` and ``"worst"`` of these; and ``"average"``,
        the accuracy at the training data's mix of groups.
    """
    settings = METHODS[method]
    _quiet()
    L.seed_everything(seed, verbose=False)
    model = Classifier(settings.dro_step)
    train, val, test = make_data(root, seed)
    # The groups are the third tensor of a sample.
    callbacks = [] if settings.fair is None else [FairSampling(labels=2, class_names=GROUPS, **settings.fair)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        val_check_interval=VALIDATE_EVERY,
        num_sanity_val_steps=0,
        callbacks=callbacks,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train_loader(settings, train, val), DataLoader(val, batch_size=len(val)))
    accuracy = group_accuracy(model.net.eval(), test.tensors).double()
    average = float(np.average(accuracy, weights=TRAINING))
    return {
        "accuracy": accuracy.tolist(),
        "mean": float(accuracy.mean()),
        "worst": float(accuracy.min()),
        "average": average,
    }


def rows(method: str, numbers: dict[str, Any]) -> dict[str, dict[str, float]]:  # noqa: ARG001
    """Return the metrics of a run for the table."""
    return {"": {WORST: numbers["worst"], MEAN: numbers["mean"], AVERAGE: numbers["average"]}}


def make_data(root: Path, seed: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return training, validation and test data: images, classes and groups."""
    data = MNISTDataModule(root=str(root), seed=seed)
    data.prepare_data()
    train, val, test = data.load_splits()
    rng = np.random.default_rng(seed)
    chosen = _choose(train, TRAINING, rng), _choose(val, VALIDATION, rng)
    images, digits = test.images, test.targets  # type: ignore[attr-defined]
    colors = np.repeat([0, 1], len(digits))
    return *chosen, color(images.repeat(2, 1, 1, 1), np.tile(digits, 2), colors)


def _choose(part: Any, sizes: tuple[int, ...], rng: np.random.Generator) -> TensorDataset:
    """Return random images of a part of MNIST, so many of each group."""
    order = rng.permutation(part.indices)
    is_large = part.dataset.targets[order] >= 5
    chosen = [order[is_large == c][: sum(sizes[2 * c : 2 * c + 2])] for c in (0, 1)]
    colors = np.repeat([0, 1, 0, 1], sizes)
    kept = np.concatenate(chosen)
    return color(part.dataset.images[kept], part.dataset.targets[kept], colors)


def color(images: Tensor, digits: NDArray[Any], colors: NDArray[Any]) -> TensorDataset:
    """Return every second pixel of gray images, in channel 0 or 1, with their classes and groups.

    Args:
        images: Brightness from 0 to 255, shape ``(N, 1, H, W)``.
        digits: The digits, shape ``(N,)``.
        colors: 0, red, or 1, green, shape ``(N,)``.
    """
    classes = torch.from_numpy((digits >= 5).astype(np.int64))
    channels = torch.from_numpy(colors)
    pixels = images[:, :, ::2, ::2] / 255
    return TensorDataset(pixels * F.one_hot(channels, 2)[:, :, None, None], classes, 2 * classes + channels)


def train_loader(method: Method, train: TensorDataset, val: TensorDataset) -> DataLoader[Any]:
    """Return the training loader, which has at least `BATCHES` batches."""
    data = ConcatDataset([train, val]) if method.adds_validation else train
    groups = torch.cat([train.tensors[2], val.tensors[2]]) if method.adds_validation else train.tensors[2]
    counts = torch.bincount(groups)
    if method.draw == "shuffle":
        return DataLoader(data, batch_size=BATCH, shuffle=True)
    sampler: Sampler[int] = WeightedRandomSampler((1 / counts[groups]).tolist(), num_samples=BATCH * BATCHES)
    if method.draw == "subsample":
        smallest = int(counts.min())
        data = Subset(data, [int(i) for g in range(len(GROUPS)) for i in (groups == g).nonzero()[:smallest]])
        sampler = RandomSampler(data, num_samples=BATCH * BATCHES)
    return DataLoader(data, batch_size=BATCH, sampler=sampler)


@torch.no_grad()
def group_accuracy(net: torch.nn.Module, batch: Any) -> Tensor:
    """Return the accuracy of a network in each group, shape ``(4,)``; NaN for a group without images."""
    x, y, group = batch
    is_right = torch.cat([net(part).argmax(1) for part in x.split(1000)]) == y
    return torch.stack([is_right[group == g].float().mean() for g in range(len(GROUPS))])


def _quiet() -> None:
    """Silence Lightning's hardware report and advice, and the plugin's advice to draw rare groups less often."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (".*does not have many workers", ".*treespec.*deprecated", "The samples of class .* are expected"):
        warnings.filterwarnings("ignore", message=message)
