"""The published law, to compare the library's law with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair import FeedbackController
from lightning_fair.common.arrays import Floats, to_arrays, to_tensors
from lightning_fair.common.saved_states import array
from lightning_fair.control.draw import Draw, Moment


class CountDeficitController(FeedbackController):
    """A controller with the published law, whose deficit counts samples. For comparison only: do not train with it.

    ``p = softmax(alpha * (lambda1 * (q * t - n) + lambda2 * l))``, mixed with a floor ``min_prob``, with ``n`` of ``t``
    samples so far in the class and the raw loss ``l``. One missing sample is then a logit of ``alpha``: measured with
    K = 2, batches of 256 and alpha 8, every batch is (almost) one class only, and weights reach 500,000. No gain makes
    this law stable, so the gain is not checked.

    Example:
        >>> controller = CountDeficitController(2, alpha=0.5)
        >>> controller.step_update([0, 0, 0, 1])  # one sample more than the target for class 0, one less for class 1
        >>> controller.get_probs().round(2)
        array([0.27, 0.73])
    """

    def __init__(self, *args: Any, max_weight: float = math.inf, min_prob: float = 1e-6, **settings: Any) -> None:
        super().__init__(*args, max_weight=max_weight, min_prob=min_prob, **settings)

    def reset(self) -> None:
        """Forget every draw and every report; the settings stay."""
        super().reset()
        self.deficit_counts: Floats = np.zeros(self.num_classes)  # q * t - n, in samples

    def record_draw(self, draw: Draw, *, redrawn: bool = False) -> None:
        """Count a draw as in flight, and its samples as trained on unless it is redrawn."""
        if not redrawn:
            self._count(draw.counts)
        super().record_draw(draw, redrawn=redrawn)

    def report(
        self,
        counts: NDArray[Any],
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
        *,
        draw: Draw | None = None,
    ) -> None:
        """Report a batch; see :meth:`FeedbackController.report`. Counts that differ from the draw's act at once."""
        reported = draw or self.oldest
        self._count(np.asarray(counts) - (reported.counts if reported else 0))
        super().report(counts, loss_sums, loss_counts, draw=draw)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see :meth:`FeedbackController.state_dict`."""
        return to_tensors({**super().state_dict(), "deficit_counts": self._deficit_before(self._base.draws)})

    def rewind(self, moment: Moment) -> None:
        """Return to an earlier state; see :meth:`FeedbackController.rewind`."""
        self.deficit_counts = self._deficit_before(moment.draws)
        super().rewind(moment)

    def state_spec(self) -> dict[str, Any]:
        """Return what a state has to be; see :meth:`FeedbackController.state_spec`."""
        return {**super().state_spec(), "deficit_counts": array(self.num_classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned."""
        super().load_state_dict(state)
        self.deficit_counts = to_arrays(state)["deficit_counts"]

    def bind_batch(self, batch_size: int, steps_per_epoch: int | None = None) -> None:  # noqa: ARG002
        """Set the samples of a batch, without a check of the gain."""
        self.batch_size = batch_size

    def _logits(self, alpha: float) -> Floats:
        logits: Floats = alpha * (self.lambda1 * self.deficit_counts + self.lambda2 * np.nan_to_num(self.ema_loss))
        logits[self.q == 0] = -np.inf
        return logits - logits.max()

    def _deficit_before(self, draw_id: int) -> Floats:
        drawn = sum((draw.counts for draw in self.in_flight if draw.draw_id >= draw_id), np.zeros(self.num_classes))
        return self.deficit_counts - (self.q * drawn.sum() - drawn)

    def _count(self, counts: NDArray[Any]) -> None:
        self.deficit_counts = self.deficit_counts + (self.q * counts.sum() - counts)
