"""The draws of a stream, followed in the main process."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_tensors
from lightning_fair.common.distributed import gather_from_ranks
from lightning_fair.common.saved_states import array, check_state, check_version, counts, integer
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.rank_facts import controller_facts
from lightning_fair.streaming.iteration import StreamDraw
from lightning_fair.streaming.missing_classes import MissingClassLogger
from lightning_fair.streaming.one_pass import compare_ranks, own_checksums, take_verdict
from lightning_fair.streaming.stream import FairStream

_STATE_VERSION = 1


class StreamTracker:
    """Follows the batches of a stream that were trained on, and keeps the controller in the main process up to date.

    It is the :class:`~lightning_fair.control.draw_source.DrawSource` of a stream.

    Args:
        stream: The stream, with a controller.
        rank: This process's rank.
        world_size: Number of processes.
    """

    prior = None  # the class mix of a stream is not known in advance
    coverage = float("nan")  # a stream has no size

    def __init__(self, stream: FairStream, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._has_compared_ranks = False
        self.follow(stream)
        self._clear()

    def _clear(self) -> None:
        K = self.controller.num_classes
        self.class_counts: Ints = np.zeros(K, dtype=np.int64)  # samples that this rank read for its batches
        self.handed_out: Ints = np.zeros(K, dtype=np.int64)  # samples in these batches
        self._arriving: Floats = np.zeros(K)
        self._missing = MissingClassLogger(self.controller)

    def follow(self, stream: FairStream) -> None:
        """Follow another stream from now on."""
        self.stream, self.batch_size = stream, stream.batch_size
        self.global_batch_size = self.batch_size * self.world_size
        stream.rank, stream.world_size = self.rank, self.world_size
        stream.controller.bind_batch(self.global_batch_size)

    @property
    def controller(self) -> FeedbackController:
        """The controller, which follows the batches trained on over all ranks."""
        return self.stream.controller

    @property
    def arriving(self) -> Floats:
        """Exponentially weighted class mix that this rank reads, shape ``(K,)``; NaN before the first sample."""
        return self._arriving / (float(self._arriving.sum()) or np.nan)

    @property
    def repeats(self) -> Floats:
        """How often a sample of each class was in a batch, on average, shape ``(K,)``; NaN for a class without any."""
        return self.handed_out / np.where(self.class_counts > 0, self.class_counts, np.nan)

    def rank_facts(self) -> dict[str, Any]:
        """See :class:`~lightning_fair.control.draw_source.DrawSource`. Each rank may have data of its own."""
        return {"batch_size": self.batch_size, **controller_facts(self.controller)}

    def report(
        self,
        draw: StreamDraw,
        counts: NDArray[Any] | None = None,
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
    ) -> None:
        """Report that a batch has been trained on; see :meth:`FeedbackController.report`."""
        controller = self.controller
        # For this controller the draw is new, because another process or a copy of the controller made it.
        if draw.progress != controller.progress:
            controller.next_probs()  # moves the target to this step's
        controller.report(draw.counts if counts is None else counts, loss_sums, loss_counts)
        self.stream.share()
        self._check_one_pass()
        rate = 1.0 / controller.horizon
        self._arriving = (1.0 - rate) * self._arriving + rate * draw.arrived
        self.class_counts += draw.arrived
        self.handed_out += draw.counts
        if not self.rank and not draw.ended:
            self._missing.update(draw.draw_id, draw.available, controller.target_at(draw.progress))

    def _check_one_pass(self) -> None:
        """Warn once if workers or ranks read the same samples. Every rank takes part at its first report."""
        table = self.stream.first_samples
        found = [take_verdict(table)]
        if self.world_size > 1 and not self._has_compared_ranks:
            self._has_compared_ranks = True
            shares = dict(gather_from_ranks((self.rank, own_checksums(table))))  # processes can have the same share
            found.append(compare_ranks(shares))
        for warning in filter(None, found if self.rank == 0 else ()):
            warnings.warn(warning, stacklevel=2)

    def clip_counts(self, counts: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Return the counts, scaled down to the number of drawn samples: the classes on other ranks are not known."""
        scaled: NDArray[Any] = counts * min(int(draw.counts.sum()) * self.world_size / max(counts.sum(), 1), 1.0)
        return scaled

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:  # noqa: ARG002
        """Set the epoch of the next iteration, which starts from the beginning of the source."""
        self.stream.set_epoch(epoch)
        self.stream.share()

    def end_epoch(self) -> None:
        """Do nothing: the epochs of a stream are those of the Trainer."""

    def abandon_epoch(self) -> None:
        """Do nothing: a stream always starts from its beginning."""

    def reset(self) -> None:
        """Forget every draw; the settings stay."""
        self.controller.reset()
        self.stream.share()
        self._clear()

    def capture(self) -> dict[str, Any]:
        """Return the state: the controller's, and the counts. Streams are not resumable, so it has no position."""
        arrays = {"arriving": self._arriving, "class_counts": self.class_counts, "handed_out": self.handed_out}
        state = {"stream_version": _STATE_VERSION, "controller": self.controller.state_dict()}
        return state | to_tensors(arrays)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``restore`` would refuse."""
        check_version(
            "stream", state, _STATE_VERSION, "stream_version", " (None: that of a data set that is not a FairStream)"
        )
        K = self.controller.num_classes
        vectors = {"arriving": array(K, low=0.0), "class_counts": counts(K), "handed_out": counts(K)}
        spec = {"stream_version": integer(), "controller": self.controller.check_state, **vectors}
        check_state("stream's", state, spec)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned. The stream starts from the beginning of its source.

        Raises:
            ValueError: If the state has another version, or is not a stream's, or the controller refuses it. Nothing is
                changed then.
        """
        self.check_state(state)
        self.controller.load_state_dict(state["controller"])
        arrays = to_arrays(state)
        self._arriving, self.class_counts = arrays["arriving"], arrays["class_counts"]
        self.handed_out = arrays["handed_out"]
        self.stream.share()
