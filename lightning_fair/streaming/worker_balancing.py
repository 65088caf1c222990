"""What the workers of a stream tell each other: one draws what another's shard lacks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_fair.common.arrays import Floats

_MOST_ROWS, _MOST_NUMBERS = 64, 2**20  # of the table: workers, and numbers in all
_STAMP, _ANY, _VECTORS = 0, 1, 2  # places in a row of it
# Of the draws of late, the part with too little of a class: up to here there is enough, and from there on it lacks.
# Between them nothing is said, so that workers whose shards change together do not act on who saw it first.
_ENOUGH, _LACKS = 0.25, 0.5
_MORE = 1.05  # so many times its target of a class, or its target over that, and not rounding, is another share
_EVERY = 4  # draws: the shares move by the horizon, and to work out what follows takes as long as a draw
# A class of which less than this part of its target is left to draw is left to the others: at such a p its weight,
# q / p, would be large.
_LEAST_PART = 1 / 16
_ROUNDS, _NEAR_ENOUGH, _LITTLE = 24, 1e-3, 1e-9


class WorkerTarget(NamedTuple):
    """What a worker draws where it makes up for others, or they for it.

    Attributes:
        goal: The mix it asks its buffers for, shape ``(K,)``.
        part: What it is to draw of each class over the target's share of it, shape ``(K,)``. Over the workers that is
            one on average, so with ``w = part[y] * q[y] / p[y]`` their losses together stand for ``q``.
    """

    goal: Floats
    part: Floats


class WorkerBalancing:
    """What the workers of one iteration tell each other, so that one draws what another's shard lacks.

    A table in shared memory with a row for each worker, which alone writes it. While no worker lacks a class that
    another could draw more of, nothing follows from it, and no draw depends on when another was made.

    Args:
        table: As ``table_for`` makes it.
        place: Number of this worker.
        places: Number of workers.
        stamp: Number of the iteration, the same for its workers, not 0: rows of another do not count.
        horizon: Memory in draws of each worker.
    """

    def __init__(self, table: Floats, place: int, places: int, stamp: float, horizon: float) -> None:
        self._table, self._place, self._stamp, self._horizon = table[:places], place, stamp, horizon
        K = (table.shape[1] - _VECTORS) // 3
        self._there, self._shortage, self._supply = (slice(_VECTORS + i * K, _VECTORS + (i + 1) * K) for i in range(3))
        self._draws = 0
        self._short: Floats = np.zeros(K)  # part of the draws, of late, for which there was too little
        self._lacks = np.zeros(K, dtype=bool)
        self._mix: Floats = np.zeros(K)
        self._aim: WorkerTarget | None = None
        self._table[place, _STAMP] = 0.0  # what stands there is of an earlier iteration

    @staticmethod
    def table_for(num_classes: int) -> tuple[int, int]:
        """Return the shape of a table, float64, all zero at first. Workers beyond its rows draw for themselves."""
        width = _VECTORS + 3 * num_classes
        return min(_MOST_ROWS, _MOST_NUMBERS // width), width

    @property
    def first(self) -> bool:
        """Whether none before this worker is at work."""
        return not (self._table[: self._place, _STAMP] == self._stamp).any()

    def leave(self) -> None:
        """Count no more: the shard has come to its end."""
        if self._table[self._place, _STAMP] == self._stamp:
            self._table[self._place, _STAMP] = 0.0

    def tell(self, left: NDArray[np.int64], size: int, goal: Floats, probs: Floats) -> NDArray[np.bool_]:
        """Note a draw of ``size``: what there was for it, the mix aimed at, and the mix drawn, shape ``(K,)`` each.

        Returns:
            Whether some worker has something of each class, shape ``(K,)``.
        """
        self._draws += 1
        rate = max(1.0 / self._horizon, 1.0 / self._draws)
        short = left < goal * size
        self._short += rate * (short - self._short)
        self._mix += rate * (probs - self._mix)
        row = self._table[self._place]
        row[self._there], row[self._supply] = left > 0, self._mix
        # Not at once: buffers that begin to fill lack this or that for a moment.
        if self._draws >= self._horizon:
            self._lacks = (self._short > _LACKS) & (self._lacks | short)
        row[self._shortage] = np.where(self._lacks, 1.0, np.minimum(self._short, _LACKS))
        row[_ANY] = self._lacks.any()
        row[_STAMP] = self._stamp
        at_work = self._table[self._table[:, _STAMP] == self._stamp]
        there: NDArray[np.bool_] = at_work[:, self._there].any(axis=0)
        return there

    def aim(self, q: Floats) -> WorkerTarget | None:
        """Return what this worker has to aim at for all to reach ``q`` together; None: ``q`` itself."""
        if self._draws % _EVERY == 0:
            self._aim = self._worked_out(q)
        return self._aim

    def _worked_out(self, q: Floats) -> WorkerTarget | None:
        at_work = self._table[:, _STAMP] == self._stamp
        if not self._table[at_work, _ANY].any() or not at_work[self._place]:
            return None
        rows = self._table[at_work]
        short, supply = rows[:, self._shortage], rows[:, self._supply]
        lacking = short > _LACKS
        in_need, can_give = lacking & (_MORE * supply < q), (short <= _ENOUGH) | (supply > _MORE * q)
        if not (in_need.any(axis=0) & can_give.any(axis=0)).any():
            return None
        own = int(at_work[: self._place].sum())
        mix, lacks = balance_mixes(q, np.where(lacking, supply, np.inf))[own], lacking[own]
        mix[~lacks & (mix < _LEAST_PART * q)] = 0.0
        part = np.divide(mix / mix.sum(), q, out=np.zeros_like(q), where=q > 0)
        mix[lacks] = np.maximum(mix, q)[lacks]  # asked for all the same: it takes what there is, and may come back
        return WorkerTarget(mix / mix.sum(), part)


def balance_mixes(q: Floats, most: Floats) -> Floats:
    """Return class mixes whose mean is ``q``, or about as near to it as can be, and which are near ``q`` each.

    Column by column what is missing, or too much, is shared alike over the mixes that can take or give some, and row by
    row what has no bound is scaled until it sums to one, a few times in turns.

    Args:
        q: Class mix, shape ``(K,)``.
        most: Largest share of each class in each mix, infinite for no bound, shape ``(P, K)``.

    Example:
        >>> balance_mixes(np.array([0.5, 0.5]), np.array([[np.inf, 0.0], [np.inf, np.inf]])).round(2)
        array([[1., 0.],
               [0., 1.]])
    """
    places, bound = len(most), np.isfinite(most)
    nobody = bound.all(axis=0)
    if nobody.any():  # what cannot be had goes to the others in proportion
        had = np.minimum(q[nobody], most[:, nobody].mean(axis=0))
        others = q[~nobody].sum()
        q = q * ((1.0 - had.sum()) / others if others > 0 else 1.0)
        q[nobody] = had
    least = _LITTLE * q  # what has no bound can still be scaled up
    mixes = _rows_of_one(np.minimum(q, most), bound)
    for _ in range(_ROUNDS):
        off = places * q - mixes.sum(axis=0)
        if np.abs(off).max() < _NEAR_ENOUGH * places / q.size:
            break
        movable = np.where(off > 0, mixes < most, mixes > 0).sum(axis=0)
        mixes = _rows_of_one(np.clip(mixes + off / np.maximum(movable, 1), least, most), bound)
    return mixes


def _rows_of_one(mixes: Floats, bound: NDArray[np.bool_]) -> Floats:
    """Scale what is not bound until a row sums to one; all of it, where nothing is free."""
    fixed = np.where(bound, mixes, 0.0).sum(axis=1, keepdims=True)
    free = mixes.sum(axis=1, keepdims=True) - fixed
    scale = np.divide(np.maximum(1.0 - fixed, 0.0), free, out=np.ones_like(free), where=free > 0)
    scaled = np.where(bound, mixes, mixes * scale)
    total = scaled.sum(axis=1, keepdims=True)
    rows: Floats = scaled / np.where(total > 0, total, 1.0)  # 0: a worker that has only what has no target
    return rows
