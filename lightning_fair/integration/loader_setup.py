"""The training loader of a fit, made fair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_fair.common.distributed import check_same_on_all_ranks
from lightning_fair.common.label_sets import LabelSets, labels_checksum, same_labels
from lightning_fair.control.draw_source import DrawSource
from lightning_fair.control.rank_facts import describe
from lightning_fair.dataloaders import checks
from lightning_fair.dataloaders.fair_loader import make_fair, make_stream_fair
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_groups import describe_groups
from lightning_fair.dataloaders.label_set_check import LabelSetCheck
from lightning_fair.dataloaders.rank_steps import RankSteps
from lightning_fair.dataloaders.samplers import SUBSET, draws_as, ignored_sampler, length_of, samples_per_class
from lightning_fair.dataloaders.stream_tracker import StreamTracker
from lightning_fair.dataloaders.wrappers import loader_inside, unchain, wrong_choice
from lightning_fair.integration.run import Run
from lightning_fair.integration.settings import FairSettings
from lightning_fair.integration.step_checks import StepChecks
from lightning_fair.integration.trainer_internals import data_rank, is_within_epoch, steps_per_epoch, training_time
from lightning_fair.integration.training_length import describe_target
from lightning_fair.monitoring.weight_statistics import RunTotals
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler
from lightning_fair.streaming.stream import FairStream

if TYPE_CHECKING:
    import lightning.pytorch as L

# Settings that are not the controller's, and have to be the same on all ranks.
_COMPARED = ("seed", "feedback", "feedback_mode", "correction", "logits", "normalize", "exponent", "resume")


def make_loader_fair(run: Run, trainer: L.Trainer, loader: Any) -> DataLoader[Any]:
    """Return the fair loader for the user's training loader, and let the run train on it."""
    run.seed = trainer.strategy.broadcast(run.settings.draw_seed)  # each rank may have called seed_everything
    with _same_on_all_ranks(run, trainer):
        loader = unchain(loader)
        inner = loader_inside(loader)
        _check_not_fair(inner)
        # Not the module's device: the module may not have been moved yet.
        run.steps_on_device = 0 if trainer.strategy.root_device.type == "cpu" else 1
        fair: Any = (_make_stream_fair if checks.is_stream(inner) else _make_data_set_fair)(run, trainer, loader)
        assert run.source is not None
        run.restore_source()
        run.loader = fair
        _name_classes(run, inner.dataset)
    if run.tracker is not None and trainer.world_size > 1:
        fair.rank_steps = RankSteps(length_of(fair), rank_zero_info)
    return run.loader  # type: ignore[return-value]


@contextmanager
def _same_on_all_ranks(run: Run, trainer: L.Trainer) -> Iterator[None]:
    """Compare the ranks after the body, and raise its error on all of them."""
    if trainer.world_size == 1:
        yield
        return
    run.facts = {**vars(run.length), **{name: getattr(run.settings, name) for name in _COMPARED}}
    error = None
    try:
        yield
        assert run.source is not None
        run.facts = {**run.source.rank_facts(), **run.facts, "class names": describe(run.class_names)}
        # Batches that are drawn ahead of the losses do not follow them, whatever the delay is.
        delay = max(run.min_delay or 1, run.facts.pop("feedback_delay"))
        run.facts["feedback_delay, which more workers raise"] = delay
    except Exception as failure:
        error = failure
    check_same_on_all_ranks(run.facts, error)
    if run.sampler is not None:
        run.sampler.has_compared_ranks = True


def _check_not_fair(loader: Any) -> None:
    if checks.is_fair(loader):
        raise ValueError(
            "The training DataLoader is fair already, with settings of its own. Give the Trainer the plain loader, "
            "or the FairDataModule it comes from, which needs no other around it."
        )


