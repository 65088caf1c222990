"""The source of a stream: how a worker opens its shard, and how it continues at a saved position."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, IterDataPipe
from torch.utils.data.graph_settings import apply_random_seed, apply_sharding

# The parameters of state_dict in data sets whose state is about all workers together.
_OF_LITDATA = ("num_samples_yielded", "num_workers", "batch_size")
_OF_MOSAICML = ("num_samples", "from_beginning")


class Shard(NamedTuple):
    """The part of a source that one process reads.

    Attributes:
        worker: Number of the worker, 0 without workers.
        num_workers: Number of workers on each rank, 1 without workers.
        rank: Number of the rank.
        world_size: Number of ranks.
    """

    worker: int = 0
    num_workers: int = 1
    rank: int = 0
    world_size: int = 1

    @property
    def number(self) -> int:
        """Number of the shard. The sizes of two ranks' shares differ by at most one, because ranks train in step."""
        return self.worker * self.world_size + self.rank

    @property
    def total(self) -> int:
        """Number of shards."""
        return self.num_workers * self.world_size


class SourceReader:
    """Reads one worker's shard of a source once, and knows its position in it.

    An ``IterableDataset`` shards itself; a data pipe is told its shard; of another iterable every ``shard.total``-th
    sample is read. The position is that of

    - the source, or its iterator, or both, if they have ``state_dict()`` and ``load_state_dict()``;
    - the number of samples read, for a list or another ``Sequence``, for a source whose ``state_dict`` asks for it
      (litdata, mosaicml-streaming), and for a Hugging Face stream with a shuffle buffer. Except of a ``Sequence``, the
      samples before the position are read once more, and left out: the states of the former are about all workers
      together, and say nothing of a worker that is ahead of the others, and that of the latter has no shuffle buffer.

    Another source has no position: it can only start anew.

    Args:
        source: The source.
        shard: The part of it.
        epoch: Number of the epoch, for a source with ``set_epoch``; None leaves it.
        seed: Seed of data pipes that shuffle, at least 0; they need the same one in every worker.
        state: Where to continue, as ``state_dict`` returned it; None starts from the beginning.

    Example:
        >>> reader = SourceReader("abcdefgh", Shard(worker=1, num_workers=2))
        >>> reader.read(2), reader.state_dict()
        (['b', 'd'], {'num_read': 2, 'order': None, 'states': []})
        >>> SourceReader("abcdefgh", Shard(worker=1, num_workers=2), state=reader.state_dict()).read(3)
        ['f', 'h']
    """

    def __init__(
        self, source: Any, shard: Shard, *, epoch: int | None = None, seed: int = 0, state: Any = None
    ) -> None:
        self._source, self.num_read = source, 0 if state is None else int(state["num_read"])
        if epoch is not None and hasattr(source, "set_epoch"):
            source.set_epoch(epoch)
        if isinstance(source, IterDataPipe):
            # A DataLoader does both, but only for a data pipe that is its data set.
            apply_sharding(source, shard.total, shard.number)
            words = np.random.SeedSequence([seed, epoch or 0]).generate_state(1, np.uint64)
            apply_random_seed(source, torch.Generator().manual_seed(int(words[0]) >> 1))
        self._order = _shuffled_order(source)
        self._keeps_count = isinstance(source, Sequence) or self._order is not None or _asks_for_count(source)
        if state is not None and state["order"] != self._order:
            raise _cannot_continue("it shuffles in another order; give it a seed, as in shuffle(seed=0)")
        self._stateful = [source] if not self._keeps_count and _has_state(source) else []
        states = [] if state is None else state["states"]
        try:
            iterator = self._open(states)
        except Exception as error:
            if not states:
                raise
            raise _cannot_continue(f"{type(error).__name__}: {error}") from error
        # The iterator is not asked for an iterator of its own, which would start some of them again.
        samples = (sample for sample in _Once(iterator))
        first, step = (0, 1) if isinstance(source, IterableDataset) else (shard.number, shard.total)
        if self.num_read:
            first = step - 1 if self._stateful else first + self.num_read * step
        self._samples: Iterator[Any]
        if isinstance(source, Sequence):
            self._samples = map(source.__getitem__, range(first, len(source), step))
        else:
            self._samples = islice(samples, first, None, step) if first or step > 1 else samples
        self._has_loaded = bool(states)  # and has not read since

    def _open(self, states: list[Any]) -> Iterator[Any]:
        """Return an iterator, which has loaded the states of the source and of its iterator."""
        if states and self._stateful:
            self._source.load_state_dict(states[0])
        iterator = self._iterate(states)
        if not self._keeps_count and iterator is not self._source and _has_state(iterator):
            self._stateful.append(iterator)
            if len(states) == len(self._stateful):
                iterator.load_state_dict(states[-1])  # type: ignore[attr-defined]
        return iterator

    def _iterate(self, states: list[Any]) -> Iterator[Any]:
        source = self._source
        if not states or not getattr(source, "restart_on_stop_iteration", False):
            return iter(source)
        # The Loader of torchdata.nodes starts anew if its state is at the end, where this shard simply has ended.
        source.restart_on_stop_iteration = False
        try:
            return iter(source)
        finally:
            source.restart_on_stop_iteration = True

    def read(self, number: int) -> list[Any]:
        """Return the next samples, ``number`` of them or as many as are left.

        Raises:
            RuntimeError: If the source cannot continue at its own saved position.
            Exception: Any other error of the source.
        """
        try:
            samples = list(islice(self._samples, number))
        except Exception as error:
            if not self._has_loaded:
                raise
            raise _cannot_continue(f"{type(error).__name__}: {error}") from error
        self._has_loaded = False
        self.num_read += len(samples)
        return samples

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position; None if the source has none."""
        if not (self._keeps_count or self._stateful):
            return None
        states = [part.state_dict() for part in self._stateful]
        return {"num_read": self.num_read, "order": self._order, "states": states}


def _cannot_continue(reason: str) -> RuntimeError:
    return RuntimeError(
        f"The source of the stream cannot continue at the position that it saved: {reason}. "
        'FairSampling(resume="restart") keeps the model, and starts the stream and the class mix anew.'
    )


def _shuffled_order(source: Any) -> int | None:
    """Return a checksum of the random state of a Hugging Face stream with a shuffle buffer; None for any other source.

    Its own state has no shuffle buffer, and with workers datasets 5.2 cannot load it.
    """
    part = getattr(source, "_ex_iterable", None)
    while part is not None:
        if "BufferShuffled" in type(part).__name__:
            return zlib.crc32(repr(part.generator.bit_generator.state).encode())
        part = getattr(part, "ex_iterable", None)
    return None


def continue_epoch(source: Any, epoch: int) -> None:
    """Let a source that counts its epochs by itself (mosaicml-streaming) continue in this one, before workers start."""
    if waits_for_workers(source):
        source.load_state_dict({**source.state_dict(0, True), "epoch": epoch, "sample_in_epoch": 0})


def waits_for_workers(source: Any) -> bool:
    """Return whether the workers of a source wait until each of them has begun to read (mosaicml-streaming)."""
    return _required(source) == _OF_MOSAICML


class _Once(Iterable[Any]):
    """An iterable whose iterator has been made already."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self._iterator


def _has_state(source: Any) -> bool:
    return _required(source) == ()


def _asks_for_count(source: Any) -> bool:
    return _required(source) in (_OF_LITDATA, _OF_MOSAICML)


def _required(source: Any) -> tuple[str, ...] | None:
    """Return the arguments that ``state_dict`` has to be given; None if the source has no state."""
    if not (callable(getattr(source, "state_dict", None)) and callable(getattr(source, "load_state_dict", None))):
        return None
    try:
        parameters = inspect.signature(source.state_dict).parameters.values()
    except ValueError:  # of a built-in function
        return ()
    variadic = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return tuple(each.name for each in parameters if each.default is each.empty and each.kind not in variadic)
