"""The state of one fit: its loader, its draws on their way, and its statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lightning_fair.common.arrays import Floats
from lightning_fair.common.labels import find_labels
from lightning_fair.control.draw import Draw, DrawSource
from lightning_fair.control.weights import weights_of_mixes
from lightning_fair.dataloaders.fair_loader import DeliveredBatch, FairLoader
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.distributed import sum_over_ranks
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_weights import StepWeights, copy_to_host
from lightning_fair.integration.trainer_internals import is_within_epoch
from lightning_fair.monitoring.dashboard import BatchWeights, Dashboard
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

_DEFAULT_DELAY = 16  # above the prefetching of most loaders, so that their batches do not depend on the workers


@dataclass
class RunTotals:
    """Statistics over the batches so far; a checkpoint holds them under these names."""

    steps: int = 0
    effective_sample_size_sum: float = 0.0
    largest_weight: float = 0.0

    def add(self, weights: BatchWeights) -> None:
        """Add a batch that was trained on."""
        self.steps += 1
        self.effective_sample_size_sum += weights.effective_sample_size
        self.largest_weight = max(self.largest_weight, weights.largest)


@dataclass(eq=False)
class Run:
    """Everything that :class:`~lightning_fair.FairSampling` knows of one fit.

    Attributes:
        settings: The callback's settings.
        trainer_id: Identity of the Trainer; 0 before the first fit.
        sampler: Source of the draws for a data set; None for a stream, or before the loader is known.
        tracker: Source of the draws for a stream; None for a data set, or before the loader is known.
        loader: The fair training loader; None outside of a fit.
        class_names: Name of each class.
        min_delay: Fewest batches after which the losses of a draw are known; None if the source does not wait.
        steps_on_device: Newest steps that a device may still be working on.
        step_weights: Weights of the current batch; None if the module has no ``weighted_loss``.
        module_name: Class of the module.
        delivered: The batch in the current training step.
        class_weights: Its importance weights, shape ``(K,)``.
        unreported: Batches that were trained on and are not reported yet, each with a function that returns its sums;
            None in its place if it was trained on as drawn.
        dashboard: Scalars and figures.
        totals: Statistics over the batches.
        unweighted_steps: Steps that did not call ``weighted_loss``.
        checkpoint: State of the source that waits for the loader.
        checkpoint_delay: The feedback delay of a restored checkpoint.
        scanned_labels: A data set and its labels, if ``labels="scan"``.
    """

    settings: FairSettings
    trainer_id: int = 0
    sampler: FeedbackBatchSampler | None = None
    tracker: StreamTracker | None = None
    loader: FairLoader | None = None
    class_names: Sequence[str] = ()
    min_delay: int | None = None
    steps_on_device: int = 0
    step_weights: StepWeights | None = None
    module_name: str = ""
    delivered: DeliveredBatch | None = None
    class_weights: Floats = field(default_factory=lambda: np.ones(1))
    unreported: deque[tuple[Draw, Callable[[], Tensor] | None]] = field(default_factory=deque)
    dashboard: Dashboard = field(default_factory=Dashboard)
    totals: RunTotals = field(default_factory=RunTotals)
    unweighted_steps: int = 0
    checkpoint: Mapping[str, Any] | None = None
    checkpoint_delay: int | None = None
    scanned_labels: tuple[Any, NDArray[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loader": None}  # a copy of the run has no part in the fit

    @property
    def source(self) -> DrawSource | None:
        """The sampler or the stream tracker; None before the loader is known."""
        return self.sampler if self.sampler is not None else self.tracker

    # -- set-up ----------------------------------------------------------------------------------------------

    def next_fit(self, trainer: L.Trainer) -> Run:
        """Return the run of the fit that begins: it goes on with this one if the Trainer does."""
        if self.source is None or self.trainer_id != id(trainer) or not trainer.global_step:
            return Run(self.settings, id(trainer), scanned_labels=self.scanned_labels)
        self.report()
        self.source.abandon_epoch()
        return replace(self, loader=None, step_weights=None, delivered=None)

    def take_over(self, loader: Any, dataset: Any) -> None:
        """Train on this fair loader from now on, and restore the state that has waited for it."""
        assert self.source is not None
        self.loader = loader
        self.class_names = self.settings.names_for(self.source.controller.num_classes, dataset)
        if self.checkpoint is not None:
            self.restore_source()

    def find_labels(self, dataset: Any) -> NDArray[Any]:
        """Return the label of every sample; a data set is scanned once, however often its loader is made anew."""
        if not isinstance(self.settings.labels, str):
            return find_labels(dataset, self.settings.labels)
        if self.scanned_labels is None or self.scanned_labels[0] is not dataset:
            self.scanned_labels = dataset, find_labels(dataset, self.settings.labels)
        return self.scanned_labels[1]

    def set_feedback_delay(self) -> None:
        """Set the controller's delay to that of the settings or the checkpoint, or to one the loader allows."""
        if self.min_delay is None or self.source is None:
            return
        wanted = self.settings.feedback_delay or self.checkpoint_delay
        delay = self.settings.feedback_delay or max(wanted or _DEFAULT_DELAY, self.min_delay)
        self.source.controller.feedback_delay = delay
        if wanted and wanted < self.min_delay:
            rank_zero_warn(
                f"feedback_delay={wanted} is less than the {self.min_delay} batches after which losses are known with "
                "this loader, so the batches will differ from those with fewer workers. Set "
                f"feedback_delay={self.min_delay} or more, or use fewer workers."
            )

    def start_module(self, pl_module: L.LightningModule) -> None:
        """Give the module its weights, if it has a ``weighted_loss``."""
        assert self.source is not None
        self.module_name = type(pl_module).__name__
        if not hasattr(pl_module, "_step_weights"):
            rank_zero_warn(
                f"{self.module_name} has no importance weights, so its loss stands for the class mix that is drawn, "
                "and no losses are fed back. To add weights, inherit from lightning_fair.ImportanceWeightedMixin and "
                'return self.weighted_loss(losses), with the losses of reduction="none".'
            )
            return
        K, normalize = self.source.controller.num_classes, self.settings.normalize
        self.step_weights = StepWeights(K, pl_module.device, normalize=normalize)
        pl_module._step_weights = self.step_weights  # type: ignore[assignment]

    # -- the life of a draw: draw, deliver, report or withdraw -------------------------------------------------

    def start_drawing(self, trainer: L.Trainer) -> None:
        """Withdraw the draws that were not trained on, and begin a new epoch if Lightning does."""
        assert self.source is not None
        assert self.loader is not None
        self.report()
        # A checkpoint of an epoch's last batch is written before `on_train_epoch_end`: then the epoch is over here too.
        within_epoch = is_within_epoch(trainer)
        if not within_epoch:
            self.loader.pending_batches.clear()
        self.source.start_iteration(
            trainer.current_epoch, within_epoch=within_epoch, keep_delivered=bool(self.loader.pending_batches)
        )

    def deliver(self) -> None:
        """Take the batch that the training step gets, and set its importance weights."""
        self.delivered = self.loader.pop_pending() if self.loader is not None else None
        if self.delivered is None or self.step_weights is None:
            return
        assert self.source is not None
        draw, settings = self.delivered.draw, self.settings
        reference = (
            self.source.controller.target_at(draw.progress) if settings.reference == "target" else self.source.prior
        )
        self.class_weights = weights_of_mixes(
            draw.reference(reference), draw.probs, settings.max_weight, settings.exponent
        )
        self.step_weights.start(torch.from_numpy(self.class_weights).float(), self.delivered.labels)

    def finish(self, *, has_loss: bool, device: torch.device) -> Draw | None:
        """Queue the report of the batch, and return its draw; None if it was not trained on.

        Args:
            has_loss: Whether the training step may have trained.
            device: Device of sums over ranks.
        """
        if self.delivered is None and self.loader is not None:
            self.delivered = (
                self.loader.pop_pending()
            )  # Lightning has no `on_train_batch_start` for a batch that is None
        delivered, self.delivered = self.delivered, None
        if delivered is None or self.source is None:
            return None
        draw, trained = delivered.draw, has_loss and len(delivered.labels) > 0
        # Every rank takes part in one sum per step, whatever its batch was.
        if self.step_weights is not None:
            sums = self.step_weights.finish(trained=trained)
        elif trained and delivered.as_drawn and self.source.world_size == 1:
            sums = None
        else:
            counts = np.bincount(delivered.labels, minlength=draw.counts.size) * trained
            sums = torch.from_numpy(counts).to(device)
        self.unreported.append((draw, None if sums is None else copy_to_host(sum_over_ranks(sums))))
        self.report(keep=self.steps_on_device)
        return draw if trained else None

    def report(self, keep: int = 0) -> None:
        """Report all but the newest ``keep`` batches to the source."""
        while len(self.unreported) > keep and self.source is not None:
            draw, read_sums = self.unreported.popleft()
            if read_sums is None:
                self.source.report(draw)
                continue
            sums = read_sums().double().numpy()
            if sums.ndim == 1:  # samples of each class, without losses
                self.source.report(draw, sums)
                continue
            (counts, finite, losses), num_calls = sums[:, :-1], sums[0, -1]
            if num_calls:
                # There are more samples than drawn if a closure ran several times (LBFGS).
                self.source.report(draw, self.source.clip_counts(counts, draw), losses, finite)
                continue
            self.source.report(draw)
            self.unweighted_steps += 1
            if self.unweighted_steps == 1:
                rank_zero_warn(
                    f"{self.module_name}.training_step did not call self.weighted_loss(losses), so its loss has no "
                    "importance weights and is not fed back."
                )

    def add_to_totals(self, draw: Draw) -> BatchWeights:
        """Count a batch that was trained on, and return the statistics of its weights."""
        assert self.source is not None
        if self.step_weights is None:
            weights = BatchWeights.all_one(self.source.global_batch_size)
        else:
            weights = BatchWeights.of(self.class_weights, draw.counts, normalize=self.settings.normalize)
        self.totals.add(weights)
        return weights

    def end_epoch(self) -> None:
        """Report everything, and end the epoch."""
        assert self.source is not None
        self.report()
        self.delivered = None
        if self.step_weights is not None:
            self.step_weights.is_open = False
        self.source.end_epoch()

    # -- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state as of the last batch that was trained on."""
        self.report()
        source = self.source
        return {
            "sampler": None if source is None else source.capture(),
            "feedback_delay": None if source is None else source.controller.feedback_delay,
            **vars(self.totals),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned: now, or as soon as the loader is known."""
        self.checkpoint, self.checkpoint_delay = state_dict["sampler"], state_dict["feedback_delay"]
        self.totals = RunTotals(**{name: state_dict[name] for name in vars(self.totals)})
        if self.source is None or self.loader is None:
            return
        if self.checkpoint is not None:
            self.restore_source()
            self.set_feedback_delay()
        else:
            self.source.reset()  # Lightning's tuner restores a checkpoint that is older than the source
        self.loader.restart = True  # some versions of Lightning go on with the iterator of before

    def restore_source(self) -> None:
        """Restore the source from the checkpoint; if the source refuses it, nothing of it stays."""
        assert self.source is not None
        assert self.checkpoint is not None
        checkpoint, self.checkpoint = self.checkpoint, None
        self.source.restore(checkpoint)
