"""Batches of indices whose class mix a controller steers."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from lightning_fair.common.arrays import Floats, Ints
from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.common.labels import check_labels, find_labels
from lightning_fair.control.controller import FeedbackController
from lightning_fair.control.draw import Draw
from lightning_fair.sampling.class_pools import ClassPools, PoolState
from lightning_fair.sampling.systematic import Chances, systematic_counts

EmptyClasses: TypeAlias = Literal["error", "skip"]
DrawKind: TypeAlias = Literal["systematic", "iid"]

_STATE_VERSION = 3
# Draws made one after the other where the lag lets them: after a training step nothing of a draw is in the
# processor's caches, and the first takes as long as the next three.
_AT_ONCE = 4


@dataclass(eq=False)
class BatchDraw(Draw):
    """The draw of a batch of indices.

    Attributes:
        split: How the batch of all ranks is split over the classes.
        mine: Which samples of it are this rank's.
        shuffle: Their order.
        pools: Where the pools stood before the draw. It holds on to the splits of all draws after: keep no old records.
        is_delivered: Whether the batch has left the loader.
    """

    split: ClassCounts = field(kw_only=True)
    mine: slice
    shuffle: Ints
    pools: PoolState
    is_delivered: bool = False

    @cached_property
    def labels(self) -> Ints:
        """Class of each of this rank's samples, in the order of its indices, shape ``(batch,)``."""
        return self.split.labels[self.mine].take(self.shuffle)


class _Replay(NamedTuple):
    """A draw to be made once more; one that was trained on already only moves the pools on."""

    draw_id: int
    probs: Floats
    trained_mix: Floats
    alpha: float
    progress: float
    trained: bool


