"""Questions about a training ``DataLoader``: whether it can be made fair, and how it makes its batches."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate, default_convert

from lightning_fair.dataloaders.samplers import batch_sampler, check_samplers
from lightning_fair.dataloaders.wrappers import loader_inside
from lightning_fair.streaming.stream import FairStream


def is_fair(loader: Any) -> bool:
    """Return whether ``loader`` has been made fair already."""
    return hasattr(loader, "pending_batches")


def is_stream(loader: Any) -> bool:
    """Return whether ``loader`` reads a :class:`~lightning_fair.FairStream`."""
    return isinstance(loader, DataLoader) and isinstance(loader.dataset, FairStream)


def keeps_order(loader: Any) -> bool:
    """Return whether ``loader`` delivers batches in the order in which it draws them."""
    return not loader.num_workers or bool(getattr(loader, "in_order", True))


def can_reorder(loader: Any) -> bool:
    """Return whether ``loader`` may deliver the samples of a batch in another order than drawn, or leave some out.

    With torch's own ``collate_fn``, and without ``__getitems__`` or an own ``__iter__``, it cannot.
    """
    if _has_own_iter(loader):
        return True
    dataset = loader.dataset
    if type(dataset) is TensorDataset and loader.collate_fn is default_convert:
        return False  # it is read in bulk, by indexing the tensors
    while type(dataset) is Subset:  # its `__getitems__` is that of the data set inside
        dataset = dataset.dataset
    return hasattr(dataset, "__getitems__") or loader.collate_fn is not default_collate


def _has_own_iter(loader: Any) -> bool:
    is_wrapper = loader_inside(loader) is not loader
    return is_wrapper or (type(loader).__iter__ is not DataLoader.__iter__ and not hasattr(loader, "state_dict"))


def num_prefetched(loader: Any) -> int:
    """Return the number of batches drawn ahead of the one that is trained on."""
    return int(loader.num_workers * (loader.prefetch_factor or 0))


def check_loader(loader: Any) -> None:
    """Check that ``loader`` can be made fair.

    Raises:
        TypeError: If it is not a ``DataLoader`` over a map-style data set, or a wrapper with such a loader inside.
        ValueError: If it makes no batches, draws from a part of the data set, or has its own ``__iter__`` together with
            ``in_order=False``.
    """
    inner = loader_inside(loader)
    if isinstance(inner.dataset, IterableDataset):
        raise TypeError(
            f"The training data set {type(inner.dataset).__name__} is a stream: its samples cannot be drawn by index. "
            "Use FairStream(dataset, batch_size=...) instead, or a map-style data set (__getitem__ and __len__)."
        )
    check_samplers(inner)
    batch_size(inner)
    if _has_own_iter(loader) and not keeps_order(inner):
        raise ValueError(
            f"{type(loader).__name__} has its own __iter__ and in_order=False, so its batches cannot be matched with "
            "their draws. Set in_order=True."
        )


def batch_size(loader: DataLoader[Any]) -> int:
    """Return the number of samples in a batch of ``loader``.

    Raises:
        ValueError: If it makes no batches, or its batch sampler has no attribute ``batch_size``.
    """
    sampler = batch_sampler(loader)
    if sampler is None:
        raise ValueError(
            "The training DataLoader has batch_size=None: it makes no batches that could be balanced. Set batch_size. "
            "If the data set reads whole batches, set sampler=BatchSampler(RandomSampler(dataset), batch_size=..., "
            "drop_last=False) instead."
        )
    size = loader.batch_size or getattr(sampler, "batch_size", None)
    if size is None:
        remedy = "Pass" if isinstance(sampler, (list, tuple)) else "Set it, or pass"
        raise ValueError(
            f"The batch sampler {type(sampler).__name__} has no attribute batch_size. "
            f"{remedy} DataLoader(batch_size=...) instead."
        )
    return int(size)
