"""The callback: makes the training loader fair, feeds the losses back, and logs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_fair.common.arrays import Ints
from lightning_fair.common.labels import Labels, class_names, find_labels
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw, DrawSource
from lightning_fair.control.target import Target, target_endpoints
from lightning_fair.control.weights import class_weights, weights_of_mixes
from lightning_fair.dataloaders.checks import (
    batch_size,
    check_loader,
    ignored_sampler,
    is_fair,
    is_stream,
    num_prefetched,
)
from lightning_fair.dataloaders.fair_loader import DeliveredBatch, FairLoader, make_fair, make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.distributed import sum_over_ranks
from lightning_fair.integration.step_weights import HostCopy, StepWeights
from lightning_fair.integration.trainer_internals import (
    check_trainer,
    intercept_train_dataloader,
    steps_per_epoch,
    warn_of_class_weights,
)
from lightning_fair.monitoring.dashboard import BatchWeights, Dashboard, LogContext
from lightning_fair.sampling.batch_sampler import EmptyClasses, FeedbackBatchSampler
from lightning_fair.schedules import Schedule, Shift
from lightning_fair.streaming.stream import FairStream

Reference: TypeAlias = Literal["target", "prior"]

_OF_DATA = ("prior", "sqrt")  # targets that only the data can tell
_ENDLESS = 1e12
_USUAL_LAG = 16  # more than the loaders of most runs draw ahead, so that these have the same batches


class FairSampling(L.Callback):
    """Steers the class mix of the training batches of any Trainer by negative feedback.

    Alone in ``Trainer(callbacks=[FairSampling()])`` it is enough: the training ``DataLoader`` keeps all of
    its settings and gets other batches. With :class:`~lightning_fair.ImportanceWeightedMixin` in the module,
    each sample's loss is weighted by ``reference[y] / p[y]``, with the ``p`` of its own draw, and the losses
    are fed back. Without it the loss is the module's own, so the objective is the class mix that was drawn.

    Args:
        alpha: Gain of the feedback, at least 0, or a schedule (:mod:`lightning_fair.schedules`).
        target_probs: Class mix that batches are steered to: ``"uniform"``, ``"prior"``, ``"sqrt"``, a vector,
            or a mapping from class to probability; or a :class:`~lightning_fair.schedules.Shift` from one of them to
            another, such as from the prior to uniform after some epochs.
        lambda1: Weight of the deficit, at least 0.
        lambda2: Weight of the class losses, at least 0. Needs the mixin. For when it helps, see
            :class:`~lightning_fair.FeedbackController`.
        min_prob: Floor under every class's probability, in ``[0, 1/K)``.
        horizon: Memory of the trained mix in batches, at least 1. None: chosen from the target.
        loss_ema_decay: Memory of the class losses, in ``[0, 1)``.
        reference: Class mix that the weighted loss stands for: ``"target"`` (the balanced risk, where the
            target is uniform) or ``"prior"`` (the plain risk over the data).
        max_weight: Largest importance weight, positive, or None. Clipping adds bias.
        normalize: Divide the weights by their mean over the batch. Adds a bias of order ``1 / batch``.
        exponent: Weights to this power, in ``[0, 1]``; below 1 they correct only in part.
        labels: One class per sample, where the data set does not show them; ``"scan"`` reads every sample
            once.
        num_classes: Number of classes. None: the largest label plus one, or what the target says.
        class_names: Names of the classes for the logger. None: the data set's ``classes``, else numbers.
        dataloader: Where there are several training loaders, the one to make fair: its key or its place.
        steps_per_epoch: Batches of an epoch. None: as many as the loader has.
        empty_classes: Where a class has a target but no samples: ``"error"`` or ``"skip"``.
        feedback_delay: Batches after which a loss takes effect, at least 1. None: 16, or more where the loader draws
            further ahead. The same lag gives the same batches with any number of workers, as long as it is
            greater than what the loader draws ahead (``num_workers * prefetch_factor``). A checkpoint's lag
            holds on resume.
        seed: Seed of the draws. None: that of ``seed_everything``, else 0.

    Attributes:
        sampler: The :class:`~lightning_fair.FeedbackBatchSampler`, once training has its data; else None. Over a
            :class:`~lightning_fair.FairStream` what stands in its place, with ``controller``, ``arrived`` and
            ``handed_out``.
        controller: The :class:`~lightning_fair.FeedbackController`, likewise.
        largest_weight: Largest importance weight of the run so far.
        effective_sample_size: Mean over the batches so far of their effective sample size, in samples.

    Raises:
        ValueError: If an argument is out of range; what depends on the data is checked before the first step.

    Example:
        >>> callback = FairSampling(alpha=8.0, max_weight=50.0)
        >>> trainer = L.Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        alpha: float | Schedule = 8.0,
        target_probs: Target | Shift = "uniform",
        *,
        lambda1: float = 1.0,
        lambda2: float = 0.0,
        min_prob: float = 1e-6,
        horizon: float | None = None,
        loss_ema_decay: float = 0.9,
        reference: Reference = "target",
        max_weight: float | None = None,
        normalize: bool = False,
        exponent: float = 1.0,
        labels: Labels = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        dataloader: str | int | None = None,
        steps_per_epoch: int | None = None,
        empty_classes: EmptyClasses = "error",
        feedback_delay: int | None = None,
        seed: int | None = None,
    ) -> None:
        if reference not in ("target", "prior"):
            raise ValueError(f"reference must be 'target' or 'prior', got {reference!r}.")
        self.reference: Reference = reference
        self.target_probs = target_probs
        self.max_weight, self.normalize, self.exponent = max_weight, normalize, exponent
        self.labels, self.num_classes = labels, num_classes
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.dataloader = dataloader
        self.steps_per_epoch, self.empty_classes = steps_per_epoch, empty_classes
        self.feedback_delay, self.seed = feedback_delay, seed
        self._law: dict[str, Any] = {
            "alpha": alpha,
            "lambda1": lambda1,
            "lambda2": lambda2,
            "min_prob": min_prob,
            "horizon": horizon,
            "loss_ema_decay": loss_ema_decay,
        }
        self._check_settings()
        self._undo: Callable[[], None] | None = None
        self._scanned: tuple[Any, Any] | None = None
        self._stage, self._run = "fit", (0, False)
        self._installed_by_datamodule = False  # a FairDataModule put it into the Trainer
        self._forget_run()

    @property
    def controller(self) -> FeedbackController | None:
        """The controller, once training has its data."""
        return self.sampler.controller if self.sampler else None

    @property
    def effective_sample_size(self) -> float:
        """Mean over the batches so far of their effective sample size, in samples; NaN before the first."""
        return self._ess_sum / self._steps if self._steps else float("nan")

    # -- set-up and clearing away -------------------------------------------------------------------------

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stage = stage
        if stage != "fit":
            return
        check_trainer(trainer)
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        if self._installed_by_datamodule and getattr(trainer.fit_loop._data_source.instance, "_own", None) is not self:
            trainer.callbacks = others  # type: ignore[attr-defined]  # the data module that brought it has gone
            return
        # Before all others: one that saves a checkpoint at the end of a batch has to find that batch reported.
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]
        self._detach(trainer, pl_module)
        if sum(isinstance(callback, FairSampling) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ValueError("The Trainer has more than one FairSampling callback. Keep one: it owns the state.")
        same = self._run == (id(trainer), bool(trainer.global_step))
        self._run = id(trainer), True
        if self.sampler is not None and same:  # the same run goes on
            self._report()
            self.sampler.abandon_epoch()
        else:
            self._forget_run()
        if trainer.overfit_batches:  # type: ignore[attr-defined]
            rank_zero_warn(
                "FairSampling does nothing with overfit_batches: Lightning wants the same few batches each epoch."
            )
            return
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                "training_step(dataloader_iter) fetches its batches by itself, so FairSampling cannot tell which one "
                "is trained on. Take training_step(batch, batch_idx)."
            )
        if self.reference != "prior" and not (isinstance(self.target_probs, str) and self.target_probs == "prior"):
            warn_of_class_weights(pl_module)
        self._undo = intercept_train_dataloader(trainer, self.dataloader, partial(self._made_fair, trainer))

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._detach(trainer, pl_module)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._detach(trainer, pl_module)  # there is no teardown after an exception

    def _detach(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if self._undo:
            self._undo()
        self._undo = None
        self._forget_loader()
        if hasattr(pl_module, "_step_weights"):
            pl_module._step_weights = None  # type: ignore[assignment]

    def _forget_loader(self) -> None:
        self._loader: FairLoader | None = None

    def _forget_run(self) -> None:
        self._forget_loader()
        self._restored: dict[str, Any] | None = None
        self._restored_lag: int | None = None
        self.sampler: DrawSource | None = None
        self._delivered: DeliveredBatch | None = None
        self._weights = self._prior = np.ones(1)
        self._step_weights: StepWeights | None = None
        self._dashboard = Dashboard()
        self._pending: deque[tuple[Any, HostCopy | Ints]] = deque()
        self._forget_numbers()

    def _forget_numbers(self) -> None:
        self._steps, self._ess_sum, self.largest_weight = 0, 0.0, 0.0
        self._uncalled = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_undo": None, "_loader": None}  # the Trainer's, not a copy's

    # -- the loader ----------------------------------------------------------------------------------------

    def _made_fair(self, trainer: L.Trainer, loader: Any) -> DataLoader[Any]:
        if is_fair(loader):
            raise ValueError(
                "The training DataLoader is fair already, with settings of its own. Give the Trainer the plain loader, "
                "or the FairDataModule it comes from."
            )
        # Steps that a device may still be working on. Not the module's device: it may not be there yet.
        self._delay = 0 if trainer.strategy.root_device.type == "cpu" else 1
        if is_stream(loader):
            return self._made_fair_stream(trainer, loader)
        check_loader(loader)
        sampler = self._sampler_for(loader, trainer)
        fair: Any = make_fair(
            loader, sampler, on_start=partial(self._start_iteration, trainer), guess_labels=self.labels is None
        )
        controller = sampler.controller
        self._set_lag(controller, self._least_lag(loader))
        if self._loader is None:
            rank_zero_info(
                f"FairSampling steers {controller.num_classes} classes in batches of {sampler.batch_size}, "
                f"{sampler.steps_per_epoch} an epoch; horizon {controller.horizon:g} batches, feedback lag "
                f"{controller.feedback_delay}."
            )
        self._prior = sampler.class_counts / sampler.labels.size
        return self._take_over(fair, sampler, loader.dataset)

    def _take_over(self, fair: Any, sampler: DrawSource, dataset: Any) -> DataLoader[Any]:
        self._loader, self.sampler = fair, sampler
        K, found = sampler.controller.num_classes, class_names(dataset)
        self._names = self.class_names or (
            found if found and len(set(found)) == K else [str(label) for label in range(K)]
        )
        if self._restored is not None:
            restored, self._restored = self._restored, None  # where it is refused, nothing of it stays
            sampler.restore(restored)
        made: DataLoader[Any] = fair
        return made

    def _made_fair_stream(self, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
        stream: Any = loader.dataset
        control = self._control_for(stream, trainer)
        fair = make_stream_fair(loader, on_start=partial(self._start_iteration, trainer))
        if self._loader is None:
            rank_zero_info(
                f"FairSampling steers {control.controller.num_classes} classes of a stream in batches of "
                f"{control.batch_size}; horizon {control.controller.horizon:g} batches; at most {stream.buffer_size} "
                f"samples of a class are held, and each is handed out at most {stream.max_reuse} times."
            )
        return self._take_over(fair, control, stream)

    def _control_for(self, stream: FairStream, trainer: L.Trainer) -> StreamTracker:
        for name, instead in (
            ("labels", "FairStream(label_fn=...) takes a sample and returns its class"),
            ("steps_per_epoch", "Trainer(limit_train_batches=...) ends its epochs"),
        ):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is for data sets with a length, and this one is a stream: {instead}.")
        known = self.sampler
        if isinstance(known, StreamTracker) and (known.stream is stream or not stream.brings_controller):
            if known.stream is not stream:  # reloaded
                stream.bind(known.controller)
                known.follow(stream)
            return known
        for name, plain, instead in (
            ("seed", None, f"set FairStream(seed={self.seed!r})"),
            (
                "feedback_delay",
                None,
                "each process that reads the stream takes the losses up as soon as they are known",
            ),
            ("empty_classes", "error", "what a class lacks always goes to the others, and the log says so"),
        ):
            if getattr(self, name) != plain:
                rank_zero_warn(f"{name}={getattr(self, name)!r} has no effect on a FairStream: {instead}.")
        if not stream.brings_controller:
            stream.bind(self.make_controller(stream))
        elif self._has_custom_settings():
            rank_zero_warn(
                "The FairStream has a controller of its own, so FairSampling's settings of the law and the target have "
                "no effect. State them there, or make the FairStream without a controller."
            )
        return StreamTracker(stream, trainer.global_rank, trainer.world_size)

    def _has_custom_settings(self) -> bool:
        plain = FairSampling()
        return self._law != plain._law or not (isinstance(self.target_probs, str) and self.target_probs == "uniform")

    def _least_lag(self, loader: Any) -> int:
        # Beside a loader without length Lightning fetches one batch ahead.
        return num_prefetched(loader) + 1 + self._delay + (self.dataloader is not None)

    def _set_lag(self, controller: FeedbackController, least: int) -> None:
        wanted = self.feedback_delay or self._restored_lag
        controller.feedback_delay = self.feedback_delay or max(wanted or _USUAL_LAG, least)
        if wanted and wanted < least:
            rank_zero_warn(
                f"A feedback_delay of {wanted} is less than the {least} batches after which losses are known with this loader: "
                f"the batches will not be the same as with fewer workers. Set feedback_delay={least} or more, or fewer workers."
            )

    def _start_iteration(self, trainer: L.Trainer) -> None:
        """Put back what was drawn and not trained on, and begin a new epoch where Lightning does.

        A checkpoint of an epoch's last batch is written before ``on_train_epoch_end``.
        """
        assert self.sampler is not None
        assert self._loader is not None
        self._report()
        within = bool(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        if not within:
            self._loader.pending_batches.clear()
        self.sampler.start_iteration(
            trainer.current_epoch, within_epoch=within, keep_delivered=bool(self._loader.pending_batches)
        )

    def _find_labels(self, dataset: Any) -> Any:
        if not isinstance(self.labels, str):
            return find_labels(dataset, self.labels)
        if self._scanned is None or self._scanned[0] is not dataset:  # not again at every reload
            self._scanned = dataset, find_labels(dataset, self.labels)
        return self._scanned[1]

    def _sampler_for(self, loader: DataLoader[Any], trainer: L.Trainer) -> FeedbackBatchSampler:
        labels, size = self._find_labels(loader.dataset), batch_size(loader)
        steps = self.steps_per_epoch or steps_per_epoch(loader, trainer.world_size)
        known = self.sampler if isinstance(self.sampler, FeedbackBatchSampler) else None
        if known is not None and known.batch_size == size and np.array_equal(labels, known.labels):
            known.steps_per_epoch = steps  # reloaded
            return known
        # Lightning tries batch sizes without callbacks, and goes back to the start.
        searching = self not in trainer.callbacks  # type: ignore[attr-defined]
        if known is not None and known.controller.draws and not searching:
            rank_zero_warn("The training data or its batch size have changed: FairSampling starts anew.")
            self._forget_numbers()
        replaced = ignored_sampler(loader)
        if replaced is not None:
            rank_zero_warn(
                f"FairSampling draws the batches, so the {replaced} of the training DataLoader has no effect. "
                "State the class mix you want with target_probs."
            )
        return self.make_sampler(
            labels,
            size,
            steps,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            named=len(class_names(loader.dataset) or ()),
            # One for all ranks, also where each of them called seed_everything with its own.
            seed=trainer.strategy.broadcast(self._seed()),
        )

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def make_sampler(
        self,
        labels: Any,
        batch_size: int,
        steps_per_epoch: int | None = None,
        *,
        rank: int = 0,
        world_size: int = 1,
        named: int = 0,
        seed: int | None = None,
    ) -> FeedbackBatchSampler:
        """Return the sampler that these settings mean for a data set with these ``labels``.

        Args:
            labels: Class of each sample, shape ``(N,)``, or a data set.
            batch_size: Samples of a batch on each rank.
            steps_per_epoch: Batches of an epoch on each rank; None: once through the data.
            rank: This process's rank.
            world_size: Number of processes.
            named: Classes that the data set names; the last of them may have no samples.
            seed: Seed of the draws. None: as the settings say.
        """
        labels = find_labels(labels)
        num_classes = self.num_classes or _classes_of(self.target_probs) or max(int(labels.max()) + 1, named)
        self._check_names(num_classes)
        counts = np.bincount(labels, minlength=num_classes)
        controller = FeedbackController(num_classes, self.target_probs, class_counts=counts[:num_classes], **self._law)
        return FeedbackBatchSampler(
            labels,
            batch_size,
            steps_per_epoch,
            controller,
            seed=self._seed() if seed is None else seed,
            rank=rank,
            world_size=world_size,
            empty_classes=self.empty_classes,
        )

    def make_controller(self, stream: FairStream) -> FeedbackController:
        """Return the controller that these settings mean for a stream.

        Args:
            stream: The stream, which may name its classes.

        Raises:
            ValueError: If nothing says how many classes there are, or a setting wants the prior of the data.
        """
        num_classes = self.num_classes or _classes_of(self.target_probs) or len(class_names(stream) or ())
        if not num_classes:
            raise ValueError(
                "A stream does not show how many classes it has. State FairSampling(num_classes=...), or make the "
                "FairStream with a controller."
            )
        if self.reference == "prior" or any(
            isinstance(e, str) and e in _OF_DATA for e in target_endpoints(self.target_probs)
        ):
            raise ValueError(
                "A stream has no prior: its class mix is not known before it has come. State target_probs as "
                "probabilities, and reference='target'."
            )
        self._check_names(num_classes)
        return FeedbackController(num_classes, self.target_probs, **self._law)

    # -- the step ------------------------------------------------------------------------------------------

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.sampler is None or self._loader is None:
            return
        if hasattr(pl_module, "_step_weights"):
            self._step_weights = StepWeights(
                self.sampler.controller.num_classes, pl_module.device, normalize=self.normalize
            )
            pl_module._step_weights = self._step_weights  # type: ignore[assignment]
        else:
            rank_zero_warn(
                f"{type(pl_module).__name__} has no importance weights, so its loss stands for the classes as "
                "they are drawn, and no losses are fed back. To add them: inherit from "
                "lightning_fair.ImportanceWeightedMixin and return self.weighted_loss(losses), with the losses of "
                'reduction="none".'
            )
        self._dashboard.start(trainer)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._delivered = delivered = self._loader.pop_pending() if self._loader is not None else None
        if delivered is None or self._step_weights is None:
            return
        draw = delivered.draw
        assert self.sampler is not None
        reference = self.sampler.controller.target_at(draw.progress) if self.reference == "target" else self._prior
        self._weights = weights_of_mixes(draw.reference(reference), draw.probs, self.max_weight, self.exponent)
        self._step_weights.start(torch.from_numpy(self._weights).float(), delivered.labels)

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        delivered = self._delivered
        if delivered is None and self._loader is not None:
            delivered = self._loader.pop_pending()  # a batch that is None has no `on_train_batch_start`
        self._delivered = None
        if delivered is None or self.sampler is None:
            return
        # A batch that is None, or a training_step that returned None: nothing was trained on.
        trained = len(delivered.labels) > 0 and (not pl_module.automatic_optimization or bool(outputs))
        draw = delivered.draw
        # Every rank comes to the sum once a step, whatever its batch was.
        seen: HostCopy | Ints
        if self._step_weights is not None:
            sums = self._step_weights.take()
            if not trained:
                sums[:, :-1] = 0
                sums[0, -1] = 1
            seen = HostCopy(sum_over_ranks(sums))
        else:
            seen = draw.counts
            one_rank = self.sampler.world_size == 1
            if not (trained and delivered.as_drawn and one_rank):
                seen = np.bincount(delivered.labels, minlength=draw.counts.size) * trained
            if not one_rank:
                seen = HostCopy(sum_over_ranks(torch.from_numpy(seen).to(trainer.strategy.root_device)))
        self._pending.append((draw, seen))
        self._report(pl_module, keep=self._delay)
        if trained:
            self._show(trainer, pl_module, draw)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(pl_module)
        self._delivered = None
        if self._step_weights is not None:
            self._step_weights.open = False
        if self.sampler is not None:
            self.sampler.end_epoch()
            self._dashboard.show_distance(trainer, pl_module, self._log_context)
            self._dashboard.end_epoch(trainer, self._log_context)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.sampler is not None:
            self._dashboard.end(trainer, self._log_context)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.sampler is not None:
            self._dashboard.draw_recall(trainer, self._log_context, "test")

    def _report(self, pl_module: L.LightningModule | None = None, keep: int = 0) -> None:
        """Tell the sampler of all but the newest ``keep`` batches."""
        while len(self._pending) > keep and self.sampler is not None:
            draw, pending = self._pending.popleft()
            seen = pending.read().double().numpy() if isinstance(pending, HostCopy) else pending
            if seen.ndim == 1:  # without the mixin: the samples of each class, and no losses
                self.sampler.report(draw, seen)
                continue
            counts, finite, sums = seen
            # More: a closure that ran several times (LBFGS), or samples that are not the batch's own.
            counts[:-1] = self.sampler.clip_counts(counts[:-1], draw)
            if counts[-1]:
                self.sampler.report(draw, counts[:-1], sums[:-1], finite[:-1])
                continue
            self.sampler.report(draw)
            self._uncalled += 1
            if self._uncalled == 1 and pl_module is not None:
                rank_zero_warn(
                    f"{type(pl_module).__name__}.training_step did not call self.weighted_loss(losses): its loss "
                    "has no importance weights and is not fed back."
                )

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule, draw: Draw) -> None:
        assert self.sampler is not None
        if self._step_weights is None:
            weights = BatchWeights.none(self.sampler.global_batch_size)
        else:
            weights = BatchWeights.of(self._weights, draw.counts, normalize=self.normalize)
        self._steps += 1
        self._ess_sum += weights.effective_sample_size
        self.largest_weight = max(self.largest_weight, weights.largest)
        self._dashboard.follow(trainer, pl_module, self._log_context, draw, weights)

    @property
    def _log_context(self) -> LogContext:
        assert self.sampler is not None
        return LogContext(self.sampler, self._names, self._step_weights is not None)

    # -- checkpoints ---------------------------------------------------------------------------------------

    @override
    def state_dict(self) -> dict[str, Any]:
        self._report()
        return {
            "sampler": self.sampler.capture() if self.sampler else None,
            "feedback_delay": self.sampler.controller.feedback_delay if self.sampler else None,
            "steps": self._steps,
            "effective_sample_size_sum": self._ess_sum,
            "largest_weight": self.largest_weight,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage != "fit":
            return  # `validate(ckpt_path=...)` and the like leave the run as it is
        self._restored, self._restored_lag = state_dict["sampler"], state_dict["feedback_delay"]
        self._steps, self._ess_sum = state_dict["steps"], state_dict["effective_sample_size_sum"]
        self.largest_weight = state_dict["largest_weight"]
        if self.sampler is None or self._loader is None:
            return  # the data comes later
        restored, self._restored = self._restored, None
        if restored is not None:
            self.sampler.restore(restored)
            if isinstance(self.sampler, FeedbackBatchSampler):
                self._set_lag(self.sampler.controller, self._least_lag(self._loader))
        else:
            self.sampler.reset()  # Lightning's tuner goes back to before there was one
        self._loader.restart = True  # some versions of Lightning go on with the iterator there is

    # -- settings ------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """Refuse now what needs no data to be refused."""
        if self.max_weight is not None and not self.max_weight > 0:
            raise ValueError(f"max_weight must be positive, or None for no bound, got {self.max_weight}.")
        class_weights([1.0], [1.0], exponent=self.exponent)
        if isinstance(self.labels, (str, bytes)) and self.labels != "scan":
            raise ValueError(f"labels must be one class per sample, 'scan' or None, got {self.labels!r}.")
        if self.feedback_delay is not None:
            FeedbackController(1, feedback_delay=self.feedback_delay)
        FeedbackBatchSampler([0], 1, self.steps_per_epoch, seed=self.seed or 0, empty_classes=self.empty_classes)
        law, target = dict(self._law), self.target_probs
        K = self.num_classes or _classes_of(target)
        ends = target_endpoints(target)
        if law["horizon"] is None and (K is None or any(isinstance(end, str) and end in _OF_DATA for end in ends)):
            law["horizon"] = _ENDLESS  # the default, and with it the largest alpha, waits for the data
        if K is None:
            for end in ends:
                FeedbackController(1, end if isinstance(end, str) else None, class_counts=[1], **law)
        else:
            FeedbackController(K, target, class_counts=np.ones(K), **law)
            self._check_names(K)

    def _check_names(self, num_classes: int) -> None:
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names must differ: classes of one name would share their tags.")
        if self.class_names is not None and len(self.class_names) != num_classes:
            raise ValueError(
                f"class_names must name every class: got {len(self.class_names)} names for {num_classes} classes."
            )


def _classes_of(target: Target | Shift) -> int | None:
    """Return how many classes a target names, None where it leaves that to the data."""
    vectors = (end for end in target_endpoints(target) if end is not None and not isinstance(end, (str, Mapping)))
    return next((len(end) for end in vectors), None)  # type: ignore[arg-type]


def find_callback(trainer: L.Trainer) -> FairSampling | None:
    """Return the ``FairSampling`` that the user gave the Trainer or its ``FairDataModule``."""
    given = [*trainer.callbacks, getattr(trainer.datamodule, "fair", None)]  # type: ignore[attr-defined]
    return next((callback for callback in given if isinstance(callback, FairSampling)), None)
