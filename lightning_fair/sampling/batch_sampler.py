"""A batch sampler whose class mix follows a controller."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import takewhile
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_fair.common.arrays import Floats, Ints, to_arrays
from lightning_fair.common.checks import check, check_type
from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.common.distributed import check_ranks
from lightning_fair.common.label_sets import LabelSets, label_rows, labels_checksum
from lightning_fair.common.labels import to_class_labels
from lightning_fair.common.saved_states import check_version
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.control.label_draws import SampleWeights
from lightning_fair.control.rank_facts import controller_facts, describe
from lightning_fair.sampling.batch_draw import BatchDraw
from lightning_fair.sampling.class_pools import ClassPools
from lightning_fair.sampling.sampler_controller import (
    EmptyClasses,
    check_fit,
    default_controller,
    skip_empty_classes,
)
from lightning_fair.sampling.saved_draws import check_sampler_state
from lightning_fair.sampling.systematic import DrawRandomness, systematic_counts

_STATE_VERSION = 7


class FeedbackBatchSampler(Sampler[list[int]]):
    """A batch sampler whose class mix is steered by a :class:`FeedbackController`.

    For each batch the sampler asks the controller for the class mix ``p``, draws the class counts by systematic
    sampling (each is the floor or the ceiling of ``batch * p``, and ``batch * p`` in expectation), and draws the items
    of each class in passes, so that they are used equally often. A draw is a function of the seed, its number, ``p``
    and the number of items drawn before, so the same seed gives the same batches. With ``world_size`` ranks each rank
    makes the same draw of ``world_size * batch_size`` samples and keeps its own share of it; ranks that differ raise.

    Args:
        labels: Label of each sample, shape ``(N,)``, or several labels of each (see
            :func:`~lightning_fair.common.label_values.number_labels`), or a data set (see
            :func:`~lightning_fair.common.labels.find_labels`).
        batch_size: Samples of a batch on each rank, at least 1.
        steps_per_epoch: Batches of an epoch, at least 1. Default: ``ceil(N / (batch_size * world_size))``.
        controller: The controller to follow. Default: one with a uniform target over the classes that have samples.
        seed: Seed of the draws, at least 0.
        rank: This process's rank, in ``[0, world_size)``.
        world_size: Number of processes, at least 1. Default: 1, and a warning if several train together.
        empty_classes: If a class has a target but no samples, ``"error"`` raises, and ``"skip"`` shares its target
            out over the other classes in proportion.

    Attributes:
        labels: Class number of each sample, shape ``(N,)``, a copy, unless they are a ``numpy.memmap``; or a
            :class:`~lightning_fair.common.label_sets.LabelSets` if samples have several labels.
        class_names: Name of each class; None if the labels do not name the classes.
        label_place: Where the data set has its labels; None if bare labels were given.
        controller: The controller. Report each batch to it with ``step_update``.
        global_batch_size: Samples of a batch over all ranks.
        epoch: Number of the current epoch, from 0.
        exhausted: Whether the newest iteration has drawn all of its batches.

    Raises:
        ValueError: If there are no labels, or a label, a number or the target (see ``empty_classes``) is not valid.
        TypeError: If the labels of the data set cannot be found, or an argument is of another type.

    Example:
        >>> labels = np.array([0] * 990 + [1] * 10)
        >>> sampler = FeedbackBatchSampler(labels, batch_size=8, steps_per_epoch=2)
        >>> [np.bincount(labels[batch]).tolist() for batch in sampler]
        [[4, 4], [4, 4]]
    """

    def __init__(
        self,
        labels: Any,
        batch_size: int,
        steps_per_epoch: int | None = None,
        controller: FeedbackController | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int | None = None,
        empty_classes: EmptyClasses = "error",
    ) -> None:
        check_type("controller", controller, (FeedbackController, NoneType), "a FeedbackController or None")
        numbered = to_class_labels(labels, None if controller is None else controller.num_classes)
        # A copy, so that labels which are changed in place can be compared with those that are drawn from.
        self.labels = numbered.numbers.copy() if type(numbered.numbers) is np.ndarray else numbered.numbers
        self.batch_size: int = check("batch_size", batch_size)
        self.world_size: int = check("world_size", 1 if world_size is None else world_size)
        self._world_size_given, self.has_compared_ranks = world_size, False
        self.seed: int = check("seed", seed)
        self.global_batch_size = self.batch_size * self.world_size
        steps = -(-self.labels.size // self.global_batch_size) if steps_per_epoch is None else steps_per_epoch
        self.steps_per_epoch: int = check("steps_per_epoch", steps)
        self.rank: int = check("rank", rank)
        if self.rank >= self.world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {rank} for {self.world_size} ranks.")
        controller = default_controller(self.labels) if controller is None else controller
        check_fit(self.labels, controller)
        controller.bind_batch(self.global_batch_size, self.steps_per_epoch)
        self.controller, self.label_place, names, K = controller, numbered.place, numbered.names, controller.num_classes
        self.class_names = None if names is None else (*names, *map(str, range(len(names), K)))[:K]
        self._pools = ClassPools(self.labels, controller.num_classes, self.seed)
        self._randomness = DrawRandomness(self.seed, controller.num_classes, self.batch_size)
        # The global batch is ordered by class, so a stride gives each rank about the same class counts.
        self._rank_slice = slice(self.rank, None, self.world_size)
        empty_classes = check("empty_classes", empty_classes)
        skip_empty_classes(controller, self.class_counts, empty_classes, self.class_names, self.label_place)
        self._sample_weights: SampleWeights | None = None
        if isinstance(self.labels, LabelSets):
            self._sample_weights = SampleWeights.of(self.labels, is_prior=controller.objective.is_prior)
        self._withdrawn: deque[Draw] = deque()  # in the order of their numbers; they are drawn again first
        self._drawn: Ints = np.zeros_like(self.class_counts)  # places of each class, including the withdrawn draws
        self._label_counts: Ints = self._drawn  # of the samples in them; the same if each sample has one label
        self.epoch, self.exhausted = 0, False
        self._num_drawn = 0  # batches of this epoch that were drawn, without those that were withdrawn
        self._has_begun = False  # whether this epoch has been iterated over
        self._keeps_in_flight = False  # whether the next iteration leaves draws in flight

    @property
    def class_counts(self) -> Ints:
        """Samples of each class in the data, int64, shape ``(K,)``."""
        return self._pools.sizes

    @property
    def drawn(self) -> Ints:
        """Samples of each class drawn so far over all ranks, including those in flight, int64, shape ``(K,)``."""
        return self._label_counts - sum(draw.counts for draw in self._withdrawn)

    @property
    def trained(self) -> Ints:
        """Samples of each class drawn so far and no longer in flight, int64, shape ``(K,)``."""
        return self.drawn - sum(draw.counts for draw in self.controller.in_flight)

    @property
    def prior(self) -> Floats:
        """Class mix of the data, of all labels if samples have several, shape ``(K,)``."""
        return np.asarray(self.class_counts / self.class_counts.sum())

    @property
    def arriving(self) -> None:
        """None: only a stream has a class mix that arrives."""

    @property
    def coverage(self) -> float:
        """Fraction of the data set that was in a batch at least once, without those in flight, in [0, 1].

        If samples have several labels, this is its expectation, given the draws of each class.
        """
        if not isinstance(self.labels, LabelSets):
            return float(np.minimum(self.trained, self.class_counts).sum() / self.labels.size)
        waiting, K = (*self._withdrawn, *self.controller.in_flight), self.controller.num_classes
        places = self._drawn - sum(self._draw_counts(x.draw_id, x.probs)[0].to_dense(K) for x in waiting)
        return self.labels.expected_coverage(places)

    @property
    def repeats(self) -> Floats:
        """Mean number of uses of a sample of each class, without those in flight, shape ``(K,)``; NaN if empty."""
        sizes = self.class_counts
        return np.asarray(np.divide(self.trained, sizes, out=np.full(sizes.size, np.nan), where=sizes > 0))

    def sample_weights(self, labels: Any) -> torch.Tensor:
        """Return the weights of the current batch, whose samples have several labels, float32, shape ``(batch,)``.

        The current batch is the oldest that was not reported. A loss that is their product with the losses, on average,
        stands for the controller's reference, see :class:`~lightning_fair.control.label_draws.SampleWeights`.

        Args:
            labels: Whether each sample has each label, zeros and ones, shape ``(batch, K)``, or without the last class
                if that is the one of samples without a label.

        Raises:
            RuntimeError: If samples have one label each, which :func:`~lightning_fair.importance_weights` is for, or no
                batch is in flight.
            ValueError: If the labels are no such rows.
        """
        draw, kind = self.controller.oldest, self.controller.label_kind
        if self._sample_weights is None or kind is None or draw is None:
            reason = "no batch was drawn that is not reported yet"
            if kind is None:
                reason = "the samples have one label each: use importance_weights"
            raise RuntimeError(f"sample_weights has no weights, because {reason}.")
        sets = LabelSets.from_matrix(label_rows(labels, kind))
        weights = self._sample_weights.weigh(sets, draw.probs, draw.reference)
        return torch.from_numpy(np.minimum(weights, self.controller.max_weight)).float()

    def weights_at(self, probs: Floats) -> Floats:
        """Return the weight of each sample in draws with this class mix, if samples have several labels."""
        assert self._sample_weights is not None
        return self._sample_weights.weigh(self.labels, probs, self.controller.reference)

    @property
    def _position(self) -> int:
        """Number of batches of this epoch that were reported; 0 until those of an earlier iteration were."""
        return max(self._num_drawn - len(self.controller.in_flight), 0)

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Iterate over the indices of the epoch's batches; after a resume, of those that are left."""
        return (indices for _, indices in self.iter_with_ids())

    def iter_with_ids(self) -> Iterator[tuple[int, list[int]]]:
        """Iterate over the same batches, each with the number of its draw."""
        if not self._keeps_in_flight:  # they are of an abandoned iteration
            self._num_drawn = self._position
            self.controller.forget_in_flight()
        if self._has_begun or self._num_drawn >= self.steps_per_epoch:
            self.end_epoch()
        self._has_begun, self._keeps_in_flight, self.exhausted = True, False, False
        if not self.has_compared_ranks:
            self.has_compared_ranks = check_ranks(self.rank, self._world_size_given, self.rank_facts)
        self.controller.epoch = self.epoch
        for _ in range(self.steps_per_epoch - self._num_drawn):
            draw = self._next_draw()
            yield draw.draw_id, draw.indices
        self.exhausted = True

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next iteration's epoch. Schedules by epoch follow it, the draws do not."""
        if check("epoch", epoch) != self.epoch:
            self.end_epoch()
        self.epoch, self._has_begun = int(epoch), False

    def deliver(self, draw_id: int | None = None) -> BatchDraw:
        """Return the draw of the batch that the loader delivers, by default the oldest one not delivered yet."""
        draws = self._undelivered() if draw_id is None else [x for x in self._in_flight() if x.draw_id == draw_id]
        if not draws:
            raise RuntimeError("The loader delivered a batch that was not drawn, or one batch twice; each comes once.")
        draws[-1].is_delivered = True
        return draws[-1]

    @property
    def num_undelivered(self) -> int:
        """Number of draws in flight that have not been delivered."""
        return len(self._undelivered())

    def _undelivered(self) -> list[BatchDraw]:
        """Return the newest draws, newest first, up to the first that has been delivered."""
        return list(takewhile(lambda draw: not draw.is_delivered, self._in_flight()))

    def _in_flight(self) -> Iterator[BatchDraw]:
        return (draw for draw in reversed(self.controller.in_flight) if isinstance(draw, BatchDraw))

    def _next_draw(self) -> BatchDraw:
        self._num_drawn += 1
        if not self._withdrawn:
            draw = self._draw(self.controller.plan_draw())
            self.controller.record_draw(draw)
            return draw
        old, newest = self._withdrawn.popleft(), (self._drawn, self._label_counts)
        self._move_to(old.drawn_before, self._label_counts)
        draw = self._draw(old)
        self._move_to(*newest)
        self.controller.record_draw(draw, redrawn=True)
        return draw

    def _move_to(self, drawn: Ints, label_counts: Ints) -> None:
        self._pools.drawn = self._drawn = drawn
        self._label_counts = label_counts

    def _draw(self, plan: Draw) -> BatchDraw:
        split, shuffle = self._draw_counts(plan.draw_id, plan.probs)
        drawn_before, counts = self._drawn, split.to_dense(plan.probs.size)
        self._drawn = drawn_before + counts  # a new array: each draw keeps the old one, to be made again
        items = self._pools.draw(split)
        label_sets = self.labels.take(items) if isinstance(self.labels, LabelSets) else None
        counts = counts if label_sets is None else label_sets.counts
        self._label_counts = self._label_counts + counts
        record = plan.draw_id, plan.probs, counts, plan.trained_mix, plan.alpha, plan.reference
        of_rank = items[self._rank_slice].take(shuffle).tolist(), self._rank_slice, shuffle
        draw = BatchDraw(*record, *of_rank, progress=plan.progress, drawn_before=drawn_before, split=split)
        draw.label_sets, draw.sample_weights = label_sets, self._sample_weights
        return draw

    def _draw_counts(self, draw_id: int, probs: Floats) -> tuple[ClassCounts, Ints]:
        """Return the class counts of the batch of all ranks, and a shuffle of this rank's batch."""
        order, start, shuffle = self._randomness(draw_id)
        return systematic_counts(probs, self.global_batch_size, order, start), shuffle

    def report(
        self,
        draw: BatchDraw,
        counts: NDArray[Any] | None = None,
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
    ) -> None:
        """Report that a batch has been trained on, by default as drawn; see :meth:`FeedbackController.report`."""
        self.controller.report(draw.counts if counts is None else counts, loss_sums, loss_counts, draw=draw)

    def clip_counts(self, counts: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Return class counts of the samples that were trained on, shape ``(K,)``, at most those that were drawn."""
        return np.asarray(np.minimum(counts, draw.counts)) if counts.sum() > draw.counts.sum() else counts

    def end_epoch(self) -> None:
        """End the epoch, whether or not all of its batches were used."""
        self.epoch, self._num_drawn, self._has_begun = self.epoch + 1, 0, False

    def abandon_epoch(self) -> None:
        """End an epoch that was cut off in the middle: the next iteration begins a new one."""
        if self._position:
            self.end_epoch()

    def reset(self) -> None:
        """Forget all draws and the state of the controller; the settings stay."""
        self.controller.reset()
        self._move_to(*np.zeros((2, self.controller.num_classes), np.int64))
        self._withdrawn.clear()
        self.epoch, self._num_drawn, self._has_begun = 0, 0, False

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:  # noqa: ARG002
        """Withdraw the draws in flight, except delivered ones to keep, and end the epoch unless within it."""
        self.withdraw(undelivered_only=within_epoch and keep_delivered)
        if not within_epoch:
            self.abandon_epoch()
        elif self._num_drawn >= self.steps_per_epoch:
            self._num_drawn = 0  # another iteration within an epoch, whose length another, longer loader determines

    def withdraw(self, *, undelivered_only: bool = False) -> None:
        """Withdraw the draws in flight. The next iteration makes them first, and continues the epoch.

        They are the same, unless a schedule follows the epoch and this is another one. Those that a later draw has
        overtaken on its way to the report are the same in any case.

        With ``undelivered_only`` they stay in flight if all of them have been delivered and will be trained on.
        """
        self._has_begun = False
        if undelivered_only and not self.num_undelivered:
            self._keeps_in_flight = bool(self.controller.in_flight)
        else:
            self._num_drawn = self._position
            first, labels_before = self.controller.oldest_ahead, self._labels_before_ahead()
            draws = self.controller.withdraw()
            if isinstance(first, BatchDraw):
                self._move_to(first.drawn_before, labels_before)
            overtaken = [draw for draw in draws if draw.draw_id < self.controller.draws]
            self._withdrawn.extendleft(reversed(overtaken))

    def _labels_before_ahead(self) -> Ints:
        """Return the labels drawn before the controller's ``oldest_ahead``, int64, shape ``(K,)``."""
        first = self.controller.oldest_ahead
        ahead = [] if first is None else [x.counts for x in self.controller.in_flight if x.draw_id >= first.draw_id]
        return self._label_counts - sum(ahead)

    # Not called `state_dict`: a stateful loader would save the sampler a second time, with prefetched draws.
    def capture(self) -> dict[str, Any]:
        """Return the state as of the last batch that was reported, of tensors and plain numbers only."""
        first = self.controller.oldest_ahead
        return {
            "version": _STATE_VERSION,
            "data": dict(self._fingerprint),
            "batch_size": self.batch_size,
            "global_batch_size": self.global_batch_size,
            "epoch": self.epoch,
            "position": self._position,
            "drawn": torch.from_numpy((self._drawn if first is None else first.drawn_before).copy()),
            "label_counts": torch.from_numpy(self._labels_before_ahead().copy()),
            "controller": self.controller.state_dict(),
            "withdrawn": [draw.state_dict() for draw in self._withdrawn],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned. The batches that follow are those that would have followed.

        The number of ranks may differ. If the global batch size is the same, so are the batches. If only the batch
        size of each rank is the same, new draws replace those that were in flight.

        Raises:
            ValueError: If it was captured with other data, batch size, seed or version, or has a value that no state
                can have. Nothing is changed then.
        """
        self.check_state(state)
        self.controller.load_state_dict(state["controller"])
        self.epoch, self._has_begun = state["epoch"], False
        arrays = to_arrays(state)
        self._move_to(arrays["drawn"], arrays["label_counts"])
        self._withdrawn = deque([*self.controller.withdraw(), *map(Draw.from_state_dict, state["withdrawn"])])
        if state["global_batch_size"] != self.global_batch_size:
            self._withdrawn.clear()
        self._num_drawn = state["position"]

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a state that ``restore`` would refuse."""
        check_version("sampler", state, _STATE_VERSION)
        check_sampler_state(state, self._fingerprint, self.batch_size, self.global_batch_size, self.controller)

    def rank_facts(self) -> dict[str, Any]:
        """See :class:`~lightning_fair.control.draw_source.DrawSource`."""
        # The causes first: the error names the first ones only.
        steps = {"steps_per_epoch": self.steps_per_epoch, "epoch": self.epoch, "version of NumPy": np.__version__}
        sizes = {"batch_size": self.batch_size, **self._fingerprint, **steps}
        return {**sizes, "samples trained on": describe(self.trained), **controller_facts(self.controller)}

    @cached_property  # not computed before it is used: the labels can be a large memory map
    def _fingerprint(self) -> dict[str, Any]:
        sizes = {"number of samples": self.labels.size, "number of classes": self.controller.num_classes}
        return {**sizes, "labels' checksum": labels_checksum(self.labels), "seed": self.seed}