def make_loader_fair_alone(run: Run, loader: Any) -> Any:
    """Return the fair loader for a user's loader that no Trainer trains on; of several, the chosen one is fair."""
    loader, key = unchain(loader), run.settings.dataloader
    if isinstance(loader, (dict, list, tuple)):
        parts: dict[Any, Any] = loader if isinstance(loader, dict) else dict(enumerate(loader))
        key = next(iter(parts), None) if len(parts) == 1 else key
        if key not in parts:
            raise wrong_choice({name: [part] for name, part in parts.items()}, key)
        fair = {**parts, key: make_loader_fair_alone(run, parts[key])}
        return fair if isinstance(loader, dict) else list(fair.values())
    if checks.is_stream(loader_inside(loader)):  # a FairStream is fair by itself
        return loader
    _check_not_fair(loader_inside(loader))
    checks.check_loader(loader)
    is_new = _update_sampler(run, None, loader)
    assert run.sampler is not None
    if is_new and (target := describe_target(run.settings.target_probs, run.sampler, None)):
        rank_zero_info(f"FairSampling: {target}.")
    return make_fair(loader, run.sampler, label_check=run.label_check)


def _name_classes(run: Run, dataset: Any) -> None:
    assert run.source is not None
    label_names = None if run.sampler is None else run.sampler.class_names
    controller = run.source.controller
    run.class_names = run.settings.names_for(controller.num_classes, dataset, label_names, controller.label_kind)


def _make_data_set_fair(run: Run, trainer: L.Trainer, loader: Any) -> DataLoader[Any]:
    checks.check_loader(loader)
    run.tracker = None
    _update_sampler(run, trainer, loader)
    assert run.sampler is not None
    # Lightning fetches one batch ahead if another training loader has no length.
    several = run.settings.dataloader is not None
    run.min_delay = checks.num_prefetched(loader_inside(loader)) + 1 + run.steps_on_device + several
    on_start = partial(_start_drawing, run, trainer, loader)
    return make_fair(loader, run.sampler, on_start=on_start, label_check=run.label_check)


def _start_drawing(run: Run, trainer: L.Trainer, users_loader: Any) -> bool:
    """Withdraw the draws that were not trained on, begin an epoch if Lightning does, and return whether one goes on."""
    assert run.source is not None
    assert run.loader is not None
    run.flush_reports()
    # A checkpoint of an epoch's last batch is written before `on_train_epoch_end`.
    within_epoch = is_within_epoch(trainer)
    if not within_epoch:
        run.loader.pending_batches.clear()
        if run.sampler is not None:
            with _same_on_all_ranks(run, trainer):
                if _update_sampler(run, trainer, users_loader):
                    assert run.label_check is not None
                    run.loader.replace_sampler(run.sampler, run.label_check)
                    run.restore_source()
                    _name_classes(run, loader_inside(users_loader).dataset)
    epoch, position, step = training_time(trainer)
    run.begin_at(epoch, position, step)
    keep = bool(run.loader.pending_batches)
    run.source.start_iteration(epoch, within_epoch=within_epoch, keep_delivered=keep)
    if run.tracker is not None:
        run.loader.begin_at_worker(run.tracker.first_worker, within_epoch=within_epoch)
    return within_epoch


def _update_sampler(run: Run, trainer: L.Trainer | None, users_loader: Any) -> bool:
    """Keep the run's sampler if the loader has the same data as before, else make a new one and return True."""
    settings, sampler, loader = run.settings, run.sampler, loader_inside(users_loader)
    labels, size = run.find_labels(loader), checks.batch_size(loader)
    rank, world_size = (0, 1) if trainer is None else data_rank(trainer)
    steps = settings.steps_per_epoch or steps_per_epoch(users_loader, world_size)
    has_same_labels = sampler is not None and same_labels(labels.numbers, sampler.labels)
    if sampler is not None and has_same_labels and sampler.batch_size == size:
        sampler.steps_per_epoch = steps
        return False
    if trainer is not None and trainer.world_size > 1:  # if this rank has no sampler for them, these are the reason
        data = {"number of samples": labels.numbers.size, "labels' checksum": labels_checksum(labels.numbers)}
        run.facts = {"batch_size": size, **data, **run.facts}
    run.total_batches = run.count_batches(steps)
    options: dict[str, Any] = {"total_batches": run.total_batches}
    if trainer is not None:
        options |= {"rank": rank, "world_size": world_size, "seed": run.seed}
    run.flush_reports()
    # During a fit, a change of the labels does not end the schedules.
    previous = sampler if run.loader is not None and sampler is not None and sampler.batch_size == size else None
    run.sampler = settings.make_sampler(labels, size, steps, dataset=loader.dataset, previous=previous, **options)
    _warn_of_ignored_sampler(run.sampler, loader)
    if sampler is not None and sampler.controller.draws and not run.in_search:
        change = _describe_change(sampler, run.sampler)
        if run.sampler.controller is sampler.controller:
            if not run.has_warned_of_change:  # a data set may shuffle itself in each epoch
                rank_zero_warn(
                    f"{change}: the batches follow the new ones, also when they change again. Trained mix, class "
                    "losses and schedules go on."
                )
            run.has_warned_of_change = True
        else:
            rank_zero_warn(f"{change}: FairSampling starts over, without the trained mix and the feedback so far.")
            run.totals, run.step_checks = RunTotals(), StepChecks()
    if not has_same_labels:
        _make_label_check(run, loader.dataset, were_numbered=labels.values is not None)
    return True


