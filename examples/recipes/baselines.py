"""Common methods against class imbalance, each in a few lines, to compare with.

Each is used with ``fair=off``: together with fair batches it would correct the class mix twice.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import WeightedRandomSampler

from lightning_fair.common.arrays import Ints


def weighted_sampler(labels: NDArray[Any]) -> WeightedRandomSampler:
    """Return torch's sampler that draws each class with the same probability, with replacement.

    Args:
        labels: Class of each sample, integers, shape ``(N,)``. An epoch has ``N`` draws.

    Example:
        >>> sampler = weighted_sampler(np.array([0] * 9 + [1]))
        >>> len(list(sampler)), sampler.weights[[0, 9]].tolist()
        (10, [0.1111111111111111, 1.0])
    """
    return WeightedRandomSampler(torch.from_numpy(1.0 / np.bincount(labels)[labels]), len(labels))  # type: ignore[arg-type]


class CrossEntropy(nn.Module):
    """Cross entropy of each sample: the plain loss."""

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Return the loss of each sample, shape ``(batch,)``."""
        return F.cross_entropy(logits, labels, reduction="none")


class DeferredReweighting(nn.Module):
    """Cross entropy with class-balanced weights from an epoch on (DRW).

    A class with ``n`` images has the weight ``(1 - beta) / (1 - beta ** n)``, one over its effective number of samples,
    scaled to the mean 1. As in torch's ``CrossEntropyLoss(weight)``, the mean loss is the weighted mean over the batch.

    Args:
        class_counts: Training images of each class, at least 1, shape ``(K,)``.
        begin: First epoch with weights, from 0.
        beta: In [0, 1); 0 is no weighting, and close to 1 the weights are proportional to ``1 / n``.

    Raises:
        ValueError: If a number is out of range or a class is empty.

    Reference:
        Y. Cui et al., "Class-balanced loss based on effective number of samples" (2019); deferred by K. Cao et
        al. (2019).

    Example:
        >>> DeferredReweighting([100, 1], begin=160).weights
        tensor([0.0199, 1.9801])
    """

    weights: Tensor

    def __init__(self, class_counts: ArrayLike, begin: int = 160, beta: float = 0.9999) -> None:
        super().__init__()
        if begin < 0:
            raise ValueError(f"begin must be an epoch of at least 0, got {begin}.")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"beta must lie in [0, 1), got {beta}.")
        weights = (1.0 - beta) / (1.0 - beta ** _check_counts(class_counts))
        # Not persistent, here and below, because it follows from the data.
        self.register_buffer("weights", torch.from_numpy(weights / weights.mean()).float(), persistent=False)
        self.begin = begin

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:
        """Return the loss of each sample, shape ``(batch,)``; ``epoch`` counts from 0."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        if epoch < self.begin:
            return losses
        weights = self.weights[labels]
        return losses * weights / weights.mean()


class FocalLoss(nn.Module):
    """Cross entropy times ``(1 - p) ** gamma``, with the probability ``p`` of the right class.

    Args:
        class_counts: Not used; every loss of this module gets it.
        gamma: At least 0; 0 is plain cross entropy.

    Raises:
        ValueError: If ``gamma`` is negative or not finite.

    Reference:
        T.-Y. Lin et al., "Focal loss for dense object detection" (2017), without the factor ``alpha``.

    Example:
        >>> FocalLoss([9, 1])(torch.zeros(1, 2), torch.tensor([0]), epoch=0)  # 0.5 ** 2 * log 2
        tensor([0.1733])
    """

    def __init__(self, class_counts: ArrayLike, gamma: float = 2.0) -> None:  # noqa: ARG002
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma must be finite and at least 0, got {gamma}.")
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Return the loss of each sample, shape ``(batch,)``."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses * (1.0 - torch.exp(-losses)) ** self.gamma


class BalancedSoftmax(nn.Module):
    """Cross entropy of the logits plus ``tau * log(prior)``: the logit-adjusted loss, Balanced Softmax for ``tau = 1``.

    The network learns logits for balanced classes. In validation and test nothing is added to them.

    Args:
        class_counts: Training images of each class, at least 1, shape ``(K,)``.
        tau: Strength, at least 0; 0 is plain cross entropy.

    Raises:
        ValueError: If ``tau`` is negative or not finite, or a class is empty.

    Reference:
        J. Ren et al., "Balanced meta-softmax for long-tailed visual recognition" (2020); A. K. Menon et al.,
        "Long-tail learning via logit adjustment" (2021), equation 10.

    Example:
        >>> loss = BalancedSoftmax([99, 1])
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]), epoch=0)  # -log 0.99, -log 0.01
        tensor([0.0101, 4.6052])
    """

    offset: Tensor

    def __init__(self, class_counts: ArrayLike, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("offset", _log_prior(class_counts, tau), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, epoch: int) -> Tensor:  # noqa: ARG002
        """Return the loss of each sample, shape ``(batch,)``."""
        return F.cross_entropy(logits + self.offset, labels, reduction="none")


class LogitAdjustment(nn.Module):
    """Subtracts ``tau * log(prior)`` from the logits of a network trained with the plain loss (post-hoc adjustment).

    Applied in validation and test only; training is that of ``fair=off``.

    Args:
        class_counts: Training images of each class, at least 1, shape ``(K,)``.
        tau: Strength, at least 0; 0 changes nothing.

    Raises:
        ValueError: If ``tau`` is negative or not finite, or a class is empty.

    Reference:
        A. K. Menon et al., "Long-tail learning via logit adjustment" (2021), equation 9.

    Example:
        >>> LogitAdjustment([99, 1])(torch.tensor([[2.0, 0.0]])).argmax().item()
        1
    """

    offset: Tensor

    def __init__(self, class_counts: ArrayLike, tau: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("offset", _log_prior(class_counts, tau), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the adjusted logits, shape ``(batch, K)``."""
        return logits - self.offset


def _check_counts(class_counts: ArrayLike) -> Ints:
    counts = np.asarray(class_counts, dtype=np.int64)
    if counts.min() < 1:
        raise ValueError(f"Every class must have an image, but class {int(counts.argmin())} has {int(counts.min())}.")
    return counts


def _log_prior(class_counts: ArrayLike, tau: float) -> Tensor:
    if not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"tau must be finite and at least 0, got {tau}.")
    counts = _check_counts(class_counts)
    return torch.from_numpy(tau * np.log(counts / counts.sum())).float()
