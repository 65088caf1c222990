"""A ``DataLoader`` made fair: same loader, other batches, and the record of each draw travels with its batch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from lightning_fair.common.arrays import Floats
from lightning_fair.common.labels import extract_labels
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

_MOST_DELIVERED = 4096  # where nobody takes them, in a loop without the callback
# A stateful loader would save and restore the sampler a second time, as of the draw and not of the step.
_STATELESS = {"state_dict": lambda _: {}, "load_state_dict": lambda _, state: None}  # noqa: ARG005
_SPARE = 8  # batches that a loader of the user's own may hold back besides those of its workers
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_NONE = torch.zeros(0, dtype=torch.int64)
# These draw from the whole data set, on one rank or all together, however few samples an epoch has.
_DRAW_FROM_ALL = (RandomSampler, SequentialSampler, WeightedRandomSampler, DistributedSampler)


class HasLabels(Protocol):
    """What is asked of a record here."""

    @property
    def probs(self) -> Floats:
        """Class mix of the draw, shape ``(K,)``."""

    @property
    def labels(self) -> NDArray[Any]:
        """Class of each sample, shape ``(batch,)``."""


@dataclass(eq=False)
class DeliveredBatch:
    """A batch that the loader handed out.

    Attributes:
        draw: Its record, a ``BatchDraw`` or a ``StreamDraw``.
        labels: Class of each of its samples, on the host, shape ``(batch,)``; none where the batch is None.
        as_drawn: Whether these are the labels that were drawn, in that order.
    """

    draw: Any
    labels: Tensor
    as_drawn: bool


class FairLoader:
    """What a loader gains by being made fair; the class of a fair loader is this plus the user's own class."""

    batch_sampler: FeedbackBatchSampler
    pending_batches: deque[DeliveredBatch]
    on_start: Callable[[], None] | None
    guess_labels: bool
    restart: bool

    def __iter__(self) -> Iterator[Any]:
        return _FairIterator(self, super().__iter__)  # type: ignore[misc]

    def pop_pending(self) -> DeliveredBatch | None:
        """Return the oldest batch handed out and not taken yet: Lightning may fetch one ahead. None: there is none."""
        return self.pending_batches.popleft() if self.pending_batches else None


class _FairIterator:
    """Hands out the batches of one epoch, each with its record.

    It starts at its first ``next``: Lightning makes iterators that it throws away, and restores a checkpoint
    after some of them were made.
    """

    def __init__(self, loader: FairLoader, start: Callable[[], Iterator[Any]]) -> None:
        self._loader, self._start = loader, start
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _FairIterator:
        return self

    def __len__(self) -> int:
        return len(self._loader.batch_sampler)

    def __next__(self) -> Any:
        loader, sampler = self._loader, self._loader.batch_sampler
        if self._batches is None or loader.restart:
            if loader.restart:
                loader.pending_batches.clear()
            loader.restart = False
            if loader.on_start:
                loader.on_start()
            if _keeps_order(loader):
                self._batches = self._start()
            else:
                with _numbered(loader):
                    self._batches = self._start()
        try:
            batch = next(self._batches)
        except StopIteration:
            if sampler.exhausted and sampler.num_undelivered:
                warnings.warn(
                    f"{_name(loader)}.__iter__ ended with {sampler.num_undelivered} of the drawn batches not handed out. "
                    "If it left them out in the middle, the weights of later ones were those of others: hand out every "
                    "batch, or leave samples out of the data set.",
                    stacklevel=2,
                )
            raise
        if isinstance(batch, _Numbered):
            draw, batch = sampler.deliver(batch.draw_id), batch.content
        else:
            draw = sampler.deliver()
            if sampler.num_undelivered > num_prefetched(loader) + _SPARE:  # type: ignore[arg-type]
                raise RuntimeError(
                    f"{_name(loader)}.__iter__ leaves batches out, or fetches more than {_SPARE} ahead by itself, so a "
                    "batch cannot be told from another one's draw. Hand out every batch, or leave samples out of the "
                    "data set."
                )
        if batch is None:
            loader.pending_batches.append(DeliveredBatch(draw, _NONE, as_drawn=False))
        else:
            drawn = torch.from_numpy(draw.labels)
            labels = match_batch_labels(batch, draw, drawn) if loader.guess_labels else drawn
            loader.pending_batches.append(DeliveredBatch(draw, labels, as_drawn=labels is drawn))
        return batch


