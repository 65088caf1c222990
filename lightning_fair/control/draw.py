"""The record of a draw, and what everything that draws batches has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_counts import ClassCounts

if TYPE_CHECKING:
    from lightning_fair.control.controller import FeedbackController


@dataclass(eq=False)
class Draw:
    """What a batch was drawn with; it belongs to the batch until the batch has been trained on.

    Attributes:
        draw_id: Number of the draw, from 0.
        probs: Class mix ``p`` of the draw, shape ``(K,)``.
        counts: Class counts of the batch, over all ranks, shape ``(K,)``.
        ratio: The trained mix ``r`` before the draw, shape ``(K,)``.
        alpha: Gain at the draw.
        progress: How far the target had moved, in [0, 1]; 0 for one that stays.
        split: The same counts, of few classes where most have none; None where it is not at hand.
    """

    draw_id: int
    probs: Floats
    counts: Ints
    trained_mix: Floats
    alpha: float
    progress: float = field(default=0.0, kw_only=True)
    split: ClassCounts | None = field(default=None, kw_only=True)

    def reference(self, mix: Floats) -> Floats:
        """Return what the batch's weighted losses have to stand for where all batches' stand for ``mix``."""
        return mix


class DrawSource(Protocol):
    """What the callback and the dashboard ask of a batch sampler, and of what stands in its place for a stream.

    The events in the life of a draw have one verb each: a batch is *drawn*, *delivered* by the loader, *reported* once
    it has been trained on, or *withdrawn* if it never is.
    """

    @property
    def controller(self) -> FeedbackController:
        """The controller that the draws follow."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def batch_size(self) -> int:
        """Samples of a batch on each rank."""

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""

    @property
    def class_counts(self) -> Ints:
        """Samples of each class: in the data, or that have arrived so far; int64, shape ``(K,)``."""

    @property
    def prior(self) -> Floats | None:
        """Class mix of the data, shape ``(K,)``; None if it is not known in advance."""

    @property
    def arriving(self) -> Floats | None:
        """Class mix that is read from the source, shape ``(K,)``; None if samples are drawn by index."""

    @property
    def coverage(self) -> float:
        """Fraction of the data that was in a batch at least once, in [0, 1]; NaN if it has no size."""

    @property
    def repeats(self) -> Floats:
        """How often a sample of each class was in a batch, on average, shape ``(K,)``."""

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:
        """Prepare the next iteration over the loader, before its first batch is drawn."""

    def report(
        self,
        draw: Any,
        counts: NDArray[Any] | None = None,
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
    ) -> None:
        """Report that a batch has been trained on; see ``FeedbackController.report``."""

    def clip_counts(self, counts: NDArray[Any], draw: Any) -> NDArray[Any]:
        """Return class counts of samples that were trained on, at most as many as were drawn, shape ``(K,)``."""

    def end_epoch(self) -> None:
        """End the epoch, whether or not all of its batches were used."""

    def abandon_epoch(self) -> None:
        """End an epoch that was cut off in the middle."""

    def reset(self) -> None:
        """Forget every draw; the settings stay."""

    def capture(self) -> dict[str, Any]:
        """Return the state, of tensors and plain numbers only."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned."""
