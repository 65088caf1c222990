"""The correction of the current batch, by weights or in the logits, and the sums of its losses, all on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils.hooks import RemovableHandle

from lightning_fair.common.arrays import Floats
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.weights import class_weights, logit_adjustment
from lightning_fair.integration.settings import FairSettings
from lightning_fair.monitoring.tensorboard_layout import plural


class StepCorrection:
    """The importance weights or the logit offsets of the current batch, and the sums of its losses per class.

    One object serves a whole fit and is refilled for each batch, so a compiled training step sees the same tensors
    every time. No method makes the device wait for the host. A copy or a pickle corrects nothing until it is started.

    Args:
        controller: Has the largest weight, and says whether training losses are fed back, and to where.
        device: Device of the losses.
        settings: Say how to correct.
        noun: Word for a class in messages, ``"class"`` or ``"group"``.

    Attributes:
        adjusts_logits: Whether the correction is in the logits.
        sums_cross_entropy: Whether the cross entropy of the logits is summed, and not the losses.
        is_open: Whether a training step is in progress.
        got_labels: Whether labels were passed to ``mean``.
        hooked: Name of the submodule whose output a hook adjusts; None without a hook.
        nodes: Nodes of the graph whose outputs are the adjusted logits of the current batch; none of them is within a
            compiled function or a transform of ``torch.func``.
    """

    def __init__(
        self, controller: FeedbackController, device: torch.device, settings: FairSettings, *, noun: str = "class"
    ) -> None:
        self.num_classes, self.max_weight = controller.num_classes, controller.max_weight
        self.settings, self.noun, num_classes = settings, noun, controller.num_classes
        self.adjusts_logits = settings.correction == "logits"
        self.sums_cross_entropy = self.adjusts_logits and controller.feeds_train_losses
        self._feeds_losses = controller.feeds_train_losses
        self._feeds_adjusted = controller.objective.feedback_to == "objective"
        self.is_open = self.got_labels = False
        self.hooked: str | None = None
        self.nodes: list[Any] = []
        self._handle: RemovableHandle | None = None
        self._weights = torch.ones(num_classes, device=device)
        self._offset = torch.zeros(num_classes, device=device)
        self._labels = torch.zeros(0, dtype=torch.int64, device=device)
        # Rows: samples, samples with a finite loss, sum of the finite losses. The last column counts how often losses
        # were summed, and how often logits were adjusted.
        self._sums = torch.zeros(3, num_classes + 1, device=device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_open": False, "nodes": [], "_handle": None}

    def start(self, draw: Draw, labels: Tensor) -> None:
        """Begin the batch of a draw, whose samples have these labels, shape ``(batch,)``."""
        settings = self.settings
        if self.adjusts_logits:
            self._offset.copy_(logit_adjustment(draw.probs, draw.reference), non_blocking=True)
        elif settings.correction == "weights":
            self._weights.copy_(torch.from_numpy(self._weights_of_draw(draw)).float(), non_blocking=True)
        self._labels = labels.to(self._weights.device, self._labels.dtype, non_blocking=True)
        self._sums.zero_()
        self.nodes.clear()
        self.is_open = True

    def mean(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean of ``w[y] * losses``; unless ``adjust`` sums the cross entropy, sum the losses."""
        self._check_shape(losses)
        y = self._labels_of(losses, labels, "weighted_loss", "losses")
        if labels is not None:
            self.got_labels = True
        weights = self._weights_of_samples(y)
        if self.settings.normalize:
            weights = weights / weights.mean()
        if not self.sums_cross_entropy:
            self._add(losses.detach(), y)
        return (weights * (losses if losses.ndim == 1 else losses.mean(1))).mean()

    def _weights_of_draw(self, draw: Draw) -> Floats:
        """Return what the weights of the samples are computed from, of the shape of ``_weights``."""
        return class_weights(draw.weight_reference, draw.probs, self.max_weight, exponent=self.settings.exponent)

    def _weights_of_samples(self, y: Tensor) -> Tensor:
        """Return the weight of samples with these labels, shape ``(n,)``."""
        return self._weights[y]

    def _check_shape(self, losses: Tensor) -> None:
        if losses.ndim != 1:
            raise ValueError(
                f"weighted_loss needs one loss per sample, shape (batch,), got shape {tuple(losses.shape)}. "
                'Compute it with reduction="none", and average further dimensions: losses.flatten(1).mean(1).'
            )

    def adjust(self, logits: Tensor, labels: Tensor | None = None, *, outputs: int | None = None) -> Tensor:
        """Return the logits plus their offsets; if training losses are fed back, sum the cross entropy.

        ``outputs`` is the number of outputs of the layer that returned the logits, if that is known.
        """
        is_single = self._is_single(logits, labels, outputs)
        if not is_single and logits.shape[-1:] != (self.num_classes,):
            raise ValueError(self._describe_wrong_shape(logits))
        # Of one dimension in any case, so that the sum has its precision.
        offset = self._offset[1:] - self._offset[:1] if is_single else self._offset
        adjusted = logits + offset
        if not _is_recomputed():
            self._count_logits(adjusted)
            if self.sums_cross_entropy:
                z = adjusted if self._feeds_adjusted else logits
                self._add_cross_entropy(z.detach(), labels, is_single=is_single)
        return adjusted

    def _is_single(self, logits: Tensor, labels: Tensor | None, outputs: int | None) -> bool:
        """Return whether there is one logit for each sample, that of class 1 of two."""
        if self.num_classes != 2:
            return False
        if logits.shape != (2,) or outputs in (1, 2):
            return outputs != 2 and (logits.ndim == 1 or logits.shape[1:] == (1,))
        n = self._labels.shape[0] if labels is None else labels.shape[0]
        if n != 2:
            raise ValueError(
                f"{self._place()} logits of shape (2,) are two logits of one sample or one logit of two samples, and "
                f"the batch has {n} samples. Write logits[None], shape (1, 2), or logits[:, None], shape (2, 1)."
            )
        return True

    def _count_logits(self, adjusted: Tensor) -> None:
        if not is_transformed():
            self._sums[1, -1] += 1
            if not torch.compiler.is_compiling() and adjusted.grad_fn is not None:
                self.nodes.append(adjusted.grad_fn)
            return
        if self.sums_cross_entropy:
            raise RuntimeError(self._describe_transform(self._caller()))
        with temporarily_clear_interpreter_stack():  # it refuses to change a tensor from outside of it
            self._sums[1, -1] += 1

    def _add_cross_entropy(self, z: Tensor, labels: Tensor | None, *, is_single: bool) -> None:
        if is_single:
            z = torch.stack((torch.zeros_like(z), z), -1).flatten(0, -2)
        z = z[None] if z.ndim == 1 else z
        y = self._labels_of(z, labels, self._caller(), "logits")
        costs = -z.float().log_softmax(-1)
        costs = costs.flatten(1, -2).mean(1) if z.ndim > 2 else costs
        self._add(costs.gather(1, y[:, None])[:, 0], y)

    def _caller(self) -> str:
        return "adjusted_logits" if self.hooked is None else self.hooked

    def _place(self) -> str:
        return "adjusted_logits:" if self.hooked is None else f"The output of {self.hooked}:"

    def _describe_transform(self, caller: str) -> str:
        return (
            f"{caller} was called within a transform of torch.func (grad, vmap, ...), where the losses that are fed "
            "back cannot be summed. Call it outside of the transform, or set FairSampling(correction='logits', "
            "lambda2=0.0), or feedback='val/recall' or another metric of the validation."
        )

    def _describe_wrong_shape(self, logits: Tensor) -> str:
        K, kinds = self.num_classes, plural(self.noun)
        single = ", or with one logit (batch,) or (batch, 1)" if K == 2 else ""
        place = "adjusted_logits needs" if self.hooked is None else f"The output of {self.hooked} must be"
        return (
            f"{place} one logit for each of the {K} {kinds} that FairSampling balances, shape (..., {K}){single}, got "
            f"shape {tuple(logits.shape)}. Move the {kinds} to the last dimension. If the outputs are something else, "
            "set FairSampling(correction='weights')."
        )

    def _labels_of(self, values: Tensor, labels: Tensor | None, caller: str, noun: str) -> Tensor:
        """Return the class of each of the values, shape ``(n,)``: the given labels, or those of the batch."""
        n = values.shape[0]
        if labels is not None:
            return self._check_labels(n, labels, caller, noun)
        if self._labels.shape[0] == n:
            return self._labels
        remedy = f"pass the {self.noun} of each: {caller}({noun}, labels)"
        if caller == self.hooked:
            remedy = f"use self.adjusted_logits({noun}, labels) of ImportanceWeightedMixin, or set lambda2=0.0"
        raise ValueError(
            f"{caller} got {n} {noun}, but {self._labels.shape[0]} samples were drawn. If samples are dropped or added "
            f"after the draw, {remedy}."
        )

    def _check_labels(self, n: int, labels: Tensor, caller: str, noun: str) -> Tensor:
        """Return the labels on the device."""
        y = labels.to(self._weights.device, torch.int64)
        if y.shape != (n,):
            raise ValueError(f"{caller} got {n} {noun}, but labels of shape {tuple(y.shape)}. Pass one each.")
        if labels.dtype.is_floating_point:
            raise ValueError(f"{caller} needs the {self.noun} of each sample as an integer, got {labels.dtype}.")
        if y.device.type != "cpu" or torch.compiler.is_compiling():
            return y  # reading the values would make the device wait, or break the graph
        K = self.num_classes
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= K):
            raise ValueError(
                f"{caller} needs the {self.noun} of each sample in [0, {K}), got {int(y.min())} to {int(y.max())}. "
                f"Leave samples without a {self.noun} (ignore_index) out of both {noun} and labels."
            )
        return y

    def _add(self, losses: Tensor, y: Tensor) -> None:
        if _is_recomputed():
            return
        if is_transformed():
            if self._feeds_losses or self.settings.correction == "weights":
                raise RuntimeError(self._describe_transform("weighted_loss"))
            return
        self._add_to_sums(losses.float(), y)
        self._sums[0, -1] += 1

    def _add_to_sums(self, losses: Tensor, y: Tensor) -> None:
        finite = torch.isfinite(losses)
        counted = finite.float()
        rows = torch.stack((torch.ones_like(counted), counted, torch.where(finite, losses, 0.0)))
        self._sums[:, :-1].index_add_(1, y, rows)

    def finish(self, *, trained: bool = True) -> Tensor:
        """End the batch and return a copy of its sums, shape ``(3, K + 1)``; no samples if it was not trained on.

        If no losses were summed, the samples are those of the batch.
        """
        self.is_open = False
        self.nodes.clear()
        sums = self._sums.clone()
        if trained:
            samples = count_labels(self._labels, self.num_classes)
            sums[0, :-1] = torch.where(sums[0, -1] > 0, sums[0, :-1], samples)
        else:
            sums[:, :-1] = 0
            sums[:, -1] = 1
        return sums

    def follow_hook(self, name: str, handle: RemovableHandle) -> None:
        """Note that a hook adjusts the output of the submodule ``name``, until ``handle`` is removed."""
        self.hooked, self._handle = name, handle

    def close(self) -> None:
        """End the fit: correct nothing any more."""
        self.nodes.clear()
        self.is_open = False
        if self._handle is not None:
            self._handle.remove()


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return the samples of each class, given their classes or the rows of several labels; float32, shape ``(K,)``."""
    if labels.dtype is torch.bool:
        return labels.sum(0, dtype=torch.float32)
    ones = torch.ones(labels.shape, device=labels.device)
    return torch.zeros(num_classes, device=labels.device).index_add_(0, labels, ones)


def _is_recomputed() -> bool:
    """Return whether this is within the backward pass, where a checkpointed function is computed again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def is_transformed() -> bool:
    """Return whether this is within a transform of ``torch.func``, as ``grad`` or ``vmap``."""
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is not None


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
