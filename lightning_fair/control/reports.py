"""The reports of batches and validations, until they take effect."""

from __future__ import annotations

import warnings
from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import to_arrays, to_tensors
from lightning_fair.common.saved_states import array, integer, optional
from lightning_fair.control import law
from lightning_fair.control.draw import Draw, Report
from lightning_fair.control.objective import scores_rule


class ReportQueue:
    """Reports in the order in which they take effect. Those that a withdrawal can undo are kept, to be repeated.

    Attributes:
        newest: Number of the newest draw that has been reported; -1 before the first.
    """

    def __init__(self) -> None:
        self.newest = -1
        self._waiting: deque[Report] = deque()
        self._applied: deque[Report] = deque()
        self._warned = self._warned_of_ranks = False

    def add(self, report: Report) -> None:
        """Add a report."""
        self.newest = max(self.newest, report.draw_id)
        if any(part is not None for part in (report.correction, report.losses, report.scores)):
            # A loader may deliver batches in another order than that of their draws.
            insort(self._waiting, report, key=lambda report: report.due)

    def take_due(self, draws: int) -> Iterator[Report]:
        """Yield the reports that take effect before draw number ``draws``, in order."""
        while self._waiting and self._waiting[0].due <= draws:
            self._applied.append(self._waiting.popleft())
            yield self._applied[-1]

    def rewind(self, draws: int) -> None:
        """Let the reports wait again that had no effect before draw number ``draws - 1`` was made."""
        while self._applied and self._applied[-1].due >= draws:
            self._waiting.appendleft(self._applied.pop())

    def forget(self, draws: int) -> None:
        """Forget the reports that took effect before draw number ``draws - 1`` was made."""
        while self._applied and self._applied[0].due < draws:
            self._applied.popleft()

    def add_batch(
        self,
        draw: Draw | None,
        number: int,
        due: int,
        counts: NDArray[Any],
        loss_sums: NDArray[Any] | None,
        loss_counts: NDArray[Any] | None,
    ) -> None:
        """Add the report of a batch, with the arguments of ``FeedbackController.report``; ``number`` is the draw's."""
        report = Report(number, due)
        if draw is not None and counts is not draw.counts and not np.array_equal(counts, draw.counts):
            report.correction = law.mix_correction(counts, draw.counts, draw.trained_mix)
        if loss_sums is not None and loss_counts is not None:
            report.losses = law.mean_losses(loss_sums, loss_counts)
            if not self._warned and (loss_counts.sum() < counts.sum() or not np.isfinite(loss_sums).all()):
                self._warned = True
                warnings.warn(
                    "Some losses are NaN or infinite. They are left out of the loss feedback; the training step itself "
                    "still has them.",
                    stacklevel=4,
                )
        self.add(report)

    def check_all_ranks(self, draw: Draw | None, counts: NDArray[Any]) -> None:
        """Warn, once, if a batch that several ranks share is reported with the samples of one rank."""
        if draw and not self._warned_of_ranks and counts.sum() == draw.local_size < draw.counts.sum():
            self._warned_of_ranks = True
            noun = "samples" if draw.label_sets is None else "labels"
            warnings.warn(
                f"The report has {draw.local_size} {noun}, those of one rank, of a batch of {draw.counts.sum()} over "
                "all ranks, so the ranks would draw with different probabilities. Report the labels and losses of all "
                "ranks on each, for example fabric.all_gather((y, losses)), flattened.",
                stacklevel=5,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain numbers."""
        return {
            "newest": self.newest,
            "waiting": [to_tensors(vars(report)) for report in (*self._applied, *self._waiting)],
        }

    @staticmethod
    def state_spec(num_classes: int) -> dict[str, Any]:
        """Return what a state has to be."""
        correction = array(num_classes, low=-1.0, high=1.0, total=0.0)
        vectors = {"correction": correction, "losses": array(num_classes, nan=True), "scores": scores_rule(num_classes)}
        report = {"draw_id": integer(), "due": integer(), **{name: optional(rule) for name, rule in vectors.items()}}
        return {"newest": integer(-1), "waiting": [report]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned."""
        self.newest, self._applied = state["newest"], deque()
        self._waiting = deque(Report(**to_arrays(report)) for report in state["waiting"])
