"""The controller: the state of the control law, and the order in which draws and reports change it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_fair.common.arrays import Floats
from lightning_fair.common.checks import check, check_names, check_number_of_names
from lightning_fair.common.class_mix import check_shares
from lightning_fair.common.label_sets import LabelSets, label_rows, numbers_as_names
from lightning_fair.common.label_values import check_label_sets, check_labels
from lightning_fair.control import law
from lightning_fair.control.draw import Draw, Report
from lightning_fair.control.label_draws import label_prior, reached_classes
from lightning_fair.control.objective import Feedback, FeedbackTo, Objective, validation_scores
from lightning_fair.control.reports import ReportQueue
from lightning_fair.control.steers_target import SteersTarget
from lightning_fair.control.target import MovingTarget
from lightning_fair.control.target_values import Target
from lightning_fair.schedules import Schedule, Shift, as_schedule


class FeedbackController(SteersTarget):
    r"""Steers the class mix of the batches to a target by negative feedback.

    The law, with ``r`` the exponentially weighted class mix of the batches trained on (``control/law.py`` has each
    formula as a function)::

        deficit_i = 1 - r_i / q_i
        f_i       = max(min_prob, q_i / max_weight)
        p         = (1 - sum(f)) * softmax(log q + alpha * (lambda1 * deficit + lambda2 * e)) + f
        r        <- (1 - 1/horizon) * r + (1/horizon) * counts / sum(counts)     after each batch
        e        <- (1 - 1/horizon) * e + (1/horizon) * z

    ``z`` is the exponentially weighted mean loss of each class, standardized under ``q`` and clipped at 3. ``e`` moves
    as slowly as ``r``, so ``p / q`` answers a change of ``z`` by about ``lambda2 * z``.

    Because ``p >= q / max_weight``, no weight ``q / p`` exceeds ``max_weight``, without clipping and so without bias.
    The deficit is a fraction of a class's target, so ``alpha`` means the same for every number of classes, batch size
    and target: near the target each deficit shrinks by the factor ``1 - (1 + R * alpha * lambda1) / horizon`` per
    batch, with ``R = 1 - sum(f)``, 0.9 by default.

    A batch counts as trained on as soon as it is drawn, because its labels are known, so a loader that draws ahead adds
    no delay to the loop. If the batch turns out different (filtered samples, a skipped step), its report corrects that.

    ``reference`` is the mix that the loss stands for, by weights (:func:`~lightning_fair.importance_weights`) or in the
    logits (:func:`~lightning_fair.logit_adjustment`). Feedback of losses or of a validation acts on the draw, by ``e``,
    or moves the reference; :class:`~lightning_fair.control.objective.Objective` has the formulas.

    Args:
        num_classes: Number of classes ``K``, at least 1.
        target_probs: Class mix ``q`` that batches are steered to: ``"uniform"`` (or None); ``"prior"``, the data's
            class mix; ``"sqrt"``, between the two; a vector of ``K`` probabilities; a mapping from class to probability
            (others share what is left, if any); or a :class:`~lightning_fair.schedules.Shift` from one
            to another. A class with target 0 is never drawn. If the target changes, the trained mix is rescaled with
            it, so earlier draws do not count as a deficit.
        alpha: Gain, no unit, at least 0, or a schedule of it. 0 draws from the target and ignores feedback.
        lambda1: Weight of the deficit, at least 0.
        lambda2: Weight of the losses, at least 0: of ``e`` in the draw, or of ``z`` in the objective. 0 ignores them.
        max_weight: Largest weight ``W``, at least 1; ``math.inf`` for no bound. 1 turns the feedback off.
        horizon: Memory of ``r`` and ``e`` in batches, at least 1. Default: ``100 / (batch_size * min q)``, the batches
            with 100 expected samples of the rarest class, from 16 to 10,000; it follows a target that moves. For data
            that drift, set a shorter one: after the reversal of a long tail of 10 classes (batches of 32) the mix is
            back within 2 % after about 40 batches with the default, and after 20 with ``horizon=16``.
        loss_ema_decay: Memory of the class losses, in ``[0, 1)``: ``l <- decay * l + (1 - decay) * mean loss``.
        min_prob: Floor of every class's probability, in ``[0, 1/K)``, in addition to that of ``max_weight``.
        reference: Class mix that the loss stands for: ``"target"``, that of the draw; or a mix as for ``target_probs``.
        feedback: ``"train"``, losses in ``report``; or ``"validation"``, scores in ``report_validation``.
        feedback_to: ``"draw"`` or ``"objective"``.
        feedback_gain: Gain of validation scores in the objective, at least 0.
        class_counts: Samples of each class in the data, shape ``(K,)``; needed by ``"prior"`` and ``"sqrt"``.
        label_sets: The labels of the data in any form, if samples have several (see
            :func:`~lightning_fair.common.label_values.number_labels`). ``q`` and ``r`` are then mixes of labels, and
            the logits have the class mix of draws that bring ``q`` in the place of ``q``; if no draws bring the target,
            ``q`` is the nearest mix (see :class:`~lightning_fair.control.label_draws.RestingDraw`), and a warning says
            so.
        class_names: Names of the classes, for that warning.
        batch_size: Samples of a batch over all ranks, for the default horizon; a sampler sets it.
        feedback_delay: Batches ``d``, at least 1: feedback on draw ``s`` takes effect at draw ``s + d``. If ``d`` is
            larger than the number of batches that the loader draws ahead, the batches do not depend on that number.

    Attributes:
        draws: Number of batches drawn so far, without those that have been withdrawn.
        made: The same with those; no report takes effect before this draw.
        epoch: Number of the epoch, from 0, for schedules by epoch.
        trained_mix: Trained mix ``r``, which counts the batches in flight as trained on, shape ``(K,)``.
        ema_loss: Exponentially weighted mean loss of each class, shape ``(K,)``; NaN for a class without a loss so far.
        loss_score: Loss score ``e`` of each class, shape ``(K,)``.
        objective: The reference, and what feedback has made of it.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range; the floors sum to more than one; a class with target 0 has a share
            of the reference; or the loop is unstable: ``alpha * lambda1 >= 2 * horizon - 1``, or with losses fed back
            to the draw ``alpha * (lambda1 + z * lambda2)``, with the largest possible ``z``, at most 10/3.

    Example:
        >>> controller = FeedbackController(num_classes=2, alpha=8.0)
        >>> controller.get_probs()
        array([0.5, 0.5])
        >>> controller.step_update([0, 0, 0, 1])  # class 1 is behind now, so it becomes likelier
        >>> controller.get_probs().round(2)
        array([0.39, 0.61])
    """

    def __init__(
        self,
        num_classes: int,
        target_probs: Target | Shift = None,
        alpha: float | Schedule = 8.0,
        lambda1: float = 1.0,
        lambda2: float = 0.0,
        max_weight: float = 10.0,
        horizon: float | None = None,
        loss_ema_decay: float = 0.9,
        *,
        min_prob: float = 0.0,
        reference: Target = "target",
        feedback: Feedback = "train",
        feedback_to: FeedbackTo = "draw",
        feedback_gain: float = 3.0,
        class_counts: ArrayLike | None = None,
        label_sets: Any = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 64,
        feedback_delay: int = 1,
    ) -> None:
        self.num_classes = K = check("num_classes", num_classes)
        self.alpha = as_schedule(alpha)
        self.lambda1: float = check("lambda1", lambda1)
        self.lambda2: float = check("lambda2", lambda2)
        self.loss_ema_decay: float = check("loss_ema_decay", loss_ema_decay)
        self.feedback_delay: int = check("feedback_delay", feedback_delay)
        self._horizon: float | None = check("horizon", horizon, optional=True)
        if label_sets is not None:
            label_sets = check_label_sets(label_sets, K)
            if class_counts is not None:
                raise ValueError("class_counts follow from label_sets. Leave class_counts out.")
            class_counts, shares = label_sets.counts, label_prior(label_sets)
        class_counts = None if class_counts is None else check_shares(class_counts, K, "class_counts")
        names = numbers_as_names(K, label_sets) if class_names is None else check_names("class_names", class_names)
        check_number_of_names(names, K)
        self.label_kind: LabelSets | None = None if label_sets is None else label_sets.take([])  # without samples
        self.label_counts = None if label_sets is None else label_sets.counts
        cooccurrence = None if label_sets is None else label_sets.cooccurrence()
        self._target = MovingTarget(target_probs, K, class_counts, max_weight, min_prob, cooccurrence)
        self.max_weight, self.min_prob = self._target.max_weight, self._target.min_prob
        self.objective = Objective(
            reference,
            K,
            class_counts if label_sets is None else shares,
            feedback=feedback,
            feedback_to=feedback_to,
            gain=feedback_gain,
            lambda2=self.lambda2,
        )
        drawn = (self._target.start > 0) & (self._target.end > 0)
        if label_sets is not None:
            drawn = reached_classes(label_sets, drawn)
        elif class_counts is not None:  # classes without samples are the sampler's to skip
            drawn |= class_counts == 0
        self.objective.check(drawn, of_sets=label_sets is not None)
        if message := self.describe_unreachable(names):
            warnings.warn(message, stacklevel=2)
        self.epoch = 0
        self.bind_batch(batch_size)
        self.reset()

    def bind_batch(self, batch_size: int, steps_per_epoch: int | None = None) -> None:
        """Set the samples of a batch over all ranks, which the default horizon depends on, and check the gain for it.

        Raises:
            ValueError: If the loop is unstable.
        """
        self.batch_size: int = check("batch_size", batch_size)
        steps_per_epoch = check("steps_per_epoch", steps_per_epoch, optional=True)
        # The largest target on the way has the shortest horizon, and so the smallest stable gain.
        smallest, largest = self._target.smallest_range
        horizon = law.default_horizon(largest, self.batch_size) if self._horizon is None else self._horizon
        law.check_gain(max(self.alpha.extremes), self.lambda1, self._draw_lambda2, horizon, smallest)
        if self._draw_lambda2 and steps_per_epoch is not None and horizon > steps_per_epoch:
            warnings.warn(
                f"Feedback moves the draw over a horizon of {horizon:g} batches, longer than an epoch of "
                f"{steps_per_epoch}, so it will act slowly. Set a shorter horizon, or feedback_to='objective', which "
                "does not depend on it.",
                stacklevel=4,
            )

    def reset(self) -> None:
        """Forget every draw and every report; the settings stay."""
        self.draws = self.made = 0
        self._target.reset()
        self.trained_mix: Floats = self._target.q.copy()  # so the first batch is drawn from the target
        self.ema_loss: Floats = np.full(self.num_classes, np.nan)
        self.loss_score: Floats = np.zeros(self.num_classes)
        self.objective.reset()
        self.start_anew(self.num_classes)
        self._reports = ReportQueue()
        self._moment = self.moment

    @property
    def horizon(self) -> float:
        """Memory of the trained mix in batches; the default one follows the batch size and the target of the draw."""
        target = self._target
        return law.default_horizon(target.smallest, self.batch_size) if self._horizon is None else self._horizon

    @property
    def feeds_train_losses(self) -> bool:
        """Whether training losses are fed back."""
        return self.lambda2 > 0 and self.objective.feedback == "train"

    @property
    def reference(self) -> Floats:
        """Mix that the loss of the next draw stands for, shape ``(K,)``."""
        return self.objective.mix(self._target.rest)

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Whether each class has a target, at the start or the end, or a share of the reference, shape ``(K,)``."""
        base = self.objective.base
        return self._target.wanted if base is None else self._target.wanted | (base > 0)

    def target_at(self, progress: float) -> Floats:
        """Return the target at this progress, shape ``(K,)``. The target of a draw is ``target_at(draw.progress)``."""
        return self._target.mix_at(check("progress", progress))

    def rest_at(self, progress: float) -> Floats:
        """Return the class mix of draws without a deficit; that of the target, unless samples have several labels."""
        return self._target.rest_at(check("progress", progress))

    @property
    def deficits(self) -> Floats:
        """Relative deficit ``1 - r / q`` of each class, at most 1; 0 for a class with target 0."""
        return law.relative_deficit(self.trained_mix, self.q, self._target.inverse_q)

    def get_probs(self) -> Floats:
        """Return the class mix of the current batch, shape ``(K,)``, float64, summing to one.

        If draws are in flight, this is exactly the ``p`` of the oldest one; otherwise the ``p`` of the next draw.
        """
        return np.array(self.oldest.probs if self.oldest else self.next_probs())

    def get_reference(self) -> Floats:
        """Return the mix that the loss of the current batch stands for, of the draw whose ``p`` is ``get_probs()``."""
        return self.oldest.reference if self.oldest else self.reference

    def plan_draw(self) -> Draw:
        """Return the record of the next draw, still without samples."""
        probs, none = self.next_probs(), np.zeros(0, np.int64)
        return Draw(self.draws, probs, none, self.trained_mix, self.gain, self.reference, progress=self.progress)

    @property
    def gain(self) -> float:
        """The gain ``alpha`` of the next draw."""
        return self.alpha.value_at(self.draws, self.epoch, "alpha")

    def next_probs(self, available: NDArray[np.bool_] | None = None) -> Floats:
        """Return the class mix ``p`` of the next draw, shape ``(K,)``.

        Reports that are due take effect first, and a moving target moves. Calling it again changes nothing.

        Args:
            available: Whether each class can be drawn, shape ``(K,)``; the others get probability 0. At least one class
                with a target has to be available. None: all are.
        """
        self._apply_reports()
        target = self._target
        progress = target.progress_at(self.draws, self.epoch)
        if progress != target.progress:
            old_q = target.q
            target.move_to(progress)
            self.trained_mix = law.rescale_mix(self.trained_mix, old_q, target.q)
        logits = self._logits(self.gain)
        if available is None:
            return law.softmax_with_floor(logits, target.floor)
        return law.softmax_with_floor(np.where(available, logits, -np.inf), np.where(available, target.floor, 0.0))

    def record_draw(self, draw: Draw, *, redrawn: bool = False) -> None:
        """Count a draw as in flight. Its samples enter the trained mix, unless it is redrawn after it was withdrawn."""
        if not redrawn:
            draw.before = self._moment
            self._enter_trained_mix(draw.counts)
        self._put_in_flight(draw)

    def step_update(self, labels: ArrayLike, losses: ArrayLike | None = None) -> None:
        """Report the current batch. Call it once for every batch, in order; for a skipped one with ``labels=[]``.

        Args:
            labels: Class of each sample, integers in ``[0, K)``, shape ``(batch,)``. If samples have several labels,
                whether each has each label, zeros and ones, shape ``(batch, K)``, or without the last class if that is
                the one of samples without a label.
            losses: Unweighted loss of each sample, shape ``(batch,)``; with several labels also of each sample and
                label, shape ``(batch, K)``. Those that are not finite are left out.

        Raises:
            ValueError: If the labels are not integers in ``[0, K)``, or the shapes differ.
        """
        if self.label_kind is not None:
            self.report(*law.label_statistics(label_rows(labels, self.label_kind), losses))
            return
        self.report(*law.batch_statistics(check_labels(labels, self.num_classes), losses, self.num_classes))

    def report(
        self,
        counts: NDArray[Any],
        loss_sums: NDArray[Any] | None = None,
        loss_counts: NDArray[Any] | None = None,
        *,
        draw: Draw | None = None,
    ) -> None:
        """Report a batch by its sufficient statistics: sums over its samples and ranks.

        Args:
            counts: Samples of each class that were trained on, shape ``(K,)``. All zero: a skipped step.
            loss_sums: Sum of the finite losses of each class, shape ``(K,)``.
            loss_counts: Number of finite losses of each class, shape ``(K,)``.
            draw: The draw. Default: the oldest in flight; if none is in flight, the batch counts as one of its own.
        """
        if draw is None:
            counts, draw = check_shares(counts, self.num_classes, "counts"), self.oldest
            self._reports.check_all_ranks(draw, counts)
        if draw:
            self._land(draw)
        number = draw.draw_id if draw else self.draws
        if draw is None:
            self._enter_trained_mix(np.asarray(counts))
        self._reports.add_batch(draw, number, self._due(number), counts, loss_sums, loss_counts)
        self._apply_reports()
        self._reports.forget(self._base.draws)

    def report_validation(
        self, values: ArrayLike, counts: ArrayLike | None = None, *, higher_is_better: bool = True
    ) -> None:
        """Report a validation. It takes effect ``feedback_delay`` draws after the newest draw that was reported.

        A class takes no part if its value is NaN, it has no validation sample, or the loss does not stand for it.

        Args:
            values: Recall or another rate in [0, 1], or a loss of at least 0, of each class, shape ``(K,)``.
            counts: Validation samples of each class, at least 0, shape ``(K,)``. None: all have some.
            higher_is_better: Whether the values are rates, else losses.

        Raises:
            ValueError: If a shape or a value is wrong.
            RuntimeError: If the controller follows training losses.
        """
        if self.objective.feedback != "validation":
            raise RuntimeError(
                "This controller follows training losses, so a validation would have no effect. Make it with "
                "feedback='validation'."
            )
        is_rate = check("higher_is_better", higher_is_better)
        # The target is that of the newest reported draw, however far the loader is ahead.
        takes_part = self.objective.mix(self.target_at(self._base.progress)) > 0
        scores = validation_scores(values, counts, takes_part, higher_is_better=is_rate)
        newest = max(self._reports.newest, 0)
        self._reports.add(Report(newest, self._due(newest), scores=scores))
        self._apply_reports()

    def skip_classes(self, skipped: NDArray[np.bool_]) -> None:
        """Set the target of the ``skipped`` classes to zero, share it out over the others in proportion, and reset.

        Raises:
            ValueError: If no class with a target is left.
        """
        self._target.skip_classes(skipped)
        self.objective.skip_classes(skipped)
        self.bind_batch(self.batch_size)
        self.reset()

    def _logits(self, alpha: float) -> Floats:
        """Return the logits of the next draw before the floor, a new array; override it for another law."""
        weights = self.lambda1, self._draw_lambda2
        return law.draw_logits(self._target.log_rest, self.deficits, self.loss_score, alpha, *weights)

    @property
    def _draw_lambda2(self) -> float:
        return self.lambda2 if self.objective.feedback_to == "draw" else 0.0

    @property
    def _z(self) -> Floats:
        """Standardized losses of the training, or of the newest validation, shape ``(K,)``."""
        is_trained = self.objective.feedback == "train"
        return law.standardize_losses(self.ema_loss if is_trained else -self.objective.scores, self.q)

    def _enter_trained_mix(self, counts: NDArray[Any]) -> None:
        total = np.add.reduce(counts)
        if total:
            # A new array each time: draws keep the old ones.
            self.trained_mix = law.moving_average(self.trained_mix, counts / total, self.horizon)
            if self._draw_lambda2:
                self.loss_score = law.moving_average(self.loss_score, self._z, self.horizon)
        self.draws += 1
        self.made, self._moment = max(self.made, self.draws), self.moment

    def _due(self, number: int) -> int:
        """Return the draw before which feedback on draw ``number`` takes effect: none that has been made already."""
        return max(number + self.feedback_delay, self.made)

    def _apply_reports(self) -> None:
        objective = self.objective
        for report in self._reports.take_due(self.draws):
            if report.correction is not None:
                batches_since = self.draws - 1 - report.draw_id
                self.trained_mix = law.correct_mix(self.trained_mix, report.correction, batches_since, self.horizon)
            if report.losses is not None:
                self.ema_loss = law.update_losses(self.ema_loss, report.losses, self.loss_ema_decay)
                if objective.is_moved_by_losses:
                    objective.follow_losses(self._z)
            if report.scores is not None and objective.feedback == "validation":
                objective.follow_scores(report.scores)
