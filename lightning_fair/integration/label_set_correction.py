"""The correction of batches whose samples have several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.integration.step_correction import StepCorrection


class LabelSetCorrection(StepCorrection):
    """The importance weights of samples with several labels, and the sums of the losses of each label.

    The labels are rows, whether each sample has each class, shape ``(batch, K)``. A loss of a sample counts for each of
    its labels. Of losses of each label, shape ``(batch, K)``, those of the labels that a sample has are fed back, and
    their mean is the loss of the sample. If it is not certain that their columns are our classes, their mean counts for
    each label, too. See :class:`~lightning_fair.control.label_draws.SampleWeights`.

    Attributes:
        got_columns: Whether losses of each label were passed without labels.
    """

    def __init__(self, controller: FeedbackController, *args: Any, **kwargs: Any) -> None:
        super().__init__(controller, *args, **kwargs)
        assert controller.label_kind is not None
        self._has_unlabeled = controller.label_kind.has_unlabeled
        self.got_columns = False
        # Whether the batches have our classes in the order of their numbers. On the device, so that a compiled step is
        # not compiled again when it changes.
        self._knows_columns = torch.ones((), dtype=torch.bool, device=self._sums.device)
        self._divides = self.settings.correction == "weights" and controller.objective.is_prior
        # Rows: the share of a sample that each of its labels gives it in the reference, and in the draw.
        self._weights = torch.ones(2, self.num_classes, device=self._sums.device)
        self._labels = torch.zeros(0, self.num_classes, dtype=torch.bool, device=self._sums.device)

    def _weights_of_draw(self, draw: Draw) -> Floats:
        assert draw.sample_weights is not None
        drawn, wanted = draw.sample_weights.rates(draw.probs, draw.weight_reference)
        return np.stack([wanted, drawn])

    def _weights_of_samples(self, y: Tensor) -> Tensor:
        wanted, drawn = self._weights @ y.T.float()
        if self._divides:
            wanted = wanted / y.sum(1)
        weights = torch.where(drawn > 0, wanted / drawn, 0.0) ** self.settings.exponent
        return weights.clamp(max=self.max_weight)

    @property
    def _num_columns(self) -> tuple[int, ...]:
        return (self.num_classes - 1, self.num_classes) if self._has_unlabeled else (self.num_classes,)

    def _check_shape(self, losses: Tensor) -> None:
        if losses.ndim != 1 and not (losses.ndim == 2 and losses.shape[1] in self._num_columns):
            raise ValueError(
                f"weighted_loss needs one loss per sample, shape (batch,), or one per sample and label, shape (batch, "
                f'{self._num_columns[0]}), got shape {tuple(losses.shape)}. Compute it with reduction="none", and '
                "average further dimensions."
            )

    def mean(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of ``w * losses``, and sum the losses of each label."""
        if losses.ndim == 2 and labels is None:
            self.got_columns = True
        self._has_labels = labels is not None
        return super().mean(losses, labels)

    def know_columns(self, is_known: bool) -> None:
        """Note whether the batches have our classes in the order of their numbers."""
        self._knows_columns.fill_(is_known)

    def _check_labels(self, n: int, labels: Tensor, caller: str, noun: str) -> Tensor:
        if labels.ndim != 2 or labels.shape[0] != n or labels.shape[1] not in self._num_columns:
            raise ValueError(
                f"{caller} got {n} {noun}, but labels of shape {tuple(labels.shape)}. Pass whether each sample has "
                f"each label, shape ({n}, {self._num_columns[0]})."
            )
        # On another device, reading the values would make it wait.
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = labels[(labels != 0) & (labels != 1)]
            if wrong.numel():
                raise ValueError(
                    f"{caller} needs rows of zeros and ones, whether each sample has each label, got "
                    f"{wrong[0].item():g}. Leave labels out, or pass those of the data, before smoothing or MixUp."
                )
        y = labels.to(self._labels.device) > 0
        if y.shape[1] < self.num_classes:
            return torch.cat((y, ~y.any(1, keepdim=True)), 1)
        if y.device.type == "cpu" and not torch.compiler.is_compiling():
            if not y.any(1).all():
                raise ValueError(
                    f"{caller} got labels with a sample that has none, and no class stands for that. Leave such "
                    f"samples out of both {noun} and labels."
                )
            if self._has_unlabeled and (y[:, -1] & y[:, :-1].any(1)).any():
                raise ValueError(
                    f"{caller} got labels with a sample that has some, and the class of samples without a label too. "
                    "Leave the last column out."
                )
        return y

    def _add_to_sums(self, losses: Tensor, y: Tensor) -> None:
        mean = losses.reshape(len(losses), -1).mean(1, keepdim=True)
        if losses.ndim == 1:
            losses = mean
        elif not self._has_labels:
            losses = torch.where(self._knows_columns, losses, mean)
        if losses.shape[1] == self.num_classes - 1 > 1:
            losses = torch.cat((losses, losses.mean(1, keepdim=True)), 1)
        counted = y & torch.isfinite(losses)
        self._sums[:, :-1] += torch.stack((y.sum(0), counted.sum(0), torch.where(counted, losses, 0.0).sum(0)))
