"""Questions about a training ``DataLoader``: whether it can be made fair, and how it makes its batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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

from lightning_fair.common.arrays import to_numpy
from lightning_fair.streaming.stream import FairStream

# These draw from all of their source, on one rank or over all ranks, whatever number of samples they draw.
_WHOLE_DATASET_SAMPLERS = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)
_WRAPPED = ("sampler", "_sampler")  # attributes with a sampler inside another
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
    size = len(loader.dataset)  # type: ignore[arg-type]
    for sampler in _nested_samplers(loader):
        reason = _missing_weights_or_indices(sampler, size)
        if reason is None and sampler is not loader.batch_sampler and not isinstance(sampler, BatchSampler):
            reason = _missing_samples(sampler, size)  # the length of a batch sampler is in batches
        if reason is not None:
            raise ValueError(
                f"The training DataLoader draws from a part of its data set with {type(sampler).__name__} ({reason}); "
                "fair batches would be drawn from all of it. Use torch.utils.data.Subset(dataset, indices) instead, "
                "with the indices of the samples to train on."
            )


def _missing_weights_or_indices(sampler: Any, size: int) -> str | None:
    """Return why a sampler never draws some samples of a data set of this size; None if its attributes show none."""
    is_indices = isinstance(sampler, (Sequence, np.ndarray, torch.Tensor))
    weights = _vector(getattr(sampler, "weights", None))
    indices = _vector(sampler if is_indices else getattr(sampler, "indices", None))
    if weights is not None and weights.size == size and not weights.all():
        return f"weight 0 for {int((weights == 0).sum()):,} of {size:,} samples"
    if weights is not None and weights.size < size and isinstance(sampler, WeightedRandomSampler):
        return f"weights for {weights.size:,} of {size:,} samples"
    if indices is not None and (num_indices := np.unique(indices).size) <= _largest_part(sampler, size):
        return f"indices of {num_indices:,} of {size:,} samples"
    return None


def _missing_samples(sampler: Any, size: int) -> str | None:
    """Return by how much a sampler is shorter than a data set of this size; None if it is not."""
    if isinstance(sampler, _WHOLE_DATASET_SAMPLERS):  # draws any number of samples, from all of its source
        source = getattr(sampler, "data_source", getattr(sampler, "dataset", None))
        sampler = None if any(hasattr(source, name) for name in _WRAPPED) else source
    if hasattr(sampler, "__len__") and len(sampler) <= _largest_part(sampler, size):
        return f"{len(sampler):,} of {size:,} samples"
    return None


def _largest_part(sampler: Any, size: int) -> int:
    """Return the largest number of samples that is no rank's share of the whole data set."""
    return size // int(getattr(sampler, "num_replicas", 1)) - 1


def _vector(values: Any) -> NDArray[Any] | None:
    """Return ``values`` as an array; None if they are not a vector of numbers."""
    try:
        vector = np.asarray(to_numpy(values))
    except ValueError:  # lists of several lengths
        return None
    return vector if vector.ndim == 1 and vector.size and vector.dtype.kind in "biuf" else None


def _nested_samplers(loader: DataLoader[Any]) -> list[Any]:
    """Return the loader's sampler and batch sampler, and all that they wrap."""
    candidates: list[Any] = [loader.sampler, loader.batch_sampler]
    nested: list[Any] = []
    while candidates:
        sampler = candidates.pop()
        if sampler is None or any(sampler is other for other in nested):
            continue
        nested.append(sampler)
        # A DistributedSampler wraps another sampler as its data set.
        owners = sampler, getattr(sampler, "dataset", None)
        candidates += [getattr(owner, name, None) for owner in owners for name in _WRAPPED]
    return nested


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
