"""Weighted losses, and the per-class loss sums they leave behind on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StepWeights:
    """The importance weights of the batch at hand, and the sums over its samples; all on one device.

    One object serves a whole fit and is filled anew for each batch, so a compiled training step sees the
    same tensors every time. Nothing here makes the device wait.

    Args:
        num_classes: Number of classes ``K``.
        device: Where the losses are.
        normalize: Divide the weights by their mean over the batch.
    """

    def __init__(self, num_classes: int, device: torch.device, *, normalize: bool = False) -> None:
        self.normalize = normalize
        self.open = False  # a training step is under way
        self._weights = torch.ones(num_classes, device=device)
        # Rows: samples, samples with a finite loss, sum of the finite losses. One more column: calls.
        self._sums = torch.zeros(3, num_classes + 1, device=device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=device)

    def start(self, weights: Tensor, labels: Tensor) -> None:
        """Take over the class weights, shape ``(K,)``, and the labels, shape ``(batch,)``, of a new batch."""
        self._weights.copy_(weights, non_blocking=True)
        self._labels = labels.to(self._weights.device, torch.int64, non_blocking=True)
        self._sums.zero_()
        self.open = True

    def mean(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of ``w[y] * losses`` and add the losses to the sums of their classes."""
        if losses.ndim != 1:
            raise ValueError(
                f"weighted_loss needs one loss per sample, shape (batch,), got shape {tuple(losses.shape)}. "
                'Compute it with reduction="none", and average further dimensions: losses.flatten(1).mean(1).'
            )
        y = self._labels if labels is None else labels.to(self._weights.device, torch.int64)
        if y.shape != losses.shape:
            raise ValueError(
                f"weighted_loss got {losses.shape[0]} losses, but "
                + (
                    f"{y.shape[0]} samples were drawn. Where samples are dropped or added after the draw, "
                    "pass their labels: weighted_loss(losses, labels)."
                    if labels is None
                    else f"labels of shape {tuple(y.shape)}. Pass one label per loss."
                )
            )
        if labels is not None:
            self._check(labels, y)
        weights = self._weights[y]
        if self.normalize:
            weights = weights / weights.mean()
        values = losses.detach().float()
        finite = torch.isfinite(values)
        counted = finite.float()
        self._sums[:, :-1].index_add_(
            1, y, torch.stack((torch.ones_like(counted), counted, torch.where(finite, values, 0.0)))
        )
        self._sums[0, -1] += 1
        return (weights * losses).mean()

    def _check(self, labels: Tensor, y: Tensor) -> None:
        if labels.dtype.is_floating_point:
            raise ValueError(f"weighted_loss needs integer labels, got {labels.dtype}.")
        if y.device.type != "cpu" or torch.compiler.is_compiling():
            return  # looking at the values would make the device wait, or break the graph
        K = self._weights.numel()
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= K):
            raise ValueError(
                f"weighted_loss needs labels in [0, {K}), got {int(y.min())} to {int(y.max())}. Leave samples that "
                "have none (ignore_index) out of both losses and labels."
            )

    def take(self) -> Tensor:
        """Close the batch and return its sums: a copy, so that the next batch cannot change it."""
        self.open = False
        return self._sums.clone()


class HostCopy:
    """A tensor on its way to the host: on a GPU the copy runs beside the computation until it is read."""

    def __init__(self, value: Tensor) -> None:
        self._event: Any = None
        self._value = value
        if value.is_cuda:
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> Tensor:
        """Return the value on the host, waiting for the copy if it is not there yet."""
        if self._event is not None:
            self._event.synchronize()
        return self._value.cpu()