# -- batches in any order: the number of a draw goes through the workers with its batch ------------------------


class _Numbered(NamedTuple):
    """Indices, samples or a batch, with the number of their draw."""

    draw_id: int
    content: Any


class _NumberedIndices:
    """A batch sampler whose batches carry the number of their draw."""

    def __init__(self, sampler: FeedbackBatchSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[_Numbered]:
        return (_Numbered(*batch) for batch in self.sampler.iter_with_ids())


class _NumberedSamples:
    """A data set that takes numbered indices; in every other way the user's own, to read and to change."""

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "_own", dataset)

    def __getitems__(self, batch: _Numbered) -> _Numbered:
        fetch = getattr(self._own, "__getitems__", None)
        return _Numbered(batch.draw_id, fetch(batch.content) if fetch else [self._own[i] for i in batch.content])

    def __len__(self) -> int:
        return len(self._own)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_own"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._own, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _NumberedSamples, (self._own,)


@dataclass
class _NumberedCollate:
    """A ``collate_fn`` that takes numbered samples."""

    own: Callable[[Any], Any]

    def __call__(self, samples: _Numbered) -> _Numbered:
        return _Numbered(samples.draw_id, self.own(samples.content))


def _keeps_order(loader: Any) -> bool:
    return not loader.num_workers or getattr(loader, "in_order", True)


@contextmanager
def _numbered(loader: Any) -> Iterator[None]:
    """Let the iterator that is made meanwhile number its batches; the loader shows its own settings again after."""
    settings = loader.__dict__
    own = {name: settings[name] for name in ("dataset", "collate_fn", "batch_sampler")}
    settings.update(
        dataset=_NumberedSamples(own["dataset"]),
        collate_fn=_NumberedCollate(own["collate_fn"]),
        batch_sampler=_NumberedIndices(own["batch_sampler"]),
    )
    try:
        yield
    finally:
        settings.update(own)


def _name(loader: Any) -> str:
    return type(loader).__name__.removeprefix("Fair")


def is_fair(loader: Any) -> bool:
    """Return whether ``loader`` has been made fair already."""
    return isinstance(loader, FairLoader)


def make_fair(
    loader: DataLoader[Any],
    sampler: FeedbackBatchSampler,
    *,
    on_start: Callable[[], None] | None = None,
    guess_labels: bool = True,
) -> DataLoader[Any]:
    """Return a copy of ``loader`` that takes its batches from ``sampler``.

    The copy is of the loader's own class and keeps all of its settings (workers, ``collate_fn``, pinning,
    generator, ...); data set and workers' start-up are shared, and the loader itself stays as it was. The
    method ``pop_pending`` of the copy returns the record of each batch it handed out, in turn.

    Args:
        loader: The loader to copy.
        sampler: Where the batches come from.
        on_start: Called when the first batch of an iteration is asked for, before it is drawn.
        guess_labels: The labels are the data set's own, so a batch may show them; see ``Delivered.labels``.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.arange(100.0), torch.tensor([0] * 98 + [1] * 2))
        >>> loader = make_fair(DataLoader(dataset), FeedbackBatchSampler(dataset, batch_size=4))
        >>> x, y = next(iter(loader))
        >>> y.bincount().tolist(), loader.pop_pending().draw.probs
        ([2, 2], array([0.5, 0.5]))
    """
    check_loader(loader)
    return fair_copy(loader, FairLoader, batch_sampler=sampler, on_start=on_start, guess_labels=guess_labels)


def fair_copy(loader: DataLoader[Any], gains: type[FairLoader], **settings: Any) -> DataLoader[Any]:
    """Return a copy of ``loader`` whose class is ``gains`` plus its own, with these settings."""
    own = type(loader)
    # Not a second call of the constructor: a subclass may have other arguments. Not `copy.copy` either: the
    # class changes. And past `DataLoader.__setattr__`, which forbids a new batch sampler.
    fair: Any = object.__new__(
        type(f"Fair{own.__name__}", (gains, own), _STATELESS if hasattr(own, "state_dict") else {})
    )
    fair.__dict__.update(
        loader.__dict__, pending_batches=deque(maxlen=_MOST_DELIVERED), restart=False, _iterator=None, **settings
    )
    made: DataLoader[Any] = fair
    return made


