"""Everything that reaches into private parts of Lightning, and checks of the user's Trainer and module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from inspect import signature, unwrap
from typing import TYPE_CHECKING, Any

from torch.random import fork_rng
from torch.utils.data import DistributedSampler

from lightning_fair.control.draw_source import DrawSource
from lightning_fair.dataloaders.checks import batch_size
from lightning_fair.dataloaders.samplers import batch_sampler, endless_part, length_of, samplers
from lightning_fair.dataloaders.wrappers import loader_inside, wrong_choice
from lightning_fair.integration.lightning_packages import imported_packages, package_of
from lightning_fair.monitoring.dashboard import Board, LogContext

if TYPE_CHECKING:
    import lightning.pytorch as L


def train_data_source(trainer: L.Trainer) -> object:
    """Return the object whose ``train_dataloader`` Lightning calls, for example the data module."""
    return trainer.fit_loop._data_source.instance


def validation_loaders(trainer: L.Trainer) -> list[tuple[Any, float]]:
    """Return the validation loaders of a fit, each with the number of batches that this rank reads; none if unknown."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loaders: Any = loop._combined_loader
    if loaders is None or (len(loaders.flattened) > 1 and not loop._is_sequential):
        return []  # the shortest loader may end the others
    return list(zip(loaders.flattened, loop.max_batches, strict=True))


def is_validation_due(trainer: L.Trainer) -> bool:
    """Return whether Lightning validates next, after the batch that has just been trained on."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    progress: Any = loop.batch_progress.current
    if fetcher is None or not trainer.enable_validation or not progress.ready == progress.processed > 0:
        return False
    return loop._should_check_val_fx(fetcher)


def can_be_weighted(pl_module: L.LightningModule) -> bool:
    """Return whether a Trainer is training the module now, on batches that may be fair."""
    trainer: Any = getattr(pl_module, "_trainer", None)  # the property raises without a Trainer
    return trainer is not None and trainer.training and not trainer.overfit_batches


def is_within_epoch(trainer: L.Trainer) -> bool:
    """Return whether the current training epoch has begun and has not ended."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.current.ready) and not _has_ended(trainer)


def data_rank(trainer: L.Trainer) -> tuple[int, int]:
    """Return the number of this rank's share of the batches, and the number of shares.

    Ranks that compute the same layers together, by tensor parallelism, have one share.
    """
    split = trainer.distributed_sampler_kwargs
    return (trainer.global_rank, trainer.world_size) if split is None else (split["rank"], split["num_replicas"])


def training_time(trainer: L.Trainer) -> tuple[int, int, int]:
    """Return the number of the epoch, the batches of this epoch so far, and those of all epochs so far."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    if _has_ended(trainer):
        return trainer.fit_loop.epoch_progress.current.ready, 0, progress.total.ready
    return trainer.current_epoch, progress.current.ready, progress.total.ready


def _has_ended(trainer: L.Trainer) -> bool:
    """Return whether the last batch of the epoch has been trained on.

    A loader without a length is asked for a batch before Lightning ends the epoch of a checkpoint of its last batch.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    current, length = progress.current, trainer.num_training_batches
    is_last = progress.is_last_batch if length == math.inf else current.ready >= length
    return bool(current.ready) and current.ready == current.processed and is_last


def should_log(trainer: L.Trainer) -> bool:
    """Return whether ``log_every_n_steps`` asks for values now: one point, not several, per optimizer step."""
    return trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate()


def log_context(
    trainer: L.Trainer, source: DrawSource, class_names: Sequence[str], *, correction: Any, noun: str = "class"
) -> LogContext:
    """Return the state of the training that the dashboard logs of the training."""
    kinds = tuple(package.loggers.TensorBoardLogger for package in imported_packages())
    writers = [x for x in trainer.loggers if isinstance(x, kinds)] if trainer.is_global_zero else []
    boards = [Board(x, f"{x._prefix}{x.LOGGER_JOIN_CHAR}" if x._prefix else "") for x in writers]
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    return LogContext(source, class_names, correction, step, trainer.loggers, boards, noun)