def _warn_of_ignored_sampler(sampler: FeedbackBatchSampler, loader: DataLoader[Any]) -> None:
    name, size = ignored_sampler(loader), sampler.batch_size
    if name is None:
        return
    warning = f"FairSampling draws the batches, so the {name} of the training DataLoader has no effect"
    draws_all = draws_as(loader.sampler, "WeightedRandomSampler")  # else it would have been refused
    advice = "" if draws_all else f" If it leaves samples out on purpose, use {SUBSET}."
    targets = np.stack([sampler.controller.target_at(progress) for progress in (0.0, 1.0)])
    num_short = np.count_nonzero(((targets > 0) & (size * targets < 2)).any(axis=0))
    if (
        num_short
        and not isinstance(sampler.labels, LabelSets)
        and (num := samples_per_class(loader, sampler.labels)) is not None
    ):
        rank_zero_warn(
            f"{warning}. It puts {num} samples of each of its classes into a batch; a fair batch of {size} samples has "
            f"fewer than two of {num_short} of the {targets.any(axis=0).sum()} classes, so pairs of the same class "
            f"(positives) are lost. Set batch_size={int(np.ceil(2 / targets[targets > 0].min()))} or more, or, if the "
            f"loss needs such pairs, train without FairSampling.{advice}"
        )
    else:
        rank_zero_warn(f"{warning}. Remove it; target_probs sets the class mix.{advice}")


def _describe_change(old: FeedbackBatchSampler, new: FeedbackBatchSampler) -> str:
    if old.batch_size != new.batch_size:
        return f"The batch size has changed from {old.batch_size} to {new.batch_size}"
    if old.labels.size != new.labels.size:
        return f"The training data have changed from {old.labels.size} to {new.labels.size} samples"
    if isinstance(old.labels, LabelSets) or isinstance(new.labels, LabelSets):
        return f"Labels of the {new.labels.size} samples have changed"
    return f"The labels of {np.count_nonzero(old.labels != new.labels)} of {new.labels.size} samples have changed"


def _make_label_check(run: Run, dataset: Any, *, were_numbered: bool) -> None:
    """Make the label check of a new sampler, and say which groups are in which class."""
    assert run.sampler is not None
    num_classes, chosen = run.sampler.controller.num_classes, run.settings.has_chosen_labels
    step = run.step_correction
    if step is not None and step.num_classes != num_classes:
        raise ValueError(
            f"The number of classes has changed from {step.num_classes} to {num_classes} during the fit. Set "
            "FairSampling(num_classes=...) to the larger number, and empty_classes='skip'."
        )
    has_sets = isinstance(run.sampler.labels, LabelSets)
    groups = describe_groups(run.sampler.labels, dataset, run.sampler.class_names) if chosen and not has_sets else None
    if groups:
        run.announce_groups(groups)
    options: dict[str, Any] = {"names": run.sampler.class_names, "were_numbered": were_numbered, "warn": rank_zero_warn}
    if isinstance(run.sampler.labels, LabelSets):
        options["has_unlabeled"] = run.sampler.labels.has_unlabeled
        run.label_check = LabelSetCheck(num_classes, **options)
    else:
        inform = None if groups else run.announce_groups
        run.label_check = LabelCheck(num_classes, are_groups=chosen, inform=inform, **options)
    _warn_of_single_class(run.sampler, run.noun)