class FeedbackBatchSampler(Sampler[list[int]]):
    """A batch sampler whose class mix is steered by a :class:`FeedbackController`.

    Each batch takes the class mix ``p`` of the controller, splits the batch over the classes by systematic
    sampling (a class gets the floor or the ceiling of ``batch * p``, on average exactly that), and takes the
    items of each class least used first. A draw is a function of the seed, its number, ``p`` and the items
    used so far, so the same seed gives the same batches. Where the controller's lag lets it, a few draws are made
    at once; those that no batch was handed out of yet are in flight as well.

    With ``world_size`` ranks each rank makes the same draw of ``world_size * batch_size`` samples and keeps
    its own share of it.

    Args:
        labels: Class of each sample, integers, shape ``(N,)``: list, array or tensor; or a data set whose
            labels can be found without loading its samples (see :func:`~lightning_fair.common.labels.find_labels`).
        batch_size: Samples of a batch on each rank, at least 1.
        steps_per_epoch: Batches of an epoch on each rank, at least 1. Default:
            ``ceil(N / (batch_size * world_size))``.
        controller: The controller to follow. Default: one with ``max(labels) + 1`` classes, a uniform target,
            and the classes without samples left out.
        seed: Seed of the draws, at least 0.
        rank: This process's rank, in ``[0, world_size)``.
        world_size: Number of processes.
        empty_classes: What to do where a class has a target but no samples: ``"error"``, or ``"skip"``: set its
            target to zero and share it out in proportion.
        draw: ``"systematic"``, or ``"iid"`` for class counts drawn independently (multinomial): the same
            expectation with far more noise, there for comparison.

    Attributes:
        controller: The controller. Report each batch to it with ``step_update``.
        class_counts: Samples of each class in the data, int64, shape ``(K,)``.
        epoch: Number of the current epoch, from 0.
        exhausted: Whether the newest iteration has drawn all of its batches.

    Raises:
        ValueError: If the labels are empty or not integers in ``[0, K)``, a class with a target has no
            samples, or a number is out of range.
        TypeError: If a data set is given whose labels cannot be found.

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
        world_size: int = 1,
        empty_classes: EmptyClasses = "error",
        draw: DrawKind = "systematic",
    ) -> None:
        self.labels = find_labels(labels)
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("steps_per_epoch", 1 if steps_per_epoch is None else steps_per_epoch, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {rank} for {world_size} ranks.")
        if empty_classes not in ("error", "skip"):
            raise ValueError(f"empty_classes must be 'error' or 'skip', got {empty_classes!r}.")
        if draw not in ("systematic", "iid"):
            raise ValueError(f"draw must be 'systematic' or 'iid', got {draw!r}.")
        if controller is None:
            counts = np.bincount(self.labels)
            controller = FeedbackController(counts.size, (counts > 0) / np.count_nonzero(counts))
        check_labels(self.labels, controller.num_classes)
        self.controller = controller
        self.batch_size = int(batch_size)
        self.drop_last = False  # every batch is full; Lightning and others read the attribute
        self.rank, self.world_size = int(rank), int(world_size)
        self.seed = int(seed)
        self._draw_kind: DrawKind = draw
        self._pools = ClassPools(self.labels, controller.num_classes, self.seed)
        self._size = self.batch_size * self.world_size
        # A draw lies class by class, so every rank gets a like share of every class.
        self._mine = slice(self.rank, None, self.world_size)
        self._chances = Chances(self.seed, controller.num_classes, self._size, self.batch_size)
        self._checksum: int | None = None
        absent = controller.wanted & (self._pools.sizes == 0)
        if absent.any():
            if empty_classes == "error":
                named = ", ".join(map(str, np.flatnonzero(absent)[:5])) + (", ..." if absent.sum() > 5 else "")
                raise ValueError(
                    f"No samples of class {named}, but the target wants some. Set their target to 0, check "
                    'num_classes, or pass empty_classes="skip" to share their target out over the others.'
                )
            controller.skip_classes(absent)
        self.steps_per_epoch = int(steps_per_epoch or -(-self.labels.size // self.global_batch_size))
        self.epoch = 0
        self._ahead: deque[tuple[int, list[int]]] = deque()  # drawn, and not handed out yet
        self._begun = False  # this epoch has been iterated over
        self._keeping = False  # draws in flight stay so when it is
        self.exhausted = False
        self._position = 0  # batches of this epoch that have been retired
        self._replay: deque[_Replay] = deque()
        self._overtook: list[_Replay] = []  # trained on before an older one

    # -- what can be read ------------------------------------------------------------------------------

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch over all ranks."""
        return self._size

    @property
    def class_counts(self) -> Ints:
        """Samples of each class in the data, int64, shape ``(K,)``."""
        return self._pools.sizes

    @property
    def drawn(self) -> Ints:
        """Samples of each class drawn so far over all ranks, in flight or not, int64, shape ``(K,)``."""
        return self._pools.drawn

    @property
    def trained(self) -> Ints:
        """Samples of each class drawn so far and no longer in flight, int64, shape ``(K,)``."""
        trained = self.drawn
        for draw in self.controller.in_flight:
            trained = trained - draw.counts
        return trained

    @property
    def prior(self) -> Floats:
        """Class mix of the data, shape ``(K,)``."""
        prior: Floats = self.class_counts / self.labels.size
        return prior

    @property
    def arriving(self) -> None:
        """None: only a stream has a class mix that arrives."""
        return None

    @property
    def coverage(self) -> float:
        """Fraction of the data set that was in a batch at least once, those in flight left out, in [0, 1]."""
        return float(np.minimum(self.trained, self.class_counts).sum() / self.labels.size)

    @property
    def repeats(self) -> Floats:
        """How often an item of each class was in a batch, those in flight left out, on average, shape ``(K,)``.

        NaN for a class without items.
        """
        sizes = self.class_counts
        repeats: Floats = np.divide(self.trained, sizes, out=np.full(sizes.size, np.nan), where=sizes > 0)
        return repeats

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.steps_per_epoch

    # -- draws -----------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of the epoch's batches (those that are left of it, after a resume).

        Batches of an abandoned iteration that were not reported count as trained on, unless ``withdraw`` was called.
        """
        return (indices for _, indices in self.iter_with_ids())

    def iter_with_ids(self) -> Iterator[tuple[int, list[int]]]:
        """Iterate over the same batches, each with the number of its draw."""
        if not self._keeping:
            self._put_back(self.controller.withdraw(newest=len(self._ahead)))
            self.controller.withdraw()
            self._overtook.clear()
        on_their_way = len(self.controller.in_flight)
        if self._begun:
            self.end_epoch()
        elif self._position + on_their_way >= self.steps_per_epoch:
            # Once more within an epoch, that of a longer loader beside this one.
            self._position = -on_their_way
        self._begun, self._keeping, self.exhausted = True, False, False
        self.controller.epoch = self.epoch
        for left in range(self.steps_per_epoch - self._position - on_their_way, 0, -1):
            if not self._ahead:
                self._ahead.append(self._next())
                # Up to a number that depends on nothing else, so that a resumed run is as far ahead.
                while self._ahead[-1][0] % _AT_ONCE < _AT_ONCE - 1 and len(self._ahead) < left and self._may_go_on():
                    self._ahead.append(self._next())
            yield self._ahead.popleft()
        self.exhausted = True

    def _may_go_on(self) -> bool:
        """Whether one more draw made now is the one that would be made later."""
        controller = self.controller
        if any(not again.trained for again in self._replay):
            return True  # it has been made before
        if controller.feedback_delay <= _AT_ONCE or controller.by_epoch:
            return False  # the next epoch may begin early; counts are put right at once
        oldest = controller.oldest
        return oldest is None or controller.draws < oldest.draw_id + controller.feedback_delay

    def set_epoch(self, epoch: int) -> None:
        """Number the next iteration ``epoch``. Schedules by epoch follow it; the draws do not."""
        if epoch != self.epoch:
            self._position = 0
        self.epoch, self._begun = int(epoch), False

    def deliver(self, draw_id: int | None = None) -> BatchDraw:
        """Return the record of the batch delivered now.

        Args:
            draw_id: Number of its draw. None: the oldest in flight that was not asked for yet.

        Raises:
            RuntimeError: If no such batch is in flight.
        """
        waiting = self._undelivered() if draw_id is None else self._numbered(draw_id)
        if not waiting:
            raise RuntimeError("The loader hands out more batches than were drawn: each must come out once.")
        waiting[-1].is_delivered = True
        return waiting[-1]

    @property
    def num_undelivered(self) -> int:
        """Batches handed out whose record nobody has asked for yet."""
        return len(self._undelivered()) - len(self._ahead)

    def _undelivered(self) -> list[BatchDraw]:
        """The newest first: behind the first that was delivered, all were."""
        waiting = []
        for draw in self.controller.newest_first():
            if not isinstance(draw, BatchDraw) or draw.is_delivered:
                break
            waiting.append(draw)
        return waiting

    def _numbered(self, draw_id: int) -> list[BatchDraw]:
        return [d for d in self.controller.newest_first() if isinstance(d, BatchDraw) and d.draw_id == draw_id]

    def _next(self) -> tuple[int, list[int]]:
        while self._replay:
            again = self._replay.popleft()
            draw, indices = self._make(again.draw_id, again.probs, again.trained_mix, again.alpha, again.progress)
            if not again.trained:
                self.controller.record_draw(draw, redrawn=True)
                return draw.draw_id, indices
            self._overtook.append(again)
            self._forget_overtakers()
        controller = self.controller
        probs, draw_id = controller.next_probs(), controller.draws
        alpha = controller.alpha(draw_id, controller.epoch)
        draw, indices = self._make(draw_id, probs, controller.trained_mix, alpha, controller.progress)
        controller.record_draw(draw)
        return draw_id, indices

    def _make(
        self, draw_id: int, probs: Floats, trained_mix: Floats, alpha: float, progress: float
    ) -> tuple[BatchDraw, list[int]]:
        before = self._pools.state
        split, indices, shuffle = self._draw(draw_id, probs)
        counts = split.to_dense(probs.size)
        mine = self._mine, shuffle, before
        return BatchDraw(
            draw_id, probs, counts, trained_mix, alpha, *mine, progress=progress, split=split
        ), indices.tolist()

    def _draw(self, draw_id: int, probs: Floats) -> tuple[ClassCounts, NDArray[Any], Ints]:
        """Return how the batch of all ranks is split, this rank's indices, and the shuffle they are in."""
        order, start, shuffle = self._chances(draw_id)
        if self._draw_kind == "systematic":
            split = systematic_counts(probs, self._size, order, start)
        else:
            counts = np.random.default_rng([self.seed, draw_id]).multinomial(self._size, probs)
            split = ClassCounts.of(np.arange(probs.size).repeat(counts))
        return split, self._pools.draw(split)[self._mine].take(shuffle), shuffle

    # -- what became of the draws: the callback's side ----------------------------------------------------

    def report(
        self,
        draw: BatchDraw,
        counts: NDArray[Any] | None = None,
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
    ) -> None:
        """Report that a batch has been trained on; see :meth:`FeedbackController.commit`.

        Args:
            draw: The batch's record.
            counts: Samples of each class that were trained on, over all ranks. Default: as drawn.
            loss_sums: Sum of the finite losses of each class.
            loss_counts: Number of finite losses of each class.
        """
        self._position += 1
        self.controller.report(draw.counts if counts is None else counts, loss_sums, loss_counts, draw=draw)
        oldest = self.controller.oldest
        if self._overtook or (oldest is not None and oldest.draw_id < draw.draw_id):
            self._overtook.append(_replay(draw, trained=True))
            self._forget_overtakers()

    def _forget_overtakers(self) -> None:
        """Keep the draws that were trained on while an older one is in flight: a replay has to pass them."""
        if self._overtook:
            in_flight, again = self.controller.in_flight, self._replay
            oldest = in_flight[0].draw_id if in_flight else again[0].draw_id if again else math.inf
            self._overtook = [draw for draw in self._overtook if draw.draw_id > oldest]

    def end_epoch(self) -> None:
        """Say that the epoch is over, even where not all of its batches were used."""
        self.epoch += 1
        self._position, self._begun = 0, False

    def reset(self) -> None:
        """Forget every draw, and what the controller has seen; the settings stay."""
        self.controller.reset()
        self._pools.state = PoolState.of(np.zeros_like(self.class_counts), {})
        self._ahead.clear()
        self._replay.clear()
        self._overtook.clear()
        self.epoch, self._position, self._begun = 0, 0, False

    def abandon_epoch(self) -> None:
        """Give up an epoch that was cut off in the middle: the next iteration begins a new one."""
        if self._position:
            self.end_epoch()

    def start_iteration(self, epoch: int, *, within_epoch: bool, keep_delivered: bool) -> None:  # noqa: ARG002
        """Prepare the next iteration: withdraw what was not trained on, and begin an epoch unless it goes on.

        Args:
            epoch: Number of the Trainer's epoch. The sampler counts its own epochs.
            within_epoch: The iteration goes on with an epoch that has begun.
            keep_delivered: Batches that were delivered will still be trained on; leave them in flight.
        """
        self.withdraw(undelivered_only=within_epoch and keep_delivered)
        if not within_epoch:
            self.abandon_epoch()

    def clip_counts(self, counts: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Return class counts of the samples that were trained on, shape ``(K,)``, at most those that were drawn."""
        clipped: NDArray[Any] = np.minimum(counts, draw.counts) if counts.sum() > draw.counts.sum() else counts
        return clipped

    def withdraw(self, *, undelivered_only: bool = False) -> None:
        """Put the draws that were not trained on back: the next iteration hands them out first, as drawn.

        That iteration goes on with the epoch, unless ``end_epoch`` is called.

        Args:
            undelivered_only: Leave all draws in flight that have been delivered, and will still be trained on; none
                else has been handed out where an iteration has come to its end.
        """
        self._begun = False
        if undelivered_only and not self.num_undelivered:
            self._put_back(self.controller.withdraw(newest=len(self._ahead)))
            self._keeping = bool(self.controller.in_flight)
            return
        self._put_back(self.controller.withdraw())

    def _put_back(self, draws: list[Draw]) -> None:
        """Make these draws, the newest of all, once more before any other."""
        self._ahead.clear()
        if not draws:
            return
        first = draws[0]
        if isinstance(first, BatchDraw):
            self._pools.state = first.pools
        again = [_replay(draw, trained=False) for draw in draws]
        passed = [item for item in self._overtook if item.draw_id > first.draw_id]
        self._replay.extendleft(sorted(again + passed, reverse=True, key=lambda item: item.draw_id))
        self._overtook.clear()

    # -- checkpoints -----------------------------------------------------------------------------------

    # Not called `state_dict`: a stateful loader would save and restore it a second time, as of the draw.

    def capture(self) -> dict[str, Any]:
        """Return the state as of the last batch given to ``report``: O(K), tensors and plain numbers only."""
        in_flight = self.controller.in_flight
        pools = in_flight[0].pools if in_flight and isinstance(in_flight[0], BatchDraw) else self._pools.state
        return {
            "version": _STATE_VERSION,
            "data": self._fingerprint(),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "epoch": self.epoch,
            "position": self._position,
            "taken": torch.from_numpy(pools.taken),
            "owed": {int(label): torch.from_numpy(items.copy()) for label, items in pools.owed.items()},
            "controller": self.controller.state_dict(),
            "overtook": [_as_tensors(item) for item in self._overtook],
            "replay": [_as_tensors(item) for item in self._replay],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``capture`` returned: what follows is what would have followed there.

        Raises:
            ValueError: If it was captured with other data, another batch size, seed or version. Nothing is
                changed then. The number of ranks may differ: with the batch size of all ranks together the
                same, what follows is exact; with that of each rank the same, what was in flight is drawn anew.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"This sampler reads state version {_STATE_VERSION}, got {state.get('version')!r}. "
                "Resume with the version of lightning-fair that wrote the checkpoint."
            )
        mine, theirs = self._fingerprint(), dict(state["data"])
        batch_size, world_size = int(state["batch_size"]), int(state["world_size"])
        same_draws = batch_size * world_size == self.global_batch_size
        if not same_draws and batch_size != self.batch_size:
            theirs["batch size"], mine["batch size"] = batch_size, self.batch_size
        for name, value in theirs.items():
            if value != mine[name]:
                raise ValueError(
                    f"The checkpoint was made with {name} = {value}, this run has {mine[name]}. "
                    "Resume with the same data set and settings, or start anew without the checkpoint."
                )
        self.controller.load_state_dict(state["controller"])
        self.epoch, self._position = int(state["epoch"]), int(state["position"])
        self._pools.state = PoolState.of(
            state["taken"].numpy(), {label: items.numpy() for label, items in state["owed"].items()}
        )
        self._overtook = [_from_tensors(item) for item in state["overtook"]]
        self._replay = deque(_from_tensors(item) for item in state["replay"])
        self.withdraw()
        if not same_draws and self._replay:
            # Another number of ranks: what was in flight had another size, and is drawn anew.
            first = self._replay[0]
            self.controller.rewind(first.draw_id, first.trained_mix, first.progress)
            self._replay.clear()

    def _fingerprint(self) -> dict[str, Any]:
        if self._checksum is None:  # not before it is needed: the labels may be many, and on disk
            self._checksum = 0
            for first in range(0, self.labels.size, 2**20):
                part = np.ascontiguousarray(self.labels[first : first + 2**20], dtype=np.int64)
                self._checksum = zlib.crc32(part.data, self._checksum)
        return {
            "number of samples": int(self.labels.size),
            "number of classes": self.controller.num_classes,
            "labels' checksum": self._checksum,
            "seed": self.seed,
            "draw": self._draw_kind,
        }


def _replay(draw: Draw, *, trained: bool) -> _Replay:
    return _Replay(draw.draw_id, draw.probs, draw.trained_mix, draw.alpha, draw.progress, trained)


def _as_tensors(item: _Replay) -> dict[str, Any]:
    return {**item._asdict(), "probs": torch.from_numpy(item.probs), "trained_mix": torch.from_numpy(item.trained_mix)}


def _from_tensors(item: Mapping[str, Any]) -> _Replay:
    return _Replay(**{**item, "probs": item["probs"].numpy(), "trained_mix": item["trained_mix"].numpy()})
