"""A ``DataLoader`` over a ``FairStream``: the record of each draw comes out of the workers with its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.dataloaders.fair_loader import DeliveredBatch, FairLoader, fair_copy, match_batch_labels
from lightning_fair.streaming.missing_classes import MissingClassLogger
from lightning_fair.streaming.stream import FairStream, StreamDraw

_STATE_VERSION = 1
_NONE = torch.zeros(0, dtype=torch.int64)


class StreamTracker:
    """What the main process knows of a stream: the controller follows the batches that were trained on.

    It stands where a :class:`~lightning_fair.FeedbackBatchSampler` stands for a data set that can be indexed.

    Args:
        stream: The stream, with its controller.
        rank: This process's rank.
        world_size: Number of processes.

    Attributes:
        arrived: Samples of each class that this rank has read for the batches trained on, int64, shape ``(K,)``.
        handed_out: Samples of each class in these batches, int64, shape ``(K,)``.
    """

    def __init__(self, stream: FairStream, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.follow(stream)
        self._forget()

    def _forget(self) -> None:
        K = self.controller.num_classes
        self.arrived: Ints = np.zeros(K, dtype=np.int64)
        self.handed_out: Ints = np.zeros(K, dtype=np.int64)
        self._arriving = np.zeros(K)
        self._missing = MissingClassLogger(self.controller)

    def follow(self, stream: FairStream) -> None:
        """Take another stream in place of the one so far."""
        self.stream = stream
        stream.rank, stream.world_size = self.rank, self.world_size

    # -- what can be read ------------------------------------------------------------------------------

    @property
    def controller(self) -> FeedbackController:
        """The controller, which follows what was trained on over all ranks."""
        return self.stream.controller

    @property
    def batch_size(self) -> int:
        """Samples of a batch on each rank."""
        return self.stream.batch_size

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self.batch_size * self.world_size

    @property
    def class_counts(self) -> Ints:
        """Samples of each class that have arrived so far: a stream has no other."""
        return self.arrived

    @property
    def arriving(self) -> Floats:
        """Exponentially weighted class mix of what this rank reads; NaN before the first sample."""
        total = self._arriving.sum()
        mix: Floats = self._arriving / total if total else np.full(self._arriving.size, np.nan)
        return mix

    @property
    def prior(self) -> None:
        """None: the class mix of a stream is not known before it has come."""
        return None

    @property
    def coverage(self) -> float:
        """NaN: a stream has no size to cover."""
        return float("nan")

    @property
    def repeats(self) -> Floats:
        """How often a sample of each class was in a batch, on average; NaN for a class that never came."""
        came = self.arrived > 0
        repeats: Floats = np.divide(self.handed_out, self.arrived, out=np.full(came.size, np.nan), where=came)
        return repeats

    # -- what became of the draws ----------------------------------------------------------------------

    def report(
        self,
        draw: StreamDraw,
        counts: NDArray[Any] | None = None,
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
    ) -> None:
        """Report that a batch has been trained on; see :meth:`FeedbackController.commit`."""
        controller = self.controller
        # The batch was drawn in another process, or with a copy: here it is a draw of its own.
        if draw.progress != controller.progress:
            controller.next_probs()  # moves the target to where this step has it
        controller.report(draw.counts if counts is None else counts, loss_sums, loss_counts)
        self.stream.share()
        rate = 1.0 / controller.horizon
        self._arriving = (1.0 - rate) * self._arriving + rate * draw.arrived
        self.arrived += draw.arrived
        self.handed_out += draw.counts
        if not self.rank and not draw.ended:
            self._missing.update(draw.draw_id, draw.available, controller.target_at(draw.progress))

    def clip_counts(self, counts: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Return the counts scaled to as many samples as were drawn; of other ranks only their number is known."""
        scaled: NDArray[Any] = counts * min(int(draw.counts.sum()) * self.world_size / max(counts.sum(), 1), 1.0)
        return scaled

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:  # noqa: ARG002
        """Number the next iteration over the stream; it starts from the beginning of its source."""
        self.stream.set_epoch(epoch)
        self.stream.share()

    def end_epoch(self) -> None:
        """Nothing to do: the Trainer numbers the epochs of a stream."""

    def abandon_epoch(self) -> None:
        """Nothing to do: a stream starts anew."""

    def reset(self) -> None:
        """Forget everything seen; the settings stay."""
        self.controller.reset()
        self.stream.share()
        self._forget()

    # -- checkpoints -----------------------------------------------------------------------------------

    def capture(self) -> dict[str, Any]:
        """Return the state: the controller's, and what has arrived. The stream's own place is not in it."""
        return {
            "stream_version": _STATE_VERSION,
            "controller": self.controller.state_dict(),
            "arriving": torch.from_numpy(self._arriving.copy()),
            "arrived": torch.from_numpy(self.arrived.copy()),
            "handed_out": torch.from_numpy(self.handed_out.copy()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned. The stream starts wherever its source starts.

        Raises:
            ValueError: If it is of another version, or not of a stream, or the controller refuses it.
        """
        if state.get("stream_version") != _STATE_VERSION:
            raise ValueError(
                f"This stream reads state version {_STATE_VERSION}, got {state.get('stream_version')!r}: the "
                "checkpoint was made with a data set that is not a FairStream, or with another version of "
                "lightning-fair. Resume with the same kind of training data, or start anew without the checkpoint."
            )
        self.controller.load_state_dict(state["controller"])
        self._arriving = state["arriving"].numpy().copy()
        self.arrived, self.handed_out = state["arrived"].numpy().copy(), state["handed_out"].numpy().copy()
        self.stream.share()


# -- the loader --------------------------------------------------------------------------------------------


class _Recorded(NamedTuple):
    """Samples or a batch, with the record of their draw."""

    draw: StreamDraw
    content: Any


class _RecordedStream(IterableDataset[_Recorded]):
    """The stream batch by batch."""

    def __init__(self, stream: FairStream, drop_last: bool) -> None:
        self.stream, self.drop_last = stream, drop_last

    def __iter__(self) -> Iterator[_Recorded]:
        for draw, samples in self.stream.batches():
            if not self.drop_last or len(samples) == self.stream.batch_size:
                yield _Recorded(draw, samples)

    def __getattr__(self, name: str) -> Any:
        if name == "stream":  # not set yet: pickling asks
            raise AttributeError(name)
        return getattr(self.stream, name)  # a `worker_init_fn` may ask for what the user's own has


class _RecordedCollate:
    """A ``collate_fn`` for them."""

    def __init__(self, own: Callable[[Any], Any]) -> None:
        self.own = own

    def __call__(self, samples: _Recorded) -> _Recorded:
        return _Recorded(samples.draw, self.own(samples.content))


class FairStreamLoader(FairLoader):
    """What a loader over a ``FairStream`` gains."""

    def __iter__(self) -> Iterator[Any]:
        return _StreamIterator(self, super(FairLoader, self).__iter__)  # type: ignore[misc]


class _StreamIterator:
    """Hands out the batches of one epoch, each with its record; starts at its first ``next``."""

    def __init__(self, loader: FairStreamLoader, start: Callable[[], Iterator[Any]]) -> None:
        self._loader, self._start = loader, start
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> _StreamIterator:
        return self

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __next__(self) -> Any:
        loader = self._loader
        if self._batches is None or loader.restart:
            if loader.restart:
                loader.pending_batches.clear()
            loader.restart = False
            if loader.on_start:
                loader.on_start()
            with _recorded(loader):
                self._batches = self._start()
        draw, batch = next(self._batches)
        if batch is None:
            loader.pending_batches.append(DeliveredBatch(draw, _NONE, as_drawn=False))
        else:
            drawn = torch.from_numpy(draw.labels)
            labels = match_batch_labels(batch, draw, drawn)
            loader.pending_batches.append(DeliveredBatch(draw, labels, as_drawn=labels is drawn))
        return batch


@contextmanager
def _recorded(loader: Any) -> Iterator[None]:
    """Let the iterator that is made meanwhile fetch recorded batches; the loader shows its own settings after."""
    settings = loader.__dict__
    own = {name: settings[name] for name in ("dataset", "collate_fn", "batch_sampler", "batch_size")}
    settings.update(
        dataset=_RecordedStream(own["dataset"], loader.drop_last),
        collate_fn=_RecordedCollate(own["collate_fn"]),
        batch_sampler=None,  # without it the loader fetches what the stream yields: batches
        batch_size=None,
    )
    try:
        yield
    finally:
        settings.update(own)


def make_stream_fair(loader: DataLoader[Any], *, on_start: Callable[[], None] | None = None) -> DataLoader[Any]:
    """Return a copy of a loader over a :class:`FairStream` whose method ``pop_pending`` returns each batch's record.

    Args:
        loader: The loader to copy; it stays as it was.
        on_start: Called when the first batch of an iteration is asked for.

    Raises:
        ValueError: If its batch size is not the stream's.
    """
    stream: Any = loader.dataset
    if loader.batch_size != stream.batch_size:
        raise ValueError(
            f"The DataLoader's batch_size is {loader.batch_size}, that of its FairStream {stream.batch_size}: a batch "
            f"has to be one draw. Set DataLoader(stream, batch_size={stream.batch_size})."
        )
    return fair_copy(loader, FairStreamLoader, on_start=on_start, guess_labels=True)


def is_stream(loader: Any) -> bool:
    """Return whether ``loader`` reads a :class:`FairStream`."""
    return isinstance(loader, DataLoader) and isinstance(loader.dataset, FairStream)
