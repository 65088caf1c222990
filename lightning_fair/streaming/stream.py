"""The same control over a stream: samples wait in bounded buffers, and the controller's mix drains them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import IterableDataset, get_worker_info

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.law import apply_floor
from lightning_fair.sampling.systematic import Chances, systematic_counts
from lightning_fair.streaming.buffers import (
    ClassBuffers,
    detached,
    own_memory,
    placed,
    share_out,
    sorted_by_class,
    stream_labels,
)
from lightning_fair.streaming.missing_classes import MissingClassLogger
from lightning_fair.streaming.worker_balancing import WorkerBalancing, WorkerTarget

_STEP, _EPOCH, _PROGRESS, _VECTORS = 0, 1, 2, 3  # places in the shared news
_NO_EPOCH = -1.0
# Draws made one after the other: after a training step nothing of a draw is in the processor's caches.
_AT_ONCE = 4
# Samples sorted in at once: more leave these caches before they are sorted; and they come on top of what is held.
_AT_MOST, _MOST_PART = 256, 10


@dataclass(eq=False)
class StreamDraw(Draw):
    """The draw of a batch from a stream, on one rank.

    Attributes:
        labels: Class of each sample, int64, shape ``(batch,)``.
        arrived: Samples of each class read from the source since the draw before, int64, shape ``(K,)``.
        ended: Whether the source had come to its end.
        there: Whether this process, or another worker of the iteration, had something of each class, shape ``(K,)``.
        part: What the worker is to draw of each class over the target's share of it, shape ``(K,)``, where the workers
            draw for each other; else None, which is one. The weights are so many times as large.
    """

    labels: Ints
    arrived: Ints
    ended: bool
    there: NDArray[np.bool_]
    part: Floats | None

    def reference(self, mix: Floats) -> Floats:
        """Return the worker's part of ``mix``."""
        return mix if self.part is None else mix * self.part


