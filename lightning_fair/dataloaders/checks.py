"""Questions about a training ``DataLoader``: whether it can be made fair, and how it makes its batches."""

from __future__ import annotations

from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_fair.streaming.stream import FairStream

# These draw from the whole data set, on one rank or over all ranks, whatever number of samples they draw.
_WHOLE_DATASET_SAMPLERS = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)
_DEFAULT_SAMPLERS = (RandomSampler, SequentialSampler, DistributedSampler)


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
    dataset = loader.dataset
    while type(dataset) is Subset:  # its `__getitems__` is that of the data set inside
        dataset = dataset.dataset
    return _has_own_iter(loader) or hasattr(dataset, "__getitems__") or loader.collate_fn is not default_collate


def _has_own_iter(loader: Any) -> bool:
    return type(loader).__iter__ is not DataLoader.__iter__ and not hasattr(loader, "state_dict")


def num_prefetched(loader: Any) -> int:
    """Return the number of batches drawn ahead of the one that is trained on."""
    return int(loader.num_workers * (loader.prefetch_factor or 0))


def check_loader(loader: Any) -> None:
    """Check that ``loader`` can be made fair.

    Raises:
        TypeError: If it is not a ``DataLoader`` over a map-style data set.
        ValueError: If it makes no batches, draws from a part of the data set, or has its own ``__iter__`` together with
            ``in_order=False``.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"Only a torch.utils.data.DataLoader can be made fair, got {type(loader).__name__}. "
            "Return a DataLoader for training, or remove FairSampling."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"The training data set {type(loader.dataset).__name__} is a stream: its samples cannot be drawn by index. "
            "Use FairStream(dataset, batch_size=...) instead, or a map-style data set (__getitem__ and __len__)."
        )
    _check_samplers(loader)
    batch_size(loader)
    if _has_own_iter(loader) and not keeps_order(loader):
        raise ValueError(
            f"{type(loader).__name__} has its own __iter__ and in_order=False, so its batches cannot be matched with "
            "their draws. Set in_order=True."
        )


def _check_samplers(loader: DataLoader[Any]) -> None:
    dataset_size = len(loader.dataset)  # type: ignore[arg-type]
    for sampler in samplers(loader):
        if isinstance(sampler, (BatchSampler, *_WHOLE_DATASET_SAMPLERS)) or not hasattr(sampler, "__len__"):
            continue  # the length of a batch sampler is in batches
        if len(sampler) < dataset_size:
            raise ValueError(
                f"The training DataLoader draws from a part of its data set with {type(sampler).__name__}; fair "
                "batches would be drawn from all of it. Use torch.utils.data.Subset(dataset, indices) instead."
            )


def samplers(loader: DataLoader[Any]) -> list[Any]:
    """Return the loader's sampler, and the sampler of its batch sampler if that is another one."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    return [loader.sampler] if inner is None or inner is loader.sampler else [loader.sampler, inner]


def ignored_sampler(loader: DataLoader[Any]) -> str | None:
    """Return the name of the user's own sampler, which fair batches do not use; None if there is none."""
    # By name, because a stateful loader has its own subclass called BatchSampler.
    if type(loader.batch_sampler).__name__ != BatchSampler.__name__:
        return type(loader.batch_sampler).__name__
    own = [type(sampler).__name__ for sampler in samplers(loader) if not isinstance(sampler, _DEFAULT_SAMPLERS)]
    return own[0] if own else None


def batch_size(loader: DataLoader[Any]) -> int:
    """Return the number of samples in a batch of ``loader``.

    Raises:
        ValueError: If it makes no batches, or its batch sampler has no attribute ``batch_size``.
    """
    if loader.batch_sampler is None:
        raise ValueError(
            "The training DataLoader has batch_size=None: it makes no batches that could be balanced. "
            "Set batch_size, and leave the batching to the loader."
        )
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        raise ValueError(
            f"The batch sampler {type(loader.batch_sampler).__name__} has no attribute batch_size. "
            "Set it, or pass DataLoader(batch_size=...) instead."
        )
    return int(size)
