"""The control law: what was trained on goes in, the class mix of the next batch comes out."""

from __future__ import annotations

import math
import warnings
from bisect import insort
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats, to_numpy
from lightning_fair.common.class_counts import ClassCounts
from lightning_fair.common.class_mix import apply_floor
from lightning_fair.common.labels import check_labels
from lightning_fair.control.draw import Draw
from lightning_fair.control.target import Target, resolve_target
from lightning_fair.schedules import Schedule, Shift, as_schedule

Deficit: TypeAlias = Literal["relative", "count"]

_STATE_VERSION = 1
# Standardised losses are clipped, so that one outlier among many classes cannot raise the loop's gain without
# bound. Clipping moves their mean by at most 1 / 3: sum(q * |z|, where |z| > c) <= sum(q * z**2) / c.
_LARGEST_Z = 3.0
_LEAST_Q = 1e-300  # the gain over it is a number
_LARGEST_LOGIT = 500.0  # up to here, the sum of the exponentials of many classes is a number
# The default horizon expects every class this often within it, at a batch of this size.
_EXPECTED, _NOMINAL_BATCH, _SHORTEST_HORIZON, _LONGEST_HORIZON = 24, 64, 16, 10_000
# A plain loop that never reports would otherwise keep the record of every batch it ever drew: beyond this many
# (fewer where there are many classes) the oldest counts as trained on.
_MOST_IN_FLIGHT, _LEAST_IN_FLIGHT, _IN_FLIGHT_BYTES = 4096, 512, 2**26


@dataclass
class _Feedback:
    draw_id: int
    correction: Floats | None  # (seen mix - drawn mix), to be put right in the trained mix
    losses: Floats | None  # mean loss per class, NaN where a class had none