def intercept_train_dataloader(trainer: L.Trainer, key: str | int | None, replace: Callable[[Any], Any]) -> ExitStack:
    """Let Lightning train on ``replace(loader)`` in place of the user's loader, until the returned stack is closed.

    If there are several loaders, ``key`` chooses one. A wrong key raises when Lightning asks for the loaders.
    """
    source, strategy = trainer.fit_loop._data_source, trainer.strategy
    request, process = source.dataloader, strategy.process_dataloader
    num_processed = position = 0
    users_loader: Any = None
    combined_loader = package_of(trainer, "Trainer").utilities.CombinedLoader

    def request_loaders() -> object:
        nonlocal num_processed, position, users_loader
        loaders = request()
        if isinstance(loaders, combined_loader):
            loaders = copy(loaders)  # Lightning stores the processed loaders in it
        num_processed, (position, users_loader) = 0, _find_loader(loaders, key, combined_loader)
        return loaders

    def process_loader(dataloader: object) -> object:
        nonlocal num_processed
        if not trainer.training:
            return process(dataloader)
        num_processed += 1
        return replace(process(users_loader)) if num_processed == position + 1 else process(dataloader)

    # For every kind of source, and at each reload, Lightning calls `dataloader` once, changes the samplers, and then
    # calls `process_dataloader` once per loader. With several ranks the changed loader hides the user's sampler and may
    # have another batch size. FairSampling splits the batches over the ranks itself, so `replace` gets the user's own
    # loader.
    patches = ExitStack()
    _patch_method(patches, source, "dataloader", request_loaders)
    _patch_method(patches, strategy, "process_dataloader", process_loader)
    return patches


def on_exception(patches: ExitStack, trainer: L.Trainer, undo: Callable[[], None]) -> None:
    """Call ``undo`` when an exception ends the fit, also one before a search, when the callbacks are not told."""
    original = trainer.strategy.on_exception

    def undo_first(exception: BaseException) -> None:
        undo()
        original(exception)

    _patch_method(patches, trainer.strategy, "on_exception", undo_first)


def join_searches(patches: ExitStack, trainer: L.Trainer, callback: L.Callback, on_start: Callable[[], None]) -> None:
    """Let ``callback`` take part in the steps that Lightning's finders try, until ``patches`` is closed.

    The finders of batch sizes and learning rates empty the Trainer's callbacks, and run the fit loop with other values
    of the attribute. Afterwards they restore the callbacks, and a checkpoint that they saved before. ``on_start`` is
    called when a search begins.
    """
    run = trainer.fit_loop.run

    def run_loop() -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if callback not in callbacks:
            callbacks.append(callback)  # the finder expects its own callback to be the first
            on_start()
        run()

    _patch_method(patches, trainer.fit_loop, "run", run_loop)


def restore_randomness(patches: ExitStack, trainer: L.Trainer, restore: Callable[[], None]) -> None:
    """Let a resumed fit that starts call ``restore`` where the uninterrupted one was when the checkpoint was saved.

    That is after all hooks and loaders of the start, and before the first ones of the epoch. An epoch that begins then
    needs its iterator once more, because Lightning has made it before, and it takes a seed from torch. So do those of a
    validation: they are made if it was due after the batch of the checkpoint, and not because Lightning counts it.
    """
    fit_loop, epoch_loop, val_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop
    begin_fit, begin_epoch = fit_loop.on_advance_start, epoch_loop.on_run_start
    count_validation, skips_validation = val_loop.increment_progress_to_evaluation_end, _skips_validation(trainer)

    def restore_first() -> None:
        restore()
        if skips_validation:
            val_loop.setup_data()
            for loader in val_loop._combined_loader.flattened:  # type: ignore[union-attr]
                iter(loader)
        begin_fit()

    def begin_with_new_iterator(fetcher: Any) -> None:
        patches.close()
        loader = fetcher.combined_loader
        before, is_new_epoch = loader._iterator, not epoch_loop.batch_progress.current.ready
        begin_epoch(fetcher)
        # A second iterator would lose the state of a stateful loader, and the first batch of one without a length.
        is_plain = fetcher.length is not None and not any(hasattr(part, "state_dict") for part in loader.flattened)
        if is_new_epoch and is_plain and loader._iterator is before:
            iter(fetcher)
        _patch_method(patches, val_loop, "increment_progress_to_evaluation_end", count_without_drawing)

    def count_without_drawing() -> None:
        patches.close()
        with fork_rng([]):
            count_validation()

    _patch_method(patches, fit_loop, "on_advance_start", restore_first)
    _patch_method(patches, epoch_loop, "on_run_start", begin_with_new_iterator)


