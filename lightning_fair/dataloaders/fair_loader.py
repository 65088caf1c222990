"""A ``DataLoader`` made fair: the same loader with other batches, each delivered with the record of its draw."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw, max_remembered
from lightning_fair.dataloaders.checks import can_reorder, check_loader, num_prefetched
from lightning_fair.dataloaders.label_check import LabelCheck
from lightning_fair.dataloaders.label_set_check import LabelSetCheck
from lightning_fair.dataloaders.rank_steps import RankSteps
from lightning_fair.dataloaders.samplers import repeats_batches
from lightning_fair.dataloaders.tagging import Tagged, tagged_batches
from lightning_fair.dataloaders.wrappers import loader_inside, replace_loader
from lightning_fair.sampling.batch_sampler import FeedbackBatchSampler

_MAX_HELD_BACK = 8  # batches that the user's own loader class may fetch ahead, besides those of its workers
# A stateful loader would save the sampler a second time, as of the draw and not of the training step.
_STATELESS = {"state_dict": lambda _: {}, "load_state_dict": lambda _, state: None}  # noqa: ARG005


@dataclass(eq=False)
class DeliveredBatch:
    """A batch that the loader delivered."""

    draw: Any  # the record of its draw, a `BatchDraw` or a `StreamDraw`
    labels: Tensor  # class of each of its samples, on the CPU, shape (batch,); empty if the batch is None
    as_drawn: bool  # whether these are the drawn labels, in the drawn order


class FairLoader:
    """Base class that a loader gets when it is made fair, in front of its own class."""

    fair_sampler: FeedbackBatchSampler | None  # draws the batches; None for a stream
    inner: DataLoader[Any] | None  # makes the batches, if the user's loader is a wrapper
    keeps_iterator: bool  # whether the user's class takes the batches of all epochs from one iterator
    pending_batches: deque[DeliveredBatch]  # delivered batches that nobody has taken yet, oldest first
    on_start: Callable[[], bool] | None  # called before the first batch is drawn; returns whether an epoch goes on
    label_check: LabelCheck  # compares the labels of each batch with the drawn ones
    restart: bool  # set it to start the running iteration again at its next batch
    first_worker: int  # of a stream, the one whose batch is the first of the iteration
    rank_steps: RankSteps | None  # ends the epochs of a stream on all ranks together; None with one rank

    def __iter__(self) -> Iterator[Any]:
        return _FairIterator(self, super().__iter__)  # type: ignore[misc]

    def __len__(self) -> int:
        if self.fair_sampler is not None:  # the user's class may take it from an attribute of its own batch sampler
            return len(self.fair_sampler)
        if self.rank_steps is None:
            return super().__len__()  # type: ignore[misc,no-any-return]
        if self.rank_steps.length is None:
            raise TypeError("The stream has no length on one of the ranks.")
        return self.rank_steps.length

    def replace_sampler(self, sampler: FeedbackBatchSampler, label_check: LabelCheck) -> None:
        """Take the batches of the next epochs from another sampler, because the labels have changed."""
        inner: Any = self if self.inner is None else self.inner
        # Without `_iterator`, persistent workers start again, with the new data.
        vars(inner).update({_sampler_place(inner): sampler, "_iterator": None})
        label_check.can_reorder = self.label_check.can_reorder
        self.fair_sampler, self.label_check = sampler, label_check

    def begin_at_worker(self, worker: int, *, within_epoch: bool) -> None:
        """Let the next iteration over a stream take its first batch from this worker.

        Workers that run already have their numbers, and do not see where the stream continues: they start again.
        """
        if within_epoch or worker != self.first_worker:
            vars(self)["_iterator"] = None
        self.first_worker = worker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[type, bool], dict[str, Any]]:
        # The class was made at run time. A copy has no part in a fit, and no workers yet.
        of_fit = dict.fromkeys(("on_start", "rank_steps", *["_iterator"] * isinstance(self, DataLoader)))
        return _new_loader, (type(self).__bases__[1], "state_dict" in vars(type(self))), {**vars(self), **of_fit}

    def pop_pending(self) -> DeliveredBatch | None:
        """Return the oldest pending batch; None if there is none. Lightning may fetch one batch ahead."""
        return self.pending_batches.popleft() if self.pending_batches else None


class _FairIterator:
    """Delivers the batches of one epoch, and appends each with its draw to ``pending_batches``."""

    def __init__(self, loader: FairLoader, start: Callable[[], Iterator[Any]]) -> None:
        self._loader, self._start = loader, start
        self._name = type(loader).__name__.removeprefix("Fair")
        self._inner: Any = loader if loader.inner is None else loader.inner
        # None before the first `next`: Lightning creates iterators that it never uses, or before it restores a state.
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _FairIterator:
        return self

    def __len__(self) -> int:
        return len(self._loader)

    def __next__(self) -> Any:
        loader = self._loader
        if self._batches is None or loader.restart:
            self._batches = self._begin()
        try:
            item = next(self._batches)
        except StopIteration:
            self._warn_of_undelivered()
            raise
        tag, batch = item if isinstance(item, Tagged) else (None, item)
        draw: Any = tag if isinstance(tag, Draw) else self._deliver(tag)
        no_labels = torch.zeros(0, dtype=torch.int64)
        labels, as_drawn = (no_labels, False) if batch is None else loader.label_check(batch, draw)
        loader.pending_batches.append(DeliveredBatch(draw, labels, as_drawn))
        return batch

    def _begin(self) -> Iterator[Any]:
        loader = self._loader
        if loader.restart:
            loader.pending_batches.clear()
        loader.restart = False
        goes_on = loader.on_start is not None and loader.on_start()
        if self._inner.persistent_workers and loader.fair_sampler is not None and loader.fair_sampler.epoch:
            goes_on = True  # their iterator stays from epoch to epoch
        loader.label_check.start_epoch()
        if loader.fair_sampler is not None:
            # Some more than it draws ahead: `_deliver` notices a class that fetches too many by itself.
            loader.fair_sampler.controller.remember(num_prefetched(self._inner) + 2 * _MAX_HELD_BACK)
        for holder in (loader, self._inner):
            # One that was made early, such as at the end of the last epoch, has drawn batches that are withdrawn now.
            renewed = _RenewedIterator(self._inner, is_endless=loader.keeps_iterator)
            vars(holder).update(dict.fromkeys(_kept_iterators(holder), renewed))
        # An iterator takes a seed from torch, as it has done before if the epoch goes on after a resume.
        with tagged_batches(self._inner, loader.first_worker), torch.random.fork_rng([], enabled=goes_on):
            batches = self._start()
        return batches if loader.rank_steps is None else loader.rank_steps.in_step(batches, goes_on=goes_on)

    def _deliver(self, draw_id: int | None) -> Draw:
        """Return the record of the draw with this number; None: of the oldest one that has not been delivered."""
        sampler = self._loader.fair_sampler
        assert sampler is not None
        if draw_id is None and not sampler.num_undelivered:
            raise RuntimeError(
                f"{self._name}.__iter__ delivered a batch that the batch sampler of its DataLoader has not drawn, or "
                "one batch twice, so FairSampling cannot choose the samples. Let __iter__ take each batch from a new "
                "iterator of the DataLoader, for example super().__iter__(), or return a DataLoader of torch."
            )
        draw: Draw = sampler.deliver(draw_id)
        if draw_id is None and sampler.num_undelivered > num_prefetched(self._inner) + _MAX_HELD_BACK:
            raise RuntimeError(
                f"{self._name}.__iter__ leaves batches out, or fetches more than {_MAX_HELD_BACK} ahead by itself: its "
                "batches cannot be matched with their draws. Deliver every batch, or leave samples out of the data set."
            )
        return draw

    def _warn_of_undelivered(self) -> None:
        sampler = self._loader.fair_sampler
        if sampler is not None and sampler.exhausted and sampler.num_undelivered:
            warnings.warn(
                f"{self._name}.__iter__ ended with {sampler.num_undelivered} of the drawn batches not delivered. If it "
                "left out others than the last ones, later batches had the weights of other draws: deliver every "
                "batch, or leave samples out of the data set.",
                stacklevel=3,
            )


class _RenewedIterator:
    """Stands in for an iterator that a class keeps, so that its next batches are new ones, of one epoch or of all."""

    def __init__(self, loader: DataLoader[Any], *, is_endless: bool) -> None:
        self._loader, self._is_endless = loader, is_endless
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _RenewedIterator:
        return self

    def __next__(self) -> Any:
        try:
            if self._batches is not None:
                return next(self._batches)
        except StopIteration:
            if not self._is_endless:
                raise
        self._batches = DataLoader.__iter__(self._loader)
        return next(self._batches)


def _kept_iterators(holder: Any) -> list[str]:
    """Return the attributes with iterators that the class of a loader or of a wrapper has made itself."""
    kinds = (_BaseDataLoaderIter, _RenewedIterator)
    return [name for name, value in vars(holder).items() if name != "_iterator" and isinstance(value, kinds)]


def make_fair(
    loader: DataLoader[Any],
    sampler: FeedbackBatchSampler,
    *,
    on_start: Callable[[], bool] | None = None,
    label_check: LabelCheck | None = None,
) -> DataLoader[Any]:
    """Return a copy of ``loader`` that takes its batches from ``sampler``.

    The copy has the loader's own class and all of its settings (workers, ``collate_fn``, pinning, generator, ...). The
    loader itself does not change. The copy's method ``pop_pending`` returns the record of each delivered batch in turn.

    Args:
        loader: The loader to copy.
        sampler: The source of the batches.
        on_start: Called when the first batch of an iteration is requested, before it is drawn. It returns whether the
            iteration goes on with an epoch.
        label_check: Compares the labels of each batch with the drawn ones. None: a new one.

    Raises:
        TypeError, ValueError: See :func:`~lightning_fair.dataloaders.checks.check_loader`.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.arange(100.0), torch.tensor([0] * 98 + [1] * 2))
        >>> loader = make_fair(DataLoader(dataset), FeedbackBatchSampler(dataset, batch_size=4))
        >>> x, y = next(iter(loader))
        >>> y.bincount().tolist(), loader.pop_pending().draw.probs
        ([2, 2], array([0.5, 0.5]))
    """
    check_loader(loader)
    label_check = label_check or _new_check(sampler.controller)
    inner = loader_inside(loader)
    settings: dict[str, Any] = {_sampler_place(inner): sampler}
    own: dict[str, Any] = {"label_check": label_check, "on_start": on_start, "fair_sampler": sampler}
    if repeats_batches(inner):  # so that the workers stay from epoch to epoch
        settings["persistent_workers"] = inner.num_workers > 0
    own["keeps_iterator"] = repeats_batches(inner) or bool(_kept_iterators(loader) or _kept_iterators(inner))
    if inner is loader:
        return _fair_copy(loader, settings, own)
    inner_copy = _copy_loader(inner, type(inner), settings)
    return _fair_copy(loader, replace_loader(loader, inner, inner_copy), {**own, "inner": inner_copy})


def make_stream_fair(
    loader: DataLoader[Any],
    *,
    on_start: Callable[[], bool] | None = None,
    label_check: LabelCheck | None = None,
) -> DataLoader[Any]:
    """Return a fair copy of a loader over a ``FairStream``; see :func:`make_fair`.

    Raises:
        ValueError: If its batch size is not the stream's.
    """
    stream: Any = loader.dataset
    if loader.batch_size != stream.batch_size:
        raise ValueError(
            f"The DataLoader's batch_size is {loader.batch_size}, that of its FairStream {stream.batch_size}, but a "
            f"batch must be one draw. Set DataLoader(stream, batch_size={stream.batch_size})."
        )
    label_check = label_check or _new_check(stream.controller)
    return _fair_copy(loader, {}, {"label_check": label_check, "on_start": on_start, "fair_sampler": None})


def _new_check(controller: FeedbackController) -> LabelCheck:
    kind, K = controller.label_kind, controller.num_classes
    return LabelCheck(K) if kind is None else LabelSetCheck(K, has_unlabeled=kind.has_unlabeled)


def _sampler_place(loader: DataLoader[Any]) -> str:
    """Return the attribute that the loader takes its batches of indices from; the other one is None or not used."""
    return "sampler" if loader.batch_sampler is None else "batch_sampler"


def _fair_copy(loader: Any, settings: dict[str, Any], own: dict[str, Any]) -> DataLoader[Any]:
    own["label_check"].can_reorder = can_reorder(loader)
    fair_kind = _fair_kind(type(loader), hasattr(loader, "state_dict"))
    # A loop without the callback takes none.
    pending: deque[DeliveredBatch] = deque(maxlen=max_remembered(own["label_check"].num_classes))
    state = {"pending_batches": pending, "restart": False, "inner": None, "keeps_iterator": False}
    of_stream = {"first_worker": 0, "rank_steps": None}
    return _copy_loader(loader, fair_kind, {**settings, **state, **of_stream, **own})


def _fair_kind(kind: type, is_stateful: bool) -> type:
    return type(f"Fair{kind.__name__}", (FairLoader, kind), _STATELESS if is_stateful else {})


def _new_loader(kind: type, is_stateful: bool) -> FairLoader:
    """Return a fair loader of a kind, without attributes: unpickling adds them."""
    result: FairLoader = object.__new__(_fair_kind(kind, is_stateful))
    return result


def _copy_loader(loader: Any, kind: type, settings: dict[str, Any]) -> DataLoader[Any]:
    """Return a copy of class ``kind`` with other settings."""
    # The constructor of a subclass may take other arguments, and `copy.copy` cannot change the class. Attributes are
    # set in `__dict__`, because `DataLoader.__setattr__` refuses a new batch sampler.
    result: DataLoader[Any] = object.__new__(kind)
    of_workers = {"_iterator": None} if isinstance(loader, DataLoader) else {}
    result.__dict__.update({**vars(loader), **of_workers, **settings})
    return result
