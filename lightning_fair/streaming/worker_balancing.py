"""Balancing between the workers of a stream: one worker draws the classes that another worker's shard lacks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats, Ints

_MAX_WORKERS, _MAX_TABLE_SIZE = 64, 2**20  # rows of the table, and numbers in it
_ITERATION, _HEADER = 0, 1  # the first column of the table, and how many come before the vectors
# Fraction of recent draws with too few samples of a class: up to _AMPLE the worker can supply more, above _SHORT it is
# short. Between them neither holds, so that workers whose shards change together do not act on who noticed first.
_AMPLE, _SHORT = 0.25, 0.5
_MARGIN = 1.05  # a share differs from the target, rounding aside, if it is off by more than this factor
_INTERVAL = 4  # draws between two computations of a mix, which takes as long as a draw; shares change more slowly
# A worker leaves a class to the others if it would draw less than this fraction of the target: with such a small p the
# weight q / p would be large.
_SMALLEST_FRACTION = 1 / 16
_ROUNDS, _TOLERANCE, _POSITIVE = 24, 1e-3, 1e-9  # of balance_mixes


class WorkerTarget(NamedTuple):
    """The target of one worker while the workers balance each other.

    Attributes:
        mix: Class mix that the worker steers to, shape ``(K,)``.
        weight_scale: The worker's share of each class relative to the target's, shape ``(K,)``. Its mean over the
            workers is one, so with ``w = weight_scale[y] * reference[y] / p[y]`` their losses together represent the
            reference.
    """

    mix: Floats
    weight_scale: Floats


class WorkerBalancing:
    """Shares with the other workers of an iteration which classes each is short of, and how much each can draw.

    The workers share a table in shared memory. Each worker writes one row, and reads all of them. As long as no worker
    is short of a class that another could supply, balancing is off, and no draw depends on the other workers.

    Args:
        table: Shared float64 array of the shape that ``table_shape`` returns, initially zero.
        worker: Number of this worker.
        num_workers: Number of workers.
        iteration: Number of the iteration, not 0, the same for all of its workers. Rows of others are ignored.
        horizon: Memory of each worker's controller, in draws.
    """

    def __init__(self, table: Floats, worker: int, num_workers: int, iteration: float, horizon: float) -> None:
        self._table, self._worker, self._iteration = table[:num_workers], worker, iteration
        self._horizon = horizon
        K = (table.shape[1] - _HEADER) // 3
        # Columns: whether the class is available, how often the worker is short of it, and the mix it draws.
        columns = [slice(_HEADER + i * K, _HEADER + (i + 1) * K) for i in range(3)]
        self._available, self._shortage, self._supply = columns
        self._draws = 0
        self._short_rate: Floats = np.zeros(K)
        self._is_short = np.zeros(K, dtype=bool)
        self._mix: Floats = np.zeros(K)
        self._target: WorkerTarget | None = None
        self._table[worker, _ITERATION] = 0.0  # the row is of an earlier iteration

    @staticmethod
    def table_shape(num_classes: int) -> tuple[int, int]:
        """Return the shape of the table. If there are more workers than rows, each draws for itself."""
        width = _HEADER + 3 * num_classes
        return min(_MAX_WORKERS, _MAX_TABLE_SIZE // width), width

    @property
    def is_first(self) -> bool:
        """Whether no worker with a smaller number is active."""
        return not self._active[: self._worker].any()

    @property
    def _active(self) -> NDArray[np.bool_]:
        return np.asarray(self._table[:, _ITERATION] == self._iteration)

    def leave(self) -> None:
        """Stop taking part: the worker's shard has ended."""
        if self._active[self._worker]:
            self._table[self._worker, _ITERATION] = 0.0

    def publish(self, stock: Ints, size: int, target: Floats, probs: Floats) -> NDArray[np.bool_]:
        """Publish a draw, and return whether some worker has a sample of each class.

        The worker had ``stock`` samples of each class, steered to the mix ``target``, and drew ``size`` by ``probs``.
        """
        self._draws += 1
        rate = max(1.0 / self._horizon, 1.0 / self._draws)
        short = stock < target * size
        self._short_rate += rate * (short - self._short_rate)
        self._mix += rate * (probs - self._mix)
        if self._draws >= self._horizon:  # before that the buffers are still filling
            self._is_short = (self._short_rate > _SHORT) & (self._is_short | short)
        row = self._table[self._worker]
        row[self._available], row[self._supply] = stock > 0, self._mix
        row[self._shortage] = np.where(self._is_short, 1.0, np.minimum(self._short_rate, _SHORT))
        row[_ITERATION] = self._iteration
        return np.asarray(self._table[self._active, self._available].any(axis=0))

    def target_mix(self, q: Floats) -> WorkerTarget | None:
        """Return the target of this worker such that all workers together reach ``q``; None if it is ``q`` itself."""
        if self._draws % _INTERVAL == 0:
            self._target = self._compute_target(q)
        return self._target

    def _compute_target(self, q: Floats) -> WorkerTarget | None:
        active = self._active
        shortage, supply = self._table[active, self._shortage], self._table[active, self._supply]
        short = shortage > _SHORT
        if not active[self._worker] or not short.any():
            return None
        needs = short & (_MARGIN * supply < q)
        can_supply = (shortage <= _AMPLE) | (supply > _MARGIN * q)
        if not (needs.any(axis=0) & can_supply.any(axis=0)).any():
            return None
        own = int(active[: self._worker].sum())
        mix, short_of = balance_mixes(q, np.where(short, supply, np.inf))[own], short[own]
        mix[~short_of & (mix < _SMALLEST_FRACTION * q)] = 0.0
        weight_scale = np.divide(mix / mix.sum(), q, out=np.zeros_like(q), where=q > 0)
        # The worker keeps asking for the classes it is short of, so it notices when they come back.
        mix[short_of] = np.maximum(mix, q)[short_of]
        return WorkerTarget(mix / mix.sum(), weight_scale)


