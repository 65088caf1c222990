"""Importance-weighted losses for a ``LightningModule``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as L
from torch import Tensor

from lightning_fair.integration.callback import FairSampling, find_callback
from lightning_fair.integration.trainer_internals import check_trainer

if TYPE_CHECKING:
    from lightning_fair.integration.step_weights import StepWeights

    _Base = L.LightningModule
else:
    _Base = object


class ImportanceWeightedMixin(_Base):
    """Gives a ``LightningModule`` the method ``weighted_loss``; name it before ``LightningModule`` as a base.

    The weights come from :class:`~lightning_fair.FairSampling`. Where neither the Trainer nor a
    :class:`~lightning_fair.FairDataModule` has that callback, the mixin installs one.

    Attributes:
        fair_sampling: What the mixin installs where there is no callback yet: True for ``FairSampling()``, a
            ``FairSampling`` with settings of your own, or False for none. Set it in the class or in
            ``__init__``.

    Example:
        >>> import torch
        >>> class Classifier(ImportanceWeightedMixin, L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(4, 3)
        ...     def training_step(self, batch, batch_idx):
        ...         x, y = batch
        ...         losses = torch.nn.functional.cross_entropy(self.net(x), y, reduction="none")
        ...         return self.weighted_loss(losses)
        >>> Classifier().weighted_loss(torch.tensor([1.0, 3.0]))  # outside of training: the plain mean
        tensor(2.)
    """

    fair_sampling: bool | FairSampling = True
    _step_weights: StepWeights | None = None

    def weighted_loss(self, losses: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``mean(w[y] * losses)``, ``w = reference / p`` with the ``p`` the batch was drawn with.

        Also adds the losses to per-class sums on their device, which the callback feeds back. Outside of
        training with :class:`~lightning_fair.FairSampling` all weights are one.

        Args:
            losses: Unweighted loss of each sample (``reduction="none"``), shape ``(batch,)``.
            labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``. Needed only where the
                losses are not those of the batch's samples in their order.

        Returns:
            Scalar tensor.

        Raises:
            ValueError: If ``losses`` is not of shape ``(batch,)``, or there are not as many labels.
        """
        step = self._step_weights
        if step is None or not step.is_open:  # not `self.training`: a network may be trained in eval mode
            return losses.mean()
        return step.mean(losses, labels)

    def configure_callbacks(self) -> Sequence[L.Callback] | L.Callback:
        """Add the callback where the user did not. Lightning calls this."""
        check_trainer(self.trainer)
        callbacks = super().configure_callbacks()
        callbacks = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        given = self.fair_sampling
        theirs = find_callback(self.trainer)
        if isinstance(given, FairSampling):
            if theirs is not None and theirs is not given:
                raise ValueError(
                    f"Both the Trainer (or its FairDataModule) and {type(self).__name__}.fair_sampling have a "
                    "FairSampling. Keep one: it owns the state."
                )
            return callbacks if theirs is given else [*callbacks, given]
        return [*callbacks, FairSampling()] if given and theirs is None else callbacks
