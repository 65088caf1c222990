"""One iteration over a stream in one process: samples are read into buffers, and batches drawn from these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.law import apply_floor, mixture_floor
from lightning_fair.sampling.systematic import DrawRandomness, systematic_counts
from lightning_fair.streaming.buffers import ClassBuffers, cap_mix
from lightning_fair.streaming.samples import copy_data, number_names, owns_memory, stream_labels
from lightning_fair.streaming.worker_balancing import WorkerBalancing, WorkerTarget

if TYPE_CHECKING:
    from lightning_fair.streaming.stream import FairStream


@dataclass(eq=False)
class StreamDraw(Draw):
    """The draw of a batch from a stream, on one rank.

    Attributes:
        labels: Class of each sample, int64, shape ``(batch,)``.
        arrived: Samples of each class read from the source since the previous draw, int64, shape ``(K,)``.
        ended: Whether the source had ended.
        available: Whether this process, or another worker of the iteration, had a sample of each class, shape ``(K,)``.
        weight_scale: Factor of the weights of each class if the workers balance each other, shape ``(K,)``; see
            :class:`~lightning_fair.streaming.worker_balancing.WorkerTarget`. None stands for one.
    """

    labels: Ints
    arrived: Ints
    ended: bool
    available: NDArray[np.bool_]
    weight_scale: Floats | None

    @property
    def weight_reference(self) -> Floats:
        """The reference times ``weight_scale``: the losses of all workers together stand for the reference."""
        return self.reference if self.weight_scale is None else self.reference * self.weight_scale


class StreamIteration:
    """Reads a source into class buffers, and draws batches from them with the settings of a stream.

    The controller gives the class mix of each draw and records the draw. With ``in_flight`` the draw stays in flight
    until it is reported; otherwise it counts as trained on at once. The number of the worker selects the random
    numbers. ``balancing`` is the link to the other workers; None if there are none.
    """

    def __init__(
        self,
        stream: FairStream,
        source: Iterator[Any],
        controller: FeedbackController,
        buffers: ClassBuffers,
        worker: int,
        *,
        in_flight: bool,
        balancing: WorkerBalancing | None,
    ) -> None:
        self._stream, self._source = stream, source
        self._controller, self._buffers = controller, buffers
        self._in_flight, self._balancing = in_flight, balancing
        self._one_pass = stream.one_pass_check()
        self._class_numbers = number_names(stream.classes or ())
        self._wanted = set(np.flatnonzero(controller.wanted).tolist())
        # While they are sorted into the buffers, samples are held in addition to the buffers' own: at most a tenth.
        self._max_unsorted = min(stream.batch_size, max(len(self._wanted) * stream.buffer_size // 10, 1))
        self._read = self._handed_out = 0
        self._ended = False
        seed = int(np.random.SeedSequence([stream.seed, stream.rank, worker]).generate_state(1)[0])
        self._randomness = DrawRandomness(seed, controller.num_classes, stream.batch_size)

    def read(self) -> tuple[Ints, int]:
        """Read the samples for the next batch; return how many of each class, and the batch size, 0 if none is left."""
        B, reads_per_sample = self._stream.batch_size, self._stream.reads_per_sample
        arrived: Ints = np.zeros(self._controller.num_classes, dtype=np.int64)
        quota = self._stream.buffer_size + (self._handed_out + B) * reads_per_sample
        # Beyond it, read only if the buffers cannot fill a batch: the samples had no target, or are used up.
        while not self._ended and (self._read < quota or self._num_available < B):
            due = quota - self._read if self._read < quota else B
            counts = self._read_into_buffers(min(self._max_unsorted, due))
            self._ended = not counts.any()
            self._read += int(counts.sum())
            arrived += counts
        size = min(B, self._num_available)
        if self._ended:
            size = max(min(size, self._read // reads_per_sample - self._handed_out), 0)
        self._handed_out += size
        return arrived, size

    @property
    def _num_available(self) -> int:
        return int(self._buffers.available[self._controller.q > 0].sum())

    def _read_into_buffers(self, number: int) -> Ints:
        """Read up to ``number`` samples; return how many of each class were read."""
        samples, num_classes = list(islice(self._source, number)), self._controller.num_classes
        if self._one_pass and not self._one_pass.is_done:
            self._one_pass.add(samples)
        if not samples:
            return np.zeros(num_classes, dtype=np.int64)
        labels = stream_labels(samples, num_classes, self._stream.label_fn, self._class_numbers)
        if not owns_memory(samples[0]):
            samples = list(map(copy_data, samples))
        by_class: dict[int, list[Any]] = {}
        for sample, label in zip(samples, labels, strict=True):
            if label in self._wanted:
                by_class.setdefault(label, []).append(sample)
        self._buffers.add(by_class)
        return np.asarray(np.bincount(labels, minlength=num_classes))

    def draw(self, size: int, arrived: Ints) -> tuple[StreamDraw, list[Any]]:
        """Draw a batch of ``size`` samples; ``arrived`` becomes a part of its record."""
        controller, stock = self._controller, self._buffers.available
        draw_id, target = controller.draws, self._balancing.target_mix(controller.q) if self._balancing else None
        probs = self._next_probs(size, target)
        available = stock > 0
        if self._balancing:
            available = self._balancing.publish(stock, size, target.mix if target else controller.q, probs)
        order, start, shuffle = self._randomness(draw_id)
        shuffle = shuffle[shuffle < size]  # the last batches can be smaller
        counts = systematic_counts(probs, size, order, start).to_dense(stock.size)
        if (counts > stock).any():
            counts = _limit_counts(counts, stock)
        draw = StreamDraw(
            draw_id=draw_id,
            probs=probs,
            counts=counts,
            trained_mix=controller.trained_mix,
            alpha=controller.gain,
            reference=controller.reference,
            labels=np.arange(stock.size).repeat(counts).take(shuffle),
            arrived=arrived,
            ended=self._ended,
            available=available,
            weight_scale=target.weight_scale if target else None,
            progress=controller.progress,
        )
        controller.record_draw(draw)
        if not self._in_flight:
            controller.report(counts, draw=draw)
        if target:
            _count_for_mix(target.mix, draw, controller)
        samples = self._buffers.take(counts)
        return draw, [samples[i] for i in shuffle.tolist()]

    def _next_probs(self, size: int, target: WorkerTarget | None) -> Floats:
        """Return the class mix of the next draw, limited to the samples that are available."""
        controller, stock = self._controller, self._buffers.available
        available = stock > 0
        # A missing class has a large deficit, which would leave the other classes with their floor.
        exclude = not available.all() and (available & (controller.q > 0)).any()
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


def _limit_counts(counts: Ints, stock: Ints) -> Ints:
    """Replace samples beyond the stock, which rounding can add, by samples of the classes with the most left."""
    limited = np.minimum(counts, stock)
    for _ in range(int(counts.sum() - limited.sum())):
        limited[np.argmax(stock - limited)] += 1
    return limited
