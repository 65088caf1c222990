"""The protocol of the objects that draw batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.control.controller import FeedbackController


class DrawSource(Protocol):
    """The part of a batch sampler that the callback and the dashboard use. The tracker of a stream has it too.

    Each event in the life of a draw has one verb: a batch is *drawn*, *delivered* by the loader, and *reported* after
    it has been trained on, or *withdrawn* to be drawn again. The callback only reports.

    Attributes:
        controller: The controller that the draws follow.
        world_size: Number of processes.
        batch_size: Samples of a batch on each rank.
        global_batch_size: Samples of a batch over all ranks.
        class_counts: Samples of each class in the data, or that a stream has read so far; int64, shape ``(K,)``.
        prior: Class mix of the data, shape ``(K,)``; None if it is not known in advance.
        arriving: Class mix that is read from the source, shape ``(K,)``; None if samples are drawn by index.
        coverage: Fraction of the data that was in a batch at least once, in [0, 1]; NaN if it has no size.
        repeats: How often a sample of each class was in a batch, on average, shape ``(K,)``.
    """

    @property
    def controller(self) -> FeedbackController: ...
    @property
    def world_size(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def global_batch_size(self) -> int: ...
    @property
    def class_counts(self) -> Ints: ...
    @property
    def prior(self) -> Floats | None: ...
    @property
    def arriving(self) -> Floats | None: ...
    @property
    def coverage(self) -> float: ...
    @property
    def repeats(self) -> Floats: ...

    def rank_facts(self) -> dict[str, Any]:
        """Return, by its name, everything that has to be the same on all ranks for them to draw alike."""

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
        """End the epoch, even if some of its batches were not used."""

    def abandon_epoch(self) -> None:
        """End an epoch that was interrupted."""

    def reset(self) -> None:
        """Forget every draw; the settings stay."""

    def capture(self) -> dict[str, Any]:
        """Return the state, as tensors and plain numbers only."""

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``restore`` would refuse."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned."""