def balance_mixes(q: Floats, caps: Floats) -> Floats:
    """Return one class mix a worker, each near ``q``, whose mean is ``q`` as nearly as the caps allow.

    Alternates between two steps: each column's deviation from the target is shared equally among the mixes that can
    change, and each row's entries without a cap are scaled until the row sums to one.

    Args:
        q: Class mix, shape ``(K,)``.
        caps: Largest share of each class in each worker's mix, infinite for no cap, shape ``(num_workers, K)``.

    Returns:
        The mixes, shape ``(num_workers, K)``.

    Example:
        >>> balance_mixes(np.array([0.5, 0.5]), np.array([[np.inf, 0.0], [np.inf, np.inf]])).round(2)
        array([[1., 0.],
               [0., 1.]])
    """
    num_workers, capped = len(caps), np.isfinite(caps)
    q = _reachable(q, caps, np.asarray(capped.all(axis=0)))
    smallest = _POSITIVE * q  # an entry of zero could not be scaled up
    mixes = _normalize_rows(np.minimum(q, caps), capped)
    for _ in range(_ROUNDS):
        deviation = num_workers * q - mixes.sum(axis=0)
        if np.abs(deviation).max() < _TOLERANCE * num_workers / q.size:
            break
        movable = np.where(deviation > 0, mixes < caps, mixes > 0).sum(axis=0)
        moved = mixes + deviation / np.maximum(movable, 1)
        mixes = _normalize_rows(np.clip(moved, smallest, caps), capped)
    return mixes


def _reachable(q: Floats, caps: Floats, capped: NDArray[np.bool_]) -> Floats:
    """Lower classes that every worker caps to the largest share that the caps allow; the others get the rest."""
    limited = np.minimum(q[capped], caps[:, capped].mean(axis=0))
    others = q[~capped].sum()
    reachable = q * ((1.0 - limited.sum()) / others if others > 0 else 1.0)
    reachable[capped] = limited
    return reachable


def _normalize_rows(mixes: Floats, capped: NDArray[np.bool_]) -> Floats:
    """Scale the entries without a cap until each row sums to one; scale all entries of a row if every one has a cap."""
    fixed = np.where(capped, mixes, 0.0).sum(axis=1, keepdims=True)
    free = mixes.sum(axis=1, keepdims=True) - fixed
    scale = np.divide(np.maximum(1.0 - fixed, 0.0), free, out=np.ones_like(free), where=free > 0)
    scaled = np.where(capped, mixes, mixes * scale)
    total = scaled.sum(axis=1, keepdims=True)
    return np.asarray(scaled / np.where(total > 0, total, 1.0))  # 0: the worker only has classes without a target