class FairStream(IterableDataset[Any]):
    """Makes any stream of ``(x, y)`` fair: a :class:`FeedbackController` steers the class mix of its batches.

    Samples wait in a buffer per class. For every batch as many samples are read as are handed out (``reads_per_sample``
    times as many), and the batch is taken from the buffers in the controller's mix ``p``: a class gets the floor
    or the ceiling of ``batch * p``, on average exactly that. No class is asked for more than it has; what it
    lacks goes to the others in proportion, and the record's ``p`` is the mix after that, so that
    ``w = q[y] / p[y]`` is right. A class of which nothing is there has ``p = 0``: the weighted loss then stands
    for the other classes only, and the log says once that it has gone, and once that it is back. Catching up is
    bounded by the controller's horizon.

    Use it as the data set of a ``DataLoader`` **with the same batch size**; samples come one by one, and each run
    of ``batch_size`` of them is one draw::

        controller = FeedbackController(num_classes=10)
        stream = FairStream(source, controller, batch_size=64)
        for x, y in DataLoader(stream, batch_size=64):
            p = controller.get_probs()                     # of this very batch, where there are no workers
            w = importance_weights(y, controller.get_target(), p)
            ...
            stream.step_update(y, losses)

    With workers the batches are drawn elsewhere and ahead: pass ``return_weights=True``, and every sample comes with its
    own weight, ``(x, y, w)``. Under Lightning, :class:`~lightning_fair.FairSampling` and ``weighted_loss`` need
    neither: the record of each draw travels with its batch.

    Each process that iterates, the main one or a worker, has buffers of its own and follows the mix that it drew
    itself, beginning with what was trained on when the iteration began, so a loader that runs ahead adds no delay
    to the loop. Losses, steps and epochs reach it from the main process through shared memory. The controller in
    the main process follows what was trained on. A worker reads for one batch at a time; without workers up to four
    batches are drawn at once, which takes less time, and losses act on those that are drawn after.

    **Where the workers' shards differ**, a class of which one has too little in most draws of a horizon is drawn by the
    others in its place: each tells the others through shared memory what it lacks and how much of that it can draw,
    and aims at a mix of its own, such that all together reach the target as nearly as their buffers allow. The weights
    of such a draw are multiplied by this worker's part of the class, so that the losses of all together stand for the
    target. These draws depend on how far the other workers were, so they are not the same in every run. While no worker
    lacks what another can draw more of, nothing of this acts: each draw follows from the seed and its worker's shard
    alone. Up to 64 workers do so, fewer above 5,000 classes. The log says that a class has gone where no worker has it.

    **What a stream cannot give.** A rare class can have at most the share ``reads_per_sample * max_reuse * (its share of the
    source)`` of the batches. A buffer that holds a class long after the source stopped sending it repeats what it
    has, up to ``max_reuse`` times. And the source's position is not part of a checkpoint: a resumed run has the
    controller's state, and starts with empty buffers wherever the source starts.

    Args:
        source: The stream: an ``IterableDataset``, or any iterable. An ``IterableDataset`` has to give each worker
            and each rank its own shard, as torch's convention is. Of any other iterable rank ``r`` of ``R`` takes
            every ``R``-th sample, beginning with the ``r``-th, and its workers share these in the same way.
        controller: The controller to follow. None: :class:`~lightning_fair.FairSampling` makes it.
        batch_size: Samples of a batch on each rank, at least 1.
        buffer_size: Most samples held of a class in each process that iterates, at least ``batch_size / max_reuse``. So the
            buffers hold at most ``K * buffer_size`` samples, over the classes that have a target; alive besides are those of
            the batch in hand, and a tenth of ``K * buffer_size`` (at least one sample) while they are sorted in. A sample
            that is a slice of a larger block is copied, so that the block can go.
        max_reuse: Most times that a sample is handed out, at least 1: the least used first. It is the same object every
            time, so what takes samples (a ``collate_fn``) may not change them in place.
        reads_per_sample: Samples read for each one handed out, at least 1. More of them thin the frequent classes out,
            and shorten the epoch: it hands out the source's length divided by ``reads_per_sample``.
        label_fn: Takes a sample and returns its class. None: the second element of a pair, or what a mapping has under
            ``"label"``, ``"target"``, ``"y"``.
        return_weights: Add the importance weight ``q[y] / p[y]``, float32, to each sample: ``(x, y)`` becomes
            ``(x, y, w)``, and a mapping has it under ``"weight"``.
        seed: Seed of the draws, at least 0.

    Attributes:
        rank: This process's rank, for its shard and draws of its own; ``FairSampling`` sets it.
        world_size: Number of ranks, likewise.
        brings_controller: Whether it was made with a controller.

    Raises:
        ValueError: If a number is out of range; while iterating, if a label is not an integer in ``[0, K)``.
        TypeError: If the source cannot be iterated over; while iterating, if a sample shows no label.

    Example:
        >>> source = [(float(i), int(i % 100 == 99)) for i in range(800)]
        >>> stream = FairStream(source, FeedbackController(num_classes=2), batch_size=8)
        >>> labels = [y for _, y in stream]
        >>> len(labels), sum(labels[80:160])
        (800, 40)
    """

    def __init__(
        self,
        source: Iterable[Any],
        controller: FeedbackController | None = None,
        *,
        batch_size: int,
        buffer_size: int = 256,
        max_reuse: int = 64,
        reads_per_sample: int = 1,
        label_fn: Callable[[Any], Any] | None = None,
        return_weights: bool = False,
        seed: int = 0,
    ) -> None:
        if not hasattr(source, "__iter__"):
            raise TypeError(
                f"source must be an IterableDataset or another iterable of samples, got {type(source).__name__}. "
                "A map-style data set needs no FairStream: FairSampling draws from it by index."
            )
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("buffer_size", buffer_size, 1),
            ("max_reuse", max_reuse, 1),
            ("reads_per_sample", reads_per_sample, 1),
            ("seed", seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if buffer_size * max_reuse < batch_size:
            raise ValueError(
                f"buffer_size * max_reuse must be at least batch_size, got {buffer_size} * {max_reuse} < {batch_size}: while the stream "
                "sends one class only, a batch could never be filled. Set a larger buffer_size, or a larger max_reuse."
            )
        self.source, self.batch_size = source, batch_size
        self.buffer_size, self.max_reuse, self.reads_per_sample = buffer_size, max_reuse, reads_per_sample
        self.label_fn, self.return_weights, self.seed = label_fn, return_weights, seed
        self.rank, self.world_size = 0, 1
        self.brings_controller = controller is not None
        self._controller: FeedbackController | None = None
        self._kept: ClassBuffers | None = None
        self._news = self._table = torch.zeros(0)
        if controller is not None:
            self.bind(controller)

    @property
    def controller(self) -> FeedbackController:
        """The controller.

        Raises:
            RuntimeError: If there is none yet.
        """
        if self._controller is None:
            raise RuntimeError(
                "This FairStream has no controller yet: FairSampling makes it when training begins. In a loop of your "
                "own pass FairStream(source, FeedbackController(num_classes=...), ...)."
            )
        return self._controller

    @property
    def classes(self) -> Any:
        """The source's names of the classes; None where it has none."""
        return getattr(self.source, "classes", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # this process's own

    def bind(self, controller: FeedbackController) -> None:
        """Follow this controller from now on, with empty buffers."""
        self._controller, self._kept = controller, None
        self._news = torch.zeros(_VECTORS + 2 * controller.num_classes, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self._news[_EPOCH] = _NO_EPOCH
        rows = WorkerBalancing.table_for(controller.num_classes)
        self._table = torch.zeros(rows, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self.share()

    def __len__(self) -> int:
        """Samples that an iteration hands out on this rank, about, where the source has a length."""
        ranks = 1 if isinstance(self.source, IterableDataset) else self.world_size
        return len(self.source) // ranks // self.reads_per_sample  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Number the next iteration ``epoch``: for schedules, and for the source where it has a ``set_epoch``."""
        self.controller.epoch = int(epoch)
        self._news[_EPOCH] = float(epoch)

    # -- what comes back from training -----------------------------------------------------------------

    def step_update(self, labels: ArrayLike, losses: ArrayLike | None = None) -> None:
        """Report the batch at hand to the controller, and what follows from it to the workers.

        See :meth:`FeedbackController.step_update`. Without workers the controller's own does as well.
        """
        self.controller.step_update(labels, losses)
        self.share()

    def share(self) -> None:
        """Let the processes that iterate know what the controller knows: one write into shared memory."""
        controller, K = self.controller, self.controller.num_classes
        news = self._news.numpy()
        news[_STEP], news[_PROGRESS] = controller.draws, controller.progress
        news[_VECTORS : _VECTORS + K] = controller.loss_score
        news[_VECTORS + K :] = controller.trained_mix

    # -- batches ---------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """Return the samples; each run of ``batch_size`` of them is one draw."""
        return chain.from_iterable(self._followed())

    def _followed(self) -> Iterator[list[Any]]:
        absences, fellows = MissingClassLogger(self.controller), self._fellows()
        for made in self._drawn(get_worker_info() is None, fellows):
            for draw in [draw for draw, _ in made if not draw.ended]:
                target, aloud = self.controller.target_at(draw.progress), fellows is None or fellows.first
                absences.follow(draw.draw_id, draw.there, target, aloud=aloud)
            while made:
                yield made.pop(0)[1]  # held no longer than needed

    def batches(self, *, in_flight: bool = False) -> Iterator[tuple[StreamDraw, list[Any]]]:
        """Yield the batches, each with its record.

        Args:
            in_flight: Draw with the controller itself, and leave each draw in flight until it is reported. If not,
                draw with a copy of it that takes what was drawn as trained on.
        """
        for made in self._drawn(in_flight, self._fellows()):
            while made:
                yield made.pop(0)  # held no longer than needed

    def _fellows(self) -> WorkerBalancing | None:
        """Return what links this worker to the others; None where there are none."""
        worker = get_worker_info()
        if not worker or not 1 < worker.num_workers <= len(self._table):
            return None
        # One number for all workers of an iteration on one rank.
        stamp = (worker.seed - worker.id) % 2**32 + 2**32 * (self.rank + 1)
        return WorkerBalancing(
            self._table.numpy(), worker.id, worker.num_workers, float(stamp), self.controller.horizon
        )

    def _drawn(self, in_flight: bool, fellows: WorkerBalancing | None) -> Iterator[list[tuple[StreamDraw, list[Any]]]]:
        worker = get_worker_info()
        place, places = (worker.id, worker.num_workers) if worker else (0, 1)
        if in_flight:
            controller = self.controller
            controller.withdraw()  # what an abandoned iteration left counts as trained on
        else:
            controller = self._own_controller()
        source = self._open(place, places)
        seeds = np.random.SeedSequence([self.seed, self.rank, place])
        chances = Chances(int(seeds.generate_state(1)[0]), controller.num_classes, self.batch_size)
        buffers, self._kept = self._kept, None  # two iterations at once share nothing
        if buffers is None:
            buffers = ClassBuffers(controller.num_classes, self.buffer_size, self.max_reuse)
        # In a worker one by one: it reads while others train, and that is best done evenly. And no more than a buffer
        # can hold of what they take of a class: what is read for them would push itself out, unused.
        fitting = 1 if worker else self.buffer_size / (self.batch_size * controller.q.max())
        at_once = int(np.clip(fitting, 1, _AT_ONCE))
        number = controller.draws + place
        try:
            for arrived, sizes, ended in self._fill(source, buffers, controller, at_once):
                left = buffers.available.copy()
                draws = []
                for size in sizes:
                    if not in_flight:
                        # The workers take turns, so this is the number of the step that will have the batch.
                        controller.draws = number
                        self._take_over_emphasis(controller)
                    aim = fellows.aim(controller.q) if fellows else None
                    draw = self._draw(controller, left, chances, size, arrived, ended, aim, fellows)
                    controller.record_draw(draw)
                    if not in_flight:
                        controller.report(draw.counts, draw=draw)
                    if aim:
                        _count_as_of_target(controller, draw, aim.goal)
                    draws.append(draw)
                    number += places
                    arrived = np.zeros_like(arrived)
                yield list(zip(draws, self._hand_out(draws, buffers, left), strict=True))
        finally:
            self._kept = buffers
            if fellows:
                fellows.leave()

    def _own_controller(self) -> FeedbackController:
        news, own = self._news.numpy(), deepcopy(self.controller)
        own.withdraw()
        if news[_STEP] >= own.draws:  # older, in a worker that began later and to which nobody reported
            own.rewind(int(news[_STEP]), news[_VECTORS + own.num_classes :], float(news[_PROGRESS]))
        if news[_EPOCH] != _NO_EPOCH:
            own.epoch = int(news[_EPOCH])
        return own

    def _take_over_emphasis(self, controller: FeedbackController) -> None:
        if controller.lambda2:
            controller.loss_score = self._news.numpy()[_VECTORS : _VECTORS + controller.num_classes].copy()

    def _open(self, place: int, places: int) -> Iterator[Any]:
        epoch = self._news.numpy()[_EPOCH]
        if epoch != _NO_EPOCH and hasattr(self.source, "set_epoch"):
            self.source.set_epoch(int(epoch))
        source = _forward(iter(self.source))
        if isinstance(self.source, IterableDataset):
            return source
        # Each rank the same number, or one more: they train in step.
        return islice(source, place * self.world_size + self.rank, None, places * self.world_size)

    def _fill(
        self, source: Iterator[Any], buffers: ClassBuffers, controller: FeedbackController, at_once: int
    ) -> Iterator[tuple[Ints, list[int], bool]]:
        """Read what a few batches need; yield how many of each class came, the batches' sizes, and if it was the end.

        The batches are to be taken before the next are asked for.
        """
        B = self.batch_size
        most = at_once * B
        kept = set(np.flatnonzero(controller.wanted).tolist())
        at_most = min(most, _AT_MOST, max(len(kept) * self.buffer_size // _MOST_PART, 1))
        read = given = 0
        ended = False
        while True:
            arrived = np.zeros(controller.num_classes, dtype=np.int64)
            to_read = self.buffer_size + (given + most) * self.reads_per_sample - read
            # Beyond that only where not even a batch is there: samples without target, or used up.
            while not ended and (to_read > 0 or _total(buffers, controller) < B):
                came = self._read(source, min(at_most, to_read if to_read > 0 else B), buffers, kept)
                number = int(came.sum())
                ended = number == 0
                arrived += came
                read += number
                to_read -= number
            size = min(most, _total(buffers, controller))
            if ended:
                size = min(size, read // self.reads_per_sample - given)
            if size < 1:
                return
            sizes = [B] * (size // B) or [size]
            given += sum(sizes)
            yield arrived, sizes, ended

    def _read(self, source: Iterator[Any], number: int, buffers: ClassBuffers, kept: set[int]) -> Ints:
        """Put so many samples into the buffers; return how many there were of each class, at the end none."""
        num_classes = buffers.available.size
        samples = list(islice(source, number))
        if not samples:
            return np.zeros(num_classes, dtype=np.int64)
        labels = stream_labels(samples, num_classes, self.label_fn)
        counts: Ints = np.bincount(labels, minlength=num_classes)
        if not own_memory(samples[0]):
            samples = list(map(detached, samples))
        found = sorted_by_class(samples, labels, counts)
        buffers.add(found if found.keys() <= kept else {y: found[y] for y in found if y in kept})
        return counts

    def _draw(
        self,
        controller: FeedbackController,
        left: Ints,
        chances: Chances,
        size: int,
        arrived: Ints,
        ended: bool,
        aim: WorkerTarget | None,
        fellows: WorkerBalancing | None,
    ) -> StreamDraw:
        """Draw a batch of what is left of each class, and take it off."""
        there = left > 0
        draw_id = controller.draws
        plenty = np.minimum.reduce(left) >= size
        # A class that is not there has a large deficit: next to it the floor would be all that the others have.
        probs = controller.next_probs(None if there.all() or not (there & (controller.q > 0)).any() else there)
        if aim:
            probs = _aimed(probs, controller, aim.goal)
        if not plenty:  # where there is, whatever the mix
            probs = share_out(probs, left / size)
        if fellows:
            there = fellows.tell(left, size, aim.goal if aim else controller.q, probs)
        order, start, shuffle = chances(draw_id)
        if size < self.batch_size:
            shuffle = shuffle[shuffle < size]
        split = systematic_counts(probs, size, order, start)
        in_turn, counts = split.labels, split.to_dense(left.size)
        if not plenty and (counts > left).any():  # by rounding
            counts = _within(counts, left)
            in_turn = np.arange(left.size).repeat(counts)
        left -= counts
        return StreamDraw(
            draw_id=draw_id,
            probs=probs,
            counts=counts,
            trained_mix=controller.trained_mix,
            alpha=controller.alpha(draw_id, controller.epoch),
            labels=in_turn.take(shuffle),
            arrived=arrived,
            ended=ended,
            there=there,
            part=aim.part if aim else None,
            progress=controller.progress,
        )

    def _hand_out(self, draws: list[StreamDraw], buffers: ClassBuffers, left: Ints) -> Iterator[list[Any]]:
        """Take the samples of several draws at once, which takes less time; yield those of each."""
        labels = np.concatenate([draw.labels for draw in draws])
        samples = placed(buffers.take(buffers.available - left), labels, left.size)
        for start, draw in zip(range(0, labels.size, self.batch_size), draws, strict=True):
            batch = samples[start : start + self.batch_size]
            if self.return_weights:
                q, p = draw.reference(self.controller.target_at(draw.progress)), draw.probs
                weights = np.divide(q, p, out=np.zeros_like(p), where=p > 0).astype(np.float32)
                batch = [_with_weight(sample, w) for sample, w in zip(batch, weights[draw.labels], strict=True)]
            yield batch


def _aimed(probs: Floats, controller: FeedbackController, goal: Floats) -> Floats:
    """Return the mix that stands to the goal as the controller's ``probs`` stand to its target."""
    aimed = np.divide(probs * goal, controller.q, out=np.zeros_like(probs), where=controller.q > 0)
    return apply_floor(aimed, np.where(aimed > 0, controller.min_prob, 0.0)) if aimed.any() else probs


def _count_as_of_target(controller: FeedbackController, draw: StreamDraw, goal: Floats) -> None:
    """Let a draw for another goal count in proportion: no class is behind for what the other workers draw of it."""
    q, rate = controller.q, 1.0 / controller.horizon
    meant = np.divide(draw.counts / draw.counts.sum() * q, goal, out=q.copy(), where=goal > 0)
    controller.rewind(controller.draws, (1.0 - rate) * draw.trained_mix + rate * meant, draw.progress)


def _forward(source: Iterator[Any]) -> Iterator[Any]:
    """Return an iterator that is never started again: some sources' ``__iter__`` starts anew and returns them."""
    if isinstance(source, GeneratorType):
        return source

    def forward() -> Iterator[Any]:
        while True:
            try:
                sample = next(source)
            except StopIteration:
                return
            yield sample

    return forward()


def _total(buffers: ClassBuffers, controller: FeedbackController) -> int:
    return int(buffers.available[controller.q > 0].sum())


def _within(counts: Ints, most: Ints) -> Ints:
    kept = np.minimum(counts, most)
    for _ in range(int(counts.sum() - kept.sum())):
        kept[np.argmax(most - kept)] += 1
    return kept


def _with_weight(sample: Any, weight: np.float32) -> Any:
    if isinstance(sample, Mapping):
        return {**sample, "weight": weight}
    if not isinstance(sample, (tuple, list)):
        raise TypeError(
            f"return_weights=True adds the weight to a tuple, a list or a mapping, but a sample is a {type(sample).__name__}. "
            "Let the source give (x, y)."
        )
    return (*sample, weight)
