"""Importance-weighted losses and adjusted logits for a ``LightningModule``."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_fair.common.checks import check_type, show
from lightning_fair.integration.callback import FairSampling, find_callback
from lightning_fair.integration.lightning_packages import check_trainer
from lightning_fair.integration.step_correction import StepCorrection
from lightning_fair.integration.trainer_internals import can_be_weighted

if TYPE_CHECKING:
    import lightning.pytorch as L

    _Base = L.LightningModule
else:
    _Base = object


class ImportanceWeightedMixin(_Base):
    """Gives a ``LightningModule`` the methods ``weighted_loss`` and ``adjusted_logits``.

    Name it before ``LightningModule`` as a base class. The weights and the offsets of the logits come from
    :class:`~lightning_fair.FairSampling`; a training step that calls both methods serves all of its settings. The mixin
    installs that callback if neither the Trainer nor a :class:`~lightning_fair.FairDataModule` has it.

    Attributes:
        fair_sampling: The callback to install if there is none yet: True for ``FairSampling()``, a ``FairSampling``
            with other settings, or False for none. Set it in the class or in ``__init__``.

    Example:
        >>> import lightning.pytorch as L  # or: import pytorch_lightning as L
        >>> import torch
        >>> class Classifier(ImportanceWeightedMixin, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(4, 3)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         logits = self.adjusted_logits(self.net(x))  # with correction="logits"
        ...         losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        ...         return self.weighted_loss(losses)  # with correction="weights"
        >>> Classifier().weighted_loss(torch.tensor([1.0, 3.0]))  # outside of training: the plain mean
        tensor(2.)
    """

    fair_sampling: bool | FairSampling = True
    _step_correction: StepCorrection | None = None
    _has_fair_sampling = False  # set by the callback for its fit

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raise a ``TypeError`` if ``LightningModule`` comes first and hides the mixin's ``configure_callbacks``."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(ImportanceWeightedMixin)]
        if any(base.__name__ == "LightningModule" for base in before):
            bases = sorted(cls.__bases__, key=lambda base: not issubclass(base, ImportanceWeightedMixin))
            raise TypeError(
                "ImportanceWeightedMixin must come before LightningModule among the base classes. "
                f"Write class {cls.__name__}({', '.join(base.__name__ for base in bases)})."
            )

    def weighted_loss(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``mean(w[y] * losses)`` with ``w = reference / p``, where ``p`` is the class mix of the batch's draw.

        The callback feeds the losses back. With ``correction="logits"`` or ``"none"``, and outside of training with
        :class:`~lightning_fair.FairSampling`, all weights are one.

        Args:
            losses: Unweighted loss of each sample (``reduction="none"``), floating point, shape ``(batch,)``. If
                samples have several labels, also one for each label, shape ``(batch, num_labels)``, whose mean is that
                of the sample; those of the labels that a sample has are fed back.
            labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``. Required only if ``losses`` are
                not in the order of the batch's samples, or some samples have none. If ``FairSampling(labels=...)`` is
                a grouping of its own, such as class by environment, pass the groups here too. Of several labels, rows
                of zeros and ones, shape ``(batch, num_labels)``.

        Returns:
            Scalar tensor.

        Raises:
            TypeError: If an argument is no tensor, or ``losses`` is not of floating point.
            ValueError: If ``losses`` is not of such a shape, or ``labels`` has another shape or range.
            RuntimeError: If a Trainer trains the module, and has no FairSampling because ``configure_callbacks`` is
                overridden without ``super()``.
        """
        _check_tensors(losses=losses, labels=labels)
        step = self._open_step("weighted_loss")
        return losses.mean() if step is None else step.mean(losses, labels)

    def adjusted_logits(self, logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``logits + log(p / reference)`` with ``correction="logits"``, else ``logits`` itself.

        The cross entropy of the adjusted logits, with class numbers or the class probabilities of each sample as
        targets, has as its minimizer logits whose softmax is the posterior at the reference, whatever ``p`` the batch
        was drawn with. So the logits themselves serve validation and prediction. An accuracy of the adjusted logits is
        that of the batch's own class mix; compute it of the logits themselves. Outside of training with
        :class:`~lightning_fair.FairSampling` this returns ``logits`` too.

        Label smoothing toward uniform is not neutral, see :func:`~lightning_fair.logit_adjustment`: leave it out, or
        set ``correction="weights"``.

        If losses of the training are fed back, this takes the cross entropy of ``logits``, or with
        ``feedback_to="objective"`` that of the adjusted ones, with the labels of the batch.

        Args:
            logits: Logits of the classes, floating point, shape ``(..., K)``; of two classes also one logit, that of
                class 1, shape ``(batch,)`` or ``(batch, 1)``. It gets ``log(p1 * reference0 / (p0 * reference1))``.
                Pass the two logits of a single sample in shape ``(1, 2)``.
            labels: Class of each row, integers in ``[0, K)``, shape ``(batch,)``. Required only if training losses are
                fed back and the rows are not those of the batch, in its order.

        Returns:
            Tensor of the same shape. Half precision becomes float32, because its few bits cannot hold the sum.

        Raises:
            TypeError: If an argument is no tensor, or ``logits`` is not of floating point.
            ValueError: If ``logits`` or ``labels`` have another shape, or if ``FairSampling(logits=...)`` adjusts the
                logits already.
            RuntimeError: As for :meth:`weighted_loss`; or if losses are fed back from within ``torch.func.grad`` or
                another transform.

        Reference:
            A. Menon et al., "Long-tail learning via logit adjustment" (2021).
        """
        _check_tensors(logits=logits, labels=labels)
        step = self._open_step("adjusted_logits")
        if step is None or not step.adjusts_logits:
            return logits
        if step.hooked is not None:
            raise ValueError(
                f"Both self.adjusted_logits and FairSampling(logits={step.hooked!r}) adjust the logits. Keep one: "
                "leave out the argument logits, or the call."
            )
        return step.adjust(logits, labels)

    def _open_step(self, method: str) -> StepCorrection | None:
        """Return the correction of the training step that is in progress; None outside of a step."""
        step = self._step_correction
        if step is None and self.fair_sampling and not self._has_fair_sampling and can_be_weighted(self):
            raise RuntimeError(
                f"{method} of {type(self).__name__} has no effect, because the training has no FairSampling for it. If "
                "the module overrides configure_callbacks, return [*super().configure_callbacks(), ...] there, or give "
                f"FairSampling to the Trainer. Call {method} of the module that the Trainer trains."
            )
        return step if step is not None and step.is_open else None  # `self.training` may be False in a training

    def fair_feedback(self, values: Any, counts: Any = None) -> None:
        """Give the value of each class in a validation to the callback, in the place of metrics that are logged.

        :class:`~lightning_fair.FairSampling` needs ``feedback="val/recall"``, or another name, which says here whether
        higher values are better. Call it once in ``on_validation_epoch_end``; or, with ``counts``, any number of times
        in a validation, for example in ``validation_step``. The values of several calls, and of the ranks, are
        averaged, weighted by the counts. Outside of a fit with such a callback, in its sanity check, and while it
        searches a batch size or a learning rate, this has no effect.

        Args:
            values: Recall or another rate in [0, 1], or a loss of at least 0, of each class in the numbers of
                ``FairSampling``, shape ``(K,)``: a tensor, an array or a list. NaN: the class takes no part. That of
                samples without a label can be left out.
            counts: Validation samples of each class behind the values, shape ``(K,)``; a class without any takes no
                part. None: they are counted by the labels of the validation data, if these are known.

        Raises:
            ValueError: If a shape, a value or a count is wrong.
            TypeError: If the values or the counts are a mapping, or no numbers.
            RuntimeError: If there is no validation, or a second call in a validation is without counts.
        """
        trainer = self._trainer  # the property raises without a Trainer
        callback = None if trainer is None else find_callback(trainer)
        if callback is not None and callback._run.validation_feedback is not None:
            callback._run.validation_feedback.add(values, counts)

    def configure_callbacks(self) -> Sequence[L.Callback] | L.Callback:
        """Add the callback if there is none yet. Lightning calls this."""
        check_trainer(self.trainer)
        callbacks = super().configure_callbacks()
        own, theirs = self.fair_sampling, find_callback(self.trainer)
        check_type("fair_sampling", own, (bool, np.bool_, FairSampling, NoneType), "True, False or a FairSampling")
        if isinstance(own, FairSampling) and theirs not in (None, own):
            raise ValueError(
                f"Both the Trainer (or its FairDataModule) and {type(self).__name__}.fair_sampling have a "
                "FairSampling. Keep one: it owns the state."
            )
        if not own or theirs is not None:
            return callbacks
        mine = own if isinstance(own, FairSampling) else FairSampling()
        return [*callbacks, mine] if isinstance(callbacks, Sequence) else [callbacks, mine]


def _check_tensors(labels: Any, **values: Any) -> None:
    ((name, value),) = values.items()
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise TypeError(f"{name} must be a tensor of floating point, got {show(value)}.")
    if labels is not None:
        check_type("labels", labels, Tensor, "a tensor of class numbers, or None")
