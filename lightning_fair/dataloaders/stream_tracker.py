"""The draws of a stream, followed in the main process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints, to_arrays, to_tensors
from lightning_fair.common.distributed import gather_from_ranks
from lightning_fair.common.saved_states import array, check_state, check_version, counts, integer, of_type
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.rank_facts import controller_facts
from lightning_fair.streaming.iteration import StreamDraw
from lightning_fair.streaming.missing_classes import MissingClassLogger
from lightning_fair.streaming.one_pass import compare_ranks, own_checksums, take_verdict
from lightning_fair.streaming.positions import RankPosition, Start, check_position
from lightning_fair.streaming.stream import FairStream

_STATE_VERSION = 2
_log = logging.getLogger("lightning_fair")


class StreamTracker:
    """Follows the batches of a stream that were trained on, and keeps the controller in the main process up to date.

    It is the :class:`~lightning_fair.control.draw_source.DrawSource` of a stream.

    Args:
        stream: The stream, with a controller.
        rank: This process's rank.
        world_size: Number of processes.

    Attributes:
        num_processes: Number of processes that read the stream on each rank: the workers of its loader, or 1.
        draws_ahead: Whether the loader makes draws before the batches ahead of them have been trained on.
        is_alone: Whether the other ranks may not take part any more.
        first_worker: Worker from which the loader has to take the first batch of the iteration.
    """

    prior = None  # the class mix of a stream is not known in advance
    coverage = float("nan")  # a stream has no size

    def __init__(self, stream: FairStream, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self._has_compared_ranks = False
        self.num_processes, self.draws_ahead, self.first_worker = 1, False, 0
        self.is_alone = False
        self.follow(stream)
        self._clear()

    def _clear(self) -> None:
        K = self.controller.num_classes
        self.class_counts: Ints = np.zeros(K, dtype=np.int64)  # samples that this rank read for its batches
        self.handed_out: Ints = np.zeros(K, dtype=np.int64)  # samples in these batches
        self._arriving: Floats = np.zeros(K)
        self._missing = MissingClassLogger(self.controller)
        self._is_restored = False  # whether no batch has been trained on since the position was loaded
        self._position: RankPosition | None = None  # in the epoch, after the batches that were trained on
        self._has_said = False  # that the position is not saved
        self._has_described = False  # which labels cannot have the share of the target
        # Of the checkpoint that the position is from: ranks, and samples in the buffers of all of them.
        self._num_saved_ranks, self._num_unused = 1, 0

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
        self._learn_draws(draw)
        # For this controller the draw is new, because another process or a copy of the controller made it.
        if draw.progress != controller.progress:
            controller.next_probs()  # moves the target to this step's
        controller.report(draw.counts if counts is None else counts, loss_sums, loss_counts)
        self.stream.share()
        self._is_restored = False
        if self._position is not None:
            self._position.follow(draw)
        draw.position = None  # it can hold a copy of the buffers
        self._check_one_pass()
        rate = 1.0 / controller.horizon
        self._arriving = (1.0 - rate) * self._arriving + rate * draw.arrived
        self.class_counts += draw.arrived
        self.handed_out += draw.counts
        if not self.rank and not draw.ended:
            self._missing.update(draw.draw_id, draw.available, controller.rest_at(draw.progress))

    def _learn_draws(self, draw: StreamDraw) -> None:
        """Follow the draws of a worker on each rank whose labels have the target, on all ranks at the same time."""
        if draw.resting is not None and _grows(self.controller.draws) and not self.is_alone:
            of_rank = dict(gather_from_ranks((self.rank, draw.resting)))  # processes can have the same share
            self.controller.learn_draws(np.mean([of_rank[rank] for rank in sorted(of_rank)], axis=0))
            if not self._has_described and self.controller.draws >= self.controller.horizon:
                self._has_described = True
                if message := self.controller.describe_unreachable(self.stream.classes):
                    self._say(message)

    def _check_one_pass(self) -> None:
        """Warn once if workers or ranks read the same samples. Every rank takes part at its first report."""
        table = self.stream.first_samples
        verdicts = [take_verdict(table)]
        if self.world_size > 1 and not self._has_compared_ranks:
            self._has_compared_ranks = True
            shares = dict(gather_from_ranks((self.rank, own_checksums(table))))  # processes can have the same share
            verdicts.append(compare_ranks(shares))
        for warning in filter(None, verdicts if self.rank == 0 else ()):
            warnings.warn(warning, stacklevel=2)

    def clip_counts(self, counts: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Return the counts, scaled down to the number of drawn samples: the classes on other ranks are not known."""
        scaled: NDArray[Any] = counts * min(int(draw.counts.sum()) * self.world_size / max(counts.sum(), 1), 1.0)
        return scaled

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:  # noqa: ARG002
        """Set the epoch of the next iteration, and where it begins.

        Within an epoch it continues after the batches that were trained on, if that is possible, else at the beginning
        of the source.
        """
        self.stream.set_epoch(epoch)
        self.stream.share()
        self.first_worker, self.is_alone, position = 0, False, None
        # Lightning starts a stream anew within an epoch if another training loader has more batches.
        saved = self._position if within_epoch and self._is_restored else None
        if saved is not None and saved.epoch == epoch and saved.workers and self._can_continue(saved):
            position, self.first_worker = saved.copy(), saved.next_worker
        else:
            saved = RankPosition(self.num_processes, Start.of(self.controller), epoch)
        self._position = saved
        self.stream.begin(saved.start, position)

    def _can_continue(self, position: RankPosition) -> bool:
        """Return whether the next iteration can continue at the position, and log what is lost."""
        reason = ""
        if self._num_saved_ranks != self.world_size:
            reason = f"the checkpoint has the positions of {self._num_saved_ranks} ranks, and this run has "
            reason += f"{self.world_size}"
        elif position.num_workers != self.num_processes:
            reason = f"its position is that of {position.num_workers} processes on each rank, and the loader has "
            reason += f"{self.num_processes} (set the same num_workers)"
        elif not position.can_continue:
            reason = "its position is not saved"
        if reason:
            self._say(f"The stream starts at the beginning of its source within the epoch: {reason}.")
            return False
        remarks = []
        if self._num_unused and not (self.stream.save_buffers and position.has_buffers):
            remarks.append(
                f" {self._num_unused} {self.stream.noun} that waited in the buffers were read, and are left out. "
                "FairStream(save_buffers=True) keeps them."
            )
        controller = self.controller
        if self.draws_ahead and (controller.feeds_train_losses or controller.objective.feedback != "train"):
            remarks.append(
                " Losses or validations reach draws that are made ahead at other times, so its batches can differ."
            )
        if num_balancing := sum(worker.balances for worker in position.workers.values()):
            remarks.append(f" {num_balancing} workers balanced each other and begin to do so anew: their draws differ.")
        self._say(f"The stream continues within the epoch.{''.join(remarks)}")
        return True

    def _say(self, message: str) -> None:
        if not self.rank:
            _log.warning(message)

    def end_epoch(self) -> None:
        """Forget the position: the next epoch begins at the beginning of the source."""
        self._position = None
        self.stream.begin(None)

    def abandon_epoch(self) -> None:
        """Do the same for an epoch that was interrupted."""
        self.end_epoch()

    def reset(self) -> None:
        """Forget every draw; the settings stay."""
        self.controller.reset()
        self.stream.share()
        self._clear()
        self.stream.begin(None)

    def capture(self) -> dict[str, Any]:
        """Return the state: the controller's, the counts, and the positions of all ranks.

        Every rank has to call it, unless one ``is_alone`` after an exception: then it has the position of this one.
        """
        problem = "" if self._position is None else self._position.problem
        if problem and not self._has_said:
            self._say(f"The position in the stream is not saved: {problem} A resumed run starts the source anew.")
            self._has_said = True
        # Processes that share a model's parts have the same data, and the same rank.
        own = self.rank, self._position and self._position.state_dict()
        of_rank = dict([own] if self.is_alone else gather_from_ranks(own))
        positions = [of_rank[rank] for rank in sorted(of_rank)]
        arrays = {"arriving": self._arriving, "class_counts": self.class_counts, "handed_out": self.handed_out}
        state = {"stream_version": _STATE_VERSION, "controller": self.controller.state_dict()}
        return {**state, "positions": positions, **to_tensors(arrays)}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``restore`` would refuse."""
        check_version(
            "stream", state, _STATE_VERSION, "stream_version", " (None: that of a data set that is not a FairStream)"
        )
        K = self.controller.num_classes
        vectors = {"arriving": array(K, low=0.0), "class_counts": counts(K), "handed_out": counts(K)}
        positions = {"positions": [of_type(Mapping, type(None))]}
        spec = {"stream_version": integer(), "controller": self.controller.check_state, **positions, **vectors}
        check_state("stream's", state, spec)
        for position in state["positions"]:
            if position is not None:
                check_position(position, K)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned. Within the epoch, the next iteration continues at its position.

        Raises:
            ValueError: If the state has another version, or is not a stream's, or the controller refuses it. Nothing is
                changed then.
        """
        self.check_state(state)
        self.controller.load_state_dict(state["controller"])
        arrays = to_arrays(state)
        self._arriving, self.class_counts = arrays["arriving"], arrays["class_counts"]
        self.handed_out = arrays["handed_out"]
        positions = state["positions"]
        position = positions[min(self.rank, len(positions) - 1)] if positions else None
        self._position = None if position is None else RankPosition.from_state_dict(position)
        self._num_saved_ranks, self._is_restored = len(positions), True
        self._num_unused = sum(worker["num_unused"] for each in positions if each for worker in each["workers"])
        self.stream.share()
        self.stream.begin(None)


def _grows(number: int) -> bool:
    """Return whether a number of draws is about a tenth larger than the last one for which this is so."""
    return number < 10 or int(np.log(number) / np.log(1.1)) > int(np.log(number - 1) / np.log(1.1))