class FeedbackController:
    r"""Steers the class mix of the batches to a target by negative feedback.

    The law, with ``r`` the exponentially weighted class mix of what was trained on::

        deficit_i = 1 - r_i / q_i
        p         = softmax(log q + alpha * (lambda1 * deficit + lambda2 * e)),  mixed with a floor min_prob
        r        <- (1 - 1/horizon) * r + (1/horizon) * counts / sum(counts)     after each batch
        e        <- (1 - 1/horizon) * e + (1/horizon) * z

    ``z`` is the exponentially weighted mean loss of each class, standardised over the classes that have
    been seen (mean 0 and deviation 1 under ``q``, clipped at 3). Its memory ``e`` is that of ``r``, so the deficit
    keeps pace and ``p / q`` answers a change of ``z`` by about ``lambda2 * z``; taken as it comes, the answer would
    be ``exp(alpha * lambda2 * z)``.

    For a uniform target ``log q`` is a constant and drops out. The deficit is a fraction of a class's quota,
    so ``alpha`` means the same for every number of classes, batch size and target: near the target each
    deficit shrinks by the factor ``1 - (1 + alpha * lambda1) / horizon`` per batch.

    Batches that are drawn but not yet trained on count as trained on (their labels are known), so a loader
    that runs ahead adds no delay to the loop. If a batch turns out different (samples filtered out, a
    skipped step), ``step_update`` puts that right.

    **When loss feedback helps.** ``lambda2`` is 0 unless asked for. At rest a class whose loss lies one
    standard deviation above the average is drawn about ``lambda2 / lambda1`` more often than its target.
    That helps where the hard classes are hard for lack of examples. It harms where they are hard because
    their labels are noisy, and published results are mixed: try 0.1 to 0.5, and compare with 0.

    Args:
        num_classes: Number of classes ``K``, at least 1.
        target_probs: Class mix ``q`` that batches are steered to: ``"uniform"`` (or None), ``"prior"``,
            ``"sqrt"``, a vector of ``K`` probabilities, or a mapping from class to probability (the other
            classes share the rest); or a :class:`~lightning_fair.schedules.Shift` from one to another. A class with
            target 0 is never drawn. Where the target moves, the trained mix moves with it in proportion: no class is
            behind for having been drawn as the target was at the time.
        alpha: Gain, no unit, at least 0, or a schedule of it. 0 draws from the target and ignores feedback.
        lambda1: Weight of the deficit, at least 0.
        lambda2: Weight of the standardised loss, at least 0.
        min_prob: Floor under every class's probability, in ``[0, 1/K)``. It bounds the importance weights
            by ``q / min_prob``, and holds exactly.
        horizon: Memory of ``r`` in batches, at least 1. Default: 16, or more (up to 10,000) where classes are so
            many or so rare in the target that one would be expected fewer than 24 times in 16 batches of 64.
        loss_ema_decay: Memory of the class losses, in ``[0, 1)``: ``l <- beta * l + (1 - beta) * mean loss``.
        deficit: ``"relative"``, the law above; or ``"count"``, for comparison only: the published law as it
            stands, ``p = softmax(alpha * (lambda1 * (q * t - n) + lambda2 * l))`` with ``n`` of ``t``
            samples so far in the class and the raw loss ``l``. One sample of lag is then a logit of
            ``alpha``: measured with K = 2, batch 256 and alpha 8, every batch is (almost) one class only,
            and weights reach 500,000. It cannot be made stable, so its gain is not checked.
        class_counts: Samples of each class in the data, shape ``(K,)``; needed by ``"prior"``/``"sqrt"``.
        feedback_delay: Batches ``d``: feedback on draw ``s`` takes effect at draw ``s + d``, at least 1. With a lag of
            at least the loader's lead plus one the batches are the same whatever the number of workers.

    Attributes:
        draws: Batches drawn so far.

    Raises:
        ValueError: If an argument is out of range, or ``alpha * lambda1 >= 2 * horizon - 1``, beyond which
            the loop is unstable (with loss feedback, ``alpha * (lambda1 + z * lambda2)`` with the largest ``z``
            there can be, at most 10/3: classes that are drawn more have more gain); the message names the
            largest stable alpha.
        TypeError: If ``alpha`` is neither a number nor a schedule.

    Example:
        >>> controller = FeedbackController(num_classes=2, alpha=8.0)
        >>> controller.get_probs()
        array([0.5, 0.5])
        >>> controller.step_update([0, 0, 0, 1])  # class 1 fell behind, so it becomes likelier
        >>> controller.get_probs().round(2)
        array([0.38, 0.62])
    """

    _gained: tuple[float, Floats, Floats]  # an alpha, and what follows from it for the logits

    def __init__(
        self,
        num_classes: int,
        target_probs: Target | Shift = None,
        alpha: float | Schedule = 8.0,
        lambda1: float = 1.0,
        lambda2: float = 0.0,
        min_prob: float = 1e-6,
        horizon: float | None = None,
        loss_ema_decay: float = 0.9,
        *,
        deficit: Deficit = "relative",
        class_counts: ArrayLike | None = None,
        feedback_delay: int = 1,
    ) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
            raise ValueError(f"num_classes must be an integer of at least 1, got {num_classes!r}.")
        self.num_classes = K = int(num_classes)
        self.alpha = as_schedule(alpha)
        self.lambda1 = _at_least_zero("lambda1", lambda1)
        self.lambda2 = _at_least_zero("lambda2", lambda2)
        _at_least_zero("alpha", self.alpha.trough)
        if not 0.0 <= min_prob < 1.0 / K:
            raise ValueError(f"min_prob must lie in [0, 1/K), got {min_prob} for K = {K} (1/K = {1 / K:.6g}).")
        if not 0.0 <= loss_ema_decay < 1.0:
            raise ValueError(f"loss_ema_decay must lie in [0, 1), got {loss_ema_decay}.")
        if deficit not in ("relative", "count"):
            raise ValueError(f"deficit must be 'relative' or 'count', got {deficit!r}.")
        if isinstance(feedback_delay, bool) or not isinstance(feedback_delay, (int, np.integer)) or feedback_delay < 1:
            raise ValueError(f"feedback_delay must be an integer of at least 1 batch, got {feedback_delay!r}.")
        self.min_prob = float(min_prob)
        self.loss_ema_decay = float(loss_ema_decay)
        self.deficit: Deficit = deficit
        self.feedback_delay = int(feedback_delay)
        self._shift = target_probs if isinstance(target_probs, Shift) else None
        self._ends = [resolve_target(end, K, class_counts) for end in target_endpoints(target_probs)]
        self._begin()
        if horizon is None:
            rarest = max(self._rarest(), 1e-12)
            wanted = math.ceil(_EXPECTED / (_NOMINAL_BATCH * rarest))
            horizon = min(max(wanted, _SHORTEST_HORIZON), _LONGEST_HORIZON)
        if not (math.isfinite(horizon) and horizon >= 1):
            raise ValueError(f"horizon must be at least 1 batch, got {horizon}.")
        self.horizon = float(horizon)
        if deficit == "relative":
            self._check_gain()
        self.epoch = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything seen and drawn; the settings stay."""
        K = self.num_classes
        self.draws = 0
        self._begin()
        # The trained mix starts at the target, so the first batch is drawn from the target.
        self._trained_mix: Floats = self._q.copy()
        self._behind: Floats = np.zeros(K)  # deficit="count": q * t - n, in samples
        self._ewma_loss: Floats = np.zeros(K)
        self._loss_seen: NDArray[np.bool_] = np.zeros(K, dtype=bool)
        room = _IN_FLIGHT_BYTES // (4 * 8 * K)
        self._in_flight: deque[Draw] = deque(maxlen=min(max(room, _LEAST_IN_FLIGHT), _MOST_IN_FLIGHT))
        self._feedback: deque[_Feedback] = deque()
        self._emphasis: Floats = np.zeros(K)  # e
        self._z: Floats = np.zeros(K)
        self._warned = False

    # -- what can be read ------------------------------------------------------------------------------

    @property
    def q(self) -> Floats:
        """Target class mix, read-only float64 array of shape ``(K,)``; of one that moves, that of the newest draw."""
        return self._q

    @property
    def progress(self) -> float:
        """How far the target has moved at the newest draw, in [0, 1]; 0 for one that stays."""
        return self._progress

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Whether the target has, or comes to have, something of each class, shape ``(K,)``."""
        return (self._ends[0] > 0) | (self._ends[1] > 0)

    def target_at(self, progress: float) -> Floats:
        """Return the target that has moved so far, shape ``(K,)``: of a draw, ``target_at(draw.progress)``."""
        return self._q if progress == self._progress else self._mixed(progress)

    @property
    def trained_mix(self) -> Floats:
        """Trained mix ``r``: exponentially weighted class mix of what was trained on or is in flight."""
        return self._trained_mix

    @property
    def deficits(self) -> Floats:
        """Relative deficit ``1 - r / q`` of each class, at most 1; 0 for a class with target 0."""
        return np.where(self._active, 1.0 - self._trained_mix / self._q_or_one, 0.0)

    @property
    def ema_loss(self) -> Floats:
        """Exponentially weighted mean loss of each class; NaN for a class without a finite loss so far."""
        return np.where(self._loss_seen, self._ewma_loss, np.nan)

    @property
    def loss_score(self) -> Floats:
        """The ``e`` of the law, smoothed standardised loss of each class, shape ``(K,)``; a follower may set it."""
        return self._emphasis

    @loss_score.setter
    def loss_score(self, loss_score: Floats) -> None:
        self._emphasis = loss_score

    @property
    def in_flight(self) -> tuple[Draw, ...]:
        """The draws that have not been trained on yet, oldest first."""
        return tuple(self._in_flight)

    @property
    def by_epoch(self) -> bool:
        """Whether draws depend on the epoch."""
        return self.alpha.by_epoch or (self._shift is not None and self._shift.progress.by_epoch)

    @property
    def oldest(self) -> Draw | None:
        """The oldest draw in flight; None where nothing is."""
        return self._in_flight[0] if self._in_flight else None

    def newest_first(self) -> Iterator[Draw]:
        """Iterate over the draws in flight, newest first."""
        return reversed(self._in_flight)

    def get_probs(self) -> Floats:
        """Return the class mix of the batch at hand, shape ``(K,)``, float64, summing to one.

        Between a draw and its ``step_update`` that is exactly the ``p`` of that draw (of the oldest one,
        where a loader runs ahead). With nothing in flight it is the ``p`` of the next draw.
        """
        probs: Floats = (self._in_flight[0].probs if self._in_flight else self.next_probs()).copy()
        return probs

    def get_target(self) -> Floats:
        """Return the target of the batch at hand, shape ``(K,)``: ``q``, unless that moves and a loader runs ahead."""
        return self.target_at(self._in_flight[0].progress) if self._in_flight else self._q

    # -- the plain loop --------------------------------------------------------------------------------

    def step_update(self, labels: ArrayLike, losses: ArrayLike | None = None) -> None:
        """Report the batch at hand: the samples that were trained on and, if you like, their losses.

        Call it once for every batch, in order; for a batch that was skipped with ``labels=[]``.

        Args:
            labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``.
            losses: Unweighted loss of each sample, shape ``(batch,)``. Losses that are NaN or infinite are
                left out, with one warning.

        Raises:
            ValueError: If the labels are not integers in ``[0, K)``, or the shapes differ.
        """
        y = check_labels(labels, self.num_classes)
        if losses is None:
            self.report(np.bincount(y, minlength=self.num_classes))
            return
        values = np.asarray(to_numpy(losses), dtype=np.float64)
        if values.shape != y.shape:
            raise ValueError(
                f"losses must have one value per label, shape {y.shape}, got shape {values.shape}. "
                'Compute them with reduction="none".'
            )
        finite = np.isfinite(values)
        self.report(
            np.bincount(y, minlength=self.num_classes),
            np.bincount(y[finite], weights=values[finite], minlength=self.num_classes),
            np.bincount(y[finite], minlength=self.num_classes),
        )

    # -- draws: the sampler's side ---------------------------------------------------------------------

    def next_probs(self, there: NDArray[np.bool_] | None = None) -> Floats:
        """Return the class mix ``p`` for the next draw, shape ``(K,)``.

        Args:
            there: Which classes can be drawn, shape ``(K,)``; the others have none of it. None: all that have a
                target. At least one of these has to be.
        """
        self._apply_feedback()
        if self._shift is not None:
            self._move_target(self._shift.progress(self.draws, self.epoch))
        alpha = self.alpha(self.draws, self.epoch)
        if self.deficit == "count":
            logits = alpha * (self.lambda1 * self._behind + self.lambda2 * self._ewma_loss)
            logits[~self._active] = -np.inf
        else:
            if alpha != self._gained[0]:
                gain = alpha * self.lambda1
                self._gained = (alpha, -gain / np.maximum(self._q_or_one, _LEAST_Q), self._log_q + gain)
            _, slope, level = self._gained
            logits = self._trained_mix * slope
            logits += level
            if self.lambda2:
                logits += (alpha * self.lambda2) * self._emphasis
        if there is not None:
            logits[~there] = -np.inf
        if self._may_overflow or there is not None:
            logits -= np.maximum.reduce(logits)
        shares = np.exp(logits, out=logits)
        if there is None:
            return apply_floor(shares, self._floor, self._room)
        return apply_floor(shares, np.where(there, self._floor, 0.0))

    def record_draw(self, draw: Draw) -> None:
        """Count a new draw as in flight: its samples enter the trained mix at once."""
        self._follow(draw.counts, draw.split)
        self._in_flight.append(draw)

    def record_draw_again(self, draw: Draw) -> None:
        """Count a draw that is handed out once more as in flight; it is in the trained mix already."""
        self._in_flight.append(draw)

    def withdraw(self, newest: int | None = None) -> list[Draw]:
        """Take draws out of flight without saying what became of them: the newest ones or all, oldest first."""
        if newest is None:
            newest = len(self._in_flight)
        return [self._in_flight.pop() for _ in range(newest)][::-1]

    def rewind(self, draw_id: int, trained_mix: Floats, progress: float = 0.0) -> None:
        """Forget the draws from number ``draw_id`` on, before which these were the trained mix and the target's way."""
        self._aim(progress)
        self.draws, self._trained_mix = draw_id, trained_mix.copy()
        self._in_flight.clear()

    # -- feedback: the callback's side -----------------------------------------------------------------

    def report(
        self,
        counts: NDArray[Any],
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
        *,
        draw: Draw | None = None,
    ) -> None:
        """Report a batch by its sufficient statistics: sums over its samples, and over ranks.

        Args:
            counts: Samples of each class that were trained on, shape ``(K,)``. All zero: a skipped step.
            loss_sums: Sum of the finite losses of each class, shape ``(K,)``.
            loss_counts: Number of finite losses of each class, shape ``(K,)``.
            draw: The draw it belongs to. Default: the oldest in flight; with none in flight, the batch was
                drawn elsewhere and is taken as a draw of its own.
        """
        if draw is None:
            draw = self._in_flight.popleft() if self._in_flight else None
        else:
            self._in_flight.remove(draw)
        if draw is not None and counts is draw.counts and loss_sums is None:
            self._apply_feedback()  # as drawn: there is nothing to put right
            return
        counts = np.asarray(counts)
        total = counts.sum()
        losses = self._mean_losses(counts, loss_sums, loss_counts)
        if draw is None:
            draw_id = self.draws
            self._follow(counts)
            correction = None
        else:
            draw_id = draw.draw_id
            correction = None
            if not np.array_equal(counts, draw.counts):
                # A step without samples leaves the mix as if the batch had never been drawn.
                correction = (counts / total if total else draw.trained_mix) - draw.counts / draw.counts.sum()
                if self.deficit == "count":
                    self._count(counts - draw.counts)
        if correction is not None or losses is not None:
            # By the draw's number: a loader may hand batches out in another order than it draws them.
            insort(self._feedback, _Feedback(draw_id, correction, losses), key=lambda item: item.draw_id)
        self._apply_feedback()

    # -- checkpoints -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors and plain numbers only, so it loads under ``weights_only=True``."""
        return {
            "version": _STATE_VERSION,
            "draws": self.draws,
            "epoch": self.epoch,
            "start": _tensor(self._ends[0]),
            "q": _tensor(self._ends[1]),
            "progress": self._progress,
            "trained_mix": _tensor(self._trained_mix),
            "behind": _tensor(self._behind),
            "ema_loss": _tensor(self._ewma_loss),
            "loss_seen": _tensor(self._loss_seen),
            "emphasis": _tensor(self._emphasis),
            "in_flight": [
                {
                    "draw_id": d.draw_id,
                    "alpha": d.alpha,
                    "progress": d.progress,
                    "probs": _tensor(d.probs),
                    "counts": _tensor(d.counts),
                    "trained_mix": _tensor(d.trained_mix),
                }
                for d in self._in_flight
            ],
            "feedback": [
                {
                    "draw_id": f.draw_id,
                    "correction": None if f.correction is None else _tensor(f.correction),
                    "losses": None if f.losses is None else _tensor(f.losses),
                }
                for f in self._feedback
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that ``state_dict`` returned.

        Raises:
            ValueError: If it comes from another version, number of classes or target. Nothing is changed
                then. The other settings are this controller's, and may differ.
        """
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"This controller reads state version {_STATE_VERSION}, got {state.get('version')!r}. "
                "Resume with the version of lightning-fair that wrote the checkpoint."
            )
        ends = [state["start"].numpy(), state["q"].numpy()]
        if ends[1].size != self.num_classes:
            raise ValueError(
                f"The state is of a controller with {ends[1].size} classes, this one has "
                f"{self.num_classes}. Resume with the data set the checkpoint was made with."
            )
        if not np.allclose(ends, self._ends, rtol=0.0, atol=1e-9):
            theirs, mine = (
                _few(end) if self._shift is None and np.allclose(start, end) else f"{_few(end)} from {_few(start)}"
                for start, end in (ends, self._ends)
            )
            raise ValueError(
                f"The state steers to {theirs}, this controller to {mine}. "
                "Resume with the target_probs the checkpoint was made with, or start anew without it."
            )
        self.draws, self.epoch = int(state["draws"]), int(state["epoch"])
        self._aim(state["progress"])
        self._trained_mix = state["trained_mix"].numpy().copy()
        self._behind = state["behind"].numpy().copy()
        self._ewma_loss = state["ema_loss"].numpy().copy()
        self._loss_seen = state["loss_seen"].numpy().copy()
        self._emphasis = state["emphasis"].numpy().copy()
        self._z = self._standardised_loss() if self.lambda2 else np.zeros(self.num_classes)
        self._in_flight.clear()
        self._in_flight.extend(
            Draw(
                d["draw_id"],
                d["probs"].numpy(),
                d["counts"].numpy(),
                d["trained_mix"].numpy(),
                d["alpha"],
                progress=d["progress"],
            )
            for d in state["in_flight"]
        )
        self._feedback = deque(
            _Feedback(
                f["draw_id"],
                None if f["correction"] is None else f["correction"].numpy(),
                None if f["losses"] is None else f["losses"].numpy(),
            )
            for f in state["feedback"]
        )

    # -- target ----------------------------------------------------------------------------------------

    def skip_classes(self, missing: NDArray[np.bool_]) -> None:
        """Set the target of the ``missing`` classes to zero, share theirs out in proportion, and start anew.

        Raises:
            ValueError: If no class with a target is left.
        """
        kept = [np.where(missing, 0.0, end) for end in self._ends]
        if not all(end.any() for end in kept):
            raise ValueError("Every class with a target lacks samples: there is nothing to draw.")
        self._ends = [end / end.sum() for end in kept]
        self.reset()

    def _mixed(self, progress: float) -> Floats:
        start, end = self._ends
        return (1.0 - progress) * start + progress * end

    def _begin(self) -> None:
        """Aim at the target of the first draw."""
        self._aim(self._shift.progress(0, 0) if self._shift else 0.0)

    def _rarest(self) -> float:
        """The least share that the target, or what it moves between, has of a class it wants."""
        return min(float(end[end > 0].min()) for end in self._ends)

    def _move_target(self, progress: float) -> None:
        if progress == self._progress:
            return
        before, was = self._q, self._active
        self._aim(progress)
        moved = np.where(was, self._trained_mix * self._q / np.where(was, before, 1.0), self._q)
        self._trained_mix = moved / moved.sum()

    def _aim(self, progress: float) -> None:
        q = self._mixed(progress) if self._shift else self._ends[0]
        self._progress = progress
        self._q = q
        self._q.setflags(write=False)
        self._active: NDArray[np.bool_] = q > 0
        self._q_or_one: Floats = np.where(self._active, q, 1.0)
        self._floor: Floats = np.where(self._active, self.min_prob, 0.0)
        self._room = 1.0 - float(np.add.reduce(self._floor))
        with np.errstate(divide="ignore"):
            self._log_q: Floats = np.log(q)
        # Some class has r <= q, so the largest logit is hardly below its log q, and no deficit is above 1.
        largest = self.alpha.peak * (self.lambda1 + (_LARGEST_Z + 1.0 / _LARGEST_Z) * self.lambda2)
        self._may_overflow = self.deficit == "count" or largest > _LARGEST_LOGIT
        self._gained = (math.nan, q, q)

    def _check_gain(self) -> None:
        # Around the mix p the loop's gain is alpha * lambda1 * max(p / q), and at rest p / q is at most
        # 1 + lambda2 / lambda1 * (the largest z there can be).
        rarest = self._rarest()
        largest = min(_LARGEST_Z + 1.0 / _LARGEST_Z, math.sqrt((1.0 - rarest) / rarest))
        weight = self.lambda1 and self.lambda1 + largest * self.lambda2
        name = f"(lambda1 + {largest:.3g} * lambda2)" if self.lambda2 else "lambda1"
        gain, limit = self.alpha.peak * weight, 2.0 * self.horizon - 1.0
        if gain >= limit:
            raise ValueError(
                f"alpha * {name} must be below 2 * horizon - 1 = {limit:g}, or the class mix oscillates; "
                f"got {self.alpha.peak:g} * {weight:g} = {gain:g}. The largest stable alpha is just below "
                f"{limit / weight:g} (no overshoot up to {(self.horizon - 1) / weight:g}); "
                f"or set horizon above {(gain + 1) / 2:g} batches."
            )

    # -- the state's own arithmetic --------------------------------------------------------------------

    def _follow(self, counts: NDArray[Any], split: ClassCounts | None = None) -> None:
        """Let one more batch enter the trained mix. A new array each time: draws keep the old ones."""
        few = split if split is not None and split.classes.size < counts.size else None
        total = np.add.reduce(few.counts if few else counts)
        if total:
            rate = 1.0 / self.horizon
            self._trained_mix = (1.0 - rate) * self._trained_mix
            if few:
                self._trained_mix[few.classes] += few.counts * (rate / total)
            else:
                self._trained_mix += counts * (rate / total)
            if self.lambda2:
                self._emphasis = (1.0 - rate) * self._emphasis + rate * self._z
            if self.deficit == "count":
                self._count(counts)
        self.draws += 1

    def _count(self, counts: NDArray[Any]) -> None:
        self._behind = self._behind + (self._q * counts.sum() - counts)

    def _apply_feedback(self) -> None:
        while self._feedback and self._feedback[0].draw_id + self.feedback_delay <= self.draws:
            item = self._feedback.popleft()
            if item.correction is not None:
                # The mix is linear in its batches: what the batch still weighs in it can be put right.
                rate = 1.0 / self.horizon
                weight = rate * (1.0 - rate) ** (self.draws - 1 - item.draw_id)
                self._trained_mix = self._trained_mix + weight * item.correction
            if item.losses is not None:
                self._follow_losses(item.losses)

    def _follow_losses(self, losses: Floats) -> None:
        seen = ~np.isnan(losses)
        beta = self.loss_ema_decay
        followed = beta * self._ewma_loss + (1.0 - beta) * losses
        first = seen & ~self._loss_seen
        self._ewma_loss = np.where(first, losses, np.where(seen, followed, self._ewma_loss))
        self._loss_seen = self._loss_seen | seen
        if self.lambda2:
            self._z = self._standardised_loss()

    def _mean_losses(
        self, counts: NDArray[Any], sums: NDArray[Any] | None, finite: NDArray[Any] | None
    ) -> Floats | None:
        if sums is None or finite is None:
            return None
        usable = (finite > 0) & np.isfinite(sums)
        if not self._warned and (finite.sum() < counts.sum() or (usable != (finite > 0)).any()):
            self._warned = True
            warnings.warn(
                "Some losses are NaN or infinite. They are left out of the loss feedback; "
                "the training step itself still has them.",
                stacklevel=3,
            )
        if not usable.any():
            return None
        means: Floats = np.divide(sums, finite, out=np.full(self.num_classes, np.nan), where=usable)
        return means

    def _standardised_loss(self) -> Floats:
        seen = self._loss_seen & self._active
        z = np.zeros(self.num_classes)
        if seen.sum() < 2:
            return z
        losses, share = self._ewma_loss[seen], self._q[seen] / self._q[seen].sum()
        losses = losses / (np.abs(losses).max() or 1.0)  # z has no unit: this keeps the squares in range
        losses = losses - share @ losses
        spread = math.sqrt(share @ losses**2)
        if spread > 1e-12:
            z[seen] = np.clip(losses / spread, -_LARGEST_Z, _LARGEST_Z)
        return z


def target_endpoints(target: Target | Shift) -> tuple[Target, Target]:
    """Return what a target moves from and to: twice the same for one that stays."""
    return (target.start, target.end) if isinstance(target, Shift) else (target, target)


def _few(mix: Floats) -> str:
    return np.array2string(mix, precision=4, threshold=10)


def _at_least_zero(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and at least 0, got {value}.")
    return float(value)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.copy())
