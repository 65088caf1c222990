"""How a training loader is made fair: one builder for data sets, one for streams."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_fair.dataloaders import checks
from lightning_fair.dataloaders.fair_loader import make_fair, make_stream_fair
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.integration.run import Run, RunTotals
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.trainer_internals import steps_per_epoch
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler


def make_loader_fair(run: Run, trainer: L.Trainer, loader: Any) -> DataLoader[Any]:
    """Return the fair loader for the user's training loader, and let the run train on it.

    Raises:
        TypeError: If the loader cannot be made fair.
        ValueError: If the loader is fair already, or does not fit the settings or a checkpoint.
    """
    if checks.is_fair(loader):
        raise ValueError(
            "The training DataLoader is fair already, with settings of its own. Give the Trainer the plain loader, "
            "or the FairDataModule it comes from."
        )
    # Not the module's device: the module may not have been moved yet.
    run.steps_on_device = 0 if trainer.strategy.root_device.type == "cpu" else 1
    is_reload, is_stream = run.loader is not None, checks.is_stream(loader)
    fair: Any = (_make_stream_fair if is_stream else _make_data_set_fair)(run, trainer, loader)
    assert run.source is not None
    controller = run.source.controller
    run.loader, run.class_names = fair, run.settings.names_for(controller.num_classes, loader.dataset)
    run.restore_source()
    if not is_reload:
        rank_zero_info(
            f"FairSampling steers {controller.num_classes} classes in batches of {run.source.batch_size}; horizon "
            f"{controller.horizon:g} batches, feedback delay {controller.feedback_delay}."
        )
    return fair  # type: ignore[no-any-return]


def _make_data_set_fair(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    checks.check_loader(loader)
    run.sampler, run.tracker = _find_sampler(run, trainer, loader), None
    # Lightning fetches one batch ahead if a loader beside this one has no length.
    several = run.settings.dataloader is not None
    run.min_delay = checks.num_prefetched(loader) + 1 + run.steps_on_device + several
    on_start, guess_labels = partial(run.start_drawing, trainer), run.settings.labels is None
    return make_fair(loader, run.sampler, on_start=on_start, guess_labels=guess_labels)


def _find_sampler(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> FeedbackBatchSampler:
    """Return the run's sampler if the loader has the same data as before, else a new one."""
    settings, sampler = run.settings, run.sampler
    labels, size = run.find_labels(loader.dataset), checks.batch_size(loader)
    steps = settings.steps_per_epoch or steps_per_epoch(loader, trainer.world_size)
    if sampler is not None and sampler.batch_size == size and np.array_equal(labels, sampler.labels):
        sampler.steps_per_epoch = steps
        return sampler
    # The tuner tries batch sizes without the callbacks, and then restores the state.
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    is_tuning = not any(getattr(callback, "_run", None) is run for callback in callbacks)
    if sampler is not None and sampler.controller.draws and not is_tuning:
        rank_zero_warn("The training data or the batch size have changed: FairSampling starts anew.")
        run.totals, run.has_warned = RunTotals(), False
    if (ignored := checks.ignored_sampler(loader)) is not None:
        rank_zero_warn(
            f"FairSampling draws the batches, so the {ignored} of the training DataLoader has no effect. "
            "Set the class mix with target_probs."
        )
    return settings.make_sampler(
        labels,
        size,
        steps,
        dataset=loader.dataset,
        seed=trainer.strategy.broadcast(settings.draw_seed),  # each rank may have called seed_everything with its own
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )


def _make_stream_fair(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    for name, default, remedy in (
        ("labels", None, "FairStream(label_fn=...) takes a sample and returns its class"),
        ("steps_per_epoch", None, "Trainer(limit_train_batches=...) ends its epochs"),
        ("reference", "target", "a stream has no prior. Set reference='target'"),
    ):
        if (value := getattr(run.settings, name)) is not default and value != default:
            raise ValueError(f"{name} is for data sets with a length, and this one is a stream: {remedy}.")
    run.sampler, run.tracker, run.min_delay = None, _find_tracker(run, trainer, loader.dataset), None
    return make_stream_fair(loader, on_start=partial(run.start_drawing, trainer))


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
