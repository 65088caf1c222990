"""The state of one fit: its fair loader, its draws on their way, and its statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_fair.common.arrays import Floats
from lightning_fair.common.label_values import ClassLabels
from lightning_fair.common.labels import look_up_labels
from lightning_fair.control.draw import Draw
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.weights import class_weights
from lightning_fair.dataloaders import checks
from lightning_fair.dataloaders.fair_loader import DeliveredBatch, FairLoader, make_fair, make_stream_fair
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_groups import describe_groups
from lightning_fair.dataloaders.label_scan import find_loader_labels
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.distributed import sum_over_ranks
from lightning_fair.integration.loss_check import LossCheck
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.single_class import warn_of_single_class
from lightning_fair.integration.step_weights import StepWeights, copy_to_host
from lightning_fair.integration.trainer_internals import is_within_epoch, steps_per_epoch
from lightning_fair.monitoring.dashboard import BatchWeights, Dashboard
from lightning_fair.monitoring.tensorboard_layout import plural
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

_DEFAULT_DELAY = 16  # above the prefetching of most loaders, so that their batches do not depend on the workers


@dataclass
class RunTotals:
    """Statistics over the batches so far; a checkpoint holds them under these names."""

    steps: int = 0
    effective_sample_size_sum: float = 0.0
    largest_weight: float = 0.0


@dataclass(eq=False)
class Run:
    """Everything that :class:`~lightning_fair.FairSampling` knows of one fit."""

    settings: FairSettings
    trainer_id: int = 0
    sampler: FeedbackBatchSampler | None = None  # draws the batches of a data set
    tracker: StreamTracker | None = None  # follows the draws of a stream
    loader: FairLoader | None = None  # None outside of a fit
    class_names: Sequence[str] = ()
    min_delay: int | None = None  # batches after which the losses of a draw are known; None for a stream
    steps_on_device: int = 0  # newest steps that a device may still be working on
    step_weights: StepWeights | None = None  # None if the module has no `weighted_loss`
    loss_check: LossCheck | None = None
    current: DeliveredBatch | None = None  # the batch in the training step
    class_weights: Floats | None = None  # its importance weights, shape (K,); None if they are all one
    # Batches that were trained on, with a function that returns their sums; None: trained on as drawn.
    unreported: deque[tuple[Draw, Callable[[], Tensor] | None]] = field(default_factory=deque)
    has_warned: bool = False  # of a training step without `weighted_loss`
    totals: RunTotals = field(default_factory=RunTotals)
    dashboard: Dashboard = field(default_factory=Dashboard)
    checkpoint: Mapping[str, Any] | None = None  # state of the source that waits for the loader
    checkpoint_delay: int | None = None
    checkpoint_check: Mapping[str, Any] | None = None  # state of the label check that waits for the loader
    label_check: LabelCheck | None = None
    groups: bool = False  # whether the labels divide the classes of the data set into groups
    scanned_labels: tuple[Any, ClassLabels] | None = None  # a data set, and its labels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loader": None}  # a copy has no part in the fit

    @property
    def source(self) -> DrawSource | None:
        """The sampler or the stream tracker; None before the loader is known."""
        return self.sampler if self.sampler is not None else self.tracker

    @property
    def noun(self) -> str:
        """Word for a class in messages and charts."""
        return "group" if self.groups else "class"

    def next_fit(self, trainer: L.Trainer) -> Run:
        """Return the run of the fit that begins; it continues this one if the Trainer continues its training."""
        if self.source is None or self.trainer_id != id(trainer) or not trainer.global_step:
            return Run(self.settings, id(trainer), scanned_labels=self.scanned_labels)
        self.flush_reports()
        self.source.abandon_epoch()
        return replace(self, loader=None, step_weights=None, current=None)

    def find_labels(self, loader: DataLoader[Any]) -> ClassLabels:
        """Return the label of every sample; a data set is scanned once, however often its loader is made again."""
        dataset, settings = loader.dataset, self.settings
        labels = look_up_labels(dataset, settings.labels, settings.stated_classes)
        if labels is not None:
            return labels
        if self.scanned_labels is None or self.scanned_labels[0] is not dataset:
            self.scanned_labels = dataset, find_loader_labels(loader, settings.labels, settings.stated_classes)
        return self.scanned_labels[1]

    def announce_groups(self, message: str) -> None:
        """Print which groups are in which class, and speak of groups from now on."""
        self.groups = True
        if self.step_weights is not None:
            self.step_weights.noun = self.noun
        rank_zero_info(message)

    def start_drawing(self, trainer: L.Trainer, users_loader: DataLoader[Any]) -> None:
        """Withdraw the draws that were not trained on, and begin an epoch if Lightning does."""
        assert self.source is not None
        assert self.loader is not None
        self.flush_reports()
        # A checkpoint of an epoch's last batch is written before `on_train_epoch_end`.
        within_epoch = is_within_epoch(trainer)
        if not within_epoch:
            self.loader.pending_batches.clear()
            if self.sampler is not None and _update_sampler(self, trainer, users_loader):  # the labels have changed
                # Without `_iterator`, persistent workers start again, with the new data.
                changed = {"batch_sampler": self.sampler, "label_check": self.label_check, "_iterator": None}
                self.loader.__dict__.update(changed)
                self.restore_source()
        keep = bool(self.loader.pending_batches)
        self.source.start_iteration(trainer.current_epoch, within_epoch=within_epoch, keep_delivered=keep)

    def begin_step(self) -> None:
        """Take the batch of the training step that begins, and set its importance weights."""
        self.class_weights = None
        self.current = self.loader.pop_pending() if self.loader is not None else None
        if self.current is None or self.step_weights is None or self.source is None:
            return
        draw, settings = self.current.draw, self.settings
        by_target = settings.reference == "target"
        mix = self.source.controller.target_at(draw.progress) if by_target else self.source.prior
        weights = class_weights(draw.reference(mix), draw.probs, settings.max_weight, exponent=settings.exponent)
        self.step_weights.start(torch.from_numpy(weights).float(), self.current.labels)
        self.class_weights = weights

    def end_step(self, *, has_loss: bool, device: torch.device) -> Draw | None:
        """Prepare the report of the batch, and return its draw; None if the batch was not trained on."""
        if self.current is None and self.loader is not None:
            self.current = self.loader.pop_pending()  # a batch that is None has no `on_train_batch_start`
        current, self.current = self.current, None
        if current is None or self.source is None:
            return None
        draw, trained = current.draw, has_loss and len(current.labels) > 0
        # Every rank takes part in one sum per step, whatever its batch was.
        sums = None
        if self.step_weights is not None:
            sums = self.step_weights.finish(trained=trained)
        elif not (trained and current.as_drawn and self.source.world_size == 1):
            sums = torch.from_numpy(np.bincount(current.labels, minlength=draw.counts.size) * trained).to(device)
        self.unreported.append((draw, None if sums is None else copy_to_host(sum_over_ranks(sums))))
        self.flush_reports(keep=self.steps_on_device)
        return draw if trained else None

    def flush_reports(self, keep: int = 0) -> None:
        """Report all but the newest ``keep`` batches to the source."""
        while len(self.unreported) > keep and self.source is not None:
            draw, read_sums = self.unreported.popleft()
            sums = None if read_sums is None else read_sums().double().numpy()
            if sums is None or sums.ndim == 1:  # samples of each class, without losses
                self.source.report(draw, sums)
            elif sums[0, -1]:
                counts, num_finite, losses = sums[:, :-1]
                # A closure that runs several times (LBFGS) trains on more samples than were drawn.
                self.source.report(draw, self.source.clip_counts(counts, draw), losses, num_finite)
            else:
                self.source.report(draw)
                if not self.has_warned:
                    rank_zero_warn(
                        "training_step did not call self.weighted_loss(losses), so its loss has no importance weights "
                        "and is not fed back."
                    )
                self.has_warned = True

    def add_to_totals(self, draw: Draw) -> BatchWeights:
        """Count a batch that was trained on, and return the statistics of its weights."""
        assert self.source is not None
        if self.class_weights is None:
            weights = BatchWeights.all_one(self.source.global_batch_size)
        else:
            weights = BatchWeights.summarize(self.class_weights, draw.counts, normalize=self.settings.normalize)
        self.totals.steps += 1
        self.totals.effective_sample_size_sum += weights.effective_sample_size
        self.totals.largest_weight = max(self.totals.largest_weight, weights.largest)
        return weights

    def end_epoch(self) -> None:
        """Report all batches, and end the epoch."""
        assert self.source is not None
        self.flush_reports()
        self.current = None
        if self.step_weights is not None:
            self.step_weights.is_open = False
        if self.loss_check is not None:
            self.loss_check.end_epoch()
        self.source.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as of the last batch that was trained on."""
        self.flush_reports()
        sampler = None if self.source is None else self.source.capture()
        delay = None if self.source is None else self.source.controller.feedback_delay
        check = None if self.label_check is None else self.label_check.state_dict()
        return {"sampler": sampler, "feedback_delay": delay, "label_check": check, **vars(self.totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned: now, or as soon as the loader is known."""
        self.checkpoint, self.checkpoint_delay = state["sampler"], state["feedback_delay"]
        self.checkpoint_check = state["label_check"]
        self.totals = RunTotals(**{name: state[name] for name in vars(self.totals)})
        if self.source is None or self.loader is None:
            return
        if self.checkpoint is None:
            self.source.reset()  # Lightning's tuner restores a checkpoint that is older than the source
        self.restore_source()
        self.loader.restart = True  # some versions of Lightning continue with the old iterator

    def restore_source(self) -> None:
        """Set the feedback delay of the source, and restore the checkpoint that has waited for it, if there is one."""
        assert self.source is not None
        checkpoint, self.checkpoint = self.checkpoint, None  # if it is refused, nothing of it stays
        if self.min_delay is not None:
            self.source.controller.feedback_delay = self._choose_delay(self.min_delay)
        if checkpoint is not None:
            self.source.restore(checkpoint)
        if self.checkpoint_check is not None and self.label_check is not None:
            self.label_check.load_state_dict(self.checkpoint_check)
        self.checkpoint_check = None

    def _choose_delay(self, min_delay: int) -> int:
        """Return the delay of the settings or the checkpoint, else the default or the smallest of the loader."""
        wanted = self.settings.feedback_delay or self.checkpoint_delay
        if wanted and wanted < min_delay:
            rank_zero_warn(
                f"feedback_delay={wanted} is less than the {min_delay} batches after which losses are known with this "
                "loader, so the batches will differ from those with fewer workers. Set "
                f"feedback_delay={min_delay} or more, or use fewer workers."
            )
        return self.settings.feedback_delay or max(wanted or _DEFAULT_DELAY, min_delay)


def make_loader_fair(run: Run, trainer: L.Trainer, loader: Any) -> DataLoader[Any]:
    """Return the fair loader for the user's training loader, and let the run train on it."""
    if checks.is_fair(loader):
        raise ValueError(
            "The training DataLoader is fair already, with settings of its own. Give the Trainer the plain loader, "
            "or the FairDataModule it comes from."
        )
    # Not the module's device: the module may not have been moved yet.
    run.steps_on_device = 0 if trainer.strategy.root_device.type == "cpu" else 1
    fair: Any = (_make_stream_fair if checks.is_stream(loader) else _make_data_set_fair)(run, trainer, loader)
    assert run.source is not None
    controller = run.source.controller
    run.restore_source()
    if run.loader is None:
        rank_zero_info(
            f"FairSampling steers {controller.num_classes} {plural(run.noun)} in batches of {run.source.batch_size}; "
            f"horizon {controller.horizon:g} batches, feedback delay {controller.feedback_delay}."
        )
    label_names = run.sampler.class_names if run.sampler is not None else None
    run.loader = fair
    run.class_names = run.settings.names_for(controller.num_classes, loader.dataset, label_names)
    return run.loader  # type: ignore[return-value]


def _make_data_set_fair(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    checks.check_loader(loader)
    run.tracker = None
    _update_sampler(run, trainer, loader)
    assert run.sampler is not None
    # Lightning fetches one batch ahead if another training loader has no length.
    several = run.settings.dataloader is not None
    run.min_delay = checks.num_prefetched(loader) + 1 + run.steps_on_device + several
    on_start = partial(run.start_drawing, trainer, loader)
    return make_fair(loader, run.sampler, on_start=on_start, label_check=run.label_check)


def _update_sampler(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> bool:
    """Keep the run's sampler if the loader has the same data as before, else make a new one and return True."""
    settings, sampler = run.settings, run.sampler
    labels, size = run.find_labels(loader), checks.batch_size(loader)
    steps = settings.steps_per_epoch or steps_per_epoch(loader, trainer.world_size)
    if sampler is not None and sampler.batch_size == size and np.array_equal(labels.numbers, sampler.labels):
        sampler.steps_per_epoch = steps
        return False
    # The tuner tries batch sizes without callbacks, and then restores the state.
    is_tuning = not trainer.callbacks  # type: ignore[attr-defined]
    if sampler is not None and sampler.controller.draws and not is_tuning:
        rank_zero_warn("The training data or the batch size have changed: FairSampling starts over.")
        run.totals, run.has_warned = RunTotals(), False
    if (ignored := checks.ignored_sampler(loader)) is not None:
        rank_zero_warn(
            f"FairSampling draws the batches, so the {ignored} of the training DataLoader has no effect. "
            "Set the class mix with target_probs."
        )
    seed = trainer.strategy.broadcast(settings.draw_seed)  # each rank may have called seed_everything with its own
    options = {"rank": trainer.global_rank, "world_size": trainer.world_size, "seed": seed}
    run.sampler = settings.make_sampler(labels, size, steps, dataset=loader.dataset, **options)
    _check_new_labels(run, loader.dataset)
    return True


def _check_new_labels(run: Run, dataset: Any) -> None:
    """Say which groups are in which class, and make a new label check."""
    assert run.sampler is not None
    num_classes, chosen = run.sampler.controller.num_classes, run.settings.has_chosen_labels
    if run.step_weights is not None and run.step_weights.num_classes != num_classes:
        raise ValueError(
            f"The number of classes has changed from {run.step_weights.num_classes} to {num_classes} during the fit. "
            f"Set FairSampling(num_classes=...) to the larger number, and empty_classes='skip'."
        )
    groups = describe_groups(run.sampler.labels, dataset, run.sampler.class_names) if chosen else None
    if groups:
        run.announce_groups(groups)
    inform = None if groups else run.announce_groups
    run.label_check = LabelCheck(num_classes, are_groups=chosen, inform=inform)
    warn_of_single_class(run.sampler, run.noun)


def _make_stream_fair(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    for name, default, remedy in (
        ("labels", None, "FairStream(label_fn=...) takes a sample and returns its class"),
        ("steps_per_epoch", None, "Trainer(limit_train_batches=...) ends its epochs"),
        ("reference", "target", "a stream has no prior. Set reference='target'"),
    ):
        if (value := getattr(run.settings, name)) is not default and value != default:
            raise ValueError(f"{name} is for data sets with a length, and this one is a stream: {remedy}.")
    run.sampler, run.tracker, run.min_delay = None, _find_tracker(run, trainer, loader.dataset), None
    if run.label_check is None:
        has_function = loader.dataset.label_fn is not None  # type: ignore[attr-defined]
        num_classes = run.tracker.controller.num_classes
        run.label_check = LabelCheck(num_classes, are_groups=has_function, inform=run.announce_groups)
        warn_of_single_class(run.tracker, run.noun)
    on_start = partial(run.start_drawing, trainer, loader)
    return make_stream_fair(loader, on_start=on_start, label_check=run.label_check)


def _find_tracker(run: Run, trainer: L.Trainer, stream: Any) -> StreamTracker:
    """Return the run's tracker if the stream can follow its controller, else a new one."""
    tracker = run.tracker
    if tracker is not None and (tracker.stream is stream or not stream.brings_controller):
        if tracker.stream is not stream:
            stream.bind(tracker.controller)
            tracker.follow(stream)
        return tracker
    _warn_of_stream_settings(run.settings, stream.brings_controller)
    if not stream.brings_controller:
        stream.bind(run.settings.make_controller(stream))
    return StreamTracker(stream, trainer.global_rank, trainer.world_size)


def _warn_of_stream_settings(settings: FairSettings, brings_controller: bool) -> None:
    for name, default, reason in (
        ("seed", None, f"set FairStream(seed={settings.seed!r})"),
        ("feedback_delay", None, "each process that reads the stream applies losses as soon as they are known"),
        ("empty_classes", "error", "the share of a class without samples goes to the others, and the log says so"),
    ):
        if (value := getattr(settings, name)) != default:
            rank_zero_warn(f"{name}={value!r} has no effect on a FairStream: {reason}.")
    if brings_controller and not settings.has_default_law:
        rank_zero_warn(
            "The FairStream has a controller of its own, so FairSampling's settings of the law and the target have "
            "no effect. Set them there, or make the FairStream without a controller."
        )