def _skips_validation(trainer: L.Trainer) -> bool:
    """Return whether a resumed fit that starts skips a validation, due after the batch that its checkpoint followed."""
    epochs, batches = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    completed, epochs.completed = epochs.completed, epochs.ready - 1  # on resume, the last batch completes its epoch
    is_due = is_validation_due(trainer)
    epochs.completed = completed
    return is_due and batches.completed < batches.ready  # else the checkpoint was saved after it


def _find_loader(loaders: Any, key: str | int | None, combined_loader: Any) -> tuple[int, Any]:
    """Return the position of the chosen loader among all training loaders, and the loader."""
    if isinstance(loaders, combined_loader):
        loaders = loaders.iterables
    flat = combined_loader(loaders).flattened
    if key is None and len(flat) == 1:
        return 0, flat[0]
    listed = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    # By position, because the same loader may be listed under several keys.
    position, positions, inner = 0, {}, {}
    for name, part in loaders.items() if isinstance(loaders, Mapping) else enumerate(listed):
        size = len(combined_loader(part).flattened)
        if size == 1:
            positions[name] = position
        inner[name] = flat[position : position + size]
        position += size
    if key not in positions:
        raise wrong_choice(inner, key)
    return positions[key], flat[positions[key]]


def _patch_method(patches: ExitStack, owner: Any, name: str, method: Callable[..., Any]) -> None:
    """Replace a method of this one object by an instance attribute, until ``patches`` is closed."""
    before = {name: owner.__dict__[name]} if name in owner.__dict__ else {}
    setattr(owner, name, method)
    patches.callback(owner.__dict__.update, before)
    patches.callback(owner.__dict__.pop, name, None)  # callbacks run in reverse order


def steps_per_epoch(users_loader: Any, world_size: int) -> int:
    """Return the batches of an epoch on this rank: the length of the user's loader, split over the ranks."""
    loader = loader_inside(users_loader)
    length, batches = length_of(users_loader), batch_sampler(loader)
    if length is None and (length := length_of(loader)) is None:
        size, endless = len(loader.dataset), endless_part(loader)  # type: ignore[arg-type]
        raise ValueError(
            f"The training DataLoader has no length, because {endless} has none. Set FairSampling(steps_per_epoch=...),"
            f" for example {-(-size // (batch_size(loader) * world_size))} for as many samples as the data set has."
        )
    if not length:
        raise ValueError(
            "The training DataLoader has no batch: its data set has fewer samples than "
            f"batch_size={batch_size(loader)}, and drop_last=True. Set drop_last=False or a smaller batch_size."
        )
    if world_size == 1 or any(isinstance(sampler, DistributedSampler) for sampler in samplers(loader)):
        return length
    return max(length // world_size, 1) if getattr(batches, "drop_last", False) else -(-length // world_size)


def check_training_step(pl_module: L.LightningModule) -> None:
    """Raise a ``ValueError`` if the training step fetches its batches itself."""
    if "dataloader_iter" in signature(unwrap(pl_module.training_step)).parameters:
        raise ValueError(
            "training_step(dataloader_iter) fetches its batches itself, so FairSampling cannot know which batch is "
            "trained on. Use training_step(batch, batch_idx)."
        )
