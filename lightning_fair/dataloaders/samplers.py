"""Questions about the sampler of a training ``DataLoader``, which fair batches replace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_fair.common.arrays import Ints, to_numpy
from lightning_fair.common.class_mix import total_variation
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.common.labels import look_up_labels
from lightning_fair.dataloaders.label_scan import same_random_state

# These draw from all of their source, on one rank or over all ranks, whatever number of samples they draw.
_WHOLE_DATASET_SAMPLERS = ("RandomSampler", "SequentialSampler", "WeightedRandomSampler", "DistributedSampler")
_WRAPPED = ("sampler", "_sampler", "batch_sampler")  # attributes with a sampler inside another
_DEFAULT_SAMPLERS = ("RandomSampler", "SequentialSampler", "DistributedSampler", "StatefulDistributedSampler")
_BALANCES = re.compile("balanc|weight|class|stratif|(over|under|up|down)_?sampl", re.IGNORECASE)
_NUM_BATCHES = 8  # of independent draws, at least one has unequal class counts
SUBSET = "torch.utils.data.Subset(dataset, indices) with the indices of the samples to train on"


def draws_as(sampler: Any, *names: str) -> bool:
    """Return whether a sampler draws as the samplers of torch or torchdata with these names do, without changes."""
    kind = next((kind for kind in type(sampler).__mro__ if "__iter__" in vars(kind)), object)
    return kind.__name__ in names and kind.__module__.split(".")[0] in ("torch", "torchdata")


def reads_in_bulk(loader: DataLoader[Any]) -> bool:
    """Return whether the data set of ``loader`` gets the indices of a whole batch: ``batch_size=None``."""
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None or isinstance(sampler, BatchSampler):
        return loader.batch_sampler is None
    with same_random_state(), suppress(Exception):  # the sampler is the user's
        return np.ndim(next(iter(sampler))) == 1
    return False


def batch_sampler(loader: DataLoader[Any]) -> Any:
    """Return what makes the batches of ``loader``, without a wrapper that repeats them; None if nothing does."""
    inner = sampler = _index_sampler(loader)
    while inner is not None and not isinstance(inner, BatchSampler) and not hasattr(inner, "batch_size"):
        inner = next((getattr(inner, name) for name in _WRAPPED if hasattr(inner, name)), None)
    return sampler if inner is None else inner


def repeats_batches(loader: DataLoader[Any]) -> bool:
    """Return whether the batches of ``loader`` come from a wrapper that repeats its batch sampler without end."""
    # By name: timm's and ultralytics' `_RepeatSampler` cannot be told from a wrapper that ends without being drawn.
    outer = _index_sampler(loader)
    return outer is not batch_sampler(loader) and "repeat" in type(outer).__name__.lower()


def _index_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if reads_in_bulk(loader) else loader.batch_sampler


def samplers(loader: DataLoader[Any]) -> list[Any]:
    """Return the loader's sampler, and the sampler of its batch sampler if that is another one."""
    batches = batch_sampler(loader)
    own, inner = [loader.sampler] if loader.sampler is not batches else [], getattr(batches, "sampler", None)
    return own if inner is None or inner is loader.sampler else [*own, inner]


def ignored_sampler(loader: DataLoader[Any]) -> str | None:
    """Return the name of the user's own sampler, which fair batches do not use; None if there is none."""
    batches = batch_sampler(loader) if repeats_batches(loader) else _index_sampler(loader)
    if not draws_as(batches, "BatchSampler"):
        return type(batches).__name__
    own = [type(sampler).__name__ for sampler in samplers(loader) if not draws_as(sampler, *_DEFAULT_SAMPLERS)]
    return own[0] if own else None


def samples_per_class(loader: DataLoader[Any], labels: Ints) -> int | None:
    """Return how many samples of each of its classes the user's sampler puts into a batch, at least 2; else None.

    Samplers for metric learning do so, because a loss over pairs needs two samples of a class. The first batches of
    indices are made for that, without a sample; the global random state stays as it was.

    Args:
        loader: The user's loader, with a sampler of its own.
        labels: Class of each sample, shape ``(N,)``.
    """
    counts: list[Ints] = []
    with same_random_state(), suppress(Exception):  # the sampler is the user's, and will not be used
        batches = list(islice(batch_sampler(loader), _NUM_BATCHES))
        counts = [np.bincount(labels[batch]) for batch in batches if len(batch) == len(batches[0])]
    counts = [each[each > 0] for each in counts]
    most = max((int(each.max()) for each in counts), default=0)
    # Of each batch, the first and the last class may be cut off.
    are_equal = [np.count_nonzero(each == most) >= max(2, each.size - 2) for each in counts]
    return most if most > 1 and len(counts) > 1 and all(are_equal) else None  # one batch may be so by chance


def check_samplers(loader: DataLoader[Any]) -> None:
    """Raise a ``ValueError`` if a sampler of ``loader`` draws a part of the data set only."""
    size, batches = len(loader.dataset), batch_sampler(loader)  # type: ignore[arg-type]
    for sampler in _nested_samplers(loader):
        name = type(sampler).__name__
        purpose: str | None = "selects"
        reason = _left_out(sampler, size)
        makes_batches = sampler is batches or sampler is _index_sampler(loader)
        if reason is None and (reason := _shortfall(sampler, size, makes_batches=makes_batches)) is not None:
            purpose = _purpose(sampler, loader)
        if reason is None or purpose == "pairs":
            continue
        if purpose == "balances":
            raise ValueError(
                f"{name} draws a part of the data set in each epoch ({reason}) to balance it, but FairSampling "
                "balances by itself. Remove the sampler: DataLoader(dataset, batch_size=..., shuffle=True). "
                f"target_probs sets the class mix. If {name} also leaves samples out on purpose, use {SUBSET}."
            )
        if purpose == "selects":
            raise ValueError(
                f"The training DataLoader draws from a part of its data set with {name} ({reason}); fair batches "
                f"would be drawn from all of it. Use {SUBSET}, instead of the sampler."
            )
        raise ValueError(
            f"The training DataLoader draws a part of its data set with {name} ({reason}); fair batches would be drawn "
            f"from all of it. If {name} balances the classes, remove it: FairSampling does so. If it leaves samples "
            f"out on purpose, use {SUBSET}, instead of the sampler."
        )


