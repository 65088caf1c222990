"""Lightning modules and data whose samples have several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from label_set_helpers import tags
from lightning_helpers import Plain, Step
from torch.nn import functional as F
from torch.utils.data import Dataset

from lightning_fair import ImportanceWeightedMixin
from lightning_fair.common.label_sets import LabelSets

NUM_TAGS = 5


class Tagged(Dataset):
    """Samples with rows of zeros and ones that know their index: ``(x, y, index)``."""

    def __init__(self, size: int = 160, seed: int = 0) -> None:
        self.targets = torch.from_numpy(tags(size, seed)).float()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        y = self.targets[index]
        return torch.tensor([np.sin(index), np.cos(index), float(y[1]), 1.0], dtype=torch.float32), y, index

    @property
    def sets(self) -> LabelSets:
        return LabelSets.from_matrix(self.targets.numpy())

    @property
    def lists(self) -> list[list[int]]:
        """The classes of each sample, with that of samples without a label."""
        return [row.nonzero()[0].tolist() for row in self.sets.to_dense()]


class PlainTagger(Plain):
    """A linear model of the labels; ``losses_of`` says what it has a loss of."""

    def __init__(self, losses_of: str = "labels", *, pass_labels: bool = False, **settings: Any) -> None:
        super().__init__(num_classes=NUM_TAGS, **settings)
        self.losses_of, self.pass_labels = losses_of, pass_labels

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        losses = F.binary_cross_entropy_with_logits(self.net(x), y, reduction="none")
        if self.losses_of == "samples":
            return losses.mean(1)
        return losses if self.losses_of == "labels" else torch.cat([losses, losses[:, :1] * 2.0], 1)  # "classes"

    def record(self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.y = y
        losses = self.losses(x, y)
        loss = self.reduce(losses)
        (share,) = torch.autograd.grad(loss, losses, retain_graph=True)
        weights = share.double().numpy() * share.numel()
        weights = weights if weights.ndim == 1 else weights.mean(axis=1)
        newest = max(self.draws, default=0)
        self.steps.append(Step(index.tolist(), y.tolist(), weights, losses.detach().double().numpy(), newest))
        return loss


class Tagger(ImportanceWeightedMixin, PlainTagger):
    """The same with the mixin."""

    def reduce(self, losses: torch.Tensor) -> torch.Tensor:
        return self.weighted_loss(losses, self.y) if self.pass_labels else self.weighted_loss(losses)
