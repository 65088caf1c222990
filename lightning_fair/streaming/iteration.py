"""One iteration over a stream in one process: samples are read into buffers, and batches drawn from these."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.label_sets import LabelSets
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.law import apply_floor, mixture_floor
from lightning_fair.sampling.systematic import DrawRandomness, systematic_counts
from lightning_fair.streaming.buffers import ClassBuffers, cap_mix, limit_counts
from lightning_fair.streaming.label_statistics import LabelStatistics, read_label_sets
from lightning_fair.streaming.packing import pack, unpack
from lightning_fair.streaming.positions import DrawPosition, RankPosition, Start, WorkerPosition
from lightning_fair.streaming.samples import copy_data, number_names, owns_memory, stream_labels
from lightning_fair.streaming.sources import Shard, SourceReader, waits_for_workers
from lightning_fair.streaming.worker_balancing import WorkerBalancing, WorkerTarget

if TYPE_CHECKING:
    from lightning_fair.streaming.stream import FairStream

_log = logging.getLogger("lightning_fair")
_REMEDY = "Let the source yield plain samples, and convert them in the loader's collate_fn."


@dataclass(eq=False)
class StreamDraw(Draw):
    """The draw of a batch from a stream, on one rank.

    Attributes:
        labels: Class of each sample, int64, shape ``(batch,)``; or if samples have several labels, whether each has
            each label, bool, shape ``(batch, K)``.
        drawn_for: Class that each sample was drawn for, int64, shape ``(batch,)``.
        num_read: Number of samples read from the source since the previous draw.
        arrived: Samples of each class read from the source since the previous draw, int64, shape ``(K,)``.
        ended: Whether the source had ended.
        available: Whether this process, or another worker of the iteration, had a sample of each class, shape ``(K,)``.
        weight_scale: Factor of the weights of each class if the workers balance each other, shape ``(K,)``; see
            :class:`~lightning_fair.streaming.worker_balancing.WorkerTarget`. None stands for one.
        position: Where the worker is after the draw; None if nobody follows it.
        resting: Draws of the worker without a deficit if samples have several labels; see
            :meth:`~lightning_fair.FeedbackController.learn_draws`.
    """

    labels: NDArray[Any]
    drawn_for: Ints
    num_read: int
    arrived: Ints
    ended: bool
    available: NDArray[np.bool_]
    weight_scale: Floats | None
    position: DrawPosition | None = None
    resting: Floats | None = None

    @property
    def weight_reference(self) -> Floats:
        """The reference times ``weight_scale``: the losses of all workers together stand for the reference."""
        return self.reference if self.weight_scale is None else self.reference * self.weight_scale


class StreamIteration:
    """Reads a source into class buffers, and draws batches from them with the settings of a stream.

    The controller gives the class mix of each draw and records the draw. With ``in_flight`` the draw stays in flight
    until it is reported; otherwise it counts as trained on at once. The number of the worker, in its ``shard``, selects
    the random numbers. ``balancing`` is the link to the other workers; None if there are none. An iteration begins at
    the beginning of the source, with empty buffers, or where the worker was at the ``resumed`` position.
    """

    def __init__(
        self,
        stream: FairStream,
        controller: FeedbackController,
        shard: Shard,
        epoch: int | None,
        *,
        in_flight: bool,
        balancing: WorkerBalancing | None,
        resumed: WorkerPosition | None = None,
    ) -> None:
        self._stream, self._shard, self._epoch = stream, shard, epoch
        self._controller = controller
        self.buffers = ClassBuffers(controller.num_classes, stream.buffer_size, stream.max_reuse)
        self._in_flight, self._balancing = in_flight, balancing
        self._one_pass = stream.one_pass_check()
        kind = controller.label_kind
        self._statistics = None if kind is None else LabelStatistics(kind)
        if kind is not None:
            controller.learn_draws(None)
        self._class_numbers = number_names(stream.classes or ())
        self._wanted = set(np.flatnonzero(controller.wanted).tolist())
        # While they are sorted into the buffers, samples are held in addition to the buffers' own: at most a tenth.
        self._max_unsorted = min(stream.batch_size, max(len(self._wanted) * stream.buffer_size // 10, 1))
        self._read = self._handed_out = self._num_arrived = 0
        self._arrived: Ints = np.zeros(controller.num_classes, dtype=np.int64)  # for the next draw
        self._ended = self._has_said = False
        self._since_saved: int | None = None  # samples handed out since a draw carried the buffers
        self._source_state: bytes | None = None
        self._problem = ""
        seed = int(np.random.SeedSequence([stream.seed, stream.rank, shard.worker]).generate_state(1)[0])
        self._randomness = DrawRandomness(seed, controller.num_classes, stream.batch_size)
        if resumed is None:
            self._open(None)
        else:
            self._resume(resumed)

    def _open(self, state: bytes | None) -> None:
        of_source = None if state is None else unpack(state)
        stream = self._stream
        self._source = SourceReader(stream.source, self._shard, epoch=self._epoch, seed=stream.seed, state=of_source)

    def _resume(self, position: WorkerPosition) -> None:
        """Continue the source, and with saved buffers repeat what has changed these since, without the law."""
        self._source_state, self._ended = position.source, position.ended
        if not self._stream.save_buffers or position.buffers is None:
            self._reopen(position.source)
            return
        saved = unpack(position.buffers)
        if saved["settings"] != self._settings:
            old, new = (", ".join(f"{k}={v}" for k, v in each.items()) for each in (saved["settings"], self._settings))
            raise ValueError(
                f"The checkpoint has the buffers of a FairStream with {old}, and this one has {new}. Resume with the "
                "same settings, or with save_buffers=False, which leaves the samples in the buffers out."
            )
        self.buffers.restore(saved["samples"])
        self._read, self._handed_out, self._ended = saved["read"], saved["handed_out"], saved["ended"]
        if self._statistics is not None:
            self._statistics.restore(saved["statistics"], self._controller)
        self._reopen(saved["source"])
        for number, labels in zip(position.reads, position.labels, strict=True):
            while number > 0 and (num_read := self._read_into_buffers(min(self._max_unsorted, number))):
                number -= num_read
            self._steer()
            self.buffers.take(np.bincount(labels, minlength=self._controller.num_classes))
            self._handed_out += labels.size
        self._ended = position.ended

    @property
    def _settings(self) -> dict[str, int]:
        """The settings that saved buffers depend on."""
        names = ["batch_size", "buffer_size", "max_reuse", "reads_per_sample"]
        names += ["several_labels"] * self._stream.several_labels
        return {name: getattr(self._stream, name) for name in names}

    def _reopen(self, state: bytes | None) -> None:
        if not self._ended:
            self._open(state)
        elif waits_for_workers(self._stream.source):
            self._open(state)
            self._source.read(1)  # there is none, but the other workers wait for it

    def position(self, *, with_buffers: bool) -> DrawPosition:
        """Return where the worker is, after its newest draw."""
        if not self._ended:
            self._source_state, self._problem = _pack_state(self._source)
        controller, shard, buffers = self._controller, self._shard, None
        if with_buffers and not self._problem:
            counters: dict[str, Any] = {"read": self._read, "handed_out": self._handed_out, "ended": self._ended}
            counters |= {"source": self._source_state, "settings": self._settings}
            state = {"samples": self.buffers.capture(), **counters}
            if self._statistics is not None:
                state["statistics"] = self._statistics.capture(controller.resting)
            buffers = pack(state, "With save_buffers=True the samples of a stream", _REMEDY)
            self._since_saved = 0
        start = Start.of(controller)
        of_source = self._source_state, self._problem, self.buffers.num_unused
        return DrawPosition(shard.worker, shard.num_workers, *of_source, start, buffers)

    def rank_position(self) -> RankPosition:
        """Return where this worker is, after its newest draw, as a rank that has no other."""
        newest = self.position(with_buffers=self._stream.save_buffers)
        result = RankPosition(newest.num_workers, newest.start)
        result.workers[newest.worker] = WorkerPosition(
            newest.start, newest.source, self._ended, newest.num_unused, buffers=newest.buffers
        )
        return result

    @property
    def logs(self) -> bool:
        """Whether this worker logs what all of them notice."""
        return self._balancing is None or self._balancing.is_first

    def follow(self, draw: StreamDraw) -> None:
        """Let a draw carry the position after it, with the buffers if that costs at most a copy a sample handed out."""
        since = self._since_saved
        if since is not None:
            self._since_saved = since = since + draw.drawn_for.size
        is_due = since is None or since >= self.buffers.num_held
        draw.position = self.position(with_buffers=self._stream.save_buffers and is_due)

    def read(self) -> int:
        """Read the samples for the next batch; return its size, 0 if none is left."""
        B, reads_per_sample = self._stream.batch_size, self._stream.reads_per_sample
        self._arrived, self._num_arrived = np.zeros_like(self._arrived), 0
        quota = self._stream.buffer_size + (self._handed_out + B) * reads_per_sample
        # Beyond it, read only if the buffers cannot fill a batch: the samples had no target, or are used up.
        while not self._ended and (self._read < quota or self._num_available < B):
            due = quota - self._read if self._read < quota else B
            self._ended = not self._read_into_buffers(min(self._max_unsorted, due))
        self._steer()
        size = min(B, self._num_available)
        if self._ended:
            size = max(min(size, self._read // reads_per_sample - self._handed_out), 0)
        self._handed_out += size
        return size

    @property
    def _num_available(self) -> int:
        return int(self.buffers.available[self._controller.rest > 0].sum())

    def _steer(self) -> None:
        if self._statistics is not None:
            self._statistics.steer(self._controller)

    def _read_into_buffers(self, number: int) -> int:
        """Read up to ``number`` samples; return how many were read."""
        samples, num_classes = self._source.read(number), self._controller.num_classes
        if self._one_pass and not self._one_pass.is_done:
            self._one_pass.add(samples)
        if not samples:
            return 0
        label_fn, numbers = self._stream.label_fn, self._class_numbers
        if self._statistics is None:
            labels = stream_labels(samples, num_classes, label_fn, numbers)
            self._arrived += np.bincount(labels, minlength=num_classes)
        else:
            rows = read_label_sets(samples, self._statistics.kind, label_fn, numbers)
            sets = LabelSets.from_lists(rows, num_classes)
            self._statistics.add(sets)
            self._arrived += sets.counts
        if not owns_memory(samples[0]):
            samples = list(map(copy_data, samples))
        by_class: dict[int, list[Any]] = {}
        if self._statistics is None:
            pairs: Iterable[tuple[int, Any]] = zip(labels, samples, strict=True)
        else:  # a sample waits, with its labels, in the buffer of each of them
            held = zip(samples, rows, strict=True)
            pairs = ((label, each) for each in held for label in each[1])
        for label, sample in pairs:
            if label in self._wanted:
                by_class.setdefault(label, []).append(sample)
        self.buffers.add(by_class)
        self._read += len(samples)
        self._num_arrived += len(samples)
        return len(samples)

    def draw(self, size: int) -> tuple[StreamDraw, list[Any]]:
        """Draw a batch of ``size`` samples."""
        controller, stock = self._controller, self.buffers.available
        draw_id, target = controller.draws, self._balancing_target()
        probs = self._next_probs(size, target)
        available = stock > 0
        if self._balancing:
            available = self._balancing.publish(stock, size, target.mix if target else controller.rest, probs)
        order, start, shuffle = self._randomness(draw_id)
        shuffle = shuffle[shuffle < size]  # the last batches can be smaller
        counts = systematic_counts(probs, size, order, start).to_dense(stock.size)
        if (counts > stock).any():
            counts = limit_counts(counts, stock)
        drawn_for = np.arange(stock.size).repeat(counts).take(shuffle)
        samples = self.buffers.take(counts)
        samples = [samples[i] for i in shuffle.tolist()]
        labels: NDArray[Any] = drawn_for
        sets = None
        if self._statistics is not None:
            sets = LabelSets.from_lists([own for _, own in samples], stock.size)
            samples = [sample for sample, _ in samples]
            labels, counts = sets.to_dense(), sets.counts
        draw = StreamDraw(
            draw_id=draw_id,
            probs=probs,
            counts=counts,
            trained_mix=controller.trained_mix,
            alpha=controller.gain,
            reference=controller.reference,
            labels=labels,
            drawn_for=drawn_for,
            num_read=self._num_arrived,
            arrived=self._arrived,
            ended=self._ended,
            available=available,
            weight_scale=target.weight_scale if target else None,
            progress=controller.progress,
            label_sets=sets,
            sample_weights=None if self._statistics is None else self._statistics.weights,
            resting=controller.resting,
        )
        controller.record_draw(draw)
        if not self._in_flight:
            controller.report(counts, draw=draw)
        if target:
            _count_for_mix(target.mix, draw, controller)
        return draw, samples

    def _balancing_target(self) -> WorkerTarget | None:
        """Return the target of this worker; None if it is that of all, as always if samples have several labels."""
        target = self._balancing.target_mix(self._controller.rest) if self._balancing else None
        if target is None or self._statistics is None:
            return target
        if not self._has_said:
            _log.warning(
                "The workers' shards of the stream have different labels, and workers do not balance each other if "
                "samples have several: the share of a label that a worker lacks goes to its other labels. Give each "
                "worker samples of all labels, for example by shuffling the source."
            )
            self._has_said = True
        return None

    def _next_probs(self, size: int, target: WorkerTarget | None) -> Floats:
        """Return the class mix of the next draw, limited to the samples that are available."""
        controller, stock = self._controller, self.buffers.available
        available = stock > 0
        # A missing class has a large deficit, which would leave the other classes with their floor.
        exclude = not available.all() and (available & (controller.rest > 0)).any()
        probs = controller.next_probs(available if exclude else None)
        if target:
            steered = np.divide(probs * target.mix, controller.q, out=np.zeros_like(probs), where=controller.q > 0)
            if steered.any():
                floor = mixture_floor(target.mix, controller.max_weight, controller.min_prob)
                probs = apply_floor(steered, np.where(steered > 0, floor, 0.0))
        return cap_mix(probs, stock / size)


def _count_for_mix(mix: Floats, draw: StreamDraw, controller: FeedbackController) -> None:
    """Count a draw made for ``mix`` relative to it, so that classes left to other workers show no deficit."""
    q, rate = controller.q, 1.0 / controller.horizon
    relative = np.divide(draw.counts / draw.counts.sum() * q, mix, out=q.copy(), where=mix > 0)
    controller.trained_mix = (1.0 - rate) * draw.trained_mix + rate * relative


def _pack_state(source: SourceReader) -> tuple[bytes | None, str]:
    """Return the packed position of a source; if it has none, None and the reason."""
    try:
        state = source.state_dict()
    except Exception as error:
        return None, f"state_dict() of its source raised {type(error).__name__}: {error}."
    if state is None:
        return None, "its source has no state_dict() that can be called without arguments, or no load_state_dict()."
    try:
        return pack(state, "The state of a stream's source"), ""
    except TypeError as error:
        return None, str(error)
