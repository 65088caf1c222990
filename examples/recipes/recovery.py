"""A callback that measures how soon training recovers after the class mix of a stream has changed."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_fair.common.arrays import Floats
from lightning_fair.common.class_mix import total_variation
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.callback import find_callback
from recipes.drift import DriftStream, drift_stream


class Recovery(L.Callback):
    """Measures how many batches after each turn of a :class:`DriftStream` the trained mix is back at the target.

    The trained mix is that of the labels in the batches, exponentially averaged over ``horizon`` batches. Logged are
    ``drift/distance``, its total variation distance from the target, and at the end of each turn ``drift/recovery``,
    the number of batches after which the distance stayed within ``tolerance``.

    At the end ``drift/recovery_median`` is logged, the median over the turns after the first. A turn that does not
    recover counts with all its batches.

    Loss feedback (``lambda2``) keeps the trained mix away from the target on purpose, so a turn may end outside the
    tolerance. The printed summary then says so.

    Args:
        tolerance: Largest distance that counts as recovered, in (0, 1).
        horizon: Horizon of the average in batches, at least 1.

    Attributes:
        stream: The stream of the last training.
        recoveries: Batches until recovery for each turn, the first turn included; None if it did not recover.
        waits: The same, with the number of batches of a turn that did not recover.
        counts: Samples of each class in each batch, each of shape ``(K,)``.
        mixes: The trained mix after each batch, each of shape ``(K,)``.
        distances: Its distance from the target after each batch, in [0, 1].
        arrived: Samples read up to each batch.

    Raises:
        ValueError: If an argument is out of range.
    """

    stream: DriftStream

    def __init__(self, tolerance: float = 0.02, horizon: float = 16.0) -> None:
        if not 0.0 < tolerance < 1.0:
            raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}.")
        if not horizon >= 1.0:
            raise ValueError(f"horizon must be at least 1 batch, got {horizon}.")
        self.tolerance, self.horizon = tolerance, horizon
        self._reset()

    def _reset(self) -> None:
        self.recoveries: list[int | None] = []
        self.waits: list[int] = []
        self.counts: list[Floats] = []
        self.mixes: list[Floats] = []
        self.arrived: list[int] = []
        self.distances: list[float] = []
        self._turns = [0]  # first batch of each turn

    @property
    def later(self) -> list[float]:
        """The distances after the first turn; NaN alone without such a turn."""
        return self.distances[self._turns[1] :] if self.waits[1:] else [float("nan")]

    @property
    def median(self) -> float:
        """Median of ``waits`` over the turns after the first; NaN without such a turn."""
        return float(np.median(self.waits[1:])) if self.waits[1:] else float("nan")

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()
        self.stream = drift_stream(getattr(trainer, "datamodule", None))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        K = len(self.stream.classes)
        fair = find_callback(trainer)
        sampler = fair.sampler if fair else None
        labels: torch.Tensor = batch[1]
        counts = torch.bincount(labels, minlength=K).double().cpu().numpy()
        self.counts.append(counts)
        # A FairStream reads ahead of the batches; the turn is that of the samples read. All ranks read equally far.
        world_size, before = self.stream.world_size, self.arrived[-1] if self.arrived else 0
        read = sampler.class_counts.sum() * world_size if isinstance(sampler, StreamTracker) else None
        self.arrived.append(int(before + counts.sum() * world_size if read is None else read))
        while self.arrived[-1] > (len(self.recoveries) + 1) * self.stream.turn_size:
            self._end_turn(trainer)
        target = sampler.controller.q if sampler else np.full(K, 1.0 / K)
        rate = 1.0 / self.horizon
        previous = self.mixes[-1] if self.mixes else target
        self.mixes.append((1.0 - rate) * previous + rate * counts / max(counts.sum(), 1.0))
        self.distances.append(total_variation(self.mixes[-1], target))
        pl_module.log("drift/distance", self.distances[-1])

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.distances[self._turns[-1] :]:
            self._end_turn(trainer)
        self._log(trainer, "drift/recovery_median", self.median)
        fair = find_callback(trainer)
        self._print_summary(loss_feedback=bool(fair and fair.controller and fair.controller.lambda2))

    def _end_turn(self, trainer: L.Trainer) -> None:
        # A turn may have no batch of its own, because a FairStream may read more than one short turn at once.
        distances = self.distances[self._turns[-1] :]
        late = np.flatnonzero(np.array(distances) > self.tolerance)
        batches = int(late[-1]) + 1 if late.size else 0
        # The last distance decides; a turn without batches continues the state of the previous turn.
        recovered = batches < len(distances) if distances else self.recoveries[-1:] != [None]
        self.recoveries.append(batches if recovered else None)
        self.waits.append(batches)
        self._log(trainer, "drift/recovery", batches)
        self._turns.append(len(self.distances))

    def _log(self, trainer: L.Trainer, name: str, value: float) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({name: value}, step=trainer.global_step)

    @rank_zero_only
    def _print_summary(self, loss_feedback: bool) -> None:
        turns = self.recoveries[1:]
        batches = [recovery for recovery in turns if recovery is not None]
        never = len(turns) - len(batches)
        if turns:
            print(
                f"Recovery after {len(turns)} turns, to within {100 * self.tolerance:g} % of the target: "
                + (f"median {np.median(batches):g}, at most {max(batches)} batches" if batches else "none")
                + (f"; {never} never." if never else ".")
            )
        if never and loss_feedback:
            print(
                "Loss feedback (fair.lambda2) keeps the trained mix away from the target, because classes with a high "
                "loss are drawn more often. fair.lambda2=0 shows the recovery alone."
            )
