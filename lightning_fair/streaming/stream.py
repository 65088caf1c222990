"""A stream made fair: samples wait in bounded buffers, and batches are drawn from them in the controller's mix."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import IterableDataset, get_worker_info

from lightning_fair.common.checks import check, check_names, check_number_of_names, check_type, show
from lightning_fair.common.label_sets import LabelSets, complete_names
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.weights import class_weights
from lightning_fair.streaming.iteration import StreamDraw, StreamIteration
from lightning_fair.streaming.missing_classes import MissingClassLogger
from lightning_fair.streaming.one_pass import OnePassCheck, take_verdict
from lightning_fair.streaming.positions import RankPosition, Start, check_position
from lightning_fair.streaming.samples import add_weight, source_classes
from lightning_fair.streaming.shared_state import SharedState
from lightning_fair.streaming.sources import Shard, continue_epoch
from lightning_fair.streaming.worker_balancing import WorkerBalancing

_log = logging.getLogger("lightning_fair")


class FairStream(IterableDataset[Any]):
    """Makes a stream of ``(x, y)`` fair: a :class:`FeedbackController` steers the class mix of its batches.

    Samples wait in one buffer per class. For each batch the stream reads ``batch_size * reads_per_sample`` samples, and
    draws the batch from the buffers in the controller's mix ``p``: the count of a class is the floor or the ceiling of
    ``batch_size * p``, with expectation ``batch_size * p``. If a buffer cannot supply its class, ``p`` is capped for
    it, and the other classes get the rest in proportion; the weights ``w = reference[y] / p[y]`` use this ``p``. There
    the draw may not keep the controller's ``max_weight``: weights are clipped at it, and the part of the reference that
    they leave out is logged as ``fair/clipped_mass``. A class without available samples has ``p = 0``: the weighted
    loss then represents the other classes only, and the log reports once that the class is missing, and once that it is
    back. Its catch-up is bounded by the horizon.

    Use the stream as the data set of a ``DataLoader`` **with the same batch size**: it yields single samples, and each
    run of ``batch_size`` samples is one draw::

        controller = FeedbackController(num_classes=10)
        stream = FairStream(source, controller, batch_size=64)
        for x, y in DataLoader(stream, batch_size=64):
            p = controller.get_probs()                     # of this batch, if there are no workers
            w = importance_weights(y, controller.get_reference(), p)
            ...
            stream.step_update(y, losses)

    With workers, pass ``return_weights=True``: each sample then has its own weight, ``(x, y, w)``. Under Lightning this
    is not needed, because the record of each draw travels with its batch. Each worker has its own buffers and its own
    copy of the controller. The copy starts from the mix trained on so far and follows the draws of its process, so
    prefetching adds no delay to the feedback loop. Losses, steps and epochs reach the copies through shared memory. The
    controller in the main process follows the batches that were trained on.

    **Workers whose shards differ.** If a worker is short of a class in most draws of a horizon, the other workers draw
    more of it. Each worker steers to its own mix; the mean of these mixes is the target as nearly as the buffers allow.
    The weights of the draws are scaled by the worker's share of the class, so that the losses of all workers together
    represent the reference. Such draws depend on the timing of the workers, and differ between runs. As long as no
    worker is short of a class that another could supply, balancing is off, and each draw depends only on the seed and
    the worker's own shard. Up to 64 workers are balanced, fewer above 5,000 classes. The log reports a class as missing
    only if no worker has it.

    **Several labels.** With ``several_labels`` a sample can have any number of labels, and waits in the buffer of each
    of them. Each place of a batch is a class by the law, and the least used sample in the buffer of that class; its
    other labels come along. The class mixes of the controller, and the counts, are then mixes and numbers of labels;
    if the target cannot be reached, because labels come together, the nearest mix is (see
    :class:`~lightning_fair.control.label_draws.RestingDraw`). The weight of a sample is::

        w = sum(m[k] / n[k]) / sum(p[k] / n[k])     over its labels k

    with the class mix ``p`` of its draw, that of the reference ``m``, and the samples ``n[k]`` of each label that this
    process has read in this iteration. The mean of ``w * loss`` then stands for draws with ``m``, whatever ``p`` is;
    with the default reference, for draws without feedback whose labels have the target. The formula is exact for the
    true shares of the labels, and ``n`` estimates them: with the first samples it is rough, and if the source drifts it
    lags, because it counts the whole iteration. The draws that bring the target follow how often labels come together
    in what was read. They are computed before the first draw, and whenever a tenth more has been read. That takes up to
    a second with 1,000 labels, and memory for a table of ``K * K`` numbers. Workers do not balance each other then. If
    one of them lacks a label, its other labels get the share, and the log says so. Under Lightning the controller in
    the main process follows what the workers have found; in a loop of your own with workers its ``q`` stays the target.

    The labels of a sample are a row of zeros and ones of ``K`` numbers of any type; or its classes: a list, a set, a
    tuple or an array of class numbers or names, or a single one. A sequence of ``K`` zeros and ones is always a row,
    and a set never. If the last class is called ``"none"`` or ``"(none)"``, or the names are one less than the classes,
    it is that of samples without a label, and rows can be without its column::

        stream = FairStream(source, batch_size=64, several_labels=True, class_names=["person", "car", "none"])

    **Limits.** A rare class can have at most the share ``reads_per_sample * max_reuse * (share in the source)`` of the
    batches. Every iteration begins with empty buffers.

    **Resuming.** A checkpoint of :class:`~lightning_fair.FairSampling` has the position of every worker on every rank,
    after the batches that were trained on. On the same number of ranks and workers a resumed run continues there, if
    the source or its iterator has ``state_dict()`` and ``load_state_dict()`` (Hugging Face streams,
    ``torchdata.nodes``, your own class), or the source is a list or another sequence. Of a Hugging Face stream with
    ``shuffle(seed=...)``, and of a ``StreamingDataset`` of litdata or mosaicml-streaming, it reads the samples before
    the position once more. With any other source it starts at the beginning, and a line in the log says so.

    By default the buffers are empty then: the samples that waited in them are left out, and the log has their number.
    With ``save_buffers`` they come from the checkpoint, and the batches that follow are those of the run that was not
    stopped, bit for bit, unless workers balance each other, or losses or validations are fed back to draws that are
    made ahead (by workers, or because Lightning fetches a batch ahead from a loader without a length). In a loop of
    your own save the states of the controller and of the loader, a ``StatefulDataLoader`` of torchdata; without workers
    ``stream.state_dict()`` will do.

    Args:
        source: An ``IterableDataset``, or any iterable of samples. An ``IterableDataset`` has to give each worker and
            each rank its own shard, as torch requires; a warning says if the first samples of two are the same. Of any
            other iterable, rank ``r`` of ``R`` takes every ``R``-th sample, beginning with number ``r``, and its
            workers split these in the same way.
        controller: The controller. None: :class:`~lightning_fair.FairSampling` creates one.
        batch_size: Samples in a batch on each rank, at least 1.
        buffer_size: Largest number of samples held of a class with a target in each process that iterates, at least
            ``batch_size / max_reuse``. In addition the current batch is alive, and while samples are sorted into the
            buffers, up to a tenth of the buffers' size (at least one sample). A sample that is a slice of a larger
            block is copied, so that the block can be freed.
        max_reuse: Largest number of times that a sample is handed out, at least 1; the least used come first. A sample
            is the same object each time, so a ``collate_fn`` must not change it in place. If samples have several
            labels, this is for each of the labels.
        reads_per_sample: Samples read for each sample handed out, at least 1. Larger values drop more samples of the
            frequent classes and shorten the epoch to the source's length divided by ``reads_per_sample``.
        label_fn: Takes a sample and returns its class, or its labels if it can have several. Default: the second
            element of a pair, or the value under a usual key of a mapping (``"label"``, ``"target"``, ``"y"``).
        class_names: Name of each class, in the order of the class numbers. A label that is no whole number, such as a
            string, is looked up among them. None: the source's ``classes``, or the names in its ``features``, if any.
        several_labels: Whether samples can have several labels, or none. The controller needs no ``label_sets``.
        return_weights: Add the importance weight ``reference[y] / p[y]``, at most the controller's ``max_weight``,
            float32, to each sample: ``(x, y)`` becomes ``(x, y, w)``, and a mapping has it under ``"weight"``.
        save_buffers: Whether checkpoints hold the samples in the buffers: tensors, NumPy arrays, numbers, strings, and
            tuples, lists and dicts of them. Each process that reads copies its buffers into a block of bytes whenever
            it has handed out as many samples as they hold, and at each ``state_dict`` (StatefulDataLoader calls it with
            each batch: set its ``snapshot_every_n_steps``). The main process keeps one block for each worker, the
            newest one that was trained on, besides those that travel with prefetched batches. So without workers this
            takes at most three times the memory of the buffers in addition, and with workers twice in each, and once
            for each worker in the main process. A checkpoint holds the blocks of all ranks.
        seed: Seed of the draws, at least 0.

    Attributes:
        rank: This process's rank, which selects its shard and its draws; ``FairSampling`` sets it.
        world_size: Number of ranks; ``FairSampling`` sets it.
        brings_controller: Whether a controller was passed to the constructor.

    Raises:
        ValueError: If a number is out of range, or ``class_names`` does not name every class, or the controller is
            one for another kind of labels; during iteration, if a label is not in ``[0, K)``, not one class, or no name
            of a class, or, with ``several_labels``, if a sample has none and no class stands for that.
        TypeError: If an argument is of another type, or the source is not iterable; during iteration, if a sample
            has no label, or one that is no class number where nothing names the classes, or ``save_buffers`` is set and
            a sample has a part of another type.

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
        class_names: Sequence[str] | None = None,
        several_labels: bool = False,
        return_weights: bool = False,
        save_buffers: bool = False,
        seed: int = 0,
    ) -> None:
        if not hasattr(source, "__iter__") or isinstance(source, (str, bytes, Mapping)):
            raise TypeError(
                f"source must be an IterableDataset or another iterable of samples, got {show(source)}. "
                "A map-style data set needs no FairStream: FairSampling draws from it by index."
            )
        check_type("label_fn", label_fn, (Callable, NoneType), "a function from a sample to its class, or None")
        self.source = source
        self.batch_size: int = check("batch_size", batch_size)
        self.buffer_size: int = check("buffer_size", buffer_size)
        self.max_reuse: int = check("max_reuse", max_reuse)
        self.reads_per_sample: int = check("reads_per_sample", reads_per_sample)
        self.seed: int = check("seed", seed)
        if buffer_size * max_reuse < batch_size:
            raise ValueError(
                f"buffer_size * max_reuse must be at least batch_size, got {buffer_size} * {max_reuse} < {batch_size}: "
                "a batch could not be filled while the stream sends a single class. Increase buffer_size or max_reuse."
            )
        self.class_names = None if class_names is None else check_names("class_names", class_names)
        self.label_fn, self.return_weights = label_fn, check("return_weights", return_weights)
        self.several_labels: bool = check("several_labels", several_labels)
        self.save_buffers: bool = check("save_buffers", save_buffers)
        self.rank, self.world_size = 0, 1
        self._num_checked: Counter[int] = Counter()  # of each worker, its iterations
        self.brings_controller = controller is not None
        self._controller: FeedbackController | None = None
        self._position: RankPosition | None = None  # where the next iteration continues; None: at the beginning
        self._begun_at: RankPosition | None = None  # where the newest iteration began
        self._iteration: StreamIteration | None = None  # the newest one in this process
        if controller is not None:
            self.bind(controller)

    @property
    def controller(self) -> FeedbackController:
        """The controller; a ``RuntimeError`` is raised if there is none yet."""
        if self._controller is None:
            raise RuntimeError(
                "This FairStream has no controller yet: FairSampling creates it when training begins. In your own loop "
                "pass FairStream(source, FeedbackController(num_classes=...), ...)."
            )
        return self._controller

    @property
    def noun(self) -> str:
        """Word for what waits in the buffers, which have a sample once for each of its labels."""
        return "samples, counted for each of their labels," if self.several_labels else "samples"

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes: ``class_names``, or those of the source; None if it has none."""
        names = self.class_names or source_classes(self.source, self.label_fn)
        kind = None if self._controller is None else self._controller.label_kind
        return names if names is None or kind is None else list(complete_names(names, kind))

    def __len__(self) -> int:
        """Approximate number of samples that an iteration yields on this rank, if the source has a length."""
        ranks = 1 if isinstance(self.source, IterableDataset) else self.world_size
        return len(self.source) // ranks // self.reads_per_sample  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_iteration": None, "_begun_at": None}  # each process has its own

    def bind(self, controller: FeedbackController) -> None:
        """Follow this controller from now on."""
        check_type("controller", controller, FeedbackController, "a FeedbackController")
        names: Sequence[str] | None = self.class_names
        if self.several_labels:
            controller.expect_several_labels(LabelSets.expected(controller.num_classes, self.classes or ()))
            assert controller.label_kind is not None
            names = names and complete_names(names, controller.label_kind)
        elif controller.label_kind is not None:
            raise ValueError(
                "The controller is one for samples with several labels. Set FairStream(several_labels=True), or, if "
                "each sample has one, make the controller without label_sets."
            )
        check_number_of_names(names, controller.num_classes)
        controller.bind_batch(self.batch_size * self.world_size)
        self._controller = controller
        self._shared = SharedState(controller.num_classes)
        table_shape = WorkerBalancing.table_shape(controller.num_classes)
        self._balancing_table = torch.zeros(table_shape, dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]
        self.first_samples = OnePassCheck.new_table()
        self.share()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, for schedules, and for the source if it has a ``set_epoch``."""
        self.controller.epoch = self._shared.epoch = check("epoch", epoch)

    def step_update(self, labels: ArrayLike, losses: ArrayLike | None = None) -> None:
        """Report the current batch to the controller and to the workers; see :meth:`FeedbackController.step_update`."""
        self.controller.step_update(labels, losses)
        self.share()

    def share(self) -> None:
        """Publish the controller's state to the processes that iterate."""
        self._shared.publish(self.controller)

    def begin(self, start: Start | None, position: RankPosition | None = None) -> None:
        """Let the next iteration of each process begin with this state, at this position; None: at the beginning.

        Without a state, each process begins with the one that is published when it starts.
        """
        self._shared.begin(start)
        self._position = position
        if position is not None:
            continue_epoch(self.source, position.epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this process in its iteration, as tensors and plain numbers, after the newest batch.

        With ``save_buffers`` it has a copy of the buffers. The controller's state is not a part of it: save it too.
        """
        if self._iteration is not None:
            return self._iteration.rank_position().state_dict()
        position = self._begun_at or self._position
        if position is None:
            position = RankPosition(1, Start.of(self._shared.copy_controller(self.controller)))
        return position.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration of this process continue at a position that ``state_dict`` returned.

        A source without a position starts anew. Load the controller's state first.

        Raises:
            ValueError: If the state is damaged, or of another number of classes; during iteration, if the number of
                workers is another one.
        """
        check_position(state, self.controller.num_classes)
        self._position = RankPosition.from_state_dict(state)
        if not self._position.can_continue:
            _log.warning("The stream starts at the beginning of its source, whose position was not saved.")
        elif self._position.num_unused and not (self.save_buffers and self._position.has_buffers):
            remark = "that waited in the buffers are left out. FairStream(save_buffers=True) keeps them."
            _log.warning("The stream continues: %d %s %s", self._position.num_unused, self.noun, remark)

    def __iter__(self) -> Iterator[Any]:
        """Yield single samples; each run of ``batch_size`` samples is one draw."""
        return chain.from_iterable(self._logged_batches(self._take_position()))

    def _logged_batches(self, position: RankPosition | None = None) -> Iterator[list[Any]]:
        missing = MissingClassLogger(self.controller)
        for draw, samples in self._batches(position, in_flight=get_worker_info() is None):
            if not draw.ended:
                log = self._iteration is None or self._iteration.logs
                missing.update(draw.draw_id, draw.available, self.controller.rest_at(draw.progress), log=log)
            if warning := take_verdict(self.first_samples):
                warnings.warn(warning, stacklevel=2)
            yield samples

    def batches(
        self, *, in_flight: bool = False, with_positions: bool = False
    ) -> Iterator[tuple[StreamDraw, list[Any]]]:
        """Return an iterator over the batches, each as the record of its draw and its samples.

        With ``in_flight`` the controller itself draws, and each draw stays in flight until it is reported. Otherwise a
        copy of the controller draws, in which each draw counts as trained on at once. ``with_positions``, each record
        carries the position after its draw.
        """
        return self._batches(self._take_position(), in_flight=in_flight, with_positions=with_positions)

    def _balancing(self) -> WorkerBalancing | None:
        """Return the link of this worker to the others; None if there are none."""
        info = get_worker_info()
        if not info or not 1 < info.num_workers <= len(self._balancing_table):
            return None
        table, iteration = self._balancing_table.numpy(), self._iteration_number(info)
        return WorkerBalancing(table, info.id, info.num_workers, iteration, self.controller.horizon)

    def _iteration_number(self, info: Any) -> float:
        """Return a number that all workers of an iteration on one rank have."""
        return float((info.seed - info.id) % 2**32 + 2**32 * (self.rank + 1))

    def one_pass_check(self) -> OnePassCheck | None:
        """Return the comparison with the samples of other workers and ranks; None if the source is dealt out."""
        info = get_worker_info()
        has_others = self.world_size > 1 or (info is not None and info.num_workers > 1)
        if not (has_others and isinstance(self.source, IterableDataset)):
            return None
        worker, seed = (info.id, self._iteration_number(info)) if info else (0, 0.0)
        self._num_checked[worker] += 1  # workers that stay keep their seed, and may get other shards each time
        iteration = float(hash((seed, self._num_checked[worker])) % 2**52 + 1)
        return OnePassCheck(self.first_samples.numpy(), worker, iteration)

    def _take_position(self) -> RankPosition | None:
        """Return the position of the iteration that begins, which is for this one alone."""
        self._begun_at, self._position, self._iteration = self._position, None, None
        return self._begun_at

    def _batches(
        self, position: RankPosition | None, *, in_flight: bool, with_positions: bool = False
    ) -> Iterator[tuple[StreamDraw, list[Any]]]:
        info, balancing = get_worker_info(), self._balancing()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        if in_flight:
            controller = self.controller
            controller.forget_in_flight()  # of an abandoned iteration
        else:
            controller = self._shared.copy_controller(self.controller)
        resumed, first = None, controller.draws + worker
        if position is not None:
            resumed = position.of_worker(worker, num_workers)
            start = position.start if resumed is None else resumed.start
            start.apply_to(controller)
            first = start.draws + (worker if resumed is None else num_workers - 1)
        shard = Shard(worker, num_workers, self.rank, self.world_size)
        iteration = StreamIteration(
            self, controller, shard, self._shared.epoch, in_flight=in_flight, balancing=balancing, resumed=resumed
        )
        try:
            for draw_id in count(first, num_workers):
                size = iteration.read()
                if not size:
                    return
                if not in_flight:
                    # The loader takes batches from the workers in turn, so this is the step that gets the batch.
                    controller.draws = draw_id
                    self._shared.pass_feedback_to(controller)
                draw, samples = iteration.draw(size)
                if with_positions:
                    iteration.follow(draw)
                self._iteration = iteration
                yield self._weighted(draw, samples)
        finally:
            if balancing:
                balancing.leave()

    def _weighted(self, draw: StreamDraw, samples: list[Any]) -> tuple[StreamDraw, list[Any]]:
        if not self.return_weights:
            return draw, samples
        bound = self.controller.max_weight
        if draw.label_sets is None:
            of_class = class_weights(draw.weight_reference, draw.probs, bound)
            weights = of_class.astype(np.float32)[draw.labels]
        else:
            weights = draw.weigh(bound)[0].astype(np.float32)
        return draw, [add_weight(sample, weight) for sample, weight in zip(samples, weights, strict=True)]