def _warn_of_single_class(source: DrawSource, noun: str) -> None:
    """Warn if every batch of the run has the same class only; ``noun`` is the word for a class."""
    controller, is_stream = source.controller, source.arriving is not None
    is_drawn = (controller.target_at(0.0) > 0) | (controller.target_at(1.0) > 0)
    if not is_stream:
        is_drawn &= source.class_counts > 0
    if is_drawn.sum() == 1:
        remedy = "FairStream(label_fn=...)" if is_stream else "FairSampling(labels=...)"
        rank_zero_warn(
            f"All batches are of {noun} {int(is_drawn.argmax())} alone, so FairSampling has nothing to balance. Either "
            "the data have no other, for example a Subset of sorted data, or their labels are something else (pass the "
            f"right ones: {remedy}), or target_probs gives the others no probability."
        )


def _make_stream_fair(run: Run, trainer: L.Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
    if loader_inside(loader) is not loader:
        raise TypeError(
            f"A FairStream works in a DataLoader of its own, got one inside {type(loader).__name__}. "
            "Return the DataLoader itself for training."
        )
    for name, remedy in (
        ("labels", "FairStream(label_fn=...) takes a sample and returns its class"),
        ("steps_per_epoch", "Trainer(limit_train_batches=...) ends its epochs"),
    ):
        if getattr(run.settings, name) is not None:
            raise ValueError(f"{name} is for data sets with a length, and this one is a stream: {remedy}.")
    run.settings.check_stream_mixes(run.settings.reference)
    run.sampler, run.tracker, run.min_delay = None, _find_tracker(run, trainer, loader.dataset), None
    if (kind := run.tracker.controller.label_kind) is not None:
        run.settings.check_several_labels(kind)
    run.tracker.num_processes = max(loader.num_workers, 1)
    # Lightning fetches one batch ahead if a loader has no length.
    run.tracker.draws_ahead = loader.num_workers > 0 or length_of(loader) is None
    if run.label_check is None:
        stream, num_classes = run.tracker.stream, run.tracker.controller.num_classes
        names = stream.classes or ()
        options: dict[str, Any] = {"names": names if len(names) == num_classes else None, "warn": rank_zero_warn}
        if kind is not None:
            run.label_check = LabelSetCheck(num_classes, has_unlabeled=kind.has_unlabeled, **options)
        else:
            has_function = stream.label_fn is not None
            run.label_check = LabelCheck(num_classes, are_groups=has_function, inform=run.announce_groups, **options)
        _warn_of_single_class(run.tracker, run.noun)
    on_start = partial(_start_drawing, run, trainer, loader)
    return make_stream_fair(loader, on_start=on_start, label_check=run.label_check)


def _find_tracker(run: Run, trainer: L.Trainer, stream: Any) -> StreamTracker:
    """Return the run's tracker if the stream can follow its controller, else a new one."""
    tracker = run.tracker
    if tracker is not None and (tracker.stream is stream or not stream.brings_controller):
        if tracker.stream is not stream:
            stream.bind(tracker.controller)
            tracker.follow(stream)
        return tracker
    _warn_of_stream_settings(run.settings, stream)
    if not stream.brings_controller:
        stream.bind(run.settings.make_controller(stream))
    return StreamTracker(stream, *data_rank(trainer))


def _warn_of_stream_settings(settings: FairSettings, stream: FairStream) -> None:
    for name, default, reason in (
        ("seed", None, f"set FairStream(seed={settings.seed!r})"),
        ("feedback_delay", None, "each process that reads the stream applies losses as soon as they are known"),
        ("empty_classes", "error", "the share of a class without samples goes to the others, and the log says so"),
    ):
        if (value := getattr(settings, name)) != default:
            rank_zero_warn(f"{name}={value!r} has no effect on a FairStream: {reason}.")
    if not stream.brings_controller:
        return
    if settings.feedback == "train" and stream.controller.objective.feedback == "validation":
        rank_zero_warn(
            "The controller of the FairStream waits for values of validations, and gets none. Name their metric, for "
            "example FairSampling(feedback='val/recall')."
        )
    if not settings.has_default_law:
        rank_zero_warn(
            "The FairStream has a controller of its own, so FairSampling's settings of the law and the target have "
            "no effect. Set them there, or make the FairStream without a controller."
        )
