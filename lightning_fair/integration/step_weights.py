"""Weighted losses, and their sums per class on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StepWeights:
    """The importance weights of the current batch, and the sums of its losses per class, all on one device.

    One object serves a whole fit and is refilled for each batch, so a compiled training step sees the same tensors
    every time. No method makes the device wait for the host.

    Args:
        num_classes: Number of classes ``K``.
        device: Device of the losses.
        normalize: Divide the weights by their mean over the batch.
        noun: Word for a class in messages, ``"class"`` or ``"group"``.
    """

    def __init__(self, num_classes: int, device: torch.device, *, normalize: bool = False, noun: str = "class") -> None:
        self.num_classes, self.normalize, self.noun = num_classes, normalize, noun
        self.is_open = False  # whether a training step is in progress
        self.got_labels = False  # whether labels were passed to `mean`
        self._weights = torch.ones(num_classes, device=device)
        # Rows: samples, samples with a finite loss, sum of the finite losses. The last column counts calls of `mean`.
        self._sums = torch.zeros(3, num_classes + 1, device=device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=device)

    def start(self, weights: Tensor, labels: Tensor) -> None:
        """Begin a batch with these class weights, shape ``(K,)``, and labels, shape ``(batch,)``."""
        self._weights.copy_(weights, non_blocking=True)
        self._labels = labels.to(self._weights.device, torch.int64, non_blocking=True)
        self._sums.zero_()
        self.is_open = True

    def mean(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of ``w[y] * losses``, and add the losses to the sums of their classes."""
        if losses.ndim != 1:
            raise ValueError(
                f"weighted_loss needs one loss per sample, shape (batch,), got shape {tuple(losses.shape)}. "
                'Compute it with reduction="none", and average further dimensions: losses.flatten(1).mean(1).'
            )
        y = self._labels if labels is None else labels.to(self._weights.device, torch.int64)
        if labels is not None:
            self.got_labels = True
            self._check_labels(losses, labels, y)
        elif y.shape != losses.shape:
            raise ValueError(
                f"weighted_loss got {losses.shape[0]} losses, but {y.shape[0]} samples were drawn. If samples are "
                f"dropped or added after the draw, pass the {self.noun} of each: weighted_loss(losses, labels)."
            )
        weights = self._weights[y]
        if self.normalize:
            weights = weights / weights.mean()
        values = losses.detach().float()
        finite = torch.isfinite(values)
        counted = finite.float()
        rows = torch.stack((torch.ones_like(counted), counted, torch.where(finite, values, 0.0)))
        self._sums[:, :-1].index_add_(1, y, rows)
        self._sums[0, -1] += 1
        return (weights * losses).mean()

    def _check_labels(self, losses: Tensor, labels: Tensor, y: Tensor) -> None:
        if y.shape != losses.shape:
            raise ValueError(
                f"weighted_loss got {len(losses)} losses, but labels of shape {tuple(y.shape)}. Pass one each."
            )
        if labels.dtype.is_floating_point:
            raise ValueError(f"weighted_loss needs the {self.noun} of each sample as an integer, got {labels.dtype}.")
        if y.device.type != "cpu" or torch.compiler.is_compiling():
            return  # reading the values would make the device wait, or break the graph
        K = self._weights.numel()
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= K):
            raise ValueError(
                f"weighted_loss needs the {self.noun} of each sample in [0, {K}), got {int(y.min())} to "
                f"{int(y.max())}. Leave samples without a {self.noun} (ignore_index) out of both losses and labels."
            )

    def finish(self, *, trained: bool = True) -> Tensor:
        """End the batch and return a copy of its sums, shape ``(3, K + 1)``; no samples if it was not trained on."""
        self.is_open = False
        sums = self._sums.clone()
        if not trained:
            sums[:, :-1] = 0
            sums[0, -1] = 1
        return sums


def copy_to_host(value: Tensor) -> Callable[[], Tensor]:
    """Start to copy ``value`` to the host, on a GPU beside the computation. Return a function that waits for it."""
    if not value.is_cuda:
        return value.cpu
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    copy.copy_(value, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> Tensor:
        event.synchronize()
        return copy

    return wait