def check_loader(loader: Any) -> None:
    """Raise if ``loader`` cannot be made fair.

    Raises:
        TypeError: If it is not a ``DataLoader`` over a map-style data set.
        ValueError: If it makes no batches, draws from a part of the data set, or has an ``__iter__`` of its own
            besides ``in_order=False``.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"Only a torch.utils.data.DataLoader can be made fair, got {type(loader).__name__}. "
            "Return a DataLoader for training, or take FairSampling away."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"The training data set {type(loader.dataset).__name__} is a stream: its samples cannot be drawn "
            "by index. Use FairStream(dataset, batch_size=...) in its place, or a map-style data set (__getitem__ and "
            "__len__)."
        )
    everything = len(loader.dataset)  # type: ignore[arg-type]
    for sampler in samplers(loader):
        if isinstance(sampler, BatchSampler):
            continue  # its length is in batches
        if not isinstance(sampler, _DRAW_FROM_ALL) and hasattr(sampler, "__len__") and len(sampler) < everything:
            raise ValueError(
                f"The training DataLoader draws from a part of its data set with {type(sampler).__name__}; fair "
                "batches would draw from all of it. Give it torch.utils.data.Subset(dataset, indices) instead."
            )
    batch_size(loader)
    own = type(loader).__iter__
    if not _keeps_order(loader) and own is not DataLoader.__iter__ and not hasattr(loader, "state_dict"):
        raise ValueError(
            f"{type(loader).__name__} has an __iter__ of its own and in_order=False, so a batch cannot be told from "
            "another one's draw. Set in_order=True."
        )


def samplers(loader: DataLoader[Any]) -> list[Any]:
    """Return the loader's sampler, and that of its batch sampler where it is another one."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    return [loader.sampler] if inner is None or inner is loader.sampler else [loader.sampler, inner]


def ignored_sampler(loader: DataLoader[Any]) -> str | None:
    """Return the name of the user's own sampler that fair batches do without, None where there is none."""
    if type(loader.batch_sampler).__name__ != BatchSampler.__name__:  # a stateful loader has a subclass of that name
        return type(loader.batch_sampler).__name__
    plain = (RandomSampler, SequentialSampler, DistributedSampler)
    return next((type(sampler).__name__ for sampler in samplers(loader) if not isinstance(sampler, plain)), None)


def batch_size(loader: DataLoader[Any]) -> int:
    """Return the samples in a batch of ``loader``.

    Raises:
        ValueError: If it makes no batches, or its batch sampler does not say how large they are.
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
            "Set it, or pass DataLoader(batch_size=...) in its place."
        )
    return int(size)


def num_prefetched(loader: DataLoader[Any]) -> int:
    """Return how many batches are drawn ahead of the one that is trained on."""
    return loader.num_workers * (loader.prefetch_factor or 0)


def match_batch_labels(batch: Any, draw: HasLabels, drawn: Tensor) -> Tensor:
    """Return the class of each sample of the batch: in the order of the draw, unless the batch shows another one.

    ``collate_fn`` may drop or reorder samples. The batch's own labels are taken if nothing in the batch is in the
    order of the draw, and what stands where labels usually stand (second of a pair, or under a usual key) is integers
    of which no class has more than were drawn.
    """
    found = extract_labels(batch)
    if isinstance(found, Tensor) and found.dtype == torch.int64 and found.is_cpu and torch.equal(found, drawn):
        return drawn
    if not _on_host(found) or torch.equal(found.long(), drawn):
        return drawn
    columns = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    if any(_on_host(column) and torch.equal(column.long(), drawn) for column in columns):
        return drawn
    y = found.numpy()
    K = draw.probs.size
    if 0 < y.size <= draw.labels.size and y.min() >= 0 and y.max() < K:
        if (np.bincount(y, minlength=K) <= np.bincount(draw.labels, minlength=K)).all():
            return found
        if y.size == draw.labels.size:
            warnings.warn(
                "A batch shows other labels than those that were drawn for it. If its second element (or 'label', "
                "'target', 'y') is something else, pass the labels to weighted_loss(losses, labels); if the loader "
                "hands batches out in another order than it draws them, it cannot be made fair.",
                stacklevel=2,
            )
    return drawn


def _on_host(column: Any) -> TypeGuard[Tensor]:
    """Return whether a column of a batch may hold its labels: integers, one a sample, on the CPU."""
    return isinstance(column, Tensor) and column.ndim == 1 and column.dtype in _INTEGERS and column.device.type == "cpu"
