"""The class of each sample of a batch, after a ``collate_fn`` that may drop or reorder samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lightning_fair.common.labels import extract_labels

_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def match_batch_labels(batch: Any, drawn: Tensor, num_classes: int) -> Tensor:
    """Return the class of each sample of a batch.

    These are the drawn labels, unless the batch shows that its samples were dropped or reordered: no column of the
    batch equals the drawn labels, and its usual column of labels (the second, or that of a key such as ``"label"``)
    holds integers, at most as many of each class as were drawn.

    Args:
        batch: The batch, in any structure.
        drawn: Drawn class of each sample, int64, on the CPU, shape ``(batch,)``.
        num_classes: Number of classes ``K``.

    Returns:
        ``drawn`` itself, or the batch's own labels, on the CPU, shape ``(n,)``.

    Example:
        >>> drawn = torch.tensor([0, 0, 1, 2])
        >>> match_batch_labels((torch.zeros(3), torch.tensor([2, 0, 0])), drawn, num_classes=3)
        tensor([2, 0, 0])
    """
    labels = extract_labels(batch)
    if not _can_be_labels(labels):
        return drawn
    columns = [labels, *(batch.values() if isinstance(batch, Mapping) else batch)]
    if any(_can_be_labels(column) and torch.equal(column.long(), drawn) for column in columns):
        return drawn
    y = labels.long()
    if not 0 < y.numel() <= drawn.numel() or y.min() < 0 or y.max() >= num_classes:
        return drawn
    if bool((y.bincount(minlength=num_classes) <= drawn.bincount(minlength=num_classes)).all()):
        return labels
    if y.numel() == drawn.numel():
        warnings.warn(
            "A batch has other labels than those drawn for it. If its second element (or 'label', 'target', 'y') is "
            "something else, pass the labels to weighted_loss(losses, labels). If the loader delivers batches in "
            "another order than it draws them, it cannot be made fair.",
            stacklevel=2,
        )
    return drawn


def _can_be_labels(column: Any) -> TypeGuard[Tensor]:
    """Return whether a column of a batch can hold its labels: integers on the CPU, one a sample."""
    return isinstance(column, Tensor) and column.ndim == 1 and column.dtype in _INTEGERS and column.device.type == "cpu"