def _left_out(sampler: Any, size: int) -> str | None:
    """Return why a sampler can never draw some samples of a data set of this size; None if that is not certain."""
    is_indices = isinstance(sampler, (Sequence, np.ndarray, torch.Tensor))
    weights = _vector(getattr(sampler, "weights", None))
    if weights is not None and weights.size == size and not weights.all():
        return f"weight 0 for {int((weights == 0).sum()):,} of {size:,} samples"
    if weights is not None and weights.size < size and isinstance(sampler, WeightedRandomSampler):
        return f"weights for {weights.size:,} of {size:,} samples"
    if is_indices or isinstance(sampler, SubsetRandomSampler):
        return _too_few_indices(sampler if is_indices else sampler.indices, sampler, size)
    if draws_as(sampler, *_WHOLE_DATASET_SAMPLERS):
        source = getattr(sampler, "data_source", getattr(sampler, "dataset", None))
        return None if any(hasattr(source, name) for name in _WRAPPED) else _too_short(source, source, size)
    return None


def _shortfall(sampler: Any, size: int, *, makes_batches: bool) -> str | None:
    """Return by how much the next epoch of a sampler falls short of a data set of this size; None if it does not."""
    if draws_as(sampler, *_WHOLE_DATASET_SAMPLERS):
        return None
    weights = _vector(getattr(sampler, "weights", None))
    reason = _too_few_indices(getattr(sampler, "indices", None), sampler, size)
    if makes_batches or isinstance(sampler, BatchSampler):
        return reason  # its length is in batches
    if weights is not None and weights.size == size:
        return reason  # it may draw any sample
    return reason or _too_short(sampler, sampler, size)


def _too_few_indices(values: Any, sampler: Any, size: int) -> str | None:
    indices = _vector(values)
    if indices is None or (num_indices := np.unique(indices).size) > _largest_part(sampler, size):
        return None
    return f"indices of {num_indices:,} of {size:,} samples"


def _too_short(sized: Any, sampler: Any, size: int) -> str | None:
    length = length_of(sized)
    return f"{length:,} of {size:,} samples" if length is not None and length <= _largest_part(sampler, size) else None


def _largest_part(sampler: Any, size: int) -> int:
    """Return the largest number of samples that is no rank's share of the whole data set."""
    return size // int(getattr(sampler, "num_replicas", 1)) - 1


def length_of(sized: Any) -> int | None:
    """Return the length of a loader or a sampler; None if it has none, as one that never ends."""
    with suppress(TypeError, AttributeError, NotImplementedError, OverflowError, RuntimeError):
        return len(sized)
    return None


def endless_part(loader: DataLoader[Any]) -> str:
    """Return the name of what has no length: the sampler or the batch sampler of ``loader``, or its own class."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if length_of(sampler) is not None:
        return type(loader).__name__
    # A BatchSampler has a length if the sampler inside has.
    return type(getattr(sampler, "sampler", sampler) if isinstance(sampler, BatchSampler) else sampler).__name__


def _purpose(sampler: Any, loader: DataLoader[Any]) -> str | None:
    """Return what a short sampler does: ``"balances"``, ``"selects"``, or makes ``"pairs"``; None if it is unclear.

    The indices that it draws in two epochs show that, together with its name.
    """
    size, labels = len(loader.dataset), _labels(loader)  # type: ignore[arg-type]
    is_named = _BALANCES.search(type(sampler).__name__) is not None
    with same_random_state(), suppress(Exception):  # the sampler is the user's, and will not be used
        first, second = _indices(sampler, size), _indices(sampler, size)
        if np.array_equal(np.unique(first), np.unique(second)):
            return None if is_named else "selects"
        if labels is None:
            return "balances" if is_named else None
        if len(np.unique(labels[np.concatenate([first, second])])) < len(np.unique(labels)):
            return None  # some classes may be left out on purpose
        if samples_per_class(loader, labels) is not None:
            return "pairs"
        return "balances" if is_named or _is_balanced(labels[first], labels) else None
    return None


def _is_balanced(drawn: Ints, labels: Ints) -> bool:
    """Return whether the class mix of the drawn samples is much closer to uniform than that of the data set."""
    counts = np.bincount(labels)
    uniform = (counts > 0) / np.count_nonzero(counts)
    mix = np.bincount(drawn, minlength=counts.size) / drawn.size
    return total_variation(mix, uniform) < 0.5 * total_variation(counts / counts.sum(), uniform)


def _labels(loader: DataLoader[Any]) -> Ints | None:
    """Return the labels that the data set shows by itself, shape ``(N,)``; None if it does not, or shows several."""
    with suppress(TypeError, ValueError):
        labels = look_up_labels(loader.dataset)
        return None if labels is None or isinstance(labels.numbers, LabelSets) else labels.numbers
    return None


def _indices(sampler: Any, size: int) -> Ints:
    """Return up to ``size`` indices of an iteration over a sampler or a batch sampler."""
    return np.fromiter(islice(_flat(sampler), size), dtype=np.int64)


def _flat(sampler: Any) -> Iterator[int]:
    for item in sampler:
        yield from item if np.ndim(item) else (item,)


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
