"""What the callback needs of a Trainer and of a module: the only file that reaches into Lightning's loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss
from torch.utils.data import DataLoader, DistributedSampler

from lightning_fair.dataloaders.checks import batch_size, samplers


def check_trainer(trainer: object) -> None:
    """Raise if ``trainer`` is not of the package ``lightning``: the older name's classes are others.

    Raises:
        TypeError: If it is that of ``pytorch_lightning``, for example.
    """
    if not isinstance(trainer, L.Trainer):
        raise TypeError(
            f"lightning_fair works with lightning.pytorch, got a Trainer of {type(trainer).__module__.split('.')[0]}. "
            "Write `import lightning.pytorch as pl` in place of `import pytorch_lightning as pl`, everywhere."
        )


def intercept_train_dataloader(
    trainer: L.Trainer, chosen: str | int | None, make: Callable[[Any], Any]
) -> Callable[[], None]:
    """Let ``make`` replace the chosen training loader whenever Lightning asks for it.

    Args:
        trainer: The Trainer, before its loaders are made.
        chosen: Key or place of the loader among several; None: the only one.
        make: Takes the loader as the user made it, and returns the one to train on.

    Returns:
        A function that takes this back.

    Raises:
        ValueError: When the loaders are asked for, if ``chosen`` does not name one of them.
    """
    source, strategy = trainer.fit_loop._data_source, trainer.strategy
    request, process = source.dataloader, strategy.process_dataloader
    turn = wanted = 0
    own: Any = None

    def requested() -> object:
        nonlocal turn, wanted, own
        loaders = request()
        if isinstance(loaders, CombinedLoader):
            loaders = copy(loaders)  # Lightning puts what becomes of its loaders back into it
        turn, (wanted, own) = 0, _find(loaders, chosen)
        return loaders

    def processed(dataloader: object) -> object:
        nonlocal turn
        if not trainer.training:
            return process(dataloader)
        turn += 1
        return make(process(own)) if turn == wanted + 1 else process(dataloader)

    # Lightning asks for the loaders with the one, and calls the other for each of them, whatever its source,
    # after its own work on the sampler and again at each reload. Where there are several ranks that work hides
    # the user's sampler and can change the batch size; we split the batches ourselves, so `make` gets the user's
    # own loader. Attributes of these two objects shadow the methods and are taken away afterwards.
    undo_request = _patch_method(source, "dataloader", requested)
    undo_process = _patch_method(strategy, "process_dataloader", processed)

    def undo() -> None:
        undo_request()
        undo_process()

    return undo


def _find(loaders: Any, chosen: str | int | None) -> tuple[int, Any]:
    """Return the place, among all training loaders, of the one to make fair, and the loader."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.iterables
    everything = CombinedLoader(loaders).flattened
    if chosen is None and len(everything) == 1:
        return 0, everything[0]
    if isinstance(loaders, Mapping):
        parts = dict(loaders)
    else:
        parts = dict(enumerate(loaders if isinstance(loaders, (list, tuple)) else [loaders]))
    # By place and not by identity: one loader may stand under several keys.
    place = 0
    places = {}
    for key, part in parts.items():
        size = len(CombinedLoader(part).flattened)
        if size == 1:
            places[key] = place
        place += size
    if chosen not in places:
        got = "there are several" if chosen is None else f"dataloader={chosen!r} is none of them"
        raise ValueError(
            f"FairSampling steers one training DataLoader, but {got}: {', '.join(map(repr, places))}. "
            f"Choose one with FairSampling(dataloader={next(iter(places))!r})."
        )
    return places[chosen], everything[places[chosen]]


def _patch_method(owner: Any, name: str, method: Callable[..., Any]) -> Callable[[], None]:
    """Set an attribute that hides a method of this one object, and return how to take it away again."""
    before = owner.__dict__.get(name)
    setattr(owner, name, method)

    def undo() -> None:
        owner.__dict__.pop(name, None)
        if before is not None:
            setattr(owner, name, before)

    return undo


def steps_per_epoch(loader: DataLoader[Any], world_size: int) -> int:
    """Return the batches of an epoch on this rank: as long as the user's loader, split over the ranks.

    Raises:
        ValueError: If the loader has no length, or no batch.
    """
    if not hasattr(loader.batch_sampler, "__len__"):
        raise ValueError(
            f"The batch sampler {type(loader.batch_sampler).__name__} has no length. State "
            "FairSampling(steps_per_epoch=...)."
        )
    if not len(loader):
        raise ValueError(
            "The training DataLoader has no batch: its data set has fewer samples than "
            f"batch_size={batch_size(loader)}, and drop_last=True. Set drop_last=False or a smaller batch_size."
        )
    if world_size == 1 or any(isinstance(sampler, DistributedSampler) for sampler in samplers(loader)):
        return len(loader)
    if getattr(loader.batch_sampler, "drop_last", False):
        return max(len(loader) // world_size, 1)
    return -(-len(loader) // world_size)


def warn_of_class_weights(pl_module: L.LightningModule) -> None:
    """Warn once where a loss of the module has class weights: with fair batches they correct twice."""
    for name, module in pl_module.named_modules():
        if not isinstance(module, (_WeightedLoss, torch.nn.BCEWithLogitsLoss)):
            continue
        weight, positive = getattr(module, "weight", None), getattr(module, "pos_weight", None)
        if _uneven(weight) or (isinstance(positive, Tensor) and bool((positive != 1).any())):
            rank_zero_warn(
                f"{name or type(module).__name__} has class weights, and FairSampling balances the batches: "
                "together they correct twice. Take the weights away, or steer to target_probs='prior'."
            )
            return


def _uneven(weight: Tensor | None) -> bool:
    return isinstance(weight, Tensor) and bool((weight != weight.flatten()[0]).any())
